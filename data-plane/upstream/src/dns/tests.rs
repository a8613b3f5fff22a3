use culvert_model::cluster::Discovery;
use parking_lot::Mutex;
use tokio::runtime::Handle;

use super::*;
use crate::clusters::Clusters;
use crate::fixture::{cluster, dns, names};

/// Answers that a test changes, and how often each name was asked for.
#[derive(Default)]
struct Server {
    answers: Mutex<std::collections::HashMap<String, Vec<IpAddr>>>,
    ttl: Mutex<Duration>,
    asked: Mutex<Vec<String>>,
}

impl Server {
    fn resolver(self: &Arc<Self>) -> Resolver {
        let server = Arc::clone(self);
        Resolver::scripted(move |name, _| {
            server.asked.lock().push(name.to_owned());
            let answers = server.answers.lock();
            let addresses =
                answers.get(name).cloned().ok_or_else(|| LookupError { reason: "no such name".to_owned() })?;
            Ok(Answer { addresses, ttl: *server.ttl.lock() })
        })
    }

    fn set(&self, name: &str, addresses: &[[u8; 4]]) {
        let addresses = addresses.iter().map(|address| IpAddr::from(*address)).collect();
        self.answers.lock().insert(name.to_owned(), addresses);
    }

    fn asked(&self) -> usize {
        self.asked.lock().len()
    }
}

fn start(discovery: Discovery, server: &Arc<Server>) -> (Arc<Clusters>, Arc<ClusterSlot>) {
    let clusters = Clusters::new(Handle::current(), server.resolver());
    let mut config = cluster("a", &[]);
    config.discovery = discovery;
    clusters.apply(Arc::new(config), None);
    let slot = clusters.slot("a");
    (clusters, slot)
}

fn addresses(slot: &ClusterSlot) -> Vec<String> {
    slot.current().load().hosts.members().iter().map(|member| member.host.address().unwrap().to_string()).collect()
}

#[tokio::test(start_paused = true)]
async fn every_address_of_a_strict_name_is_a_host_and_failures_keep_them() {
    let server = Arc::new(Server::default());
    server.set("one", &[[10, 0, 0, 1], [10, 0, 0, 2]]);
    server.set("two", &[[10, 0, 0, 3]]);
    let (_clusters, slot) = start(Discovery::StrictDns { endpoints: names(&["one", "two"]), dns: dns() }, &server);
    slot.warmed().await;
    assert_eq!(addresses(&slot), ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"], "after the first answers");

    server.answers.lock().clear();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(addresses(&slot).len(), 3, "the name server is away: all hosts stay");
    assert!(slot.updates().read().contains(&("update_success", 2)), "two lookups succeeded: {:?}", slot.updates());

    server.set("one", &[[10, 0, 0, 9]]);
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(addresses(&slot), ["10.0.0.9:80", "10.0.0.3:80"], "the name that answers again has moved");
}

#[tokio::test(start_paused = true)]
async fn a_name_that_never_resolves_warms_its_cluster_empty() {
    let server = Arc::new(Server::default());
    let (_clusters, slot) = start(Discovery::StrictDns { endpoints: names(&["none"]), dns: dns() }, &server);
    slot.warmed().await;
    assert!(addresses(&slot).is_empty(), "no host");
    tokio::time::sleep(Duration::from_secs(300)).await;
    let asked = server.asked();
    assert!((60..600).contains(&asked), "asked {asked} times in 300 s: between every 5 s and twice a second");
}

#[tokio::test(start_paused = true)]
async fn a_logical_name_is_one_host_that_moves() {
    let server = Arc::new(Server::default());
    server.set("one", &[[10, 0, 0, 1], [10, 0, 0, 2]]);
    let (_clusters, slot) = start(Discovery::LogicalDns { endpoints: names(&["one"]), dns: dns() }, &server);
    slot.warmed().await;
    assert_eq!(addresses(&slot), ["10.0.0.1:80"], "the first address");
    let host = Arc::clone(&slot.current().load().hosts.members()[0].host);
    server.set("one", &[[10, 0, 0, 7], [10, 0, 0, 1]]);
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(addresses(&slot), ["10.0.0.7:80"], "the first address of the next answer");
    assert!(Arc::ptr_eq(&host, &slot.current().load().hosts.members()[0].host), "the same host: its connections stay");
}

#[tokio::test(start_paused = true)]
async fn refresh_follows_the_rate_or_the_ttl_and_ends_with_the_cluster() {
    for (respect_ttl, expected) in [(false, 20), (true, 5)] {
        let server = Arc::new(Server::default());
        server.set("one", &[[10, 0, 0, 1]]);
        *server.ttl.lock() = Duration::from_secs(20);
        let options = DnsOptions { respect_ttl, ..dns() };
        let (clusters, slot) = start(Discovery::StrictDns { endpoints: names(&["one"]), dns: options }, &server);
        tokio::time::sleep(Duration::from_millis(99_900)).await;
        assert_eq!(server.asked(), expected, "lookups in 100 s, respect_ttl {respect_ttl}");
        assert_eq!(addresses(&slot).len(), 1, "the host is there");
        clusters.remove("a");
        tokio::time::sleep(Duration::from_secs(100)).await;
        assert_eq!(server.asked(), expected, "no lookups for a cluster that is gone");
    }
}

#[tokio::test]
async fn the_systems_resolver_knows_this_machine() {
    let resolver = Resolver::system();
    for (name, family) in [("localhost", DnsFamily::V4Only), ("127.0.0.1", DnsFamily::Auto)] {
        let answer = resolver.lookup(name, family).await.unwrap();
        assert!(answer.addresses.iter().all(IpAddr::is_loopback), "{name} is {:?}", answer.addresses);
    }
}
