//! The discovery services' methods. Routed by a table and not by generated servers: those would encode every response
//! anew, while a [`Response`] copies bytes that all streams share.

use std::convert::Infallible;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Buf;
use culvert_api::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest, DiscoveryResponse};
use culvert_api::type_url;
use culvert_runtime::drain::Watch;
use culvert_xds::{Response, Session, SessionConfig, Snapshot, StreamId, StreamKind, Variant};
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::server::Grpc;
use tonic::{Code, Request, Status, Streaming};
use tonic_prost::{ProstCodec, ProstDecoder};

use crate::control::Control;
use crate::identity::Peer;
use crate::stream;

/// Largest request: 60,000 names are 5 MB.
const MAX_REQUEST: usize = 64 << 20;
/// Most names and versions in one request.
const MAX_FIELDS: usize = 300_000;

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

/// Answers the methods of one [`Service`].
#[derive(Debug, Clone)]
pub(crate) struct Discovery {
    pub(crate) service: &'static Service,
    pub(crate) control: Arc<Control>,
}

impl<B> tower::Service<http::Request<B>> for Discovery
where
    B: hyper::body::Body + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move { Ok(this.answer(request).await) })
    }
}

impl Discovery {
    async fn answer<B>(self, request: http::Request<B>) -> http::Response<Body>
    where
        B: hyper::body::Body + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
    {
        let method = request.uri().path().rsplit('/').next().unwrap_or_default();
        if method == self.service.stream {
            let mut grpc = Grpc::new(ResponseCodec::<DiscoveryRequest>::new())
                .apply_max_message_size_config(Some(MAX_REQUEST), Some(usize::MAX));
            grpc.streaming(self.streaming::<DiscoveryRequest>(Variant::Sotw), request).await
        } else if method == self.service.delta {
            let mut grpc = Grpc::new(ResponseCodec::<DeltaDiscoveryRequest>::new())
                .apply_max_message_size_config(Some(MAX_REQUEST), Some(usize::MAX));
            grpc.streaming(self.streaming::<DeltaDiscoveryRequest>(Variant::Delta), request).await
        } else if let Some((fetch, only)) = self.service.only
            && method == fetch
        {
            let codec = ProstCodec::<DiscoveryResponse, DiscoveryRequest>::default();
            let mut grpc = Grpc::new(codec).apply_max_message_size_config(Some(MAX_REQUEST), Some(usize::MAX));
            let control = self.control;
            let fetch = tower::service_fn(move |request: Request<DiscoveryRequest>| {
                let peer = peer_of(&request);
                let answer = peer.and_then(|(peer, _)| fetched(&control, &peer, only, request.into_inner()));
                std::future::ready(answer.map(tonic::Response::new))
            });
            grpc.unary(fetch, request).await
        } else {
            Status::unimplemented(format!("{} has no method {method}", self.service.name)).into_http()
        }
    }

    /// The service function of a stream.
    fn streaming<R: stream::Request>(
        self,
        variant: Variant,
    ) -> impl tower::Service<
        Request<Streaming<R>>,
        Response = tonic::Response<impl futures_util::Stream<Item = Result<Response, Status>> + Send + 'static>,
        Error = Status,
        Future: Send,
    > + Send {
        let Self { service, control } = self;
        tower::service_fn(move |request: Request<Streaming<R>>| {
            let kind = StreamKind { variant, type_url: service.only.map(|(_, type_url)| type_url.into()) };
            let control = Arc::clone(&control);
            let responses = peer_of(&request)
                .and_then(|(peer, drain)| stream::responses(control, drain, peer, kind, request.into_inner()))
                .map(tonic::Response::new);
            std::future::ready(responses)
        })
    }
}

/// Answers a fetch as the first response of a stream would: a session of its own, which nobody remembers.
pub(crate) fn fetched(
    control: &Control,
    peer: &Peer,
    type_url: &'static str,
    mut request: DiscoveryRequest,
) -> Result<DiscoveryResponse, Status> {
    const ONLY: StreamId = StreamId(0);
    control.metrics.fetches.add();
    let identity = peer.identify(control, request.node.clone())?;
    let snapshot = Arc::clone(&control.place(&identity, &Snapshot::default()).snapshot);
    let mut session = Session::new(SessionConfig::default(), Arc::new(identity), snapshot);
    let kind = StreamKind { variant: Variant::Sotw, type_url: Some(type_url.into()) };
    session.open(ONLY, kind).map_err(|occupied| Status::internal(occupied.to_string()))?;
    // The whole content, whatever the client has.
    request.version_info.clear();
    request.response_nonce.clear();
    session.on_request(ONLY, &request).map_err(|error| Status::new(Code::from_i32(error.code()), error.to_string()))?;
    let response = session.poll_stream(ONLY, Duration::ZERO).map(|response| response.to_sotw());
    Ok(response.unwrap_or_else(|| DiscoveryResponse { type_url: type_url.to_owned(), ..DiscoveryResponse::default() }))
}

/// Whom the connection of a request belongs to, and when it has to end.
fn peer_of<T>(request: &Request<T>) -> Result<(Peer, Watch), Status> {
    let peer = request.extensions().get::<Peer>().cloned();
    let drain = request.extensions().get::<Watch>().cloned();
    peer.zip(drain).ok_or_else(|| Status::internal("the request belongs to no connection"))
}

/// Requests in as messages, responses out as they were packed.
struct ResponseCodec<R>(PhantomData<fn() -> R>);

impl<R> ResponseCodec<R> {
    fn new() -> Self {
        Self(PhantomData)
    }
}

impl<R: stream::Request + prost::Message + Default> Codec for ResponseCodec<R> {
    type Encode = Response;
    type Decode = R;
    type Encoder = PackedEncoder;
    type Decoder = BoundedDecoder<R>;

    fn encoder(&mut self) -> PackedEncoder {
        PackedEncoder
    }

    fn decoder(&mut self) -> BoundedDecoder<R> {
        BoundedDecoder(ProstDecoder::default())
    }
}

/// Counts what is in a request before it takes memory: a million short names are ten times as large decoded.
struct BoundedDecoder<R>(ProstDecoder<R>);

impl<R: prost::Message + Default> Decoder for BoundedDecoder<R> {
    type Item = R;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<R>, Status> {
        if has_more_fields_than(MAX_FIELDS, buf.chunk()) {
            let reason = format!("a request with more than {MAX_FIELDS} names and versions");
            return Err(Status::resource_exhausted(reason));
        }
        self.0.decode(buf)
    }
}

/// Whether an encoded message has more top-level fields; what does not parse is left to the decoder.
fn has_more_fields_than(limit: usize, mut message: &[u8]) -> bool {
    let mut count = 0;
    while !message.is_empty() {
        count += 1;
        let Ok((tag, wire_type)) = prost::encoding::decode_key(&mut message) else { return false };
        let context = prost::encoding::DecodeContext::default();
        if prost::encoding::skip_field(wire_type, tag, &mut message, context).is_err() {
            return false;
        }
        if count > limit {
            return true;
        }
    }
    false
}

struct PackedEncoder;

impl Encoder for PackedEncoder {
    type Item = Response;
    type Error = Status;

    fn encode(&mut self, response: Response, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buf.reserve(response.encoded_len());
        response.encode(buf);
        Ok(())
    }
}
