use super::*;
use culvert_api::envoy::extensions::reverse_tunnel_reporters::v3alpha::clients::grpc_client::{
    EndedTunnel, TunnelInitiatorIdentity,
};

fn server(id: &str) -> Server {
    Server { id: id.into(), cluster: "cloud".into(), peer: "192.0.2.1:1".into() }
}

fn tunnel(name: &str, agent: &str) -> ReverseTunnel {
    let identity =
        TunnelInitiatorIdentity { tenant_id: "-".into(), cluster_id: "edge".into(), node_id: agent.to_owned() };
    ReverseTunnel { name: name.to_owned(), identity: Some(identity), ..ReverseTunnel::default() }
}

fn report(full_push: bool, added: &[(&str, &str)], removed: &[&str]) -> StreamReverseTunnelsRequest {
    StreamReverseTunnelsRequest {
        added_tunnels: added.iter().map(|(name, agent)| tunnel(name, agent)).collect(),
        removed_tunnel_names: removed.iter().map(|&name| name.to_owned()).collect(),
        full_push,
        ..StreamReverseTunnelsRequest::default()
    }
}

fn limited(tunnels: usize, of_a_stream: usize) -> Arc<Inventory> {
    Arc::new(Inventory { inner: Mutex::default(), limits: Limits { tunnels, of_a_stream } })
}

/// `agent@server/name` of everything that a query finds, and what the page says beside.
fn found(inventory: &Inventory, query: &Query) -> (Vec<String>, bool, usize) {
    let page = inventory.find(query, |_| true);
    let shown = page.tunnels.iter().map(|(key, ..)| format!("{}@{}/{}", key.agent, key.server, key.name)).collect();
    (shown, page.more, page.total)
}

fn all(inventory: &Inventory) -> Vec<String> {
    found(inventory, &Query { page_size: 100, ..Query::default() }).0
}

#[test]
fn what_a_stream_reported_goes_with_it() {
    let inventory = limited(100, 100);
    let one = inventory.begin(server("s1"));
    one.report(report(true, &[("t1", "a"), ("t2", "b")], &[])).unwrap();
    let two = inventory.begin(server("s2"));
    two.report(report(true, &[("t1", "a")], &[])).unwrap();
    assert_eq!(all(&inventory), ["a@s1/t1", "a@s2/t1", "b@s1/t2"], "both servers'");
    one.report(report(false, &[("t3", "c")], &["t1", "unknown"])).unwrap();
    assert_eq!(all(&inventory), ["a@s2/t1", "b@s1/t2", "c@s1/t3"], "a change");
    one.report(report(true, &[("t4", "d")], &[])).unwrap();
    assert_eq!(all(&inventory), ["a@s2/t1", "d@s1/t4"], "all that there is");
    drop(one);
    assert_eq!(all(&inventory), ["a@s2/t1"], "the first server's stream ended");
    drop(two);
    assert_eq!(inventory.count(), (0, 0), "nothing is left");
}

/// What ended is told with why, outlives its server's stream, and takes no more room than is meant for it.
#[test]
fn what_ended_is_remembered_with_its_reason() {
    let inventory = limited(100, 100);
    let ended = |names: &[String]| StreamReverseTunnelsRequest {
        ended_tunnels: names
            .iter()
            .map(|name| EndedTunnel {
                tunnel: Some(tunnel(name, "a")),
                ended_at: Some(Timestamp { seconds: 7, nanos: 0 }),
                reason: format!("reason of {name}"),
            })
            .collect(),
        ..StreamReverseTunnelsRequest::default()
    };
    let shown = |query: &Query| {
        let answer = shown::tunnels(&inventory.find_ended(query, |server| *server.id != *"hidden"));
        let all = answer.tunnels.iter().map(|one| format!("{} {}: {}", one.server, one.name, one.end_reason));
        (all.collect::<Vec<_>>(), answer.total)
    };
    let everything = Query { page_size: 2, ..Query::default() };
    let one = inventory.begin(server("s1"));
    one.report(report(true, &[("t1", "a")], &[])).unwrap();
    let names: Vec<String> = (1..=3).map(|number| format!("t{number}")).collect();
    one.report(StreamReverseTunnelsRequest { removed_tunnel_names: vec!["t1".into()], ..ended(&names) }).unwrap();
    drop(one);
    assert!(all(&inventory).is_empty(), "none is there any more");
    let latest = (vec!["s1 t3: reason of t3".to_owned(), "s1 t2: reason of t2".to_owned()], 3);
    assert_eq!(shown(&everything), latest, "latest first, after the stream's end");
    let again = inventory.begin(server("s1"));
    again.report(ended(&names)).unwrap();
    assert_eq!(shown(&everything), latest, "said again on another stream");
    let other = Query { server: Some("s2".into()), ..everything.clone() };
    assert_eq!(shown(&other).1, 0, "of another server");
    inventory.begin(server("hidden")).report(ended(&names)).unwrap();
    assert_eq!(shown(&everything), latest, "what may not be seen");
    assert_eq!(again.report(ended(&[String::new()])).unwrap_err(), Refused::Name(At::Ended(0)));
    for thousand in 0..5 {
        let names: Vec<String> = (0..1000).map(|number| format!("n{thousand}-{number}")).collect();
        again.report(ended(&names)).unwrap();
    }
    assert_eq!(inventory.inner.lock().ended.len(), MAX_ENDED, "the latest");
}

