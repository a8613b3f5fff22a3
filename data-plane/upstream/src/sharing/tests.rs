use std::rc::Rc;
use std::time::Duration;

use culvert_model::cluster::{Breakers, TunnelSource};
use culvert_model::tunnel::{NamePattern, TunnelProtocol};
use tokio::task::spawn_local;

use super::*;
use crate::clusters::Clusters;
use crate::failure::UpstreamFailure;
use crate::fixture::{
    any, claim, cluster, eventually, get, on_worker, receive, send, serve_http1, serve_http2, worker,
};
use crate::pool::{PickContext, TcpCheckout, WorkerPools};
use crate::stats::ClusterMetric;
use crate::tunnel::{ReverseNames, TunnelClaim, TunnelLease};
use culvert_http::{Io, StreamErrorKind};

fn source(registered_as: &str, host_names: &[NamePattern], priority: u32) -> TunnelSource {
    TunnelSource { registered_as: registered_as.into(), host_names: host_names.to_vec(), priority }
}

fn shared(name: &str, sources: &[TunnelSource]) -> Arc<Cluster> {
    Arc::new(Cluster { discovery: Discovery::Tunnels(sources.to_vec()), ..cluster(name, &[]) })
}

fn of(name: &str, registered_as: &str) -> Arc<Cluster> {
    shared(name, &[source(registered_as, &[], 0)])
}

fn ordinary(name: &str) -> Arc<Cluster> {
    Arc::new(cluster(name, &[]))
}

fn exact(name: &str) -> NamePattern {
    NamePattern::Exact(name.into())
}

fn http2(claim: TunnelClaim) -> TunnelClaim {
    TunnelClaim { protocol: TunnelProtocol::Http2, ..claim }
}

/// Registers, and attaches when somebody wants it or at once.
async fn join(clusters: &Clusters, claim: TunnelClaim) -> Rc<TunnelLease> {
    let name: &'static str = Box::leak(claim.agent.to_string().into_boxed_str());
    let (protocol, rests) = (claim.protocol, claim.reverse.is_some());
    let lease = Rc::new(clusters.register(claim).await.unwrap());
    let (near, far) = tokio::io::duplex(64 * 1024);
    spawn_local(async move {
        match protocol {
            TunnelProtocol::Http1 => serve_http1(far, name).await,
            TunnelProtocol::Http2 => serve_http2(far, name, 100).await,
        }
    });
    let (owned, registered) = (Rc::clone(&lease), clusters.tunnels().len());
    spawn_local(async move {
        if rests {
            owned.wanted().await;
        }
        owned.attach(Io::memory(near)).await
    });
    let attached = || clusters.tunnels().iter().filter(|tunnel| tunnel.state != "pending").count() == registered;
    if !rests {
        eventually("it is attached", attached).await;
    }
    lease
}

fn leave(lease: Rc<TunnelLease>) {
    lease.drain();
    drop(lease);
}

async fn ask(
    pools: &WorkerPools,
    clusters: &Clusters,
    name: &str,
    agent: Option<&str>,
) -> Result<String, UpstreamFailure> {
    let mut checkout = pools.checkout(&clusters.slot(name), &PickContext { agent, ..any() }).await?;
    Ok(get(&mut checkout, "/").await.unwrap())
}

fn hosts(clusters: &Clusters, name: &str) -> usize {
    clusters.slot(name).current().load().hosts.members().len()
}

