//! A control plane that says again what is accepted already: it is not parsed again, and what depends on others is judged as ever.

use culvert_api::Any;
use culvert_api::type_url::ROUTE_CONFIGURATION;
use culvert_model::resource::Resource as Parsed;

use super::withdrawn::{any, eds};
use super::*;
use crate::inventory::Given;

fn name() -> Name {
    "c".into()
}

#[test]
fn accepted_bytes_are_not_parsed_again_and_others_are() {
    let parsed = judge(CLUSTER, &name(), "1", &eds("c"), None).verdict.unwrap();
    // Bytes that parse to nothing show whether they were looked at.
    let nonsense = Any { type_url: CLUSTER.to_owned(), value: vec![0xff].into() };
    let before = (Given::now("1", nonsense.clone()), parsed.clone());
    let again = judge(CLUSTER, &name(), "2", &nonsense, Some(&before));
    let (Ok(Parsed::Cluster(again)), Parsed::Cluster(before_it)) = (&again.verdict, &parsed) else {
        panic!("expected a cluster, saw {:?}", again.verdict);
    };
    assert!(Arc::ptr_eq(again, before_it), "what was accepted is taken as it is");
    let other = Any { type_url: CLUSTER.to_owned(), value: vec![0xff, 0xff].into() };
    let other = judge(CLUSTER, &name(), "2", &other, Some(&before));
    assert!(other.verdict.is_err(), "other bytes are looked at, saw {:?}", other.verdict);
}

#[tokio::test]
async fn what_comes_again_unchanged_is_shown_under_its_new_version_and_changes_nothing() {
    let data = DataPlane::start(1, false, None).await;
    let static_cluster = any(&format!("'@type': {CLUSTER}\nname: c\nconnect_timeout: 1s\ntype: STATIC"));
    for version in ["1", "2", "3"] {
        assert_eq!(data.receive_at(version, Kind::Cluster, &[("c", static_cluster.clone())], &[], true).await, 0);
        let shown = || {
            let entries = data.inventory.entries(CLUSTER);
            entries.into_iter().filter_map(|(_, entry)| Some(entry.active?.version.to_string())).collect::<Vec<_>>()
        };
        eventually(vec![version.to_owned()], shown).await;
    }
    assert_eq!(data.applied(), "+c", "it was applied once");
}

/// `validate_clusters`: whether routes can be used depends on clusters that come and go.
#[tokio::test]
async fn what_comes_again_unchanged_is_refused_once_what_it_depends_on_is_gone() {
    let data = DataPlane::start(1, false, None).await;
    let cluster = any(&format!("'@type': {CLUSTER}\nname: c\nconnect_timeout: 1s\ntype: STATIC"));
    let routes = any(&format!(
        "'@type': {ROUTE_CONFIGURATION}\nname: r\nvalidate_clusters: true\nvirtual_hosts: [{{name: h, domains: ['*'], \
         routes: [{{match: {{prefix: /}}, route: {{cluster: c}}}}]}}]"
    ));
    let routes = [("r", routes)];
    assert_eq!(data.receive(Kind::Cluster, &[("c", cluster.clone())], &[], true).await, 0);
    assert_eq!(data.receive(Kind::Routes, &routes, &[], true).await, 0, "the cluster is there");
    assert_eq!(data.receive(Kind::Cluster, &[], &["c"], true).await, 0);
    assert_eq!(data.receive(Kind::Routes, &routes, &[], true).await, 1, "the cluster is gone");
    assert_eq!(data.receive(Kind::Cluster, &[("c", cluster)], &[], true).await, 0);
    assert_eq!(data.receive(Kind::Routes, &routes, &[], true).await, 0, "the cluster is there again");
}
