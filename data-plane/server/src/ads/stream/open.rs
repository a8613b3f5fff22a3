//! A stream on a connection: its method, its metadata, its limit.

use std::pin::Pin;

use culvert_model::source::GrpcSource;
use http::uri::PathAndQuery;
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{MetadataKey, MetadataMap};
use tonic::transport::Channel;
use tonic_prost::ProstCodec;

use super::super::Source;
use super::super::connect::with_causes;
use crate::apply::Kind;

/// What comes on a stream. Many servers say nothing, not even headers, before they have a response; until then there may be more
/// to ask, and time goes on.
pub(super) enum Incoming<'s, R> {
    Opening(Pin<Box<dyn Future<Output = Result<tonic::Streaming<R>, tonic::Status>> + Send + 's>>),
    Open(Box<tonic::Streaming<R>>),
}

/// The next thing that comes.
pub(super) enum Event<R> {
    /// The server has said its first word.
    Opened,
    Response(R),
    Closed,
}

impl<'s, R> Incoming<'s, R>
where
    R: Message + Default + Send + Sync + 'static,
{
    /// Of the stream of a source on a connection, to which requests come from `sending`.
    pub(super) fn new<Q>(source: &'s Source, grpc: &'s GrpcSource, channel: Channel, sending: mpsc::Receiver<Q>) -> Self
    where
        Q: Message + Default + Send + Sync + 'static,
    {
        Self::Opening(Box::pin(open::<Q, R>(source, grpc, channel, sending)))
    }

    pub(super) fn is_open(&self) -> bool {
        matches!(self, Self::Open(_))
    }

    /// May be dropped and called again.
    pub(super) async fn next(&mut self) -> Result<Event<R>, tonic::Status> {
        match self {
            Self::Opening(opening) => {
                *self = Self::Open(Box::new(opening.await?));
                Ok(Event::Opened)
            }
            Self::Open(stream) => Ok(stream.message().await?.map_or(Event::Closed, Event::Response)),
        }
    }
}

/// Opens the stream of a source on a connection: done when the server has said its first word.
pub(super) async fn open<Q, R>(
    source: &Source,
    grpc: &GrpcSource,
    channel: Channel,
    sending: mpsc::Receiver<Q>,
) -> Result<tonic::Streaming<R>, tonic::Status>
where
    Q: Message + Default + Send + Sync + 'static,
    R: Message + Default + Send + Sync + 'static,
{
    let mut client = tonic::client::Grpc::new(channel).max_decoding_message_size(MAX_RESPONSE);
    client.ready().await.map_err(|error| tonic::Status::unavailable(with_causes(&error)))?;
    let mut request = tonic::Request::new(ReceiverStream::new(sending));
    put_metadata(request.metadata_mut(), grpc);
    let path = PathAndQuery::from_static(method(source, grpc.delta));
    let response = client.streaming(request, path, ProstCodec::<Q, R>::default()).await?;
    Ok(response.into_inner())
}

fn put_metadata(metadata: &mut MetadataMap, grpc: &GrpcSource) {
    for (name, value) in &grpc.metadata {
        match (MetadataKey::from_bytes(name.as_bytes()), value.parse()) {
            (Ok(name), Ok(value)) => drop(metadata.insert(name, value)),
            _ => tracing::warn!(%name, "initial_metadata is left out: not text that gRPC carries"),
        }
    }
}

/// The gRPC method of a source.
fn method(source: &Source, delta: bool) -> &'static str {
    let kind = match source {
        Source::Grpc(kind, _) => Some(*kind),
        Source::Ads(_) | Source::File { .. } => None,
    };
    match (kind, delta) {
        (Some(Kind::Cluster), false) => "/envoy.service.cluster.v3.ClusterDiscoveryService/StreamClusters",
        (Some(Kind::Cluster), true) => "/envoy.service.cluster.v3.ClusterDiscoveryService/DeltaClusters",
        (Some(Kind::Endpoints), false) => "/envoy.service.endpoint.v3.EndpointDiscoveryService/StreamEndpoints",
        (Some(Kind::Endpoints), true) => "/envoy.service.endpoint.v3.EndpointDiscoveryService/DeltaEndpoints",
        (Some(Kind::Listener), false) => "/envoy.service.listener.v3.ListenerDiscoveryService/StreamListeners",
        (Some(Kind::Listener), true) => "/envoy.service.listener.v3.ListenerDiscoveryService/DeltaListeners",
        (Some(Kind::Routes), false) => "/envoy.service.route.v3.RouteDiscoveryService/StreamRoutes",
        (Some(Kind::Routes), true) => "/envoy.service.route.v3.RouteDiscoveryService/DeltaRoutes",
        (Some(Kind::Secret), false) => "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets",
        (Some(Kind::Secret), true) => "/envoy.service.secret.v3.SecretDiscoveryService/DeltaSecrets",
        (Some(Kind::Extension), false) => {
            "/envoy.service.extension.v3.ExtensionConfigDiscoveryService/StreamExtensionConfigs"
        }
        (Some(Kind::Extension), true) => {
            "/envoy.service.extension.v3.ExtensionConfigDiscoveryService/DeltaExtensionConfigs"
        }
        (Some(Kind::Scope), false) => "/envoy.service.route.v3.ScopedRoutesDiscoveryService/StreamScopedRoutes",
        (Some(Kind::Scope), true) => "/envoy.service.route.v3.ScopedRoutesDiscoveryService/DeltaScopedRoutes",
        // There is no other variant; the model refuses it.
        (Some(Kind::VirtualHost), _) => "/envoy.service.route.v3.VirtualHostDiscoveryService/DeltaVirtualHosts",
        (Some(Kind::Runtime), false) => "/envoy.service.runtime.v3.RuntimeDiscoveryService/StreamRuntime",
        (Some(Kind::Runtime), true) => "/envoy.service.runtime.v3.RuntimeDiscoveryService/DeltaRuntime",
        // Ours have no service of their own: an aggregated stream that asks for nothing else.
        (Some(Kind::Agent | Kind::Policy) | None, false) => {
            "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"
        }
        (Some(Kind::Agent | Kind::Policy) | None, true) => {
            "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
        }
    }
}

/// One response may carry all of a large deployment.
const MAX_RESPONSE: usize = 256 * 1024 * 1024;
