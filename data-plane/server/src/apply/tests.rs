mod extensions;
mod files;

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;

use culvert_model::listener::{FilterChain, FilterChainMatch, Listener, NetworkFilter};
use culvert_model::route::{HeaderMutations, RouteConfiguration};
use culvert_model::secret::{Secret, SecretKind};
use culvert_model::source::{ConfigSource, ConfigSourceKind, DataSource};
use culvert_model::tls::{DownstreamTls, SecretRef, TlsCertificate};
use culvert_model::tunnel::{ProtocolChoice, TunnelServer};
use culvert_proxy::{TunnelHosting, Worker};
use culvert_runtime::drain::Trigger;
use culvert_runtime::telemetry::{ScopePath, Value};
use culvert_runtime::workers::Workers;
use culvert_upstream::WorkerPools;

use super::*;
use crate::overview::Overview;
use crate::secrets::Secrets;
use crate::stats::ManagerMetric;
use crate::testing::{certificate, common, process, sds, tls_certificate};

struct Site {
    applier: Applier,
    overview: Arc<Overview>,
    _drain: Trigger,
}

impl Site {
    fn new() -> Self {
        let (process, drain) = process();
        let for_workers = Arc::clone(&process);
        let workers = Workers::start(2, "apply-test", move |_| {
            let pools = WorkerPools::new(Arc::clone(&for_workers.clusters));
            let worker = Worker::new(Arc::clone(&for_workers), pools);
            OnWorker { hosting: TunnelHosting::new(std::rc::Rc::clone(&worker)), worker }
        });
        let overview = Arc::new(Overview::default());
        let metrics = process.registry.scope::<ManagerMetric>(ScopePath::process("")).block();
        let applier = Applier::new(Parts {
            workers: Arc::new(workers.unwrap()),
            overview: Arc::clone(&overview),
            secrets: Secrets::default(),
            metrics,
            node_id: "test".into(),
            agent_journal: None,
            reverse: culvert_model::bootstrap::reverse::ReverseTunnels::default(),
            drain_time: Duration::from_secs(1),
            successor: false,
            process,
        });
        Self { applier, overview, _drain: drain }
    }

    async fn apply(&mut self, changes: Vec<Change>) -> Vec<Result<Applied, String>> {
        let answers = self.applier.apply(changes).await;
        answers.into_iter().map(|answer| answer.map_err(|error| error.to_string())).collect()
    }

    fn rehearse(&self, changes: &[Change]) -> Vec<Result<(), String>> {
        let answers = self.applier.rehearse(changes).into_iter();
        answers.map(|answer| answer.map_err(|error| error.to_string())).collect()
    }

    fn bound(&self, listener: &str) -> Option<SocketAddr> {
        self.overview.listeners.lock().get(listener).and_then(|view| view.bound)
    }

    fn slot(&self, listener: &str) -> Arc<culvert_proxy::ListenerSlot> {
        self.applier.process.listeners.get(listener).unwrap()
    }
}

/// A tunnel listener: the filter needs nothing but itself.
fn listener(name: &str, address: &str, stat_prefix: &str) -> Listener {
    let server = TunnelServer {
        stat_prefix: stat_prefix.into(),
        policies: Vec::new(),
        allowed_clusters: Arc::default(),
        handshake_timeout: Duration::from_secs(5),
        max_handshake_bytes: 16384,
        max_pending_handshakes: 16,
        max_connections_per_agent: 16,
        protocol: ProtocolChoice::Negotiated,
        queue_timeout: Duration::from_secs(5),
        max_queued_requests: 16,
        mosn: true,
        reverse: Box::default(),
        reconnect_window: Duration::from_secs(5),
        max_pending_handshakes_per_source: 256,
        max_handshakes_per_second_per_source: None,
        ping_interval: Duration::from_secs(2),
        policy: None,
    };
    let chain = FilterChain {
        name: "all".into(),
        matches: FilterChainMatch::default(),
        tls: None,
        transport_timeout: Duration::from_secs(10),
        filter: NetworkFilter::Tunnel(Arc::new(server)),
        asked: None,
    };
    Listener {
        name: name.into(),
        address: (!address.is_empty()).then(|| address.parse().unwrap()),
        filter_chains: vec![Arc::new(chain)],
        default_filter_chain: None,
        inspect_tls: false,
        listener_filters_timeout: Duration::from_secs(15),
        buffer_limit: 1 << 20,
        access_log: Vec::new(),
        tcp_backlog: 16,
        accepts_per_event: 1,
        max_connections: None,
        drain_modify_only: false,
        udp: None,
        ipv4_compat: false,
        reverse: Vec::new(),
    }
}

fn set(listener: Listener) -> Change {
    Change::Set(Resource::Listener(Arc::new(listener)))
}

