use std::net::SocketAddr;

use culvert_model::cluster::Discovery;
use culvert_model::endpoint::Health;

use super::*;
use crate::dns::{Answer, LookupError};
use crate::fixture::{claim, cluster, eds, ips};
use crate::host::Host;

fn registry() -> Arc<Clusters> {
    let resolver = Resolver::scripted(|_, _| -> Result<Answer, LookupError> {
        Err(LookupError { reason: "no names here".to_owned() })
    });
    Clusters::new(Handle::current(), resolver)
}

fn address(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

fn hosts(slot: &ClusterSlot) -> Vec<Arc<Host>> {
    slot.current().load().hosts.members().iter().map(|member| Arc::clone(&member.host)).collect()
}

fn addresses(slot: &ClusterSlot) -> Vec<Option<SocketAddr>> {
    hosts(slot).iter().map(|host| host.address()).collect()
}

#[tokio::test]
async fn a_slot_that_was_asked_for_early_becomes_its_cluster() {
    let clusters = registry();
    let early = clusters.slot("a");
    assert!(early.config().is_none(), "absent before the cluster comes");
    clusters.apply(Arc::new(cluster("a", &[address(1)])), None);
    assert!(Arc::ptr_eq(&early, &clusters.slot("a")), "the same slot");
    assert_eq!(addresses(&early), [Some(address(1))], "hosts of the slot that was taken early");
    clusters.remove("a");
    assert!(early.config().is_none() && hosts(&early).is_empty(), "absent again after the removal");
    assert!(clusters.lookup("a").is_some(), "kept as long as somebody holds it");
    drop(early);
    clusters.remove("b");
    clusters.remove("a");
    assert!(clusters.lookup("a").is_none(), "forgotten when nobody does");
}

#[tokio::test]
async fn hosts_keep_their_identity_across_updates() {
    let clusters = registry();
    clusters.apply(Arc::new(cluster("a", &[address(1), address(2)])), None);
    let slot = clusters.slot("a");
    let before = hosts(&slot);
    clusters.apply(Arc::new(cluster("a", &[address(2), address(3)])), None);
    let after = hosts(&slot);
    assert!(Arc::ptr_eq(&before[1], &after[0]), "the host that stayed is the same one");
    assert!(before[0].is_gone() && !before[1].is_gone(), "the one that went knows it");

    let mut moved = (*ips(&[address(2), address(3)])).clone();
    moved.localities[0].zone = "b".into();
    moved.localities[0].endpoints[1].health = Health::Unhealthy;
    let mut config = cluster("a", &[]);
    config.discovery = Discovery::Static(Arc::new(moved));
    clusters.apply(Arc::new(config), None);
    assert!(after[0].is_gone(), "a host in another zone is another host");
    assert_eq!(&**hosts(&slot)[0].zone(), "b", "its zone");
}

#[tokio::test]
async fn only_changes_of_how_connections_are_opened_begin_an_epoch() {
    let clusters = registry();
    let slot = clusters.slot("a");
    let base = || cluster("a", &[address(1)]);
    let epoch = |config| {
        clusters.apply(Arc::new(config), None);
        slot.config().unwrap().epoch
    };
    let first = epoch(base());
    let mut same = base();
    same.connect_timeout = Duration::from_secs(1);
    same.max_requests_per_connection = Some(5);
    assert_eq!(epoch(same), first, "time limits do not make connections different");
    let mut source = base();
    source.source_address = Some(address(0));
    assert_eq!(epoch(source), first + 1, "a source address does");
}

#[tokio::test]
async fn a_change_of_hosts_begins_an_epoch_where_the_cluster_asks_for_it() {
    for (asked, expected) in [(false, [1, 1, 1]), (true, [2, 2, 3])] {
        let clusters = registry();
        let slot = clusters.slot("a");
        let epochs = [[1, 2].as_slice(), &[1, 2], &[1]].map(|ports| {
            let addresses: Vec<_> = ports.iter().map(|port| address(*port)).collect();
            let mut config = cluster("a", &addresses);
            config.close_connections_on_host_removal = asked;
            clusters.apply(Arc::new(config), None);
            slot.config().unwrap().epoch
        });
        assert_eq!(epochs, expected, "epochs of two hosts, the same two, and one; asked: {asked}");
    }
}

#[tokio::test]
async fn an_assignment_may_come_before_its_cluster() {
    let clusters = registry();
    clusters.update_endpoints("a", ips(&[address(1)]));
    let slot = clusters.slot("a");
    assert!(hosts(&slot).is_empty(), "no cluster, no hosts");
    let mut config = cluster("a", &[]);
    config.discovery = eds();
    clusters.apply(Arc::new(config.clone()), None);
    assert_eq!(addresses(&slot), [Some(address(1))], "hosts that came before");
    slot.warmed().await;
    clusters.update_endpoints("a", ips(&[address(2)]));
    assert_eq!(addresses(&slot), [Some(address(2))], "hosts of the next assignment");
    clusters.apply(Arc::new(config), None);
    assert_eq!(addresses(&slot), [Some(address(2))], "an update of the cluster keeps the assignment");
}

#[tokio::test(start_paused = true)]
async fn an_eds_cluster_is_warm_with_its_assignment() {
    let clusters = registry();
    let mut config = cluster("a", &[]);
    config.discovery = eds();
    clusters.apply(Arc::new(config), None);
    let slot = clusters.slot("a");
    let early = tokio::time::timeout(Duration::from_secs(60), slot.warmed()).await;
    assert!(early.is_err(), "not warm without its assignment");
    clusters.update_endpoints("a", ips(&[]));
    slot.warmed().await;
}

#[tokio::test]
async fn the_same_address_twice_is_one_host() {
    let clusters = registry();
    clusters.apply(Arc::new(cluster("a", &[address(1), address(1)])), None);
    assert_eq!(hosts(&clusters.slot("a")).len(), 1, "hosts");
}

#[tokio::test]
async fn gauges_carry_envoys_names() {
    let clusters = registry();
    let mut config = cluster("a", &[address(1), address(2)]);
    config.breakers[0].track_remaining = true;
    config.breakers[0].max_requests = 0;
    clusters.apply(Arc::new(config), None);
    let mut seen = std::collections::BTreeMap::new();
    clusters
        .slot("a")
        .gauges(&mut |name, value| assert_eq!(seen.insert(name.to_owned(), value), None, "{name} comes once"));
    let expected = [
        ("membership_total", 2),
        ("membership_healthy", 2),
        ("membership_degraded", 0),
        ("circuit_breakers.default.rq_open", 1),
        ("circuit_breakers.default.remaining_cx", 1024),
        ("circuit_breakers.high.rq_open", 0),
    ];
    for (name, value) in expected {
        assert_eq!(seen.get(name), Some(&value), "gauge {name} of {seen:?}");
    }
    assert!(!seen.contains_key("circuit_breakers.high.remaining_cx"), "remaining is shown where it is tracked");
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_registrations_cost_a_few_builds() {
    const AGENTS: usize = 10_000;
    let clusters = registry();
    clusters.apply(Arc::new(cluster("edge", &[])), None);
    let mut registering = tokio::task::JoinSet::new();
    for agent in 0..AGENTS {
        let clusters = Arc::clone(&clusters);
        registering.spawn(async move { clusters.register(claim("edge", &format!("edge-{agent}"))).await.unwrap() });
    }
    let leases = registering.join_all().await;
    let slot = clusters.slot("edge");
    assert_eq!(hosts(&slot).len(), AGENTS, "every host is published when its registration returns");
    let builds = clusters.tunnel_builds();
    assert!(builds <= 3, "{builds} generations were built for {AGENTS} registrations");

    drop(leases);
    tokio::time::sleep(2 * BATCH).await;
    assert_eq!(hosts(&slot).len(), 0, "dropped leases leave");
    let builds = clusters.tunnel_builds();
    assert!(builds <= 6, "{builds} generations were built with {AGENTS} removals");
}

#[tokio::test(start_paused = true)]
async fn a_registration_after_a_quiet_time_does_not_wait_for_a_batch() {
    let clusters = registry();
    clusters.apply(Arc::new(cluster("edge", &[])), None);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = Instant::now();
    let _first = clusters.register(claim("edge", "a")).await.unwrap();
    assert_eq!(before.elapsed(), Duration::ZERO, "the first is published at once");
    let _second = clusters.register(claim("edge", "b")).await.unwrap();
    assert_eq!(before.elapsed(), BATCH, "the second with the batch");
}

#[tokio::test(start_paused = true)]
async fn configuration_pushes_keep_tunnel_hosts() {
    let clusters = registry();
    let mut config = cluster("edge", &[]);
    config.discovery = eds();
    clusters.apply(Arc::new(config.clone()), None);
    let slot = clusters.slot("edge");
    let lease = clusters.register(claim("edge", "a")).await.unwrap();
    let tunnel = Arc::clone(&hosts(&slot)[0]);

    clusters.update_endpoints("edge", ips(&[address(1), address(2)]));
    assert_eq!(addresses(&slot), [None, Some(address(1)), Some(address(2))], "after an EDS push");
    config.connect_timeout = Duration::from_secs(1);
    clusters.apply(Arc::new(config), None);
    assert!(Arc::ptr_eq(&hosts(&slot)[0], &tunnel), "the same tunnel host after a CDS push");
    clusters.apply(Arc::new(cluster("edge", &[])), None);
    assert!(Arc::ptr_eq(&hosts(&slot)[0], &tunnel), "and when the cluster becomes another kind");

    drop(lease);
    tokio::time::sleep(2 * BATCH).await;
    assert!(hosts(&slot).is_empty(), "only the lease's end removes it");
    assert!(tunnel.is_gone(), "workers are told to forget it");
}

#[tokio::test(start_paused = true)]
async fn registrations_are_refused_with_a_reason() {
    let clusters = registry();
    let unknown = clusters.register(claim("edge", "a")).await.unwrap_err();
    assert_eq!(unknown, RegisterError::ClusterUnknown("edge".into()), "no such cluster");
    let slot = clusters.slot("edge");
    let absent = clusters.register(claim("edge", "a")).await.unwrap_err();
    assert_eq!(absent, RegisterError::ClusterUnknown("edge".into()), "a slot alone is no cluster");

    clusters.apply(Arc::new(cluster("edge", &[])), None);
    let limited = |agent| TunnelClaim { max_connections_per_agent: 2, ..claim("edge", agent) };
    let _first = clusters.register(limited("a")).await.unwrap();
    let second = clusters.register(limited("a")).await.unwrap();
    let third = clusters.register(limited("a")).await.unwrap_err();
    assert_eq!(third, RegisterError::TooManyConnections { agent: "a".into(), limit: 2 }, "two of two are used");
    let _other = clusters.register(limited("b")).await.unwrap();
    drop(second);
    let _fourth = clusters.register(limited("a")).await.unwrap();
    assert_eq!(clusters.tunnels().len(), 3, "connections at the end");
    assert_eq!(slot.agent_failure("c"), crate::UpstreamFailure::AgentUnknown, "an agent that was never here");
}

#[tokio::test(start_paused = true)]
async fn a_registration_that_is_given_up_leaves_nothing() {
    let clusters = registry();
    clusters.apply(Arc::new(cluster("edge", &[])), None);
    let _keeps_the_publisher_busy = clusters.register(claim("edge", "a")).await.unwrap();
    let given_up = tokio::time::timeout(Duration::from_millis(1), clusters.register(claim("edge", "b"))).await;
    assert!(given_up.is_err(), "the second waits for its batch");
    tokio::time::sleep(3 * BATCH).await;
    assert_eq!(clusters.tunnels().len(), 1, "tunnels left");
    assert_eq!(hosts(&clusters.slot("edge")).len(), 1, "hosts left");
}

/// Agents register on some threads while the control plane takes the cluster away and gives it back on another: each is
/// a host of the cluster that is there, or refused, or told that its cluster is gone. None is a host that nobody holds.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_registration_while_its_cluster_is_removed_or_replaced_leaves_no_dangling_host() {
    const ROUNDS: usize = 120;
    const AGENTS: usize = 6;
    let clusters = registry();
    let (mut joined, mut refused) = (0, 0);
    for round in 0..ROUNDS {
        // What happens to the cluster: it is removed, replaced, or removed and added.
        let change = |clusters: &Clusters| {
            if round % 3 != 1 {
                clusters.remove("edge");
            }
            if round % 3 != 0 {
                clusters.apply(Arc::new(cluster("edge", &[])), None);
            }
        };
        clusters.apply(Arc::new(cluster("edge", &[])), None);
        let together = Arc::new(tokio::sync::Barrier::new(AGENTS + 1));
        let mut registering = tokio::task::JoinSet::new();
        for agent in 0..AGENTS {
            let (clusters, together) = (Arc::clone(&clusters), Arc::clone(&together));
            registering.spawn(async move {
                together.wait().await;
                // Some come a little later, so that every place of the change is met.
                (0..agent * round % 64).for_each(|_| std::hint::spin_loop());
                clusters.register(claim("edge", &format!("agent-{agent}"))).await
            });
        }
        together.wait().await;
        change(&clusters);
        let outcomes = registering.join_all().await;
        let leases: Vec<_> = outcomes.into_iter().filter_map(Result::ok).collect();
        (joined, refused) = (joined + leases.len(), refused + AGENTS - leases.len());
        // A host that is chosen from belongs to a lease that may serve; a lease whose host is not is told so.
        let slot = clusters.slot("edge");
        let chosen: Vec<u64> = hosts(&slot).iter().map(|host| host.id()).collect();
        for lease in &leases {
            let ends = lease.host().tunnel().is_some_and(|connection| connection.is_draining());
            let found = chosen.contains(&lease.host().id());
            assert_ne!(ends, found, "round {round}: ends: {ends}, can be chosen: {found}");
        }
        assert!(chosen.len() <= leases.len(), "round {round}: {chosen:?} for {} leases", leases.len());
        drop(leases);
        eventually_empty(&clusters, &slot, round).await;
    }
    assert!(joined > 0 && refused > 0, "expected both outcomes to be met: {joined} joined, {refused} were refused");
}

async fn eventually_empty(clusters: &Clusters, slot: &ClusterSlot, round: usize) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !hosts(slot).is_empty() {
        assert!(Instant::now() < deadline, "round {round}: hosts that nobody holds: {:?}", hosts(slot));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(clusters.tunnels().is_empty(), "round {round}: tunnels that nobody holds");
}
