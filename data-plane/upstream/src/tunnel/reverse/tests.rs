//! Clusters of Envoy's `reverse_connection` type.

use std::rc::Rc;
use std::time::Duration;

use culvert_model::cluster::{Cluster, Discovery};
use tokio::task::spawn_local;

use super::*;
use crate::clusters::Clusters;
use crate::failure::UpstreamFailure;
use crate::fixture::{any, claim, cluster, eventually, get, on_worker, send, serve_http2, worker};
use crate::pool::{PickContext, WorkerPools};
use crate::slot::ClusterSlot;
use crate::tunnel::{Io, Opening, RegisterError, TunnelClaim, TunnelLease, TunnelProtocol};

/// A cluster that reads the agent from `x-node`, and the tenant from `x-tenant` if it is told to.
fn reverse(name: &str, tenants: bool) -> Cluster {
    let tenant_id = tenants.then(|| IdFormat::of_request("%REQ(x-tenant)%").unwrap());
    let host_id = IdFormat::of_request("%REQ(x-node)%").unwrap();
    Cluster { discovery: Discovery::Reverse(ReverseConnection { host_id, tenant_id }), ..cluster(name, &[]) }
}

fn agent(node: &str, group: &str, tenant: &str, isolated: bool, joins: bool) -> TunnelClaim {
    let reverse = Some(Box::new(ReverseNames::new(node, group, tenant, isolated, joins)));
    TunnelClaim { protocol: TunnelProtocol::Http2, reverse, ..claim(group, node) }
}

/// Registers, and attaches once somebody wants it.
async fn join(clusters: &Clusters, claim: TunnelClaim) -> Rc<TunnelLease> {
    let name: &'static str = Box::leak(claim.agent.to_string().into_boxed_str());
    let lease = Rc::new(clusters.register(claim).await.unwrap());
    let (near, far) = tokio::io::duplex(64 * 1024);
    spawn_local(async move { serve_http2(far, name, 100).await });
    let owned = Rc::clone(&lease);
    spawn_local(async move {
        owned.wanted().await;
        owned.attach(Io::memory(near)).await
    });
    lease
}

fn request(fields: &[(&str, &str)]) -> RequestHead {
    let mut head = RequestHead::new();
    for (name, value) in fields {
        assert!(head.fields.push(name.as_bytes(), value.as_bytes()), "{name}: {value:?} is no field");
    }
    head
}

async fn ask(pools: &WorkerPools, slot: &Arc<ClusterSlot>, fields: &[(&str, &str)]) -> Result<String, UpstreamFailure> {
    let head = request(fields);
    let mut checkout = pools.checkout(slot, &PickContext { request: Some(&head), ..any() }).await?;
    Ok(get(&mut checkout, "/").await.unwrap())
}

#[tokio::test]
async fn one_tunnel_serves_every_cluster() {
    on_worker(async {
        let (clusters, pools) = worker();
        clusters.apply(Arc::new(reverse("one", false)), None);
        clusters.apply(Arc::new(cluster("edge", &[])), None);
        let lease = join(&clusters, agent("a", "edge", "t", false, true)).await;
        // One that comes later has it too.
        clusters.apply(Arc::new(reverse("two", true)), None);
        clusters.apply(Arc::new(cluster("other", &[])), None);
        for (name, fields) in [
            ("one", &[("x-node", "a")][..]),
            ("one", &[("x-node", "edge")]),
            ("two", &[("x-node", "a"), ("x-tenant", "t")]),
            ("edge", &[]),
        ] {
            let answer = ask(&pools, &clusters.slot(name), fields).await;
            assert_eq!(answer.as_deref(), Ok("200 a /"), "{name} {fields:?}");
        }
        assert_eq!(clusters.tunnels().len(), 1, "one registration");
        for (name, fields, expected) in [
            ("one", &[][..], UpstreamFailure::NoHealthyHost),
            ("one", &[("x-node", "b")], UpstreamFailure::NoHealthyHost),
            ("two", &[("x-node", "a"), ("x-tenant", "u")], UpstreamFailure::NoHealthyHost),
            ("two", &[("x-node", "a")], UpstreamFailure::NoHealthyHost),
            ("other", &[], UpstreamFailure::NoHealthyHost),
        ] {
            assert_eq!(ask(&pools, &clusters.slot(name), fields).await, Err(expected), "{name} {fields:?}");
        }
        // A cluster that goes takes nothing with it.
        clusters.remove("edge");
        assert_eq!(ask(&pools, &clusters.slot("one"), &[("x-node", "a")]).await.as_deref(), Ok("200 a /"));
        lease.drain();
        drop(lease);
        eventually("the host is gone from everywhere", || clusters.tunnels().is_empty()).await;
    })
    .await;
}

