use super::*;

#[derive(Clone, Copy)]
#[repr(usize)]
enum Traffic {
    Total,
    Active,
    Time,
    Rq2xx,
    Status,
}

impl Metrics for Traffic {
    const ALL: &'static [Metric] = &[
        Metric { name: "upstream_rq_total", kind: MetricKind::Counter },
        Metric { name: "upstream_rq_active", kind: MetricKind::Gauge },
        Metric { name: "upstream_rq_time", kind: MetricKind::Histogram },
        Metric { name: "upstream_rq_2xx", kind: MetricKind::Counter },
        statuses("upstream_rq"),
    ];
    fn index(self) -> usize {
        self as usize
    }
}

#[test]
fn blocks_add_up_and_stay_counted_when_dropped() {
    let registry = Registry::default();
    let scope = registry.scope::<Traffic>(ScopePath::cluster("edge"));
    let (one, two) = (scope.block(), scope.block());
    one.add(Traffic::Total, 3);
    two.inc(Traffic::Total);
    one.inc(Traffic::Active);
    two.dec(Traffic::Active);
    assert_eq!(scope.read(Traffic::Total), 4, "both workers' counts");
    assert_eq!(scope.read(Traffic::Active), 0, "one came, one went, on different workers");
    one.record(Traffic::Time, 3.0);
    drop((one, two));
    assert_eq!(scope.read(Traffic::Total), 4, "dropped blocks stay counted");
    assert_eq!(scope.read(Traffic::Time), 1, "dropped histograms stay counted");
    assert_eq!(scope.shared.blocks.lock().live.len(), 0, "dropped blocks cost no memory");
}

#[test]
fn statuses_are_counted_one_by_one() {
    let registry = Registry::default();
    let scope = registry.scope::<Traffic>(ScopePath::cluster("edge"));
    let (one, two) = (scope.block(), scope.block());
    for (block, status) in [(&one, 200), (&one, 503), (&two, 503), (&two, 200), (&one, 200)] {
        block.status(Traffic::Status, status);
    }
    let seen = |what: &str| {
        let samples = registry.samples();
        let counted = samples
            .iter()
            .filter(|sample| sample.name.strip_prefix("upstream_rq_").is_some_and(|rest| rest.parse::<u16>().is_ok()));
        let counted: Vec<(String, Value)> = counted.map(|sample| (sample.full_name(), sample.value.clone())).collect();
        let expected = [
            ("cluster.edge.upstream_rq_200".to_owned(), Value::Counter(3)),
            ("cluster.edge.upstream_rq_503".to_owned(), Value::Counter(2)),
        ];
        assert_eq!(counted, expected, "{what}");
        assert!(
            prometheus(&samples, &Filter::default())
                .contains("envoy_cluster_upstream_rq{envoy_response_code=\"503\",envoy_cluster_name=\"edge\"} 2"),
            "{what}"
        );
    };
    seen("from live blocks");
    drop((one, two));
    seen("from dropped blocks");
    let many = scope.block();
    for status in 100..200 {
        many.status(Traffic::Status, status);
    }
    assert_eq!(
        scope.shared.read_statuses(scope.shared.layout[Traffic::Status as usize]).len(),
        2 + statuses::CELLS,
        "a bound"
    );
}

#[test]
fn one_path_is_one_scope_while_somebody_holds_it() {
    let registry = Registry::default();
    let first = registry.scope::<Traffic>(ScopePath::cluster("edge"));
    let again = registry.scope::<Traffic>(ScopePath::cluster("edge"));
    first.block().inc(Traffic::Total);
    assert_eq!(again.read(Traffic::Total), 1, "the same scope");
    drop((first, again));
    assert!(registry.samples().is_empty(), "nobody holds the scope any more");
}

#[test]
fn text_json_and_prometheus_carry_envoys_names() {
    let registry = Registry::default();
    let scope = registry.scope::<Traffic>(ScopePath::cluster("ed\"ge"));
    let block = scope.block();
    block.add(Traffic::Total, 5);
    block.add(Traffic::Rq2xx, 2);
    for milliseconds in [0.4, 3.0, 7_000_000.0] {
        block.record(Traffic::Time, milliseconds);
    }
    registry.add_source(|samples| samples.push(Sample::gauge(ScopePath::process("server"), "live", 1)));
    let samples = registry.samples();

    let all = text(&samples, &Filter::default());
    assert!(all.contains("cluster.ed\"ge.upstream_rq_total: 5\n"), "plain text, got {all}");
    assert!(all.contains("server.live: 1\n"), "looked-up values, got {all}");

    let exposed = prometheus(&samples, &Filter::default());
    for expected in [
        "# TYPE envoy_cluster_upstream_rq_total counter\n",
        "envoy_cluster_upstream_rq_total{envoy_cluster_name=\"ed\\\"ge\"} 5\n",
        "envoy_cluster_upstream_rq_xx{envoy_response_code_class=\"2\",envoy_cluster_name=\"ed\\\"ge\"} 2\n",
        "envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name=\"ed\\\"ge\",le=\"0.5\"} 1\n",
        "envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name=\"ed\\\"ge\",le=\"5\"} 2\n",
        "envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name=\"ed\\\"ge\",le=\"3600000\"} 2\n",
        "envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name=\"ed\\\"ge\",le=\"+Inf\"} 3\n",
        "envoy_cluster_upstream_rq_time_count{envoy_cluster_name=\"ed\\\"ge\"} 3\n",
        "envoy_server_live{} 1\n",
    ] {
        assert!(exposed.contains(expected), "{expected} is missing in\n{exposed}");
    }

    let some = Filter { name: Some(regex::Regex::new("rq_(total|active)$").unwrap()), used_only: true };
    assert_eq!(
        json(&samples, &some),
        r#"{"stats":[{"name":"cluster.ed\"ge.upstream_rq_total","value":5}]}"#,
        "filtered by name and by use"
    );
}