#[tokio::test]
async fn one_tunnel_serves_all_clusters_in_whichever_order_they_come() {
    for claimed in [claim("edge", "a"), http2(claim("edge", "a"))] {
        on_worker(async {
            let (clusters, pools) = worker();
            clusters.apply(of("before", "edge"), None);
            assert_eq!(ask(&pools, &clusters, "before", None).await, Err(UpstreamFailure::NoHealthyHost), "no `edge`");
            clusters.apply(ordinary("edge"), None);
            clusters.apply(of("there", "edge"), None);
            clusters.apply(of("apart", "core"), None);
            let lease = join(&clusters, claimed.clone()).await;
            clusters.apply(of("after", "edge"), None);
            for name in ["before", "edge", "there", "after"] {
                for agent in [None, Some("a")] {
                    let seen = ask(&pools, &clusters, name, agent).await;
                    assert_eq!(seen.as_deref(), Ok("200 a /"), "{name} {agent:?}");
                }
                let seen = ask(&pools, &clusters, name, Some("b")).await;
                assert_eq!(seen, Err(UpstreamFailure::AgentUnknown), "{name}: one that never came");
                assert_eq!(clusters.slot(name).stats().read(ClusterMetric::TunnelAgentUnknown), 1, "{name}: counted");
            }
            assert_eq!(ask(&pools, &clusters, "apart", None).await, Err(UpstreamFailure::NoHealthyHost), "not shared");
            let shown = clusters.tunnels();
            let further: Vec<_> = shown[0].further_clusters.iter().map(|name| &**name).collect();
            assert_eq!((shown.len(), &further[..]), (1, &["after", "before", "there"][..]), "one registration");
            // Each counts its own.
            for (name, expected) in [("edge", 2), ("there", 2)] {
                let seen = clusters.snapshot().into_iter().find(|cluster| *cluster.name == *name).unwrap();
                assert_eq!(seen.hosts[0].rq_total, expected, "{name}: {:?}", seen.hosts);
            }
            // It changes whom it shares.
            clusters.apply(of("there", "core"), None);
            eventually("it is no host any more", || hosts(&clusters, "there") == 0).await;
            let seen = ask(&pools, &clusters, "there", Some("a")).await;
            assert_eq!(seen, Err(UpstreamFailure::AgentUnknown), "as if it had never been there");
            leave(lease);
            for name in ["before", "edge", "after"] {
                eventually("it is gone", || hosts(&clusters, name) == 0).await;
                let seen = ask(&pools, &clusters, name, Some("a")).await;
                assert_eq!(seen, Err(UpstreamFailure::AgentOffline { seconds: 0 }), "{name}");
            }
        })
        .await;
    }
}

/// The cluster that agents name goes, and comes again: those that share it have nobody, and do not fail otherwise.
#[tokio::test]
async fn a_cluster_that_agents_name_comes_and_goes() {
    on_worker(async {
        let (clusters, pools) = worker();
        clusters.apply(of("sharing", "edge"), None);
        for round in 0..3 {
            clusters.apply(ordinary("edge"), None);
            let lease = join(&clusters, http2(claim("edge", "a"))).await;
            assert_eq!(ask(&pools, &clusters, "sharing", None).await.as_deref(), Ok("200 a /"), "round {round}");
            clusters.remove("edge");
            eventually("it drains", || hosts(&clusters, "sharing") == 0).await;
            let seen = ask(&pools, &clusters, "sharing", None).await;
            assert_eq!(seen, Err(UpstreamFailure::NoHealthyHost), "round {round}");
            let refused = clusters.register(claim("edge", "a")).await.map(drop);
            assert!(refused.is_err(), "round {round}: nobody registers as a cluster that is not there");
            drop(lease);
        }
        let refused = clusters.register(claim("sharing", "a")).await.map(drop);
        assert!(refused.is_err(), "nobody registers as a cluster that shares: {refused:?}");
    })
    .await;
}

