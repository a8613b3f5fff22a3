//! Client status discovery: what every node holds, as the API words it.

mod matcher;

use std::pin::Pin;
use std::sync::Arc;

use culvert_api::document::{self, Limits, Syntax};
use culvert_api::envoy::admin::v3::{ClientResourceStatus, UpdateFailureState};
use culvert_api::envoy::config::core::v3::Node;
use culvert_api::envoy::service::status::v3::client_config::GenericXdsConfig;
use culvert_api::envoy::service::status::v3::client_status_discovery_service_server::ClientStatusDiscoveryService;
use culvert_api::envoy::service::status::v3::{ClientConfig, ClientStatusRequest, ClientStatusResponse, ConfigStatus};
use culvert_api::json::{Secrets, any_to_json};
use culvert_api::{Any, type_url};
use culvert_runtime::drain::Watch;
use culvert_xds::server::{ResourceState, ResourceStatus, TypeStatus};
use futures_util::{Stream, StreamExt};
use prost_types::Timestamp;
use tonic::{Request, Response, Status, Streaming};

use crate::control::Control;
use crate::identity::Peer;
use crate::nodes::NodeStatus;

use matcher::Matcher;

#[derive(Debug)]
pub(crate) struct Csds {
    pub(crate) control: Arc<Control>,
    pub(crate) drain: Watch,
}

#[tonic::async_trait]
impl ClientStatusDiscoveryService for Csds {
    type StreamClientStatusStream = Pin<Box<dyn Stream<Item = Result<ClientStatusResponse, Status>> + Send>>;

    async fn stream_client_status(
        &self,
        request: Request<Streaming<ClientStatusRequest>>,
    ) -> Result<Response<Self::StreamClientStatusStream>, Status> {
        let control = Arc::clone(&self.control);
        let drain = self.drain.clone();
        let peer = request.extensions().get::<Peer>().cloned().unwrap_or_default();
        let place = control.access.begin_stream(&peer)?;
        let requests = request.into_inner().take_until(async move {
            drain.draining().await;
        });
        let answers = requests.map(move |request| {
            // For as long as the stream lives.
            let _held = &place;
            answer(&control, &peer, &request?)
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn fetch_client_status(
        &self,
        request: Request<ClientStatusRequest>,
    ) -> Result<Response<ClientStatusResponse>, Status> {
        let peer = request.extensions().get::<Peer>().cloned().unwrap_or_default();
        answer(&self.control, &peer, request.get_ref()).map(Response::new)
    }
}

fn answer(control: &Control, peer: &Peer, request: &ClientStatusRequest) -> Result<ClientStatusResponse, Status> {
    let matchers = request.node_matchers.iter().map(Matcher::new).collect::<Result<Vec<_>, _>>()?;
    // Whoever may be some nodes only sees those.
    let mut nodes = control.node_status();
    if !control.access.is_operator(peer) {
        nodes.retain(|node| control.identities.allow(&peer.names, &node.identity.id, &node.identity.cluster));
    }
    // CSDS: a node is shown if any matcher matches; without matchers all are.
    let shown = nodes
        .iter()
        .filter(|node| matchers.is_empty() || matchers.iter().any(|matcher| matcher.matches(&node.identity)));
    let config = shown.map(|node| client_config(node, request.exclude_resource_contents)).collect();
    Ok(ClientStatusResponse { config })
}

fn client_config(node: &NodeStatus, without_contents: bool) -> ClientConfig {
    let identity = &node.identity;
    let mut configs = Vec::new();
    for of_type in &node.types {
        configs.extend(of_type.resources.iter().map(|one| generic(node, of_type, one, without_contents)));
    }
    ClientConfig {
        node: Some(Node {
            id: identity.id.clone(),
            cluster: identity.cluster.clone(),
            metadata: identity.metadata.clone(),
            locality: identity.locality.clone(),
            user_agent_name: identity.user_agent.clone(),
            client_features: identity.client_features.clone(),
            ..Node::default()
        }),
        generic_xds_configs: configs,
        ..ClientConfig::default()
    }
}

/// Keys and passwords may stand in any resource. `None`: it does not decode without them.
fn without_keys(content: Any) -> Option<Any> {
    let shown = any_to_json(&content, Secrets::Redact);
    if shown == any_to_json(&content, Secrets::Show) {
        return Some(content);
    }
    let tree = document::parse(shown.to_string().as_bytes(), Syntax::Json, &Limits::default()).ok()?.pop()?;
    document::load_any(&tree).ok()
}

fn generic(node: &NodeStatus, of_type: &TypeStatus, one: &ResourceStatus, without_contents: bool) -> GenericXdsConfig {
    let (config_status, client_status) = match one.state {
        ResourceState::Synced => (ConfigStatus::Synced, ClientResourceStatus::Acked),
        ResourceState::Stale => (ConfigStatus::Stale, ClientResourceStatus::Requested),
        ResourceState::Error => (ConfigStatus::Error, ClientResourceStatus::Nacked),
        ResourceState::NotSent => (ConfigStatus::NotSent, ClientResourceStatus::Unknown),
    };
    // Never a secret: whoever may read the status of nodes may not read their keys.
    let shows = !without_contents && &*of_type.type_url != type_url::SECRET;
    let content = node.snapshot.of_type(&of_type.type_url).and_then(|set| set.get(&one.name)).filter(|_| shows);
    let content = content.and_then(|resource| without_keys(resource.any()));
    let version = one.version.map(|version| version.to_string()).unwrap_or_default();
    let last_updated = one.at.map(|at| Timestamp::from(node.begun + at));
    GenericXdsConfig {
        type_url: of_type.type_url.to_string(),
        name: one.name.to_string(),
        version_info: version.clone(),
        xds_config: content,
        config_status: config_status.into(),
        client_status: client_status.into(),
        last_updated,
        error_state: one.error.as_ref().map(|details| UpdateFailureState {
            details: details.to_string(),
            version_info: version,
            last_update_attempt: last_updated,
            failed_configuration: None,
        }),
        ..GenericXdsConfig::default()
    }
}
