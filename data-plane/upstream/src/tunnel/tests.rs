use std::cell::RefCell;
use std::rc::Rc;

use tokio::io::DuplexStream;
use tokio::task::{JoinHandle, spawn_local};

use super::*;
use crate::clusters::Clusters;
use crate::failure::UpstreamFailure;
use crate::fixture::{
    any, claim, cluster, eventually, get, on_worker, receive, send, serve_http1, serve_http2, worker,
};
use crate::pool::{Checkout, PickContext, TcpUpstream, WorkerPools};
use crate::stats::ClusterMetric;

mod waiting;

/// A tunnel that an agent has opened.
struct Tunnel {
    lease: Rc<RefCell<Option<Rc<TunnelLease>>>>,
    /// Runs the connection; its end.
    owner: JoinHandle<TunnelEnd>,
    /// Serves requests at the agent's end.
    agent: JoinHandle<()>,
}

impl Tunnel {
    fn drain(&self) {
        self.lease.borrow().as_ref().unwrap().drain();
    }

    /// What the tunnel crate does at the end.
    async fn end(self) -> TunnelEnd {
        let end = self.owner.await.unwrap();
        drop(self.lease.take());
        end
    }
}

/// Starts a cluster without hosts of its own.
fn edge() -> (Arc<Clusters>, Rc<WorkerPools>, Arc<ClusterSlot>) {
    let (clusters, pools) = worker();
    clusters.apply(Arc::new(cluster("edge", &[])), None);
    let slot = clusters.slot("edge");
    (clusters, pools, slot)
}

async fn open(clusters: &Clusters, claim: TunnelClaim) -> Tunnel {
    let name: &'static str = Box::leak(claim.agent.to_string().into_boxed_str());
    let protocol = claim.protocol;
    let lease = clusters.register(claim).await.unwrap();
    let (near, far) = tokio::io::duplex(64 * 1024);
    let agent = spawn_local(async move {
        match protocol {
            TunnelProtocol::Http1 => serve_http1(far, name).await,
            TunnelProtocol::Http2 => serve_http2(far, name, 4).await,
        }
    });
    attach(lease, near, agent)
}

fn attach(lease: TunnelLease, near: DuplexStream, agent: JoinHandle<()>) -> Tunnel {
    let lease = Rc::new(lease);
    let held = Rc::new(RefCell::new(Some(Rc::clone(&lease))));
    let owner = spawn_local(async move { lease.attach(Io::memory(near)).await });
    Tunnel { lease: held, owner, agent }
}

fn http2(claim: TunnelClaim) -> TunnelClaim {
    TunnelClaim { protocol: TunnelProtocol::Http2, ..claim }
}

fn agent(name: &str) -> PickContext<'_> {
    PickContext { agent: Some(name), ..any() }
}

async fn checkout(pools: &WorkerPools, slot: &Arc<ClusterSlot>) -> Checkout {
    pools.checkout(slot, &any()).await.unwrap()
}

