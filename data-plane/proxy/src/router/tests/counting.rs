//! What requests leave behind in the statistics, under Envoy's names.

use std::collections::BTreeMap;

use culvert_model::cluster::{Balancer, Discovery};
use culvert_model::route::{RetryOn, RetryPolicy, RouteAction};
use culvert_runtime::telemetry::{ScopePath, Value};
use culvert_upstream::ClusterMetric;
use tokio::net::TcpListener;

use super::bodies::silent;
use crate::testing::{Gateway, backend, cluster, forward, manager_of, on_worker, route, to, virtual_host};

/// Everything but the zeros; of histograms the number of values.
fn counted(gateway: &Gateway) -> BTreeMap<String, u64> {
    let registry = &gateway.worker.process.registry;
    let samples = registry.samples().into_iter();
    let values = samples.filter_map(|sample| match sample.value {
        Value::Counter(count) | Value::Gauge(count) | Value::Histogram { count, .. } if count > 0 => {
            Some((sample.full_name(), count))
        }
        _ => None,
    });
    values.collect()
}

/// `previous_hosts`: a retry goes where no attempt went before, as far as the balancer can be brought to name such a host.
#[test]
fn a_retry_takes_a_host_that_was_not_tried() {
    on_worker(async {
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let good = backend(|_| "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_owned()).await;
        for (picks, all_succeed) in [(None, false), (Some(1000), true)] {
            let policy = RetryPolicy {
                num_retries: 1,
                fresh_host_picks: picks,
                ..super::tables::policy(RetryOn { connect_failure: true, ..RetryOn::default() })
            };
            let action = RouteAction { retry: Some(policy.into()), ..to("a") };
            let mut cluster = cluster("a", &[closed, good]);
            cluster.balancer = Balancer::Random;
            let Discovery::Static(endpoints) = &mut cluster.discovery else { panic!("a static cluster") };
            std::sync::Arc::make_mut(endpoints).localities[0].endpoints[0].weight = 100;
            let gateway =
                Gateway::http(vec![cluster], manager_of(vec![virtual_host(vec![route("/", forward(action))])]));
            let mut failed = 0;
            for _ in 0..30 {
                failed += u32::from(!gateway.get("/").await.starts_with("HTTP/1.1 200 "));
            }
            assert_eq!(failed == 0, all_succeed, "{picks:?} further picks: {failed} of 30 failed");
        }
    });
}

/// The values that Envoy 1.40 shows after the same requests.
#[test]
fn requests_are_counted_as_envoy_counts_them() {
    on_worker(async {
        let address = backend(|request| {
            let status = request.split(['/', ' ']).nth(2).unwrap_or("200").to_owned();
            format!("HTTP/1.1 {status} X\r\ncontent-length: 2\r\n\r\nok")
        })
        .await;
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let (mute, _seen) = silent().await;
        let retrying = RetryPolicy {
            on: RetryOn { any_5xx: true, ..RetryOn::default() },
            num_retries: 2,
            ..super::tables::policy(RetryOn::default())
        };
        let slow = RouteAction { timeout: std::time::Duration::from_millis(50), ..to("mute") };
        let manager = manager_of(vec![virtual_host(vec![
            route("/503", forward(RouteAction { retry: Some(retrying.into()), ..to("a") })),
            route("/gone", forward(to("gone"))),
            route("/mute", forward(slow)),
            route("/", forward(to("a"))),
        ])]);
        let clusters = vec![cluster("a", &[address]), cluster("gone", &[closed]), cluster("mute", &[mute])];
        let gateway = Gateway::http(clusters, manager);
        for name in ["a", "gone", "mute"] {
            let slot = gateway.worker.process.clusters.slot(name);
            gateway.worker.process.registry.add::<ClusterMetric>(ScopePath::cluster(name), slot.stats());
        }
        for path in ["/200", "/200", "/204", "/404", "/503", "/gone", "/mute"] {
            gateway.get(path).await;
        }
        let seen = counted(&gateway);
        for (name, expected) in [
            ("cluster.a.upstream_rq_total", 7),
            ("cluster.a.upstream_rq_completed", 7),
            ("cluster.a.upstream_rq_2xx", 3),
            ("cluster.a.upstream_rq_200", 2),
            ("cluster.a.upstream_rq_204", 1),
            ("cluster.a.upstream_rq_404", 1),
            ("cluster.a.upstream_rq_503", 3),
            ("cluster.a.upstream_rq_5xx", 3),
            ("cluster.a.upstream_rq_retry", 2),
            ("cluster.a.upstream_rq_retry_backoff_exponential", 2),
            ("cluster.a.upstream_rq_retry_limit_exceeded", 1),
            ("cluster.a.upstream_rq_time", 5),
            ("cluster.gone.upstream_rq_503", 1),
            ("cluster.gone.upstream_rq_5xx", 1),
            ("cluster.gone.upstream_rq_completed", 1),
            ("cluster.mute.upstream_rq_504", 1),
            ("cluster.mute.upstream_rq_timeout", 1),
            ("http.in.downstream_rq_2xx", 3),
            ("http.in.downstream_rq_4xx", 1),
            ("http.in.downstream_rq_5xx", 3),
            ("http.in.downstream_rq_total", 7),
            ("http.in.downstream_rq_completed", 7),
            ("http.in.downstream_rq_time", 7),
            ("http.in.rq_total", 7),
        ] {
            assert_eq!(seen.get(name), Some(&expected), "{name}: {seen:#?}");
        }
        let request = "GET /200 HTTP/1.1\r\nhost: a.example\r\nconnection: close\r\n\r\n".len();
        let requests = u64::try_from(request).unwrap() * 4 + seen["http.in.downstream_rq_total"];
        for name in ["http.in.downstream_cx_rx_bytes_total", "http.in.downstream_cx_tx_bytes_total"] {
            assert!(seen.get(name).is_some_and(|bytes| *bytes > requests), "{name}: {seen:#?}");
        }
        for name in ["cluster.a.upstream_cx_rx_bytes_total", "cluster.a.upstream_cx_tx_bytes_total"] {
            assert!(seen.get(name).is_some_and(|bytes| *bytes > 200), "{name}: {seen:#?}");
        }
    });
}
