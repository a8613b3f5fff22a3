//! Circuit breakers, seen from requests.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex};

use tokio::task::spawn_local;

use super::*;
use crate::dns::{LookupError, Resolver};

fn limit(config: &mut Cluster, change: impl FnOnce(&mut culvert_model::cluster::Breakers)) {
    change(&mut config.breakers[0]);
}

#[tokio::test]
async fn requests_over_the_limit_are_refused() {
    on_worker(async {
        let (pools, slot, _accepted, _clusters) = http1(|config| limit(config, |limits| limits.max_requests = 2)).await;
        let mut first = pools.checkout(&slot, &any()).await.unwrap();
        let mut second = pools.checkout(&slot, &any()).await.unwrap();
        for _ in 0..3 {
            let third = pools.checkout(&slot, &any()).await.unwrap_err();
            assert_eq!(third, UpstreamFailure::Overflow(Exhausted::Requests), "the third of two");
        }
        let high = PickContext { priority: Priority::High, ..any() };
        assert!(pools.checkout(&slot, &high).await.is_ok(), "another priority has limits of its own");
        get(&mut first, "/").await.unwrap();
        drop(first);
        assert!(pools.checkout(&slot, &any()).await.is_ok(), "one has ended, another may begin");
        get(&mut second, "/").await.unwrap();
        assert_eq!(counted(&slot, ClusterMetric::RqPendingOverflow), 3, "refusals counted");
    })
    .await;
}

#[tokio::test]
async fn pending_requests_over_the_limit_are_refused() {
    on_worker(async {
        let (pools, slot, _accepted, _clusters) =
            http1(|config| limit(config, |limits| limits.max_pending_requests = 0)).await;
        let failure = pools.checkout(&slot, &any()).await.unwrap_err();
        assert_eq!(failure, UpstreamFailure::Overflow(Exhausted::Pending), "none may wait for a connection");
        assert_eq!(counted(&slot, ClusterMetric::RqPendingOverflow), 1, "counted");
    })
    .await;
}

#[tokio::test]
async fn at_the_connection_limit_requests_take_turns() {
    on_worker(async {
        let (pools, slot, accepted, _clusters) =
            http1(|config| limit(config, |limits| limits.max_connections = 1)).await;
        let served = Rc::new(Cell::new(0));
        let requests: Vec<_> = (0..10)
            .map(|index| {
                let (pools, slot, served) = (Rc::clone(&pools), Arc::clone(&slot), Rc::clone(&served));
                spawn_local(async move {
                    let mut checkout = pools.checkout(&slot, &any()).await.unwrap();
                    let path = format!("/{index}");
                    assert_eq!(get(&mut checkout, &path).await.unwrap(), format!("200 backend {path}"), "its response");
                    served.set(served.get() + 1);
                })
            })
            .collect();
        for request in requests {
            request.await.unwrap();
        }
        assert_eq!((served.get(), accepted.get()), (10, 1), "requests and connections");
        assert_eq!(counted(&slot, ClusterMetric::RqPendingActive), 0, "nobody waits any more");
    })
    .await;
}

#[tokio::test]
async fn an_idle_connection_gives_way_to_another_host_and_another_worker() {
    on_worker(async {
        let (one, _) = listen(|stream| serve_http1(stream, "one")).await;
        let (two, _) = listen(|stream| serve_http1(stream, "two")).await;
        let (clusters, pools) = worker();
        let mut config = cluster("a", &[one, two]);
        limit(&mut config, |limits| limits.max_connections = 1);
        clusters.apply(Arc::new(config), None);
        let slot = clusters.slot("a");
        let mut seen = BTreeSet::new();
        for _ in 0..2 {
            seen.insert(get(&mut pools.checkout(&slot, &any()).await.unwrap(), "/").await.unwrap());
        }
        assert_eq!(seen.len(), 2, "both hosts serve over one connection at a time: {seen:?}");

        let other = WorkerPools::new(Arc::clone(&clusters));
        let before = Instant::now();
        get(&mut other.checkout(&slot, &any()).await.unwrap(), "/").await.unwrap();
        assert!(before.elapsed() < Duration::from_secs(5), "the other worker waited {:?}", before.elapsed());
        assert_eq!(slot.breakers().of(Priority::Default).connections.used(), 1, "connections of both workers");
    })
    .await;
}

#[tokio::test]
async fn a_request_that_gives_up_waiting_leaves_nothing() {
    on_worker(async {
        let (pools, slot, _accepted, _clusters) =
            http1(|config| limit(config, |limits| limits.max_connections = 1)).await;
        let mut first = pools.checkout(&slot, &any()).await.unwrap();
        let second = tokio::time::timeout(Duration::from_millis(20), pools.checkout(&slot, &any())).await;
        assert!(second.is_err(), "the second waits");
        let breaker = slot.breakers().of(Priority::Default);
        assert_eq!(breaker.pending.used(), 0, "pending after it gave up");
        assert_eq!(breaker.wanted.load(Ordering::Relaxed), 0, "waiters after it gave up");
        get(&mut first, "/").await.unwrap();
        drop(first);
        assert!(pools.checkout(&slot, &any()).await.unwrap().is_reused(), "the connection is pooled");
    })
    .await;
}

#[test]
fn limits_hold_exactly_over_four_workers() {
    const WORKERS: usize = 4;
    const EACH: usize = 16;
    const LIMIT: u32 = 10;
    let control = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let resolver = Resolver::scripted(|_, _| Err(LookupError { reason: "no names here".to_owned() }));
    let clusters = Clusters::new(control.handle().clone(), resolver);
    let mut config = cluster("a", &[address]);
    limit(&mut config, |limits| limits.max_requests = LIMIT);
    clusters.apply(Arc::new(config), None);
    let (together, granted) = (Barrier::new(WORKERS), AtomicUsize::new(0));
    let refused = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(on_worker(async {
                    let pools = WorkerPools::new(Arc::clone(&clusters));
                    let slot = clusters.slot("a");
                    together.wait();
                    let mut held = Vec::new();
                    for _ in 0..EACH {
                        match pools.checkout(&slot, &any()).await {
                            Ok(checkout) => held.push(checkout),
                            Err(failure) => refused.lock().unwrap().push(failure),
                        }
                    }
                    granted.fetch_add(held.len(), Ordering::Relaxed);
                    together.wait();
                }));
            });
        }
    });
    let refused = refused.into_inner().unwrap();
    let granted = granted.into_inner();
    assert_eq!(granted, LIMIT as usize, "requests granted to {WORKERS} workers; refused: {}", refused.len());
    let overflow = UpstreamFailure::Overflow(Exhausted::Requests);
    assert!(refused.iter().all(|failure| *failure == overflow), "every other one overflows: {refused:?}");
    let breaker = clusters.slot("a").breakers().of(Priority::Default).levels();
    assert!(breaker.iter().all(|(_, level)| level.used == 0), "everything is given back: {breaker:?}");
    control.shutdown_background();
}
