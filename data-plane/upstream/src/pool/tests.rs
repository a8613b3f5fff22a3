use std::net::SocketAddr;
use std::time::Duration;

use culvert_model::cluster::{Cluster, UpstreamProtocol};

use super::*;
use crate::failure::Exhausted;
use crate::fixture::{
    any, cluster, eventually, get, listen, on_worker, receive, send, serve_http1, serve_http2, worker,
};

mod limits;
mod tls;

/// A cluster of one HTTP/1 backend; how many connections the backend has seen.
async fn http1(
    change: impl FnOnce(&mut Cluster),
) -> (Rc<WorkerPools>, Arc<ClusterSlot>, Rc<Cell<usize>>, Arc<Clusters>) {
    let (address, accepted) = listen(|stream| serve_http1(stream, "backend")).await;
    let (clusters, pools) = worker();
    let mut config = cluster("a", &[address]);
    change(&mut config);
    clusters.apply(Arc::new(config), None);
    let slot = clusters.slot("a");
    (pools, slot, accepted, clusters)
}

fn counted(slot: &ClusterSlot, metric: ClusterMetric) -> u64 {
    slot.stats().read(metric)
}

/// An address that refuses connections.
fn refusing() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

#[tokio::test]
async fn a_connection_serves_one_request_after_the_other() {
    on_worker(async {
        let (pools, slot, accepted, _clusters) = http1(|_| {}).await;
        for round in 0..5 {
            let mut checkout = pools.checkout(&slot, &any()).await.unwrap();
            assert_eq!(checkout.is_reused(), round > 0, "round {round}: the connection is not new after the first");
            assert_eq!(get(&mut checkout, "/x").await.unwrap(), "200 backend /x", "round {round}");
            checkout.response(200);
            assert_eq!(checkout.remote_address(), checkout.host().address(), "whom it speaks to");
            assert!(checkout.local_address().is_some_and(|local| local.port() != 0), "its own end");
        }
        assert_eq!(accepted.get(), 1, "connections that the backend saw");
        let expected = [
            (ClusterMetric::CxTotal, 1),
            (ClusterMetric::CxActive, 1),
            (ClusterMetric::RqTotal, 5),
            (ClusterMetric::RqActive, 0),
            (ClusterMetric::RqPendingTotal, 1),
            (ClusterMetric::RqPendingActive, 0),
            (ClusterMetric::Rq2xx, 5),
        ];
        for (metric, value) in expected {
            assert_eq!(counted(&slot, metric), value, "{metric:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn requests_at_the_same_time_have_connections_of_their_own() {
    on_worker(async {
        let (pools, slot, accepted, _clusters) = http1(|_| {}).await;
        let mut checkouts = Vec::new();
        for index in 0..3 {
            let mut checkout = pools.checkout(&slot, &any()).await.unwrap();
            send(&mut checkout, &format!("/{index}")).await.unwrap();
            checkouts.push(checkout);
        }
        for (index, checkout) in checkouts.iter_mut().enumerate() {
            assert_eq!(receive(checkout).await.unwrap(), format!("200 backend /{index}"), "its own response");
        }
        let last = checkouts[2].local_address();
        drop(checkouts);
        let mut again = pools.checkout(&slot, &any()).await.unwrap();
        assert_eq!(again.local_address(), last, "the one that came back last, so that the others can grow old");
        get(&mut again, "/").await.unwrap();
        assert_eq!(accepted.get(), 3, "connections that the backend saw");
    })
    .await;
}

#[tokio::test]
async fn an_exchange_that_did_not_end_closes_its_connection() {
    on_worker(async {
        let (pools, slot, accepted, _clusters) = http1(|_| {}).await;
        let mut checkout = pools.checkout(&slot, &any()).await.unwrap();
        send(&mut checkout, "/").await.unwrap();
        drop(checkout);
        assert_eq!(counted(&slot, ClusterMetric::CxActive), 0, "the connection is closed");
        assert_eq!(counted(&slot, ClusterMetric::CxDestroyWithActiveRq), 1, "with its request");
        let mut next = pools.checkout(&slot, &any()).await.unwrap();
        assert_eq!(get(&mut next, "/next").await.unwrap(), "200 backend /next", "nothing is left of the one before");
        assert_eq!(accepted.get(), 2, "connections that the backend saw");
    })
    .await;
}

#[tokio::test]
async fn a_connection_that_the_peer_closed_is_not_used_again() {
    on_worker(async {
        let (pools, slot, accepted, _clusters) = http1(|_| {}).await;
        let mut checkout = pools.checkout(&slot, &any()).await.unwrap();
        get(&mut checkout, "/close").await.unwrap();
        drop(checkout);
        assert_eq!(counted(&slot, ClusterMetric::CxActive), 1, "pooled: nobody has seen its end yet");
        // Housekeeping finds it without any request.
        eventually("the closed connection is noticed", || counted(&slot, ClusterMetric::CxActive) == 0).await;
        assert_eq!(counted(&slot, ClusterMetric::CxDestroyRemote), 1, "closed by the peer");
        let mut next = pools.checkout(&slot, &any()).await.unwrap();
        get(&mut next, "/").await.unwrap();
        assert_eq!(accepted.get(), 2, "connections that the backend saw");
    })
    .await;
}

#[tokio::test]
async fn only_a_connection_that_has_served_can_be_stale() {
    on_worker(async {
        let (pools, slot, _accepted, _clusters) = http1(|_| {}).await;
        for round in 0..20 {
            let mut checkout = pools.checkout(&slot, &any()).await.unwrap();
            match get(&mut checkout, "/close").await {
                Ok(response) => assert_eq!(response, "200 backend /close", "round {round}"),
                Err(error) => {
                    assert!(checkout.is_reused(), "round {round}: only a pooled connection can be stale: {error}");
                }
            }
        }
    })
    .await;
}

#[tokio::test]
async fn connections_end_after_their_number_of_requests_and_their_idle_time() {
    on_worker(async {
        let (pools, slot, accepted, _clusters) = http1(|config| {
            config.max_requests_per_connection = Some(2);
            config.idle_timeout = Some(Duration::from_secs(4));
        })
        .await;
        for _ in 0..4 {
            get(&mut pools.checkout(&slot, &any()).await.unwrap(), "/").await.unwrap();
        }
        assert_eq!(accepted.get(), 2, "two connections of two requests each");
        assert_eq!(counted(&slot, ClusterMetric::CxMaxRequests), 2, "both had as many as they may");
        get(&mut pools.checkout(&slot, &any()).await.unwrap(), "/").await.unwrap();
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(6)).await;
        eventually("the idle connection is closed", || counted(&slot, ClusterMetric::CxActive) == 0).await;
        assert_eq!(counted(&slot, ClusterMetric::CxIdleTimeout), 1, "closed because it was idle");
    })
    .await;
}

#[tokio::test]
async fn connections_opened_in_another_way_and_to_hosts_that_went_are_not_used() {
    on_worker(async {
        let (pools, slot, accepted, clusters) = http1(|_| {}).await;
        get(&mut pools.checkout(&slot, &any()).await.unwrap(), "/").await.unwrap();
        let mut config = (*slot.config().unwrap().cluster).clone();
        config.source_address = Some(([127, 0, 0, 1], 0).into());
        clusters.apply(Arc::new(config.clone()), None);
        get(&mut pools.checkout(&slot, &any()).await.unwrap(), "/").await.unwrap();
        assert_eq!(accepted.get(), 2, "a new source address needs a new connection");

        let mut held = pools.checkout(&slot, &any()).await.unwrap();
        config.discovery = cluster("a", &[]).discovery;
        clusters.apply(Arc::new(config), None);
        let nobody = pools.checkout(&slot, &any()).await.unwrap_err();
        assert_eq!(nobody, UpstreamFailure::NoHealthyHost, "no host is left");
        assert_eq!(get(&mut held, "/held").await.unwrap(), "200 backend /held", "what is in flight goes on");
        drop(held);
        assert_eq!(counted(&slot, ClusterMetric::CxActive), 0, "and its connection ends with it");
        clusters.remove("a");
        let gone = pools.checkout(&slot, &any()).await.unwrap_err();
        assert_eq!(gone, UpstreamFailure::NoCluster, "the cluster is gone");
    })
    .await;
}

#[tokio::test]
async fn balancers_that_compare_load_see_it() {
    use std::sync::atomic::Ordering;
    on_worker(async {
        let (pools, slot, _accepted, _clusters) =
            http1(|config| config.balancer = culvert_model::cluster::Balancer::LeastRequest { choices: 2 }).await;
        let mut first = pools.checkout(&slot, &any()).await.unwrap();
        let second = pools.checkout(&slot, &any()).await.unwrap();
        assert_eq!(first.host().load().load(Ordering::Relaxed), 2, "requests under way");
        drop(second);
        assert_eq!(first.host().load().load(Ordering::Relaxed), 1, "after one ended");
        get(&mut first, "/").await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn failures_to_connect_say_why() {
    on_worker(async {
        let (clusters, pools) = worker();
        let address = refusing();
        clusters.apply(Arc::new(cluster("refusing", &[address])), None);
        let slot = clusters.slot("refusing");
        let failure = pools.checkout(&slot, &any()).await.unwrap_err();
        let reason = std::io::ErrorKind::ConnectionRefused;
        assert_eq!(failure, UpstreamFailure::ConnectFailure { address, reason }, "refused");
        assert!(failure.is_connect_failure(), "covered by the retry condition");
        assert_eq!(counted(&slot, ClusterMetric::CxConnectFail), 1, "counted");
        assert_eq!(counted(&slot, ClusterMetric::RqPendingActive), 0, "nothing waits any more");
        assert_eq!(slot.breakers().of(Priority::Default).connections.used(), 0, "its place is free again");

        let absent = clusters.slot("absent");
        let failure = pools.checkout(&absent, &any()).await.unwrap_err();
        assert_eq!(failure, UpstreamFailure::NoCluster, "a slot without cluster");
        let agent = PickContext { agent: Some("edge-7"), ..any() };
        let failure = pools.checkout(&slot, &agent).await.unwrap_err();
        assert_eq!(failure, UpstreamFailure::AgentUnknown, "an agent that never registered");
    })
    .await;
}

#[tokio::test]
async fn clusters_are_found_by_the_name_that_a_request_brings() {
    on_worker(async {
        let (pools, slot, _accepted, clusters) = http1(|_| {}).await;
        assert!(pools.lookup("a").is_some_and(|found| Arc::ptr_eq(&found, &slot)), "a cluster that is there");
        assert!(pools.lookup("b").is_none(), "one that is not");
        assert!(clusters.lookup("b").is_none(), "a request's name makes no slot");
    })
    .await;
}

#[tokio::test]
async fn http2_requests_share_connections_up_to_the_peers_limit() {
    on_worker(async {
        let (address, accepted) = listen(|stream| serve_http2(stream, "two", 4)).await;
        let (clusters, pools) = worker();
        let mut config = cluster("a", &[address]);
        config.protocol = UpstreamProtocol::Http2;
        clusters.apply(Arc::new(config), None);
        let slot = clusters.slot("a");

        get(&mut pools.checkout(&slot, &any()).await.unwrap(), "/first").await.unwrap();
        let mut checkouts = Vec::new();
        for index in 0..4 {
            let mut checkout = pools.checkout(&slot, &any()).await.unwrap();
            assert_eq!(checkout.protocol(), culvert_http::Version::Http2, "what is spoken");
            send(&mut checkout, &format!("/{index}")).await.unwrap();
            checkouts.push(checkout);
        }
        assert_eq!(accepted.get(), 1, "four streams fit one connection");
        let mut fifth = pools.checkout(&slot, &any()).await.unwrap();
        assert_eq!(get(&mut fifth, "/fifth").await.unwrap(), "200 two /fifth", "the fifth");
        assert_eq!(accepted.get(), 2, "the fifth needs a second connection");
        for (index, checkout) in checkouts.iter_mut().enumerate() {
            assert_eq!(receive(checkout).await.unwrap(), format!("200 two /{index}"), "its own response");
        }
        assert_eq!(counted(&slot, ClusterMetric::CxHttp2Total), 2, "connections counted");
    })
    .await;
}

#[tokio::test]
async fn http2_requests_that_come_together_open_one_connection_and_share_its_failure() {
    on_worker(async {
        let (address, accepted) = listen(|stream| serve_http2(stream, "two", 100)).await;
        let (clusters, pools) = worker();
        for (name, address) in [("a", address), ("refusing", refusing())] {
            let mut config = cluster(name, &[address]);
            config.protocol = UpstreamProtocol::Http2;
            clusters.apply(Arc::new(config), None);
        }
        let burst = |name: &str| {
            let (slot, pools) = (clusters.slot(name), Rc::clone(&pools));
            let requests: Vec<_> = (0..10)
                .map(|index| {
                    let (slot, pools) = (Arc::clone(&slot), Rc::clone(&pools));
                    tokio::task::spawn_local(async move {
                        let mut checkout = pools.checkout(&slot, &any()).await?;
                        assert!(get(&mut checkout, &format!("/{index}")).await.is_ok(), "request {index}");
                        Ok::<_, UpstreamFailure>(())
                    })
                })
                .collect();
            requests
        };
        for request in burst("a") {
            request.await.unwrap().unwrap();
        }
        assert_eq!(accepted.get(), 1, "connections for ten requests");
        for request in burst("refusing") {
            let failure = request.await.unwrap().unwrap_err();
            assert!(matches!(failure, UpstreamFailure::ConnectFailure { .. }), "every one fails: {failure}");
        }
        let dialled = counted(&clusters.slot("refusing"), ClusterMetric::CxConnectFail);
        assert_eq!(dialled, 1, "attempts to connect for ten requests");
    })
    .await;
}

#[tokio::test]
async fn an_http2_connection_that_ends_leaves_the_pool() {
    on_worker(async {
        let (address, accepted) = listen(|stream| async move {
            // Ends after a moment: with the first request's response.
            let serve = serve_http2(stream, "two", 100);
            drop(tokio::time::timeout(Duration::from_millis(50), serve).await);
        })
        .await;
        let (clusters, pools) = worker();
        let mut config = cluster("a", &[address]);
        config.protocol = UpstreamProtocol::Http2;
        clusters.apply(Arc::new(config), None);
        let slot = clusters.slot("a");
        get(&mut pools.checkout(&slot, &any()).await.unwrap(), "/").await.unwrap();
        eventually("the connection's end is noticed", || counted(&slot, ClusterMetric::CxActive) == 0).await;
        get(&mut pools.checkout(&slot, &any()).await.unwrap(), "/").await.unwrap();
        assert_eq!(accepted.get(), 2, "the next request opens another");
    })
    .await;
}

#[tokio::test]
async fn tcp_has_a_connection_of_its_own() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    on_worker(async {
        let (pools, slot, accepted, _clusters) = http1(|_| {}).await;
        let mut checkout = pools.checkout_tcp(&slot, &any()).await.unwrap();
        let Some(TcpUpstream::Io(mut io)) = checkout.take() else { panic!("a socket, got {checkout:?}") };
        assert!(checkout.take().is_none(), "taken once");
        io.write_all(b"GET /raw HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut response = [0; 256];
        let n = io.read(&mut response).await.unwrap();
        assert!(
            response[..n].ends_with(b"backend /raw"),
            "bytes both ways: {:?}",
            String::from_utf8_lossy(&response[..n])
        );
        assert_eq!(counted(&slot, ClusterMetric::CxActive), 1, "counts as long as the checkout lives");
        drop(checkout);
        assert_eq!(counted(&slot, ClusterMetric::CxActive), 0, "and no longer");
        assert_eq!(accepted.get(), 1, "connections");
    })
    .await;
}