/// **What an attacker would try**: an agent that may join one cluster, and wants the requests of another that shares it.
#[tokio::test]
async fn an_agent_serves_no_cluster_that_its_policy_does_not_name() {
    let only = |names: &[&str]| Some(names.iter().map(|name| exact(name)).collect::<Arc<[NamePattern]>>());
    on_worker(async {
        let (clusters, pools) = worker();
        clusters.apply(ordinary("edge"), None);
        clusters.apply(of("pay", "edge"), None);
        let evil = TunnelClaim { may_serve: only(&["edge"]), ..http2(claim("edge", "evil")) };
        let good = TunnelClaim { may_serve: only(&["edge", "pay"]), ..http2(claim("edge", "good")) };
        let evil = join(&clusters, evil).await;
        for agent in [None, Some("evil")] {
            let expected = agent.map_or(UpstreamFailure::NoHealthyHost, |_| UpstreamFailure::AgentUnknown);
            assert_eq!(ask(&pools, &clusters, "pay", agent).await, Err(expected), "{agent:?}");
        }
        assert_eq!(ask(&pools, &clusters, "edge", Some("evil")).await.as_deref(), Ok("200 evil /"), "where it may");
        let withheld = |expected: u64| {
            let mut seen = None;
            clusters
                .slot("pay")
                .gauges(&mut |name, value| seen = seen.or((name == "tunnel.withheld").then_some(value)));
            assert_eq!(seen, Some(expected), "tunnels that are withheld");
        };
        withheld(1);
        let good = join(&clusters, good).await;
        for round in 0..10 {
            assert_eq!(ask(&pools, &clusters, "pay", None).await.as_deref(), Ok("200 good /"), "round {round}");
        }
        // One that waits there is not served by it either, whatever becomes free.
        leave(good);
        eventually("it is gone", || hosts(&clusters, "pay") == 0).await;
        // The policy lets it, and then no more.
        assert!(!evil.set_may_serve(only(&["edge", "pay"])), "nothing was taken away");
        eventually("it serves", || hosts(&clusters, "pay") == 1).await;
        withheld(0);
        assert_eq!(ask(&pools, &clusters, "pay", Some("evil")).await.as_deref(), Ok("200 evil /"));
        assert!(evil.set_may_serve(only(&["edge"])), "it served what it may serve no more");
        eventually("it serves no more", || hosts(&clusters, "pay") == 0).await;
        assert_eq!(ask(&pools, &clusters, "pay", Some("evil")).await, Err(UpstreamFailure::AgentUnknown));
        withheld(1);
        leave(evil);
        eventually("nothing is left", || clusters.slot("pay").placed().is_empty()).await;
    })
    .await;
}

/// What is in flight for a cluster that is taken away ends, and for no other one.
#[tokio::test]
async fn what_is_in_flight_ends_for_the_cluster_that_is_taken_away_alone() {
    let only = |names: &[&str]| Some(names.iter().map(|name| exact(name)).collect::<Arc<[NamePattern]>>());
    on_worker(async {
        let (clusters, pools) = worker();
        clusters.apply(ordinary("edge"), None);
        clusters.apply(of("pay", "edge"), None);
        let open = async |name: &str, path: &str| {
            let mut checkout = pools.checkout(&clusters.slot(name), &any()).await.unwrap();
            send(&mut checkout, path).await.unwrap();
            checkout
        };
        // Streams of one connection.
        let granted = TunnelClaim { may_serve: only(&["edge", "pay"]), ..http2(claim("edge", "a")) };
        let lease = join(&clusters, granted.clone()).await;
        let (mut kept, mut lost) = (open("edge", "/hold").await, open("pay", "/hold").await);
        assert!(lease.set_may_serve(only(&["edge"])), "it served what it may serve no more");
        let early = tokio::time::timeout(Duration::from_millis(20), receive(&mut lost)).await;
        assert!(early.is_err(), "what is in flight has its time, got {early:?}");
        assert!(!lease.end_lapsed(), "the connection goes on");
        let end = tokio::time::timeout(Duration::from_secs(5), receive(&mut lost)).await.expect("it ends");
        let kind = end.map_err(|error| error.kind);
        assert!(matches!(kind, Err(StreamErrorKind::Reset(_))), "expected the stream to be reset, got {kind:?}");
        let other = tokio::time::timeout(Duration::from_millis(20), receive(&mut kept)).await;
        assert!(other.is_err(), "the other cluster's stream goes on, got {other:?}");
        assert_eq!(ask(&pools, &clusters, "edge", None).await.as_deref(), Ok("200 a /"), "and others follow");
        drop((kept, lost));
        leave(lease);
        // A connection that is lent whole, to a request or a TCP connection: of the cluster that stays, and of the one that is
        // taken away.
        for (name, tcp, cut) in
            [("edge", false, false), ("pay", false, true), ("edge", true, false), ("pay", true, true)]
        {
            eventually("nobody is there", || hosts(&clusters, name) == 0).await;
            let lease = join(&clusters, TunnelClaim { protocol: TunnelProtocol::Http1, ..granted.clone() }).await;
            let slot = clusters.slot(name);
            let _exchange = if tcp { None } else { Some(open(name, "/").await) };
            let mut taken = if tcp { Some(pools.checkout_tcp(&slot, &any()).await.unwrap()) } else { None };
            let _bytes = taken.as_mut().and_then(TcpCheckout::take);
            assert!(lease.set_may_serve(only(&["edge"])), "{name}, tcp: {tcp}");
            assert_eq!(lease.end_lapsed(), cut, "whether the connection is cut that is lent to {name}, tcp: {tcp}");
            leave(lease);
        }
    })
    .await;
}

