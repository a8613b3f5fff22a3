//! What is sent again although it is as it was: what a client takes anew together with what refers to it.

use culvert_api::envoy::config::cluster::v3::cluster::EdsClusterConfig;
use culvert_api::envoy::config::route::v3::ScopedRouteConfiguration;
use culvert_api::type_url::{
    CLUSTER, CLUSTER_LOAD_ASSIGNMENT as EDS, ROUTE_CONFIGURATION as RDS, SCOPED_ROUTE_CONFIGURATION as SRDS,
};

use super::*;

/// A cluster whose assignment is `NAME-hosts`; what it is in otherwise is told by its statistics' name.
fn cluster(name: &str, mark: &str) -> Arc<Resource> {
    let eds = cluster::ClusterDiscoveryType::Type(cluster::DiscoveryType::Eds as i32);
    let cluster = Cluster {
        name: name.into(),
        alt_stat_name: mark.into(),
        cluster_discovery_type: Some(eds),
        eds_cluster_config: Some(EdsClusterConfig { service_name: format!("{name}-hosts"), ..Default::default() }),
        ..Cluster::default()
    };
    Arc::new(Resource::new(&CLUSTER.into(), name, &cluster.encode_to_vec()))
}

fn scope(name: &str, mark: &str) -> Arc<Resource> {
    let routes = format!("{name}-hosts");
    // What comes after its routes differs.
    let mut body =
        ScopedRouteConfiguration { name: name.into(), route_configuration_name: routes, ..Default::default() }
            .encode_to_vec();
    crate::resource::put_field(&mut body, 10_000, mark.as_bytes());
    Arc::new(Resource::new(&SRDS.into(), name, &body))
}

fn with(referring: &[Arc<Resource>], of: &str, hosts: &[&str]) -> Snapshot {
    let mut builder = Snapshot::builder();
    for one in referring {
        builder.insert(Arc::clone(one));
    }
    for entry in hosts {
        builder.insert(resource(of, entry));
    }
    builder.build()
}

/// Names of what is sent next, and its nonce.
fn sent(peer: &mut Peer) -> Option<(String, Vec<String>, String)> {
    let response = peer.session.poll_stream(peer.stream, Duration::ZERO)?;
    let names = response.resources().into_iter().map(|resource| resource.name().to_string()).collect();
    Some((type_url::short_name(response.type_url()).to_owned(), names, response.nonce().to_string()))
}

#[test]
fn what_changes_is_followed_by_what_it_refers_to_though_that_is_as_it_was() {
    type Make = fn(&str, &str) -> Arc<Resource>;
    let hosts = ["a-hosts=1", "b-hosts=1"];
    for (by, of, make) in [(CLUSTER, EDS, cluster as Make), (SRDS, RDS, scope as Make)] {
        for variant in [Variant::Delta, Variant::Sotw] {
            let mut peer = Peer::new(variant, with(&[make("a", "1"), make("b", "1")], of, &hosts));
            let answer = |peer: &mut Peer, type_url: &str, names: &[&str], nonce: &str| match variant {
                Variant::Delta if nonce.is_empty() => peer.delta(type_url, names, &[]),
                Variant::Delta => peer.delta_answer(type_url, nonce, None),
                Variant::Sotw => peer.sotw(type_url, names, "", nonce),
            };
            let named = ["a-hosts", "b-hosts"];
            answer(&mut peer, by, &[], "");
            answer(&mut peer, of, &named, "");
            let mut nonces = vec![(by, sent(&mut peer).unwrap().2), (of, sent(&mut peer).unwrap().2)];
            for (type_url, nonce) in nonces.drain(..) {
                answer(&mut peer, type_url, if type_url == of { &named } else { &[] }, &nonce);
            }
            assert_eq!(sent(&mut peer), None, "{by} {variant:?}: nothing changed");

            peer.publish(with(&[make("a", "2"), make("b", "1")], of, &hosts));
            let (type_url, names, _) = sent(&mut peer).expect("what changed");
            assert_eq!((&*type_url, names.contains(&"a".to_owned())), (type_url::short_name(by), true), "{variant:?}");
            // Without waiting for an answer: a client may answer only once it has it.
            let (type_url, names, nonce) = sent(&mut peer).expect("what it refers to");
            assert_eq!((&*type_url, names), (type_url::short_name(of), vec!["a-hosts".to_owned()]), "{variant:?}");
            answer(&mut peer, of, &named, &nonce);
            assert_eq!(sent(&mut peer), None, "{by} {variant:?}: once");
        }
    }
}

#[test]
fn what_is_refused_is_not_repeated() {
    let mut peer = Peer::new(Variant::Delta, with(&[cluster("a", "1")], EDS, &["a-hosts=1"]));
    peer.delta(CLUSTER, &[], &[]);
    peer.delta(EDS, &["a-hosts"], &[]);
    for of in [CLUSTER, EDS] {
        let (_, _, nonce) = sent(&mut peer).expect("all of it");
        peer.delta_answer(of, &nonce, (of == EDS).then_some("no"));
    }
    peer.publish(with(&[cluster("a", "2")], EDS, &["a-hosts=1"]));
    let (type_url, ..) = sent(&mut peer).expect("what changed");
    assert_eq!(type_url, type_url::short_name(CLUSTER));
    assert_eq!(sent(&mut peer), None, "the node refused this assignment");
}

/// A new stream is sent what the node accepted, in place of what it refused. Its answer is no word on that.
#[test]
fn what_was_refused_stays_so_though_a_new_stream_accepts_what_came_before_it() {
    let routes = |entries: &[&str]| snapshot(&entries.iter().map(|entry| (RDS, *entry)).collect::<Vec<_>>());
    let first = routes(&["r=1"]);
    let version = first.of_type(RDS).unwrap().version().to_string();
    let mut peer = Peer::new(Variant::Sotw, first);
    peer.sotw(RDS, &["r"], "", "");
    let nonce = peer.expect("RouteConfiguration r=1");
    peer.sotw(RDS, &["r"], &version, &nonce);
    peer.publish(routes(&["r=bad"]));
    let nonce = peer.expect("RouteConfiguration r=bad");
    peer.sotw_nack(RDS, &["r"], &nonce, "bad");
    peer.reconnect(Variant::Sotw);
    peer.sotw(RDS, &["r"], &version, "");
    let nonce = peer.expect("RouteConfiguration r=1");
    peer.sotw(RDS, &["r"], &version, &nonce);
    // Without the history of what changed all is looked at again.
    peer.publish(routes(&["r=bad", "other=1"]));
    peer.expect_silence();
    assert_eq!(peer.status(RDS), "other=NotSent r=Error", "what the node refused is shown as that");
}
