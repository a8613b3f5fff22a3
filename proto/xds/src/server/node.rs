//! Who a client says it is.

use culvert_api::envoy::config::core::v3::{Locality, Node};
use culvert_api::type_url;
use prost::Message;

use crate::{PARTIAL_ACK, RESOURCE_ERRORS, RESOURCE_IN_SOTW};

/// What is kept of `envoy.config.core.v3.Node`. Envoy's is 61 KB, nearly all of it `extensions`, which are dropped.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NodeIdentity {
    pub id: String,
    pub cluster: String,
    /// As given; for selectors.
    pub metadata: Option<prost_types::Struct>,
    pub locality: Option<Locality>,
    /// `user_agent_name` and version, for people.
    pub user_agent: String,
    pub client_features: Vec<String>,
    /// URI and DNS names of the certificate that the client proved to have: the one thing here that is not only said. Not
    /// part of a node; whoever accepts connections fills it in.
    pub certificate_names: Vec<String>,
}

/// Why a node is not served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NodeRefused {
    #[error("the first request of a stream must carry a node")]
    Missing,
    #[error("node.metadata is {found} bytes long, more than the {limit} allowed")]
    MetadataTooLarge { found: usize, limit: usize },
    #[error("node.id is {found} bytes long, more than the {limit} allowed")]
    IdTooLong { found: usize, limit: usize },
}

impl NodeIdentity {
    /// Longest `node.id` and `node.cluster`, in bytes.
    pub const MAX_ID: usize = 1024;

    /// Longest `node.metadata`, encoded, in bytes.
    pub const MAX_METADATA: usize = 64 * 1024;

    /// Keeps what is needed of the node of a first request.
    ///
    /// # Errors
    /// No node, or one that is larger than what is kept per stream.
    pub fn new(node: Option<Node>) -> Result<Self, NodeRefused> {
        let node = node.ok_or(NodeRefused::Missing)?;
        let found = node.id.len().max(node.cluster.len());
        if found > Self::MAX_ID {
            return Err(NodeRefused::IdTooLong { found, limit: Self::MAX_ID });
        }
        let found = node.metadata.as_ref().map_or(0, Message::encoded_len);
        if found > Self::MAX_METADATA {
            return Err(NodeRefused::MetadataTooLarge { found, limit: Self::MAX_METADATA });
        }
        Ok(Self {
            id: node.id,
            cluster: node.cluster,
            metadata: node.metadata,
            locality: node.locality,
            user_agent: clip(node.user_agent_name),
            client_features: node.client_features.into_iter().take(64).map(clip).collect(),
            certificate_names: Vec::new(),
        })
    }

    /// Whether a response that holds nothing but errors is of use to it: gRPC's clients and ours then do at once what they would
    /// do after 15 s. Envoy 1.40 does not look at them.
    pub(crate) fn hears_of_absence(&self) -> bool {
        self.is_grpc() || self.announces(RESOURCE_ERRORS)
    }

    /// A client or server of gRPC: it asks for what it uses, by name, and an empty list of its is one without names.
    pub(crate) fn is_grpc(&self) -> bool {
        self.user_agent.to_ascii_lowercase().contains("grpc")
    }

    /// Whether it takes resources with a TTL in state of the world, wrapped: the feature as the specification has it, and as
    /// gRPC's clients send it. Never of an Envoy for assignments and routes: one crashes when those expire.
    pub(crate) fn takes_ttl(&self, type_url: &str) -> bool {
        let takes = self.announces("xds.config.supports-resource-in-sotw") || self.announces(RESOURCE_IN_SOTW);
        let crashes = matches!(type_url, type_url::CLUSTER_LOAD_ASSIGNMENT | type_url::ROUTE_CONFIGURATION)
            && self.user_agent.to_ascii_lowercase().contains("envoy");
        takes && !crashes
    }

    pub(crate) fn acknowledges_in_part(&self) -> bool {
        self.announces(PARTIAL_ACK)
    }

    fn announces(&self, feature: &str) -> bool {
        self.client_features.iter().any(|known| known == feature)
    }
}

/// At most 256 bytes of a text that only people read.
fn clip(mut text: String) -> String {
    let end = (0..=text.len().min(256)).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
    text.truncate(end);
    text
}
