//! What the control plane takes back before it was ever in force: nobody is told of it any more.

use culvert_api::Any;
use culvert_api::type_url::{
    CLUSTER_LOAD_ASSIGNMENT, LISTENER, SCOPED_ROUTE_CONFIGURATION, TUNNEL_AGENT, TUNNEL_POLICY,
};
use culvert_xds::client::{Absence, Failure, Missing};

use super::*;

pub(super) fn any(text: &str) -> Any {
    let tree = document::parse(text.as_bytes(), Syntax::Yaml, &document::Limits::default()).unwrap().remove(0);
    document::load_any(&tree).unwrap()
}

/// A cluster that waits for its assignment.
pub(super) fn eds(name: &str) -> Any {
    any(&format!(
        "'@type': {CLUSTER}\nname: {name}\nconnect_timeout: 1s\ntype: EDS\n\
         eds_cluster_config: {{eds_config: {{ads: {{}}, resource_api_version: V3}}}}"
    ))
}

/// A listener that takes its scopes over ADS.
fn scoped(name: &str) -> Any {
    any(&format!(
        "'@type': {LISTENER}\nname: {name}\naddress: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}\n\
         filter_chains:\n\
         - filters:\n\
         \x20 - name: envoy.filters.network.http_connection_manager\n\
         \x20   typed_config:\n\
         \x20     '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager\n\
         \x20     stat_prefix: x\n\
         \x20     scoped_routes:\n\
         \x20       name: s\n\
         \x20       scope_key_builder: {{fragments: [{{header_value_extractor: {{name: x, index: 0}}}}]}}\n\
         \x20       rds_config_source: {{ads: {{}}, resource_api_version: V3}}\n\
         \x20       scoped_rds: {{scoped_rds_config_source: {{ads: {{}}, resource_api_version: V3}}}}\n\
         \x20     http_filters:\n\
         \x20     - name: envoy.filters.http.router\n\
         \x20       typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}"
    ))
}

/// Takes everything over ADS that can be taken as a whole. Nobody listens on port 1.
const ALL_BY_ADS: &str = "node: {id: n, cluster: c}
dynamic_resources:
  ads_config: {api_type: GRPC, transport_api_version: V3, grpc_services: [{envoy_grpc: {cluster_name: xds}}]}
  cds_config: {ads: {}, resource_api_version: V3}
  lds_config: {ads: {}, resource_api_version: V3}
static_resources:
  clusters:
  - name: xds
    connect_timeout: 1s
    type: STATIC
    load_assignment: {cluster_name: xds, endpoints: [{lb_endpoints: [{endpoint: {address:
      {socket_address: {address: 127.0.0.1, port_value: 1}}}}]}]}
bootstrap_extensions:
- name: culvert.tunnel_agents
  typed_config:
    '@type': type.googleapis.com/culvert.tunnel.v1.TunnelAgents
    agents_config: {ads: {}, resource_api_version: V3}
- name: culvert.tunnel_policies
  typed_config:
    '@type': type.googleapis.com/culvert.tunnel.v1.TunnelPolicies
    policies_config: {ads: {}, resource_api_version: V3}
";

fn nonsense(type_url: &str) -> Any {
    Any { type_url: type_url.to_owned(), value: vec![0xff].into() }
}

impl DataPlane {
    /// A response, and what of it is refused.
    pub(super) async fn receive(&self, kind: Kind, resources: &[(&str, Any)], removed: &[&str], whole: bool) -> usize {
        self.receive_at("v", kind, resources, removed, whole).await
    }

    /// The same, under a version.
    pub(super) async fn receive_at(
        &self,
        version: &str,
        kind: Kind,
        resources: &[(&str, Any)],
        removed: &[&str],
        whole: bool,
    ) -> usize {
        let of_kind = |(name, any): &(&str, Any)| {
            let name = Name::from(*name);
            let before = self.configuration.accepted_last(kind, &name);
            judge(&any.type_url, &name, version, any, before.as_ref())
        };
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

/// `--fail-on-data-errors` (gRFC A88).
#[tokio::test]
async fn what_is_refused_is_kept_or_given_up_as_it_was_asked_for_and_shown_as_refused_until_it_is_withdrawn() {
    let good = any(&format!("'@type': {CLUSTER}\nname: c\nconnect_timeout: 1s\ntype: STATIC"));
    for (fail, expected) in [(false, "+c"), (true, "+c -c")] {
        let data_errors = DataErrors { fail, ..DataErrors::default() };
        let data = DataPlane::with(ALL_BY_ADS, None, data_errors).await;
        assert_eq!(data.receive(Kind::Cluster, &[("c", good.clone())], &[], true).await, 0);
        let shown = || {
            let entries = data.inventory.entries(CLUSTER);
            entries.into_iter().map(|(_, entry)| (entry.active.is_some(), entry.refused.is_some())).collect::<Vec<_>>()
        };
        eventually(vec![(true, false)], shown).await;
        assert_eq!(data.receive(Kind::Cluster, &[("c", nonsense(CLUSTER))], &[], true).await, 1, "refused");
        eventually(expected.to_owned(), || data.applied()).await;
        eventually(vec![(!fail, true)], shown).await;
        data.receive(Kind::Cluster, &[], if fail { &[] } else { &["c"] }, true).await;
        eventually(vec![], shown).await;
    }
}

/// gRFC A88, `resource_timer_is_transient_error`.
#[tokio::test]
async fn what_is_late_is_shown_as_unavailable_and_not_as_missing() {
    let data = DataPlane::booted(ALL_BY_ADS, None).await;
    data.receive(Kind::Cluster, &[("c", eds("c"))], &[], true).await;
    let type_url = CLUSTER_LOAD_ASSIGNMENT.into();
    let late = Missing { type_url, name: "c".into(), why: Absence::Unavailable };
    data.configuration.not_found(&late);
    let entries = data.inventory.entries(CLUSTER_LOAD_ASSIGNMENT);
    let codes: Vec<_> = entries.iter().map(|(name, entry)| (&**name, entry.failed.as_ref().unwrap().0)).collect();
    assert_eq!(codes, [("c", Failure::UNAVAILABLE)]);
    eventually(vec!["Cluster c".to_owned()], || {
        data.inventory.waiting().into_iter().map(|(name, _)| name).collect::<Vec<_>>()
    })
    .await;
    assert_eq!(data.applied(), "", "whoever waits does so for its own time");
}

#[tokio::test]
async fn what_was_refused_of_our_own_types_and_of_scopes_and_is_left_out_is_forgotten() {
    let data = DataPlane::booted(ALL_BY_ADS, None).await;
    assert_eq!(data.receive(Kind::Listener, &[("l", scoped("l"))], &[], true).await, 0, "scopes are asked for");
    let kinds = [(Kind::Agent, TUNNEL_AGENT), (Kind::Policy, TUNNEL_POLICY), (Kind::Scope, SCOPED_ROUTE_CONFIGURATION)];
    for (kind, type_url) in kinds {
        let wrong = |name: &'static str| (name, nonsense(type_url));
        assert_eq!(data.receive(kind, &[wrong("a"), wrong("b")], &[], true).await, 2, "{type_url}");
        assert_eq!(data.known(type_url), ["a", "b"], "refused");
        assert_eq!(data.receive(kind, &[wrong("b")], &[], true).await, 1, "{type_url}");
        assert_eq!(data.known(type_url), ["b"], "what is still there is still refused");
        assert_eq!(data.receive(kind, &[], &[], true).await, 0);
        assert_eq!(data.known(type_url), [] as [&str; 0], "nothing is left");
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