#[tokio::test]
async fn sources_choose_by_name_and_by_priority() {
    on_worker(async {
        let (clusters, pools) = worker();
        let near = source("near", &[NamePattern::Prefix("edge-".into())], 0);
        clusters.apply(shared("all", &[near, source("far", &[], 1)]), None);
        clusters.apply(ordinary("near"), None);
        clusters.apply(ordinary("far"), None);
        let _other = join(&clusters, http2(claim("near", "core-1"))).await;
        let _far = join(&clusters, http2(claim("far", "far-1"))).await;
        assert_eq!(ask(&pools, &clusters, "all", None).await.as_deref(), Ok("200 far-1 /"), "nobody is near");
        let near = join(&clusters, http2(claim("near", "edge-1"))).await;
        for _ in 0..8 {
            assert_eq!(ask(&pools, &clusters, "all", None).await.as_deref(), Ok("200 edge-1 /"), "one is near");
        }
        assert_eq!(ask(&pools, &clusters, "all", Some("far-1")).await.as_deref(), Ok("200 far-1 /"), "by name");
        let seen = ask(&pools, &clusters, "all", Some("core-1")).await;
        assert_eq!(seen, Err(UpstreamFailure::AgentUnknown), "it is not chosen");
        leave(near);
        eventually("it is gone", || hosts(&clusters, "all") == 1).await;
        assert_eq!(ask(&pools, &clusters, "all", None).await.as_deref(), Ok("200 far-1 /"), "the far one again");
    })
    .await;
}

#[tokio::test]
async fn weights_count_in_every_cluster() {
    on_worker(async {
        let (clusters, pools) = worker();
        clusters.apply(ordinary("edge"), None);
        clusters.apply(of("sharing", "edge"), None);
        let heavy = join(&clusters, TunnelClaim { weight: 30, ..http2(claim("edge", "heavy")) }).await;
        let _light = join(&clusters, http2(claim("edge", "light"))).await;
        let count = async || {
            let mut heavy = 0;
            for _ in 0..40 {
                heavy += usize::from(ask(&pools, &clusters, "sharing", None).await.unwrap() == "200 heavy /");
            }
            heavy
        };
        assert_eq!(count().await, 30, "three of four requests");
        heavy.set_weight(10);
        let weight = || clusters.slot("sharing").current().load().hosts.members()[0].weight;
        eventually("the weight is known", || weight() == 10).await;
        assert_eq!(count().await, 20, "every other request");
    })
    .await;
}

