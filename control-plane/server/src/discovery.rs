//! The discovery services' methods. Routed by a table and not by generated servers: those would encode every response
//! anew, while a [`culvert_xds::Response`] refers to bytes that all streams share.

use std::sync::Arc;
use std::time::Duration;

use culvert_api::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest, DiscoveryResponse};
use culvert_api::type_url;
use culvert_runtime::drain::Watch;
use culvert_xds::server::Poll;
use culvert_xds::{NodeIdentity, Session, Snapshot, StreamId, StreamKind, Variant};
use http::header;
use hyper::body::Incoming;
use tonic::body::Body;
use tonic::server::Grpc;
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use crate::control::Control;
use crate::identity::Peer;
use crate::messages::{MAX_REQUEST, Requests, Responses, Unfinished};
use crate::nodes::NodeKey;
use crate::polling::subscription;
use crate::stream;

/// A discovery service.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) name: &'static str,
    stream: &'static str,
    delta: &'static str,
    /// The unary method, and the one type that the service is about; ADS has neither.
    only: Option<(&'static str, &'static str)>,
}

/// All of them.
pub(crate) const SERVICES: [Service; 11] = [
    Service {
        name: "envoy.service.discovery.v3.AggregatedDiscoveryService",
        stream: "StreamAggregatedResources",
        delta: "DeltaAggregatedResources",
        only: None,
    },
    Service {
        name: "envoy.service.cluster.v3.ClusterDiscoveryService",
        stream: "StreamClusters",
        delta: "DeltaClusters",
        only: Some(("FetchClusters", type_url::CLUSTER)),
    },
    Service {
        name: "envoy.service.endpoint.v3.EndpointDiscoveryService",
        stream: "StreamEndpoints",
        delta: "DeltaEndpoints",
        only: Some(("FetchEndpoints", type_url::CLUSTER_LOAD_ASSIGNMENT)),
    },
    Service {
        name: "envoy.service.listener.v3.ListenerDiscoveryService",
        stream: "StreamListeners",
        delta: "DeltaListeners",
        only: Some(("FetchListeners", type_url::LISTENER)),
    },
    Service {
        name: "envoy.service.route.v3.RouteDiscoveryService",
        stream: "StreamRoutes",
        delta: "DeltaRoutes",
        only: Some(("FetchRoutes", type_url::ROUTE_CONFIGURATION)),
    },
    Service {
        name: "envoy.service.secret.v3.SecretDiscoveryService",
        stream: "StreamSecrets",
        delta: "DeltaSecrets",
        only: Some(("FetchSecrets", type_url::SECRET)),
    },
    Service {
        name: "envoy.service.route.v3.ScopedRoutesDiscoveryService",
        stream: "StreamScopedRoutes",
        delta: "DeltaScopedRoutes",
        only: Some(("FetchScopedRoutes", type_url::SCOPED_ROUTE_CONFIGURATION)),
    },
    Service {
        name: "envoy.service.runtime.v3.RuntimeDiscoveryService",
        stream: "StreamRuntime",
        delta: "DeltaRuntime",
        only: Some(("FetchRuntime", type_url::RUNTIME)),
    },
    Service {
        name: "envoy.service.extension.v3.ExtensionConfigDiscoveryService",
        stream: "StreamExtensionConfigs",
        delta: "DeltaExtensionConfigs",
        only: Some(("FetchExtensionConfigs", type_url::EXTENSION_CONFIG)),
    },
    // The API has these two in the delta variant alone.
    Service {
        name: "envoy.service.route.v3.VirtualHostDiscoveryService",
        stream: NONE,
        delta: "DeltaVirtualHosts",
        only: Some((NONE, type_url::VIRTUAL_HOST)),
    },
    Service {
        name: "envoy.service.endpoint.v3.LocalityEndpointDiscoveryService",
        stream: NONE,
        delta: "DeltaLocalityEndpoints",
        only: Some((NONE, type_url::LOCALITY_ENDPOINT)),
    },
];

/// No path has it as its last part.
const NONE: &str = "/";

/// A method of a [`Service`] that somebody calls.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call {
    service: &'static Service,
    method: Method,
}

#[derive(Debug, Clone, Copy)]
enum Method {
    Stream,
    Delta,
    /// Of the service's type.
    Fetch(&'static str),
    Unknown,
}

impl Call {
    /// What a path names; `None`: no method of these services.
    pub(crate) fn of(path: &str) -> Option<Self> {
        let (service, method) = path.strip_prefix('/')?.split_once('/')?;
        let service = SERVICES.iter().find(|known| known.name == service)?;
        let method = match service.only {
            _ if method == service.stream => Method::Stream,
            _ if method == service.delta => Method::Delta,
            Some((fetch, only)) if method == fetch => Method::Fetch(only),
            _ => Method::Unknown,
        };
        Some(Self { service, method })
    }