#[tokio::test]
async fn a_lost_agent_is_offline_and_an_unknown_one_is_no_host() {
    on_worker(async {
        let (clusters, pools) = worker();
        clusters.apply(Arc::new(reverse("one", false)), None);
        let slot = clusters.slot("one");
        let lease = clusters.register(agent("a", "edge", "t", false, false)).await.unwrap();
        drop(lease);
        eventually("it is gone", || clusters.tunnels().is_empty()).await;
        let wait = async || ask(&pools, &slot, &[("x-node", "a")]).await;
        eventually("every worker knows", || slot.stats().read(crate::stats::ClusterMetric::RqTotal) == 0).await;
        assert_eq!(wait().await, Err(UpstreamFailure::AgentOffline { seconds: 0 }));
        assert_eq!(ask(&pools, &slot, &[("x-node", "b")]).await, Err(UpstreamFailure::NoHealthyHost));
    })
    .await;
}

#[tokio::test]
async fn tenants_are_kept_apart() {
    on_worker(async {
        let (clusters, pools) = worker();
        clusters.apply(Arc::new(reverse("plain", false)), None);
        clusters.apply(Arc::new(reverse("scoped", true)), None);
        clusters.apply(Arc::new(cluster("edge", &[])), None);
        let (plain, scoped) = (clusters.slot("plain"), clusters.slot("scoped"));
        let _one = join(&clusters, agent("a", "edge", "t", true, true)).await;
        let _two = join(&clusters, agent("a", "edge", "u", true, true)).await;
        for tenant in ["t", "u"] {
            let answer = ask(&pools, &scoped, &[("x-node", "a"), ("x-tenant", tenant)]).await;
            assert_eq!(answer.as_deref(), Ok("200 a /"), "{tenant}");
        }
        for node in ["a", "t:a", "edge"] {
            let answer = ask(&pools, &plain, &[("x-node", node)]).await;
            assert_eq!(answer, Err(UpstreamFailure::NoHealthyHost), "{node} without a tenant");
        }
        let answer = ask(&pools, &clusters.slot("edge"), &[]).await;
        assert_eq!(answer, Err(UpstreamFailure::NoHealthyHost), "isolated agents join no cluster by name");
    })
    .await;
}

/// A request that waits is served by the agent that it asked for, not by the next that comes.
#[tokio::test]
async fn who_waits_for_an_agent_gets_no_other() {
    on_worker(async {
        let (clusters, pools) = worker();
        clusters.apply(Arc::new(reverse("one", false)), None);
        clusters.apply(Arc::new(cluster("edge", &[])), None);
        clusters.apply(Arc::new(cluster("core", &[])), None);
        let slow = clusters.register(agent("a", "edge", "t", false, true)).await.unwrap();
        let waiting: Vec<_> = [("one", "a"), ("one", "edge"), ("edge", "")]
            .into_iter()
            .map(|(name, node)| {
                let (pools, slot) = (Rc::clone(&pools), clusters.slot(name));
                spawn_local(async move { ask(&pools, &slot, &[("x-node", node)]).await })
            })
            .collect();
        let _other = join(&clusters, agent("b", "core", "t", false, true)).await;
        assert_eq!(ask(&pools, &clusters.slot("core"), &[]).await.as_deref(), Ok("200 b /"), "the other serves");
        assert!(waiting.iter().all(|task| !task.is_finished()), "served by another agent");
        let (near, far) = tokio::io::duplex(64 * 1024);
        spawn_local(async move { serve_http2(far, "a", 100).await });
        spawn_local(async move { slow.attach(Io::memory(near)).await });
        for task in waiting {
            assert_eq!(task.await.unwrap().as_deref(), Ok("200 a /"));
        }
    })
    .await;
}