fn remove(name: &str) -> Change {
    Change::Remove { kind: Kind::Listener, name: name.into() }
}

const ANY: &str = "127.0.0.1:0";

#[tokio::test]
async fn an_update_keeps_sockets_and_slot() {
    let mut site = Site::new();
    assert_eq!(site.apply(vec![set(listener("a", ANY, "one"))]).await, [Ok(Applied::Active)], "a new listener");
    let (bound, slot) = (site.bound("a").unwrap(), site.slot("a"));
    assert_eq!(site.apply(vec![set(listener("a", ANY, "two"))]).await, [Ok(Applied::Active)], "its update");
    assert_eq!(site.bound("a"), Some(bound), "the address stays");
    assert!(Arc::ptr_eq(&slot, &site.slot("a")), "the slot stays");
    TcpStream::connect(bound).unwrap();
}

#[tokio::test]
async fn an_address_in_use_is_refused_in_rehearsal_and_in_earnest_until_it_is_free() {
    for shared in [false, true] {
        let mut site = Site::new();
        // A socket of another owner, one that shares its port and one that does not.
        let holder = if shared {
            culvert_runtime::sockets::bind(ANY.parse().unwrap(), 1, Default::default()).unwrap().remove(0)
        } else {
            std::net::TcpListener::bind(ANY).unwrap()
        };
        let address = holder.local_addr().unwrap();
        let changes = vec![set(listener("a", &address.to_string(), "one")), set(listener("b", ANY, "b"))];
        let rehearsed = site.rehearse(&changes);
        let refusal = rehearsed[0].as_ref().unwrap_err();
        assert!(refusal.starts_with("address.socket_address: "), "the path is named: {refusal}");
        assert!(refusal.contains(&format!("{address} is in use")), "the address is named: {refusal}");
        assert_eq!(rehearsed[1], Ok(()), "the other listener is not concerned");
        assert_eq!(site.bound("b"), None, "a rehearsal changes nothing");
        let answers = site.apply(changes.clone()).await;
        assert_eq!(answers[0].as_ref().unwrap_err(), refusal, "in earnest it is the same");
        assert_eq!(answers[1], Ok(Applied::Active), "the other listener serves");
        drop(holder);
        assert_eq!(site.rehearse(&changes), [Ok(()), Ok(())], "free again");
        assert_eq!(site.apply(changes).await[0], Ok(Applied::Active), "it serves once the address is free");
        assert_eq!(site.bound("a"), Some(address), "there");
    }
}

#[tokio::test]
async fn listeners_take_half_of_the_file_descriptors_and_no_more() {
    let mut site = Site::new();
    // Two handles for each of two workers: five listeners are half of it.
    site.applier.open_files = Some(40);
    let all: Vec<Change> = (0..6).map(|number| set(listener(&number.to_string(), ANY, "many"))).collect();
    let expected = "6 listeners take 24 file descriptors, more than half of the 40";
    for (when, answers) in [
        ("rehearsed", site.rehearse(&all)),
        ("in earnest", site.apply(all.clone()).await.into_iter().map(|answer| answer.map(drop)).collect()),
    ] {
        assert!(answers[..5].iter().all(Result::is_ok), "{when}: five fit: {answers:?}");
        assert!(answers[5].as_ref().is_err_and(|error| error.contains(expected)), "{when}: {answers:?}");
    }
    assert_eq!(site.rehearse(&all[..1]), [Ok(())], "one that is there already takes no more");
    let swap = [remove("0"), all[5].clone()];
    assert_eq!(site.rehearse(&swap), [Ok(()), Ok(())], "another one leaves its room");
    assert_eq!(site.apply(vec![remove("0")]).await.len(), 1, "one answer");
    assert_eq!(site.apply(vec![all[5].clone()]).await, [Ok(Applied::Active)], "there is room now");
}

#[tokio::test]
async fn a_rehearsal_knows_who_of_ours_has_an_address_and_what_leaves() {
    let mut site = Site::new();
    let fixed = std::net::TcpListener::bind(ANY).unwrap().local_addr().unwrap().to_string();
    assert_eq!(site.apply(vec![set(listener("old", &fixed, "one"))]).await, [Ok(Applied::Active)], "a free address");
    let new = || set(listener("new", &fixed, "two"));
    for (changes, refused) in [
        (vec![set(listener("old", &fixed, "changed"))], None),
        (vec![new()], Some("belongs to listener old")),
        (vec![remove("old"), new()], None),
        (vec![remove("old"), new(), set(listener("third", &fixed, "3"))], Some("another one of this response")),
    ] {
        let last = site.rehearse(&changes).pop().unwrap();
        match refused {
            None => assert_eq!(last, Ok(()), "{changes:?}"),
            Some(why) => {
                assert!(last.as_ref().is_err_and(|error| error.contains(why)), "expected {why:?}, saw {last:?}")
            }
        }
    }
}

