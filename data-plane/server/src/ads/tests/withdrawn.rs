//! What the control plane takes back before it was ever in force: nobody is told of it any more.

use culvert_api::Any;
use culvert_api::type_url::CLUSTER_LOAD_ASSIGNMENT;
use culvert_xds::client::Failure;

use super::*;

/// A cluster that waits for its assignment.
fn eds(name: &str) -> Any {
    let text = format!(
        "'@type': {CLUSTER}\nname: {name}\nconnect_timeout: 1s\ntype: EDS\n\
         eds_cluster_config: {{eds_config: {{ads: {{}}, resource_api_version: V3}}}}"
    );
    let tree = document::parse(text.as_bytes(), Syntax::Yaml, &document::Limits::default()).unwrap().remove(0);
    document::load_any(&tree).unwrap()
}

fn nonsense(type_url: &str) -> Any {
    Any { type_url: type_url.to_owned(), value: vec![0xff].into() }
}

impl DataPlane {
    /// A response, and what of it is refused.
    async fn receive(&self, kind: Kind, resources: &[(&str, Any)], removed: &[&str], whole: bool) -> usize {
        let of_kind = |(name, any): &(&str, Any)| judge(&any.type_url, &Name::from(*name), "v", any, None);
        let batch = Batch {
            kind,
            resources: resources.iter().map(of_kind).collect(),
            removed: removed.iter().map(|name| Name::from(*name)).collect(),
            aliases: Vec::new(),
            malformed: Vec::new(),
            whole,
            first: false,
        };
        self.configuration.receive(batch).await.len()
    }

    fn known(&self, type_url: &str) -> Vec<String> {
        self.inventory.entries(type_url).into_iter().map(|(name, _)| name.to_string()).collect()
    }
}

#[tokio::test]
async fn what_was_refused_or_waited_and_is_withdrawn_is_forgotten() {
    for whole in [false, true] {
        // Nobody listens on port 1.
        let data = DataPlane::start(1, !whole, None).await;
        let clusters = [("waits", eds("waits")), ("wrong", nonsense(CLUSTER))];
        assert_eq!(data.receive(Kind::Cluster, &clusters, &[], whole).await, 1, "one is refused");
        eventually(vec!["Cluster waits".to_owned()], || {
            data.inventory.waiting().into_iter().map(|(name, _)| name).collect::<Vec<_>>()
        })
        .await;
        assert_eq!(data.known(CLUSTER), ["waits", "wrong"], "whole: {whole}");
        let assignment = [("waits", nonsense(CLUSTER_LOAD_ASSIGNMENT))];
        assert_eq!(data.receive(Kind::Endpoints, &assignment, &[], whole).await, 1);
        assert_eq!(data.known(CLUSTER_LOAD_ASSIGNMENT), ["waits"], "refused, and still asked for");

        // A state-of-the-world response says so by leaving them out. A refused one was never held: it is not removed.
        let removed: &[&str] = if whole { &["waits"] } else { &["waits", "wrong"] };
        assert_eq!(data.receive(Kind::Cluster, &[], removed, whole).await, 0);
        eventually(vec![], || data.known(CLUSTER)).await;
        eventually(vec![], || data.inventory.waiting()).await;
        eventually(vec![], || data.known(CLUSTER_LOAD_ASSIGNMENT)).await;
        assert_eq!(data.applied(), "", "nothing of it was ever in force");
    }
}

#[tokio::test]
async fn what_cannot_be_given_is_forgotten_when_nobody_asks_for_it_and_never_grows_without_end() {
    let data = DataPlane::start(1, true, None).await;
    let failure = |name: String| Failure { name: name.as_str().into(), code: 7, message: "no".to_owned() };
    data.receive(Kind::Cluster, &[("c", eds("c"))], &[], false).await;
    data.configuration.failed(Kind::Endpoints, &failure("c".to_owned()));
    assert_eq!(data.known(CLUSTER_LOAD_ASSIGNMENT), ["c"], "it is asked for");
    for name in 0..3000 {
        data.configuration.failed(Kind::Cluster, &failure(format!("made-up-{name}")));
    }
    let known = data.known(CLUSTER).len();
    assert!(known <= 1001, "expected 1000 failures and a cluster at most, saw {known}");
    data.receive(Kind::Cluster, &[], &["c"], false).await;
    eventually((vec![], vec![]), || (data.known(CLUSTER_LOAD_ASSIGNMENT), data.known(CLUSTER))).await;
}
