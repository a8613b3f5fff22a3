//! The rules of the protocol, one test each; named by the rule.

mod delta;
mod named;
mod repeats;
mod sotw;
mod staging;
mod streams;

use std::sync::Arc;
use std::time::Duration;

use culvert_api::envoy::config::cluster::v3::{Cluster, cluster};
use culvert_api::envoy::config::core::v3::{
    AggregatedConfigSource, ApiConfigSource, ConfigSource, PathConfigSource, config_source::ConfigSourceSpecifier,
};
use culvert_api::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use culvert_api::google::rpc;
use culvert_api::type_url;
use prost::Message;

use super::*;
use crate::resource::Resource;
use crate::snapshot::Snapshot;

/// A session with one stream, and what its client says and sees.
struct Peer {
    session: Session,
    stream: StreamId,
    next: u64,
}

impl Peer {
    fn new(variant: Variant, snapshot: Snapshot) -> Self {
        Self::with_features(variant, snapshot, &[])
    }

    fn with_features(variant: Variant, snapshot: Snapshot, features: &[&str]) -> Self {
        let client_features = features.iter().map(ToString::to_string).collect();
        let node = NodeIdentity { id: "n".into(), client_features, ..NodeIdentity::default() };
        let mut session = Session::new(SessionConfig::default(), Arc::new(node), Arc::new(snapshot));
        session.open(StreamId(0), StreamKind { variant, type_url: None }).unwrap();
        Self { session, stream: StreamId(0), next: 1 }
    }

    /// The connection is lost and made anew.
    fn reconnect(&mut self, variant: Variant) {
        self.session.on_close(self.stream);
        self.stream = StreamId(self.next);
        self.next += 1;
        self.session.open(self.stream, StreamKind { variant, type_url: None }).unwrap();
    }

    fn publish(&mut self, snapshot: Snapshot) {
        self.session.on_snapshot(Arc::new(snapshot), Duration::ZERO);
    }

    fn sotw(&mut self, of: &str, names: &[&str], version: &str, nonce: &str) -> Heard {
        self.session.on_request(self.stream, &sotw(of, names, version, nonce)).unwrap()
    }

    fn sotw_nack(&mut self, of: &str, names: &[&str], nonce: &str, message: &str) -> Heard {
        let mut request = sotw(of, names, "", nonce);
        request.error_detail = Some(rpc::Status { code: 13, message: message.into(), ..rpc::Status::default() });
        self.session.on_request(self.stream, &request).unwrap()
    }

    fn delta(&mut self, of: &str, subscribe: &[&str], unsubscribe: &[&str]) -> Heard {
        self.session.on_delta_request(self.stream, &delta(of, subscribe, unsubscribe)).unwrap()
    }

    fn delta_with(&mut self, of: &str, subscribe: &[&str], held: &[(&str, &str)]) -> Heard {
        let mut request = delta(of, subscribe, &[]);
        request.initial_resource_versions = held.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect();
        self.session.on_delta_request(self.stream, &request).unwrap()
    }

    fn delta_answer(&mut self, of: &str, nonce: &str, error: Option<&str>) -> Heard {
        let mut request = delta(of, &[], &[]);
        request.response_nonce = nonce.into();
        request.error_detail =
            error.map(|message| rpc::Status { code: 13, message: message.into(), ..rpc::Status::default() });
        self.session.on_delta_request(self.stream, &request).unwrap()
    }

    /// The next response: type, contents (`name=mark`), removals (`-name`), and its nonce.
    fn poll(&mut self) -> Option<(String, String)> {
        let response = self.session.poll_stream(self.stream, Duration::ZERO)?;
        let mut seen = vec![type_url::short_name(response.type_url()).to_owned()];
        seen.extend(response.resources().iter().map(|resource| show(resource)));
        seen.extend(response.removed().iter().map(|name| format!("-{name}")));
        Some((seen.join(" "), response.nonce().to_string()))
    }

    #[track_caller]
    fn expect(&mut self, expected: &str) -> String {
        let (seen, nonce) = self.poll().unwrap_or_else(|| panic!("expected {expected:?}, nothing was sent"));
        assert_eq!(seen, expected);
        nonce
    }

    #[track_caller]
    fn expect_silence(&mut self) {
        if let Some((seen, _)) = self.poll() {
            panic!("expected silence, saw {seen:?}");
        }
    }

    /// `name=STATE` of the resources of a type.
    fn status(&self, of: &str) -> String {
        let status = self.session.status();
        let of = status.iter().find(|status| &*status.type_url == of).expect("a status of the type");
        let show = |status: &ResourceStatus| format!("{}={:?}", status.name, status.state);
        of.resources.iter().map(show).collect::<Vec<_>>().join(" ")
    }
}

fn sotw(of: &str, names: &[&str], version: &str, nonce: &str) -> DiscoveryRequest {
    DiscoveryRequest {
        type_url: of.into(),
        resource_names: names.iter().map(ToString::to_string).collect(),
        version_info: version.into(),
        response_nonce: nonce.into(),
        ..DiscoveryRequest::default()
    }
}

fn delta(of: &str, subscribe: &[&str], unsubscribe: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: of.into(),
        resource_names_subscribe: subscribe.iter().map(ToString::to_string).collect(),
        resource_names_unsubscribe: unsubscribe.iter().map(ToString::to_string).collect(),
        ..DeltaDiscoveryRequest::default()
    }
}

/// A snapshot of `Type/name=mark` entries; the mark is in the content.
fn snapshot(entries: &[(&str, &str)]) -> Snapshot {
    let mut builder = Snapshot::builder();
    for (of, entry) in entries {
        builder.insert(resource(of, entry));
    }
    builder.build()
}

fn resource(of: &str, entry: &str) -> Arc<Resource> {
    let (name, mark) = entry.split_once('=').unwrap();
    // Field 1 is the name of every type; field 15 does not matter to any.
    let mut body = Vec::new();
    crate::resource::put_field(&mut body, 1, name.as_bytes());
    crate::resource::put_field(&mut body, 10_000, mark.as_bytes());
    Arc::new(Resource::new(&of.into(), name, &body))
}

fn version_of(of: &str, entry: &str) -> String {
    resource(of, entry).version().to_string()
}

fn eds_cluster(name: &str) -> Arc<Resource> {
    eds_cluster_by(name, None)
}

/// By a source of assignments of its own.
fn eds_cluster_by(name: &str, source: Option<ConfigSourceSpecifier>) -> Arc<Resource> {
    let eds = cluster::ClusterDiscoveryType::Type(cluster::DiscoveryType::Eds as i32);
    let source = ConfigSource { config_source_specifier: source, ..ConfigSource::default() };
    let config = cluster::EdsClusterConfig { eds_config: Some(source), ..cluster::EdsClusterConfig::default() };
    let cluster = Cluster {
        name: name.into(),
        cluster_discovery_type: Some(eds),
        eds_cluster_config: Some(config),
        ..Cluster::default()
    };
    Arc::new(Resource::new(&type_url::CLUSTER.into(), name, &cluster.encode_to_vec()))
}

fn show(resource: &Resource) -> String {
    let value = resource.value();
    // The mark is the last field: two bytes of tag and more, then its length; its text is what follows the last tag.
    let mark: Vec<u8> = value.iter().rev().take_while(|byte| byte.is_ascii_graphic()).copied().collect();
    let mark: String = mark.into_iter().rev().map(char::from).collect();
    format!("{}={}", resource.name(), if value.len() > resource.name().len() + 2 { mark } else { String::new() })
}