#[test]
fn a_later_stream_of_the_same_server_takes_over() {
    let inventory = limited(100, 100);
    let old = inventory.begin(server("s"));
    old.report(report(true, &[("t1", "a"), ("t2", "b")], &[])).unwrap();
    let new = inventory.begin(server("s"));
    new.report(report(true, &[("t1", "a")], &[])).unwrap();
    drop(old);
    assert_eq!(all(&inventory), ["a@s/t1"], "what the new stream has reported too stays");
    new.report(report(false, &[("t1", "z")], &[])).unwrap();
    assert_eq!(all(&inventory), ["z@s/t1"], "a name that is another agent's now");
    drop(new);
    assert_eq!(inventory.count(), (0, 0), "nothing is left");
}

#[test]
fn a_report_that_breaks_a_rule_is_refused() {
    let inventory = limited(3, 2);
    let lease = inventory.begin(server("s"));
    let long = "x".repeat(MAX_TEXT + 1);
    let cases = [
        (report(false, &[("", "a")], &[]), Refused::Name(At::Added(0))),
        (report(false, &[("t", "a"), (&long, "a")], &[]), Refused::Name(At::Added(1))),
        (report(false, &[("t", "")], &[]), Refused::Identity(At::Added(0))),
        (report(false, &[("t", &long)], &[]), Refused::Identity(At::Added(0))),
        (report(false, &[("t1", "a"), ("t2", "a"), ("t3", "a")], &[]), Refused::TooManyOfStream(2)),
    ];
    for (request, expected) in cases {
        assert_eq!(lease.report(request).unwrap_err(), expected);
    }
    let mut nobody = report(false, &[("t", "a")], &[]);
    nobody.added_tunnels[0].identity = None;
    assert_eq!(lease.report(nobody).unwrap_err(), Refused::Identity(At::Added(0)));
    let mut large = report(false, &[("t", "a")], &[]);
    large.added_tunnels[0].details.get_or_insert_default().policy = "x".repeat(MAX_ENTRY);
    assert!(
        matches!(lease.report(large).unwrap_err(), Refused::TooLarge { at: At::Added(0), .. }),
        "too large an entry"
    );
    let other = inventory.begin(server("other"));
    other.report(report(true, &[("t1", "a")], &[])).unwrap();
    assert_eq!(other.report(report(false, &[("t2", "a")], &[])).unwrap_err(), Refused::TooMany(3), "in all");
}

#[test]
fn a_query_finds_what_it_asks_for_page_by_page() {
    let inventory = limited(1000, 1000);
    let (one, two) = (inventory.begin(server("s1")), inventory.begin(server("s2")));
    let names: Vec<_> = (0..25).map(|index| (format!("t{index:02}"), format!("a{}", index % 5))).collect();
    let names: Vec<_> = names.iter().map(|(name, agent)| (name.as_str(), agent.as_str())).collect();
    one.report(report(true, &names, &[])).unwrap();
    two.report(report(true, &names, &[])).unwrap();
    let mut query = Query { cluster: Some("edge".into()), agent: Some("a3".into()), page_size: 4, ..Query::default() };
    let mut seen = Vec::new();
    loop {
        let (shown, more, total) = found(&inventory, &query);
        assert_eq!(total, 10, "five of each server, on whatever page");
        seen.extend(shown);
        if !more {
            break;
        }
        query.after = inventory.find(&query, |_| true).tunnels.last().map(|(key, ..)| key.clone());
    }
    assert_eq!(seen.len(), 10, "each once: {seen:?}");
    assert!(seen.is_sorted(), "in order: {seen:?}");
    let of_server = Query { server: Some("s2".into()), page_size: 100, ..Query::default() };
    assert_eq!(found(&inventory, &of_server).2, 25, "one server's");
    let nowhere = Query { cluster: Some("edg".into()), page_size: 100, ..Query::default() };
    assert_eq!(found(&inventory, &nowhere).2, 0, "a name is not a prefix");
    let hidden = inventory.find(&Query { page_size: 100, ..Query::default() }, |server| *server.id == *"s1");
    assert_eq!(hidden.total, 25, "what may not be seen is not counted either");
}

/// An agent that serves several clusters is found by each, and stands in the assignment of each.
#[test]
fn a_tunnel_is_found_by_every_cluster_that_it_serves() {
    let inventory = limited(100, 100);
    let lease = inventory.begin(server("s"));
    let mut request = report(true, &[("t1", "a"), ("t2", "b")], &[]);
    let details = request.added_tunnels[0].details.get_or_insert_default();
    details.further_clusters = vec!["pay".to_owned(), "reports".to_owned()];
    lease.report(request).unwrap();
    let of = |cluster: &str| Query { cluster: Some(cluster.to_owned()), page_size: 100, ..Query::default() };
    for (cluster, expected) in
        [("edge", &["a@s/t1", "b@s/t2"][..]), ("pay", &["a@s/t1"]), ("reports", &["a@s/t1"]), ("other", &[])]
    {
        let (shown, _, total) = found(&inventory, &of(cluster));
        assert_eq!(
            (&shown[..], total),
            (&expected.iter().map(ToString::to_string).collect::<Vec<_>>()[..], expected.len()),
            "{cluster}"
        );
    }
    let counts = |asked: &str, query: &Query| -> Vec<(String, usize)> {
        let assignments = shown::endpoints(&inventory.find(query, |_| true), asked).assignments;
        let count = |endpoints: &[culvert_api::envoy::config::endpoint::v3::LocalityLbEndpoints]| {
            endpoints[0].lb_endpoints.len()
        };
        assignments.iter().map(|one| (one.cluster_name.clone(), count(&one.endpoints))).collect()
    };
    let named = |name: &str, count| (name.to_owned(), count);
    let everything = Query { page_size: 100, ..Query::default() };
    assert_eq!(counts("", &everything), [named("edge", 2), named("pay", 1), named("reports", 1)], "all");
    assert_eq!(counts("pay", &of("pay")), [named("pay", 1)], "the one that is asked for");
}