#[tokio::test]
async fn a_listener_takes_the_address_of_one_that_leaves() {
    let mut site = Site::new();
    site.apply(vec![set(listener("old", ANY, "one"))]).await;
    let address = site.bound("old").unwrap();
    // As configured: the port must be named for an address to be the same.
    site.apply(vec![remove("old")]).await;
    let fixed = address.to_string();
    let free = || std::net::TcpListener::bind(address).map(drop);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while free().is_err() {
        assert!(tokio::time::Instant::now() < deadline, "the sockets of a removed listener were not closed");
        tokio::task::yield_now().await;
    }
    assert_eq!(site.apply(vec![set(listener("old", &fixed, "one"))]).await, [Ok(Applied::Active)], "at a fixed port");
    let conflict = site.apply(vec![set(listener("new", &fixed, "two"))]).await;
    assert!(conflict[0].is_err(), "two listeners cannot have one address, got {conflict:?}");
    let answers = site.apply(vec![set(listener("new", &fixed, "two")), remove("old")]).await;
    assert_eq!(answers, [Ok(Applied::Active), Ok(Applied::Active)], "unless one leaves with the same push");
    assert_eq!((site.bound("new"), site.bound("old")), (Some(address), None), "the address has changed hands");
    TcpStream::connect(address).unwrap();
}

#[tokio::test]
async fn a_listener_without_its_secret_stays_warming_and_serves_when_it_comes() {
    let mut site = Site::new();
    let mut tls = listener("a", ANY, "one");
    let context = DownstreamTls { common: common(vec![sds("edge-cert")]), require_client_certificate: false };
    let mut chain = (*tls.filter_chains[0]).clone();
    chain.tls = Some(Arc::new(context));
    tls.filter_chains = vec![Arc::new(chain)];
    let answers = site.apply(vec![set(tls)]).await;
    assert_eq!(answers, [Ok(Applied::Warming(vec!["secret edge-cert".to_owned()]))], "the secret is named");
    let address = site.bound("a").unwrap();
    assert!(TcpStream::connect(address).is_err(), "nobody can connect before it serves");

    let secret = |kind| Change::Set(Resource::Secret(Arc::new(Secret { name: "edge-cert".into(), kind })));
    let pair = certificate("edge.test");
    let bad = (pair.0.clone(), "garbage".to_owned());
    let refused = site.apply(vec![secret(SecretKind::Certificate(tls_certificate(&bad)))]).await;
    assert!(refused[0].is_err(), "a bad secret is refused, got {refused:?}");
    let answers = site.apply(vec![secret(SecretKind::Certificate(tls_certificate(&pair)))]).await;
    assert_eq!(answers, [Ok(Applied::Active)], "a good one is taken");
    assert!(site.slot("a").current().is_some(), "the listener is in force");
    TcpStream::connect(address).unwrap();
    let awaiting = site.overview.listeners.lock()["a"].awaiting.clone();
    assert!(awaiting.is_empty(), "nothing is waited for any more, got {awaiting:?}");
}

/// Bound is not listened on: another process may be faster, once the secret is there.
#[tokio::test]
async fn a_listener_that_lost_its_address_gets_it_back() {
    let mut site = Site::new();
    let port = {
        let probe = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        probe.local_addr().unwrap().port()
    };
    let address: SocketAddr = format!("127.0.0.1:{port}").parse().unwrap();
    let mut tls = listener("a", &address.to_string(), "one");
    let context = DownstreamTls { common: common(vec![sds("edge-cert")]), require_client_certificate: false };
    let mut chain = (*tls.filter_chains[0]).clone();
    chain.tls = Some(Arc::new(context));
    tls.filter_chains = vec![Arc::new(chain)];
    let awaited = |what: &str| [Ok(Applied::Warming(vec![what.to_owned()]))];
    assert_eq!(site.apply(vec![set(tls)]).await, awaited("secret edge-cert"), "it waits, bound");

    let rival = std::net::TcpListener::bind(address).expect("nobody listens there");
    let kind = SecretKind::Certificate(tls_certificate(&certificate("edge.test")));
    let secret = Change::Set(Resource::Secret(Arc::new(Secret { name: "edge-cert".into(), kind })));
    assert_eq!(site.apply(vec![secret]).await, [Ok(Applied::Active)], "the secret is good");
    let awaiting = |site: &Site| site.overview.listeners.lock()["a"].awaiting.clone();
    assert_eq!(awaiting(&site), [format!("address {address}")], "it says what it waits for now");
    assert!(site.slot("a").current().is_none(), "it does not serve");
    drop(rival);
    tokio::time::timeout(Duration::from_secs(10), site.applier.listeners.due()).await.expect("it is tried again");
    site.applier.advance_all().await;
    assert_eq!(awaiting(&site), Vec::<String>::new(), "nothing is waited for any more");
    TcpStream::connect(address).unwrap();
}