/// Whatever the request calls it by; the connection that comes is not open before somebody wants it.
#[tokio::test(start_paused = true)]
async fn requests_wait_for_an_agent_that_is_expected_back() {
    on_worker(async {
        let (clusters, pools) = worker();
        clusters.apply(Arc::new(reverse("one", false)), None);
        clusters.apply(Arc::new(reverse("two", true)), None);
        clusters.apply(Arc::new(cluster("edge", &[])), None);
        let claim = || TunnelClaim { reconnect_window: Duration::from_secs(3), ..agent("a", "edge", "t", false, true) };
        // One that nobody may find by the cluster's name, and that never ends, is no reason to wait, nor an answer.
        let _apart = join(&clusters, agent("z", "edge", "u", false, false)).await;
        let calls = [("one", "a", None), ("two", "a", None), ("edge", "", None), ("edge", "", Some("a"))];
        let start = || {
            calls.map(|(name, node, agent)| {
                let (pools, slot) = (Rc::clone(&pools), clusters.slot(name));
                spawn_local(async move {
                    let head = request(&[("x-node", node), ("x-tenant", "t")]);
                    let context = PickContext { request: Some(&head), agent, ..any() };
                    let mut checkout = pools.checkout(&slot, &context).await?;
                    Ok(get(&mut checkout, "/").await.unwrap())
                })
            })
        };
        drop(clusters.register(claim()).await.unwrap());
        eventually("it is gone", || clusters.tunnels().len() == 1).await;
        let parked = start();
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(parked.iter().all(|task| !task.is_finished()), "they wait: {parked:?}");
        let began = tokio::time::Instant::now();
        let lease = join(&clusters, claim()).await;
        for (task, call) in parked.into_iter().zip(calls) {
            assert_eq!(task.await.unwrap().as_deref(), Ok("200 a /"), "{call:?}: by the new tunnel");
        }
        assert!(began.elapsed() < Duration::from_millis(100), "opened at once: {:?}", began.elapsed());
        for name in ["one", "two"] {
            let parked = clusters.slot(name).stats().read(crate::stats::ClusterMetric::TunnelParked);
            assert_eq!(parked, 1, "{name}: parked");
        }
        lease.drain();
        drop(lease);
        eventually("it is gone again", || clusters.tunnels().len() == 1).await;
        tokio::time::sleep(Duration::from_secs(4)).await;
        let offline = || Err(UpstreamFailure::AgentOffline { seconds: 4 });
        let expected = [offline(), offline(), Err(UpstreamFailure::NoHealthyHost), offline()];
        for ((task, call), expected) in start().into_iter().zip(calls).zip(expected) {
            assert_eq!(task.await.unwrap(), expected, "{call:?}: after the window");
        }
    })
    .await;
}

/// Of one agent's tunnels the one with the fewest streams, by its own name as by that of its cluster id.
#[tokio::test]
async fn streams_go_to_the_least_loaded_of_an_agents_tunnels() {
    on_worker(async {
        let (clusters, pools) = worker();
        clusters.apply(Arc::new(reverse("one", false)), None);
        let slot = clusters.slot("one");
        let claim = || agent("a", "edge", "t", false, false);
        let (first, second) = (join(&clusters, claim()).await, join(&clusters, claim()).await);
        // Both are open: nobody opens one that is not wanted.
        first.connection.want(&Opening::default());
        second.connection.want(&Opening::default());
        let active = || clusters.tunnels().iter().map(|tunnel| tunnel.active).collect::<Vec<_>>();
        eventually("both are open", || clusters.tunnels().iter().all(|tunnel| tunnel.state == "open")).await;
        let mut held = Vec::new();
        for round in 1..=10 {
            let head = request(&[("x-node", if round % 2 == 0 { "a" } else { "edge" })]);
            let mut checkout = pools.checkout(&slot, &PickContext { request: Some(&head), ..any() }).await.unwrap();
            send(&mut checkout, "/hold").await.unwrap();
            held.push(checkout);
            let counts = active();
            assert!(counts[0].abs_diff(counts[1]) <= 1, "round {round}: they share, saw {counts:?}");
        }
        // What ends on one of them makes room there.
        held.retain(|checkout| !std::ptr::eq(checkout.host(), &raw const **first.host()));
        for _ in 0..5 {
            let head = request(&[("x-node", "a")]);
            let mut checkout = pools.checkout(&slot, &PickContext { request: Some(&head), ..any() }).await.unwrap();
            send(&mut checkout, "/hold").await.unwrap();
            assert!(
                std::ptr::eq(checkout.host(), &raw const **first.host()),
                "the first one has room, saw {:?}",
                active()
            );
            held.push(checkout);
        }
    })
    .await;
}

#[tokio::test]
async fn an_agent_that_nobody_can_reach_is_told_so() {
    on_worker(async {
        let (clusters, _pools) = worker();
        let refused = clusters.register(agent("a", "edge", "t", false, true)).await.map(drop);
        assert_eq!(refused, Err(RegisterError::ClusterUnknown("edge".into())));
        // Envoy's own filter takes it: the cluster that chooses it may come later.
        assert!(clusters.register(agent("a", "edge", "t", false, false)).await.is_ok());
    })
    .await;
}

/// What 100,000 requests ask for in vain is not kept.
#[tokio::test]
async fn unknown_agents_leave_nothing() {
    on_worker(async {
        let (clusters, pools) = worker();
        clusters.apply(Arc::new(reverse("one", false)), None);
        let slot = clusters.slot("one");
        for n in 0..100_000 {
            let seen = ask(&pools, &slot, &[("x-node", &format!("bogus-{n}"))]).await;
            assert_eq!(seen, Err(UpstreamFailure::NoHealthyHost));
        }
        assert!(clusters.tunnels().is_empty() && clusters.slots().len() == 1, "{:?}", clusters.slots());
    })
    .await;
}