/// A cluster's limits are its own, though the tunnel is one.
#[tokio::test]
async fn breakers_hold_each_on_its_own() {
    on_worker(async {
        let (clusters, pools) = worker();
        clusters.apply(ordinary("edge"), None);
        let one = [Breakers { max_requests: 1, ..Breakers::default() }; 2];
        clusters.apply(Arc::new(Cluster { breakers: one, ..(*of("narrow", "edge")).clone() }), None);
        let _lease = join(&clusters, http2(claim("edge", "a"))).await;
        let mut held = pools.checkout(&clusters.slot("narrow"), &any()).await.unwrap();
        send(&mut held, "/hold").await.unwrap();
        let seen = ask(&pools, &clusters, "narrow", None).await;
        assert!(matches!(seen, Err(UpstreamFailure::Overflow(_))), "a second one: {seen:?}");
        assert_eq!(ask(&pools, &clusters, "edge", None).await.as_deref(), Ok("200 a /"), "the other cluster");
        drop(held);
        assert_eq!(ask(&pools, &clusters, "narrow", None).await.as_deref(), Ok("200 a /"), "it is free again");
    })
    .await;
}

/// Requests of several clusters wait for one plain tunnel: none of them starves.
#[tokio::test(start_paused = true)]
async fn those_that_wait_in_several_clusters_take_turns() {
    on_worker(async {
        let (clusters, pools) = worker();
        clusters.apply(ordinary("edge"), None);
        clusters.apply(of("one", "edge"), None);
        clusters.apply(of("two", "edge"), None);
        let _lease = join(&clusters, claim("edge", "a")).await;
        let mut first = pools.checkout(&clusters.slot("edge"), &any()).await.unwrap();
        let order = Rc::new(std::cell::RefCell::new(Vec::new()));
        let mut tasks = Vec::new();
        for name in ["edge", "edge", "edge", "edge", "one", "two"] {
            let (pools, slot, order) = (Rc::clone(&pools), clusters.slot(name), Rc::clone(&order));
            tasks.push(spawn_local(async move {
                let mut checkout = pools.checkout(&slot, &any()).await.unwrap();
                order.borrow_mut().push(name);
                get(&mut checkout, "/").await.unwrap()
            }));
            tokio::task::yield_now().await;
        }
        get(&mut first, "/").await.unwrap();
        drop(first);
        for task in tasks {
            assert_eq!(task.await.unwrap(), "200 a /");
        }
        let order = order.borrow();
        for name in ["one", "two"] {
            let place = order.iter().position(|served| *served == name).unwrap();
            assert!(place < 4, "{name} waits for two turns of others at most, saw {order:?}");
        }
    })
    .await;
}

/// Parked requests of every cluster are served by the agent's next tunnel, also by one in Envoy's dialect.
#[tokio::test(start_paused = true)]
async fn requests_wait_for_an_agent_that_is_expected_back() {
    let window = |claim: TunnelClaim| TunnelClaim { reconnect_window: Duration::from_secs(3), ..claim };
    let envoy = || {
        let names = ReverseNames::new("a", "edge", "t", false, true);
        TunnelClaim { reverse: Some(Box::new(names)), ..http2(claim("edge", "a")) }
    };
    for claimed in [window(claim("edge", "a")), window(http2(claim("edge", "a"))), window(envoy())] {
        on_worker(async {
            let (clusters, pools) = worker();
            clusters.apply(ordinary("edge"), None);
            clusters.apply(of("one", "edge"), None);
            clusters.apply(of("two", "edge"), None);
            drop(clusters.register(claimed.clone()).await.unwrap());
            eventually("it is gone", || clusters.tunnels().is_empty()).await;
            let start = |name: &str, agent: Option<&'static str>| {
                let (pools, slot) = (Rc::clone(&pools), clusters.slot(name));
                spawn_local(async move {
                    let mut checkout = pools.checkout(&slot, &PickContext { agent, ..any() }).await?;
                    Ok::<_, UpstreamFailure>(get(&mut checkout, "/").await.unwrap())
                })
            };
            let parked: Vec<_> = ["edge", "one", "two"]
                .into_iter()
                .flat_map(|name| [start(name, None), start(name, Some("a"))])
                .collect();
            tokio::time::sleep(Duration::from_secs(2)).await;
            assert!(parked.iter().all(|task| !task.is_finished()), "they wait: {parked:?}");
            let lease = join(&clusters, claimed.clone()).await;
            for task in parked {
                assert_eq!(task.await.unwrap().as_deref(), Ok("200 a /"), "{claimed:?}");
            }
            for name in ["edge", "one", "two"] {
                assert_eq!(clusters.slot(name).stats().read(ClusterMetric::TunnelParked), 2, "{name}: parked");
            }
            // Those of a cluster that shares the agent no more have nothing to wait for.
            leave(lease);
            eventually("it is gone again", || clusters.tunnels().is_empty()).await;
            let in_vain = start("one", Some("a"));
            tokio::time::sleep(Duration::from_secs(4)).await;
            assert_eq!(in_vain.await.unwrap(), Err(UpstreamFailure::AgentOffline { seconds: 3 }), "after the window");
        })
        .await;
    }
}