#[tokio::test]
async fn a_listener_without_an_address_binds_nothing() {
    let mut site = Site::new();
    assert_eq!(site.apply(vec![set(listener("hosting", "", "h"))]).await, [Ok(Applied::Active)], "it hosts tunnels");
    assert_eq!(site.bound("hosting"), None, "no address");
    assert!(site.slot("hosting").current().is_some(), "its chains are in force");
}

#[tokio::test]
async fn a_listener_waits_for_its_routes_as_long_as_their_source_says() {
    let yaml = r#"{static_resources: {clusters: [{name: c, type: STATIC}], listeners: [{name: a, address: {socket_address: {address: 127.0.0.1, port_value: 0}},
        filter_chains: [{filters: [{name: h, typed_config: {
            "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager,
            stat_prefix: h, rds: {route_config_name: r, config_source: {ads: {}, resource_api_version: V3, initial_fetch_timeout: 0.2s}},
            http_filters: [{name: router, typed_config: {
                "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]}}]}]}]},
        dynamic_resources: {ads_config: {api_type: GRPC, transport_api_version: V3, grpc_services: [{envoy_grpc: {cluster_name: c}}]}}}"#;
    let options = crate::options::Options::try_parse_from(["culvert-proxy", "--config-yaml", yaml]).unwrap();
    let started = crate::bootstrap::load(&options);
    let Ok(started) = started else { panic!("expected a good bootstrap, got {:#?}", started.err()) };
    let by_rds = Arc::clone(&started.bootstrap.listeners[0]);
    let mut site = Site::new();
    let answers = site.apply(vec![Change::Set(Resource::Listener(Arc::clone(&by_rds)))]).await;
    assert_eq!(answers, [Ok(Applied::Warming(vec!["routes r".to_owned()]))], "the routes are named");
    tokio::time::timeout(Duration::from_secs(10), site.applier.listeners.due()).await.unwrap();
    site.applier.advance_all().await;
    assert!(site.slot("a").current().is_some(), "it serves without them in the end");

    let routes = RouteConfiguration {
        name: "r".into(),
        virtual_hosts: Vec::new(),
        headers: HeaderMutations::default(),
        most_specific_header_mutations_wins: false,
        validate_clusters: false,
        ignore_port_in_host: false,
        max_direct_response_body: 4096,
        vhds: None,
        on_demand: None,
    };
    let mut other = (*by_rds).clone();
    other.name = "b".into();
    let set_routes = Change::Set(Resource::Routes(Arc::new(routes)));
    let answers = site.apply(vec![set(other), set_routes]).await;
    assert!(matches!(answers[0], Ok(Applied::Warming(_))), "another listener of these routes, got {answers:?}");
    assert!(site.slot("b").current().is_some(), "it serves as soon as they come");
}

#[tokio::test]
async fn every_chain_of_a_listener_shows_its_certificate_for_as_long_as_it_is_there() {
    let mut site = Site::new();
    let with = |names: &[&str]| {
        let mut tls = listener("a", ANY, "one");
        let chain = Arc::clone(&tls.filter_chains[0]);
        tls.filter_chains.clear();
        for name in names {
            let context = common(vec![SecretRef::Inline(tls_certificate(&certificate(name)))]);
            let context = DownstreamTls { common: context, require_client_certificate: false };
            let mut chain = FilterChain::clone(&chain);
            (chain.name, chain.tls) = ((*name).into(), Some(Arc::new(context)));
            chain.matches.server_names = vec![(*name).into()];
            tls.filter_chains.push(Arc::new(chain));
        }
        tls
    };
    let shown = |site: &Site| {
        let certificates = site.overview.certificates().into_iter();
        certificates.flat_map(|(_, view)| view.presented).flat_map(|one| one.dns_sans).collect::<BTreeSet<_>>()
    };
    let first = with(&["a.test", "b.test", "c.test"]);
    assert_eq!(site.apply(vec![set(first.clone())]).await, [Ok(Applied::Active)], "three chains");
    assert_eq!(shown(&site), ["a.test", "b.test", "c.test"].map(str::to_owned).into(), "all of them");
    let mut second = first;
    second.filter_chains.truncate(1);
    assert_eq!(site.apply(vec![set(second)]).await, [Ok(Applied::Active)], "one chain is left");
    assert_eq!(shown(&site), ["a.test"].map(str::to_owned).into(), "and shown");
    site.apply(vec![remove("a")]).await;
    assert_eq!(shown(&site), BTreeSet::new(), "a listener that is gone shows none");
}