    pub(crate) async fn answer(self, control: &Arc<Control>, request: http::Request<Incoming>) -> http::Response<Body> {
        match self.method {
            Method::Stream => self.stream::<DiscoveryRequest>(Variant::Sotw, control, request),
            Method::Delta => self.stream::<DeltaDiscoveryRequest>(Variant::Delta, control, request),
            Method::Fetch(only) => fetch(only, control, request).await,
            Method::Unknown => {
                let path = request.uri().path();
                Status::unimplemented(format!("{} has no method of the path {path}", self.service.name)).into_http()
            }
        }
    }

    fn stream<R: stream::Request>(
        self,
        variant: Variant,
        control: &Arc<Control>,
        request: http::Request<Incoming>,
    ) -> http::Response<Body> {
        let kind = StreamKind { variant, type_url: self.service.only.map(|(_, type_url)| type_url.into()) };
        let caller = caller(request.extensions());
        let unfinished = request.extensions().get::<Unfinished>().cloned().unwrap_or_default();
        let requests = Requests::<R, _>::new(request.into_body()).within(unfinished);
        let responses =
            caller.and_then(|(peer, ending)| stream::responses(Arc::clone(control), &ending, peer, kind, requests));
        match responses {
            Ok(responses) => {
                let mut response = http::Response::new(Body::new(Responses::new(responses)));
                response.headers_mut().insert(header::CONTENT_TYPE, GRPC);
                response
            }
            Err(status) => status.into_http(),
        }
    }
}

const GRPC: header::HeaderValue = header::HeaderValue::from_static("application/grpc");

async fn fetch(only: &'static str, control: &Arc<Control>, request: http::Request<Incoming>) -> http::Response<Body> {
    let codec = ProstCodec::<DiscoveryResponse, DiscoveryRequest>::default();
    let mut grpc = Grpc::new(codec).apply_max_message_size_config(Some(MAX_REQUEST), Some(usize::MAX));
    let fetch = tower::service_fn(move |request: Request<DiscoveryRequest>| {
        let caller = caller(request.extensions());
        let answer = caller.and_then(|(peer, _)| fetched(control, &peer, only, request.into_inner()));
        std::future::ready(answer.map(tonic::Response::new))
    });
    grpc.unary(fetch, request).await
}

/// Answers a fetch as the first response of a stream would: a session of its own, which nobody remembers.
fn fetched(
    control: &Control,
    peer: &Peer,
    type_url: &'static str,
    request: DiscoveryRequest,
) -> Result<DiscoveryResponse, Status> {
    let identity = peer.identify(control, request.node.clone())?;
    let snapshot = Arc::clone(&control.place(&identity, &Snapshot::default()).snapshot);
    first_response(control, identity, snapshot, type_url, request)
}

/// The same for a client that polls: a change reaches it in steps.
pub(crate) fn polled(
    control: &Control,
    peer: &Peer,
    type_url: &'static str,
    request: DiscoveryRequest,
) -> Result<DiscoveryResponse, Status> {
    let identity = peer.identify(control, request.node.clone())?;
    let key = NodeKey { certificate: peer.certificate.clone(), id: identity.id.clone() };
    let snapshot = control.polling.serve(control, &key, &identity, (type_url, &request));
    let subscription = subscription(type_url, &request.resource_names);
    let (had, refuses) = (request.version_info.clone(), request.error_detail.is_some());
    let response = first_response(control, identity, snapshot, type_url, request)?;
    control.polling.answered(&key, type_url, Poll { subscription, had: &had, refuses, given: &response.version_info });
    Ok(response)
}

fn first_response(
    control: &Control,
    identity: NodeIdentity,
    snapshot: Arc<Snapshot>,
    type_url: &'static str,
    mut request: DiscoveryRequest,
) -> Result<DiscoveryResponse, Status> {
    const ONLY: StreamId = StreamId(0);
    control.metrics.fetches.add();
    let config = control.named_only.config_for(&identity);
    let mut session = Session::new(config, Arc::new(identity), snapshot);
    let kind = StreamKind { variant: Variant::Sotw, type_url: Some(type_url.into()) };
    session.open(ONLY, kind).map_err(|occupied| Status::internal(occupied.to_string()))?;
    // The whole content, whatever the client has.
    request.version_info.clear();
    request.response_nonce.clear();
    session.on_request(ONLY, &request).map_err(|error| Status::new(Code::from_i32(error.code()), error.to_string()))?;
    let response = session.poll_stream(ONLY, Duration::ZERO).map(|response| response.to_sotw());
    let mut response = response.unwrap_or_default();
    type_url.clone_into(&mut response.type_url);
    Ok(response)
}

/// Whom the connection of a request belongs to, and when it has to end.
fn caller(extensions: &http::Extensions) -> Result<(Peer, Watch), Status> {
    let caller = extensions.get::<Peer>().cloned().zip(extensions.get::<Watch>().cloned());
    caller.ok_or_else(|| Status::internal("the request belongs to no connection"))
}
