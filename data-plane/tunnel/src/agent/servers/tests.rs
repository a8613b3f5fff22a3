use std::collections::BTreeMap as Map;

use culvert_model::endpoint::{Endpoint, Locality};
use tokio::task::LocalSet;

use super::*;

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn server(text: &str, name: &str) -> Server {
    Server { address: address(text), name: name.into(), place: Place::default() }
}

fn endpoint(target: Address, hostname: &str, health: Health) -> Endpoint {
    Endpoint { address: target, hostname: hostname.into(), weight: 1, health, metadata: Arc::default() }
}

fn assignment(endpoints: Vec<Endpoint>) -> Arc<Endpoints> {
    let locality =
        Locality { region: "".into(), zone: "".into(), sub_zone: "".into(), priority: 0, weight: None, endpoints };
    Arc::new(Endpoints {
        cluster: "servers".into(),
        localities: vec![locality],
        drops: Vec::new(),
        overprovisioning_factor: None,
    })
}

#[test]
fn lists_are_merged_and_an_address_counts_once() {
    let mut merge = Merge::default();
    let merged =
        merge.take(Update { source: 1, servers: vec![server("10.0.0.1:9", "eds"), server("10.0.0.2:9", "eds")] });
    assert_eq!(merged.len(), 2);
    let merged = merge.take(Update {
        source: 0,
        servers: vec![server("10.0.0.1:9", "static"), server("10.0.0.1:9", "again"), server("10.0.0.3:9", "static")],
    });
    let names: Map<_, _> = merged.iter().map(|(address, server)| (address.to_string(), &*server.name)).collect();
    let expected = Map::from([
        ("10.0.0.1:9".to_owned(), "static"),
        ("10.0.0.2:9".to_owned(), "eds"),
        ("10.0.0.3:9".to_owned(), "static"),
    ]);
    assert_eq!(names, expected, "the earlier source's name counts");
    let merged = merge.take(Update { source: 0, servers: Vec::new() });
    let left: Vec<String> = merged.keys().map(ToString::to_string).collect();
    assert_eq!(left, ["10.0.0.1:9", "10.0.0.2:9"], "each list replaces only its own");
}

#[test]
fn a_list_without_end_is_cut() {
    let servers = (0..2000_u32).map(|n| server(&format!("10.0.{}.{}:9", n / 250, n % 250), "x")).collect();
    assert_eq!(Merge::default().take(Update { source: 0, servers }).len(), MAX_SERVERS);
}

/// What a source sends, one list after the other.
struct Followed {
    updates: mpsc::Receiver<Update>,
    states: std::rc::Rc<SourceStates>,
}

impl Followed {
    fn assignment(receiver: watch::Receiver<Option<Arc<Endpoints>>>) -> Self {
        let (sender, updates) = mpsc::channel(4);
        let states = std::rc::Rc::<SourceStates>::default();
        let shared = std::rc::Rc::clone(&states);
        tokio::task::spawn_local(async move {
            let feed = Feed { source: 0, states: &shared, updates: sender, sni: None };
            feed.follow_assignment("servers", receiver).await;
        });
        Self { updates, states }
    }

    async fn next(&mut self) -> Vec<Server> {
        let limit = Duration::from_secs(60);
        timeout(limit, self.updates.recv()).await.expect("no list came").expect("the source ended").servers
    }
}

#[tokio::test(start_paused = true)]
async fn an_assignment_is_followed() {
    LocalSet::new()
        .run_until(async {
            let (sender, receiver) = watch::channel(None);
            let mut followed = Followed::assignment(receiver);
            let none = timeout(Duration::from_secs(60), followed.updates.recv()).await;
            assert!(none.is_err(), "an assignment that has not arrived is no empty list: {none:?}");
            assert_eq!(followed.states.waiting(), ["assignment servers: has not arrived"]);
            let ip = |text: &str| Address::Ip(address(text));
            sender.send_replace(Some(assignment(vec![
                endpoint(ip("10.0.0.2:9"), "", Health::Healthy),
                endpoint(ip("10.0.0.1:9"), "tunnel.example", Health::Unhealthy),
                endpoint(ip("10.0.0.3:9"), "", Health::Draining),
            ])));
            let expected = [server("10.0.0.1:9", "tunnel.example"), server("10.0.0.2:9", "10.0.0.2")];
            assert_eq!(followed.next().await, expected, "sorted, without the draining one");
            assert_eq!(followed.states.waiting(), [""; 0]);
            sender.send_replace(Some(assignment(Vec::new())));
            assert_eq!(followed.next().await, [], "an empty assignment is an empty list");
            drop(sender);
            let ended = timeout(Duration::from_secs(60), followed.updates.recv()).await;
            assert!(matches!(ended, Ok(None)), "the list stays when its source ends: {ended:?}");
        })
        .await;
}

#[tokio::test]
async fn names_are_looked_up() {
    let found = resolve("localhost", 9, None, &Place::default()).await.unwrap();
    assert!(found.iter().all(|server| server.address.ip().is_loopback() && &*server.name == "localhost"), "{found:?}");
    assert!(!found.is_empty(), "localhost has an address");
    let error = resolve("no such host", 9, None, &Place::default()).await.unwrap_err();
    assert!(error.starts_with("no such host: "), "{error}");
}

/// Half a list would close tunnels to servers that are only not found at the moment.
#[tokio::test]
async fn a_failed_look_up_leaves_what_is_known() {
    LocalSet::new()
        .run_until(async {
            let ip = Address::Ip(address("10.0.0.1:9"));
            let (sender, receiver) = watch::channel(Some(assignment(vec![endpoint(ip.clone(), "", Health::Healthy)])));
            let mut followed = Followed::assignment(receiver);
            assert_eq!(followed.next().await.len(), 1);
            let unknown = Address::Name { host: "no such host".into(), port: 9 };
            sender.send_replace(Some(assignment(vec![
                endpoint(ip.clone(), "", Health::Healthy),
                endpoint(unknown, "", Health::Healthy),
            ])));
            let waiting = async {
                while followed.states.waiting().is_empty() {
                    sleep(Duration::from_millis(5)).await;
                }
            };
            timeout(Duration::from_secs(10), waiting).await.expect("the failed look-up is shown");
            assert!(followed.updates.try_recv().is_err(), "half a list was sent");
            let localhost = Address::Name { host: "localhost".into(), port: 9 };
            sender.send_replace(Some(assignment(vec![endpoint(localhost, "sni.example", Health::Healthy)])));
            let servers = followed.next().await;
            assert!(servers.iter().all(|server| &*server.name == "sni.example"), "{servers:?}");
        })
        .await;
}