/// An agent in Envoy's dialect is registered for the process: it serves clusters that share it without the one it names.
#[tokio::test]
async fn agents_in_envoys_dialect_are_shared_too() {
    on_worker(async {
        let (clusters, pools) = worker();
        let agent = |node: &str, joins| {
            let names = ReverseNames::new(node, "edge", "t", false, joins);
            TunnelClaim { reverse: Some(Box::new(names)), ..http2(claim("edge", node)) }
        };
        clusters.apply(of("sharing", "edge"), None);
        let _apart = join(&clusters, agent("apart", false)).await;
        let lease = join(&clusters, agent("a", true)).await;
        for (name, expected) in [(None, Ok("200 a /")), (Some("a"), Ok("200 a /"))] {
            assert_eq!(ask(&pools, &clusters, "sharing", name).await.as_deref(), expected, "{name:?}");
        }
        let seen = ask(&pools, &clusters, "sharing", Some("apart")).await;
        assert_eq!(seen, Err(UpstreamFailure::AgentUnknown), "one that clusters do not find by its cluster id");
        clusters.apply(ordinary("edge"), None);
        assert_eq!(ask(&pools, &clusters, "edge", Some("a")).await.as_deref(), Ok("200 a /"), "the cluster came");
        clusters.remove("edge");
        assert_eq!(ask(&pools, &clusters, "sharing", Some("a")).await.as_deref(), Ok("200 a /"), "and went");
        leave(lease);
        eventually("it is gone", || hosts(&clusters, "sharing") == 0).await;
    })
    .await;
}

/// Whatever comes and goes, in whichever order, and is asked for in vain: nothing is left of it.
#[tokio::test]
async fn nothing_is_left_of_clusters_and_tunnels_that_went() {
    on_worker(async {
        let (clusters, pools) = worker();
        clusters.apply(ordinary("edge"), None);
        clusters.apply(of("stays", "edge"), None);
        let lease = clusters.register(claim("edge", "stays")).await.unwrap();
        for n in 0..100_000 {
            let seen = ask(&pools, &clusters, "stays", Some(&format!("bogus-{n}"))).await;
            assert_eq!(seen, Err(UpstreamFailure::AgentUnknown), "bogus-{n}");
        }
        assert_eq!(clusters.slot("stays").queue().remembered(), 1, "agents that are remembered");
        for round in 0..200 {
            let name = format!("c-{round}");
            clusters.apply(of(&name, "edge"), None);
            let passing = clusters.register(claim("edge", &format!("agent-{round}"))).await.unwrap();
            assert_eq!(clusters.lookup(&name).unwrap().placed().len(), 2, "both serve");
            if round % 2 == 0 {
                clusters.remove(&name);
                drop(passing);
            } else {
                drop(passing);
                clusters.remove(&name);
            }
            assert!(clusters.lookup(&name).is_none(), "{name}: the slot is forgotten");
        }
        assert_eq!(clusters.slot("stays").placed().len(), 1, "the one that stays");
        assert_eq!(clusters.tunnels()[0].further_clusters, ["stays".into()], "and where it serves");
        assert_eq!(clusters.reverse().sharing().clusters.lock().len(), 1, "one cluster is shared");
        drop(lease);
        clusters.remove("stays");
        assert!(clusters.reverse().sharing().clusters.lock().is_empty(), "nothing is shared");
    })
    .await;
}