#[tokio::test]
async fn requests_go_through_tunnels_of_either_protocol() {
    for protocol in [TunnelProtocol::Http1, TunnelProtocol::Http2] {
        on_worker(async {
            let (clusters, pools, slot) = edge();
            let tunnel = open(&clusters, TunnelClaim { protocol, ..claim("edge", "a") }).await;
            for round in 0..5 {
                let mut checkout = checkout(&pools, &slot).await;
                assert!(checkout.host().is_tunnel() && &**checkout.host().hostname() == "a", "the host is the agent");
                let path = format!("/{round}");
                assert_eq!(get(&mut checkout, &path).await.unwrap(), format!("200 a {path}"), "{protocol:?}");
            }
            let shown = clusters.tunnels();
            assert_eq!((shown.len(), shown[0].requests, shown[0].active), (1, 5, 0), "as shown: {shown:?}");
            tunnel.agent.abort();
            assert_eq!(tunnel.end().await, TunnelEnd::Closed, "{protocol:?}: the agent went");
            eventually("the host is gone", || clusters.tunnels().is_empty()).await;
            let failure = pools.checkout(&slot, &any()).await.unwrap_err();
            assert_eq!(failure, UpstreamFailure::NoHealthyHost, "{protocol:?}: nobody is left");
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_plain_tunnel_serves_one_request_at_a_time_in_order() {
    on_worker(async {
        let (clusters, pools, slot) = edge();
        let _tunnel = open(&clusters, claim("edge", "a")).await;
        eventually("it is attached", || clusters.tunnels()[0].state == "idle").await;
        let mut first = checkout(&pools, &slot).await;
        send(&mut first, "/first").await.unwrap();
        let order = Rc::new(RefCell::new(Vec::new()));
        let mut waiting = Vec::new();
        for index in 0..5 {
            let (pools, slot, order) = (Rc::clone(&pools), Arc::clone(&slot), Rc::clone(&order));
            waiting.push(spawn_local(async move {
                let mut checkout = checkout(&pools, &slot).await;
                order.borrow_mut().push(index);
                get(&mut checkout, &format!("/{index}")).await.unwrap()
            }));
            tokio::task::yield_now().await;
        }
        assert!(order.borrow().is_empty(), "all wait: the tunnel is in use");
        assert_eq!(receive(&mut first).await.unwrap(), "200 a /first", "the first");
        drop(first);
        for (index, request) in waiting.into_iter().enumerate() {
            assert_eq!(request.await.unwrap(), format!("200 a /{index}"), "request {index}");
        }
        assert_eq!(*order.borrow(), [0, 1, 2, 3, 4], "first come, first served");
        assert_eq!(slot.stats().read(ClusterMetric::TunnelQueued), 5, "queued");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_queue_is_bounded_in_length_and_time() {
    on_worker(async {
        let (clusters, pools, slot) = edge();
        let bounded =
            TunnelClaim { max_queued_requests: 1, queue_timeout: Duration::from_secs(3), ..claim("edge", "a") };
        let _tunnel = open(&clusters, bounded).await;
        let mut first = checkout(&pools, &slot).await;
        send(&mut first, "/first").await.unwrap();
        let second = {
            let (pools, slot) = (Rc::clone(&pools), Arc::clone(&slot));
            spawn_local(async move { pools.checkout(&slot, &any()).await })
        };
        tokio::task::yield_now().await;
        let third = pools.checkout(&slot, &any()).await.unwrap_err();
        assert_eq!(third, UpstreamFailure::QueueFull, "one may wait");
        let before = tokio::time::Instant::now();
        assert_eq!(second.await.unwrap().unwrap_err(), UpstreamFailure::QueueTimeout, "the second waits in vain");
        assert_eq!(before.elapsed(), Duration::from_secs(3), "for as long as it may");
        assert_eq!(receive(&mut first).await.unwrap(), "200 a /first", "the first is not disturbed");
        drop(first);
        assert_eq!(get(&mut checkout(&pools, &slot).await, "/next").await.unwrap(), "200 a /next", "and the next");
    })
    .await;
}

#[tokio::test]
async fn an_idle_tunnel_is_preferred_to_waiting() {
    on_worker(async {
        let (clusters, pools, slot) = edge();
        let mut tunnels = Vec::new();
        for name in ["a", "b", "c"] {
            tunnels.push(open(&clusters, claim("edge", name)).await);
        }
        eventually("all are attached", || clusters.tunnels().iter().all(|tunnel| tunnel.state == "idle")).await;
        let mut held = Vec::new();
        for _ in 0..3 {
            let mut checkout = checkout(&pools, &slot).await;
            send(&mut checkout, "/").await.unwrap();
            held.push(checkout);
        }
        assert_eq!(slot.stats().read(ClusterMetric::TunnelQueued), 0, "three requests, three tunnels: nobody waits");
        let agents: std::collections::BTreeSet<_> =
            held.iter().map(|checkout| checkout.host().hostname().to_string()).collect();
        assert_eq!(agents.len(), 3, "each has another: {agents:?}");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_request_may_choose_a_tunnel_before_it_is_attached() {
    for protocol in [TunnelProtocol::Http1, TunnelProtocol::Http2] {
        on_worker(async {
            let (clusters, pools, slot) = edge();
            let lease = clusters.register(TunnelClaim { protocol, ..claim("edge", "a") }).await.unwrap();
            let request = {
                let (pools, slot) = (Rc::clone(&pools), Arc::clone(&slot));
                spawn_local(async move { get(&mut checkout(&pools, &slot).await, "/early").await.unwrap() })
            };
            tokio::time::sleep(Duration::from_millis(20)).await;
            assert!(!request.is_finished(), "{protocol:?}: it waits for the handshake's reply");
            let (near, far) = tokio::io::duplex(1024);
            let agent = spawn_local(async move {
                match protocol {
                    TunnelProtocol::Http1 => serve_http1(far, "a").await,
                    TunnelProtocol::Http2 => serve_http2(far, "a", 4).await,
                }
            });
            let _tunnel = attach(lease, near, agent);
            assert_eq!(request.await.unwrap(), "200 a /early", "{protocol:?}");
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_for_a_tunnel_that_ends_are_told() {
    on_worker(async {
        let (clusters, pools, slot) = edge();
        let lease = clusters.register(claim("edge", "a")).await.unwrap();
        let request = {
            let (pools, slot) = (Rc::clone(&pools), Arc::clone(&slot));
            spawn_local(async move { pools.checkout(&slot, &any()).await.unwrap_err() })
        };
        tokio::time::sleep(Duration::from_millis(20)).await;
        drop(lease);
        assert_eq!(request.await.unwrap(), UpstreamFailure::TunnelClosed, "nothing is left to wait for");
    })
    .await;
}

#[tokio::test]
async fn agents_are_chosen_by_name() {
    on_worker(Box::pin(async {
        let (clusters, pools, slot) = edge();
        let mut tunnels = Vec::new();
        for name in ["edge-1", "edge-2", "edge-2", "edge-3"] {
            tunnels.push(open(&clusters, claim("edge", name)).await);
        }
        for name in ["edge-1", "edge-2", "edge-3"] {
            for _ in 0..4 {
                let mut checkout = pools.checkout(&slot, &agent(name)).await.unwrap();
                assert_eq!(get(&mut checkout, "/").await.unwrap(), format!("200 {name} /"), "served by {name}");
            }
        }
        let failure = pools.checkout(&slot, &agent("edge-9")).await.unwrap_err();
        assert_eq!(failure, UpstreamFailure::AgentUnknown, "one that never was here");
        let gone = tunnels.remove(0);
        gone.agent.abort();
        gone.end().await;
        eventually("its host is gone", || clusters.tunnels().len() == 3).await;
        let failure = pools.checkout(&slot, &agent("edge-1")).await.unwrap_err();
        assert_eq!(failure, UpstreamFailure::AgentOffline { seconds: 0 }, "one that was here");
        let _again = open(&clusters, claim("edge", "edge-1")).await;
        assert!(pools.checkout(&slot, &agent("edge-1")).await.is_ok(), "one that came back");
    }))
    .await;
}

#[tokio::test]
async fn a_draining_tunnel_finishes_what_is_in_flight() {
    for protocol in [TunnelProtocol::Http1, TunnelProtocol::Http2] {
        on_worker(async {
            let (clusters, pools, slot) = edge();
            let draining = open(&clusters, TunnelClaim { protocol, ..claim("edge", "old") }).await;
            let mut held = checkout(&pools, &slot).await;
            send(&mut held, "/held").await.unwrap();
            let _replacement = open(&clusters, TunnelClaim { protocol, ..claim("edge", "new") }).await;
            draining.drain();
            for _ in 0..4 {
                let mut next = checkout(&pools, &slot).await;
                assert_eq!(get(&mut next, "/").await.unwrap(), "200 new /", "{protocol:?}: no new request for the old");
            }
            assert!(!draining.owner.is_finished(), "{protocol:?}: a request is in flight");
            assert_eq!(receive(&mut held).await.unwrap(), "200 old /held", "{protocol:?}: it ends well");
            drop(held);
            assert_eq!(draining.end().await, TunnelEnd::Drained, "{protocol:?}: then the tunnel ends");

            let idle = open(&clusters, TunnelClaim { protocol, ..claim("edge", "idle") }).await;
            eventually("it is attached", || clusters.tunnels().iter().all(|tunnel| tunnel.state != "pending")).await;
            idle.drain();
            assert_eq!(idle.end().await, TunnelEnd::Drained, "{protocol:?}: an idle one ends at once");
        })
        .await;
    }
}

#[tokio::test]
async fn a_removed_cluster_drains_its_tunnels_and_takes_new_ones_when_it_returns() {
    on_worker(async {
        let (clusters, pools, slot) = edge();
        let tunnel = open(&clusters, claim("edge", "a")).await;
        get(&mut checkout(&pools, &slot).await, "/").await.unwrap();
        clusters.remove("edge");
        assert_eq!(tunnel.end().await, TunnelEnd::ClusterRemoved, "the agent is told by the connection's end");
        assert!(clusters.register(claim("edge", "a")).await.is_err(), "no cluster to join");
        clusters.apply(Arc::new(cluster("edge", &[])), None);
        let _again = open(&clusters, claim("edge", "a")).await;
        assert_eq!(get(&mut checkout(&pools, &slot).await, "/2").await.unwrap(), "200 a /2", "the cluster is back");
    })
    .await;
}

#[tokio::test]
async fn tcp_takes_a_plain_tunnel_whole() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    on_worker(Box::pin(async {
        let (clusters, pools, slot) = edge();
        let tunnel = open(&clusters, claim("edge", "a")).await;
        eventually("it is attached", || clusters.tunnels()[0].state == "idle").await;
        let mut checkout = pools.checkout_tcp(&slot, &any()).await.unwrap();
        assert_eq!(clusters.tunnels()[0].state, "borrowed", "whoever watches it still does");
        let Some(TcpUpstream::Io(mut io)) = checkout.take() else { panic!("the connection, got {checkout:?}") };
        io.write_all(b"GET /raw HTTP/1.1\r\n\r\n").await.unwrap();
        let mut response = [0; 256];
        let n = io.read(&mut response).await.unwrap();
        assert!(response[..n].ends_with(b"a /raw"), "bytes both ways: {:?}", String::from_utf8_lossy(&response[..n]));
        drop((io, checkout));
        assert_eq!(tunnel.end().await, TunnelEnd::Taken, "it has served");
    }))
    .await;
}

#[tokio::test]
async fn http2_tunnels_carry_requests_side_by_side_up_to_their_limit() {
    on_worker(async {
        let (clusters, pools, slot) = edge();
        let _tunnel = open(&clusters, http2(claim("edge", "a"))).await;
        get(&mut checkout(&pools, &slot).await, "/warm").await.unwrap();
        let other = WorkerPools::new(Arc::clone(&clusters));
        let mut held = Vec::new();
        for index in 0..4 {
            let pools = if index % 2 == 0 { &pools } else { &other };
            let mut checkout = checkout(pools, &slot).await;
            send(&mut checkout, "/hold").await.unwrap();
            held.push(checkout);
        }
        let fifth = {
            let (pools, slot) = (Rc::clone(&pools), Arc::clone(&slot));
            spawn_local(async move { get(&mut checkout(&pools, &slot).await, "/fifth").await.unwrap() })
        };
        eventually("the fifth waits", || slot.stats().read(ClusterMetric::TunnelQueued) > 0).await;
        drop(held.pop());
        assert_eq!(fifth.await.unwrap(), "200 a /fifth", "a stream became free");
    })
    .await;
}

#[tokio::test]
async fn streams_go_to_the_least_loaded_of_an_agents_tunnels() {
    on_worker(async {
        let (clusters, pools, slot) = edge();
        let mut tunnels = Vec::new();
        for (name, weight) in [("a", 10), ("a", 10), ("a", 20), ("b", 10)] {
            tunnels.push(open(&clusters, TunnelClaim { weight, ..http2(claim("edge", name)) }).await);
        }
        eventually("all are open", || clusters.tunnels().iter().all(|tunnel| tunnel.state == "open")).await;
        let mut held = Vec::new();
        for _ in 0..8 {
            let mut checkout = pools.checkout(&slot, &agent("a")).await.unwrap();
            send(&mut checkout, "/hold").await.unwrap();
            held.push(checkout);
        }
        let active = || clusters.tunnels().iter().map(|tunnel| tunnel.active).collect::<Vec<_>>();
        assert_eq!(active(), [2, 2, 4, 0], "as many as their weights say");
        drop(held.remove(0));
        let freed = active().iter().zip([2, 2, 4]).position(|(now, before)| *now < before).unwrap();
        held.push(pools.checkout(&slot, &agent("a")).await.unwrap());
        assert_eq!(active(), [2, 2, 4, 0], "the next one goes to where one ended: {freed}");
    })
    .await;
}

#[test]
fn any_worker_uses_a_tunnel_and_its_owner_sees_its_end() {
    const WORKERS: usize = 3;
    const EACH: usize = 50;
    for protocol in [TunnelProtocol::Http1, TunnelProtocol::Http2] {
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (ready, clusters) = std::sync::mpsc::channel();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let owner = std::thread::spawn(move || {
            runtime().block_on(on_worker(async {
                let (clusters, _pools, _slot) = edge();
                let tunnel = open(&clusters, TunnelClaim { protocol, ..claim("edge", "a") }).await;
                ready.send(Arc::clone(&clusters)).unwrap();
                stopped.await.unwrap();
                let requests = clusters.tunnels()[0].requests;
                tunnel.agent.abort();
                (tunnel.end().await, requests)
            }))
        });
        let clusters = clusters.recv().unwrap();
        std::thread::scope(|scope| {
            for worker in 0..WORKERS {
                let clusters = &clusters;
                scope.spawn(move || {
                    runtime().block_on(on_worker(async {
                        let pools = WorkerPools::new(Arc::clone(clusters));
                        let slot = clusters.slot("edge");
                        for index in 0..EACH {
                            let path = format!("/{worker}/{index}");
                            let response = get(&mut checkout(&pools, &slot).await, &path).await.unwrap();
                            assert_eq!(response, format!("200 a {path}"), "{protocol:?}: its own response");
                        }
                    }));
                });
            }
        });
        stop.send(()).unwrap();
        let (end, requests) = owner.join().unwrap();
        assert_eq!(end, TunnelEnd::Closed, "{protocol:?}: the owner sees the end of a connection that others borrowed");
        assert_eq!(requests, (WORKERS * EACH) as u64, "{protocol:?}: requests");
    }
}
