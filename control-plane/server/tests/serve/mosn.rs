//! A client that speaks as MOSN's does: state of the world over ADS, the next type asked for again with its old nonce after
//! each push, a redundant request for clusters now and then, old nonces on new streams, and never a NACK.

use culvert_api::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use culvert_api::type_url::{CLUSTER, CLUSTER_LOAD_ASSIGNMENT as EDS, LISTENER, ROUTE_CONFIGURATION as RDS};

use crate::harness::{Daemon, Folder, Stream, node};

struct Mosn {
    stream: Stream<DiscoveryRequest, DiscoveryResponse>,
    /// The version and nonce of each type's latest response; they outlive the stream.
    seen: Vec<(String, String, String)>,
}

impl Mosn {
    async fn ask(&self, of: &str, names: &[&str]) {
        let seen = self.seen.iter().find(|(seen, ..)| seen == of).cloned().unwrap_or_default();
        let request = DiscoveryRequest {
            node: node("mosn"),
            type_url: of.into(),
            resource_names: names.iter().map(ToString::to_string).collect(),
            version_info: seen.1,
            response_nonce: seen.2,
            ..Default::default()
        };
        self.stream.send(request).await;
    }

    /// The next response, which it accepts: how many resources it holds.
    async fn take(&mut self, of: &str, names: &[&str]) -> usize {
        let response = self.stream.next().await;
        assert_eq!(response.type_url, of);
        self.seen.retain(|(seen, ..)| seen != of);
        self.seen.push((of.into(), response.version_info, response.nonce));
        self.ask(of, names).await;
        response.resources.len()
    }

    /// Everything, in MOSN's order.
    async fn fill(&mut self) {
        let clusters = ["a"];
        self.ask(CLUSTER, &[]).await;
        assert_eq!(self.take(CLUSTER, &[]).await, 1);
        self.ask(EDS, &clusters).await;
        assert_eq!(self.take(EDS, &clusters).await, 1);
        self.ask(LISTENER, &[]).await;
        assert_eq!(self.take(LISTENER, &[]).await, 1);
        self.ask(RDS, &["r"]).await;
        assert_eq!(self.take(RDS, &["r"]).await, 1);
    }
}

fn files(seconds: u32) -> String {
    format!(
        "- {{\"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster, name: a, type: EDS, connect_timeout: {seconds}s, \
            eds_cluster_config: {{eds_config: {{ads: {{}}, resource_api_version: V3}}}}}}\n\
         - {{\"@type\": type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment, cluster_name: a}}\n\
         - {{\"@type\": type.googleapis.com/envoy.config.listener.v3.Listener, name: l, \
            address: {{socket_address: {{address: 127.0.0.1, port_value: 1}}}}}}\n\
         - {{\"@type\": type.googleapis.com/envoy.config.route.v3.RouteConfiguration, name: r}}\n"
    )
}

#[tokio::test]
async fn a_client_like_mosn_is_served() {
    let folder = Folder::new(&[("all.yaml", &files(1))]);
    let daemon = Daemon::start(&folder, &[]).await;
    let mut mosn = Mosn { stream: daemon.sotw().await, seen: Vec::new() };
    mosn.fill().await;
    // Each request once more, with the nonce that was answered: every ten seconds, and after each push of another type.
    for _ in 0..3 {
        mosn.ask(CLUSTER, &[]).await;
        mosn.ask(EDS, &["a"]).await;
        mosn.ask(RDS, &["r"]).await;
    }
    assert!(mosn.stream.is_quiet().await, "what is asked for again in vain draws nothing");

    folder.write("all.yaml", &files(2));
    assert_eq!(mosn.take(CLUSTER, &[]).await, 1, "a change is pushed");
    assert_eq!(mosn.take(EDS, &["a"]).await, 1, "and the assignment of what changed");
    mosn.ask(EDS, &["a"]).await;
    assert!(mosn.stream.is_quiet().await, "and nothing but it");

    // The stream breaks; on the new one it goes on with the nonces of the old one.
    mosn.stream = daemon.sotw().await;
    mosn.ask(EDS, &["a"]).await;
    assert_eq!(mosn.take(EDS, &["a"]).await, 1, "the first request of a type is new, whatever its nonce");
    mosn.ask(RDS, &["r"]).await;
    assert_eq!(mosn.take(RDS, &["r"]).await, 1);
    // It holds all clusters in their present version.
    mosn.ask(CLUSTER, &[]).await;
    assert!(mosn.stream.is_quiet().await, "what it has in full is not sent again");
    folder.write("all.yaml", &files(3));
    assert_eq!(mosn.take(CLUSTER, &[]).await, 1, "but what changes is");
    daemon.terminate().await;
}
