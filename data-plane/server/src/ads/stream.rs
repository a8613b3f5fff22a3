//! One stream to a control plane, made again for ever.
//!
//! The loop waits for whichever comes first: room to send, a response, a change of what is wanted, a timer. A response is
//! rehearsed before it is answered, so that what could not be applied is refused; **the loop never waits for a response to
//! be applied**, and what it has to send is bounded by the number of types.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use culvert_api::envoy::config::core::v3::{BuildVersion, Node, node};
use culvert_api::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use culvert_api::envoy::r#type::v3::SemanticVersion;
use culvert_model::source::GrpcSource;
use culvert_runtime::backoff::Backoff;
use culvert_xds::Variant;
use culvert_xds::client::{Absence, Client, ClientConfig, Request, ResponseError, Update};
use http::uri::PathAndQuery;
use prost::Message;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{MetadataKey, MetadataMap};
use tonic::transport::Channel;
use tonic_prost::ProstCodec;

use super::connect::{Cause, ConnectError, connect, with_causes};
use super::{Outcome, Source, Sources, kind_of_update};
use crate::apply::Kind;
use crate::config::{kind_of, type_url_of};

/// Drives one [`Client`].
pub(super) struct Driver<'s> {
    sources: &'s Sources,
    source: &'s Source,
    grpc: &'s GrpcSource,
    client: Client,
    backoff: Backoff,
    interests: watch::Receiver<u64>,
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("{}{}", with_causes(status), cause.get().map(|cause| format!("; the connection: {cause}")).unwrap_or_default())]
    Status { status: tonic::Status, cause: Cause },
    #[error(transparent)]
    Response(#[from] ResponseError),
    #[error("the control plane closed the stream")]
    Closed,
}

impl<'s> Driver<'s> {
    pub(super) fn new(sources: &'s Sources, source: &'s Source, grpc: &'s GrpcSource) -> Self {
        let client = Client::new(ClientConfig {
            variant: if grpc.delta { Variant::Delta } else { Variant::Sotw },
            node: node_of(sources),
            node_on_first_message_only: grpc.set_node_on_first_message_only,
            resource_timeout: RESOURCE_TIME,
        });
        Self {
            sources,
            source,
            grpc,
            client,
            backoff: Backoff::new(FIRST_DELAY, GREATEST_DELAY),
            interests: sources.configuration.watch_interests(),
        }
    }

    pub(super) async fn run(mut self) {
        let mut quiet = false;
        loop {
            let mut answered = false;
            let ended = match self.grpc.delta {
                false => {
                    self.speak::<DiscoveryRequest, DiscoveryResponse>(sotw, Client::on_response, &mut answered).await
                }
                true => {
                    self.speak::<DeltaDiscoveryRequest, DeltaDiscoveryResponse>(
                        delta,
                        Client::on_delta_response,
                        &mut answered,
                    )
                    .await
                }
            };
            self.client.on_disconnected();
            // gRFC A57: only a response shows that the server is well; ending after one is no error.
            if answered {
                self.backoff.reset();
                quiet = false;
            }
            let clusters = self.grpc.clusters.join(", ");
            if answered && matches!(ended, Ended::Closed) {
                tracing::info!(control_plane = clusters, "the stream ended; a new one is opened");
            } else if quiet {
                tracing::debug!(control_plane = clusters, error = %ended, "still no stream");
            } else {
                tracing::warn!(control_plane = clusters, error = %ended, "no stream; what is in force stays");
                quiet = !answered;
            }
            if !answered {
                for (kind, interest) in self.sources.interests_of(self.source) {
                    self.sources.metrics.count(kind, Outcome::Failure);
                    for name in &interest.names {
                        self.sources.metrics.count_for(kind, name, Outcome::Failure);
                    }
                }
            }
            self.sources.configuration.unreachable();
            tokio::time::sleep(self.backoff.next_delay()).await;
        }
    }

    /// One stream from its first request to its end.
    async fn speak<Q, R>(
        &mut self,
        pack: fn(Request) -> Option<Q>,
        take: for<'c> fn(&'c mut Client, R) -> Result<Update<'c>, ResponseError>,
        answered: &mut bool,
    ) -> Ended
    where
        Q: Message + Default + Send + Sync + 'static,
        R: Message + Default + Send + Sync + 'static,
    {
        let tls = &self.sources.client_tls;
        let (channel, cause) = match connect(&self.sources.bootstrap, self.grpc, tls, self.backoff.attempts()).await {
            Ok(connected) => connected,
            Err(error) => return error.into(),
        };
        self.client.on_connected();
        self.want_what_is_referred_to();
        let mut outbox: VecDeque<Q> = VecDeque::new();
        self.fill(&mut outbox, pack);
        let (requests, sending) = mpsc::channel(IN_FLIGHT);
        // Before the stream is open: some servers say nothing, not even headers, until they were asked.
        while requests.capacity() > 0
            && let Some(request) = outbox.pop_front()
        {
            if requests.try_send(request).is_err() {
                break;
            }
        }
        let mut stream = match self.open::<Q, R>(channel, sending).await {
            Ok(stream) => stream,
            Err(status) => return Ended::Status { status, cause },
        };
        tracing::info!(control_plane = self.grpc.clusters.join(", "), delta = self.grpc.delta, "a stream is open");
        self.sources.metrics.connected();
        let _connected = Connected(self.sources);
        // The kinds of which there was a response on this stream.
        let mut heard = BTreeSet::new();
        loop {
            let timeout = self.client.next_timeout();
            let now = self.sources.configuration.now();
            tokio::select! {
                permit = requests.reserve(), if !outbox.is_empty() => {
                    let Ok(permit) = permit else { return Ended::Closed };
                    if let Some(request) = outbox.pop_front() {
                        permit.send(request);
                    }
                }
                received = stream.message() => match received {
                    Ok(Some(response)) => {
                        *answered = true;
                        match take(&mut self.client, response) {
                            Ok(update) => {
                                let first = kind_of_update(&update).is_some_and(|kind| heard.insert(kind));
                                let request = answer(self.sources, self.source, update, first).await;
                                // Requests for what the response refers to go before its answer.
                                self.fill(&mut outbox, pack);
                                outbox.extend(request.and_then(pack));
                            }
                            Err(error @ ResponseError::NeverRequested { .. }) => {
                                tracing::warn!(%error, "it is ignored");
                                self.sources.metrics.ignored();
                            }
                            Err(error) => return error.into(),
                        }
                    }
                    Ok(None) => return Ended::Closed,
                    Err(status) => return Ended::Status { status, cause },
                },
                changed = self.interests.changed() => {
                    if changed.is_err() {
                        return Ended::Closed;
                    }
                    self.want_what_is_referred_to();
                    self.fill(&mut outbox, pack);
                }
                () = tokio::time::sleep(timeout.unwrap_or(FOREVER).saturating_sub(now)), if timeout.is_some() => {
                    self.report_missing();
                }
            }
        }
    }

    async fn open<Q, R>(
        &self,
        channel: Channel,
        sending: mpsc::Receiver<Q>,
    ) -> Result<tonic::Streaming<R>, tonic::Status>
    where
        Q: Message + Default + Send + Sync + 'static,
        R: Message + Default + Send + Sync + 'static,
    {
        let mut grpc = tonic::client::Grpc::new(channel).max_decoding_message_size(MAX_RESPONSE);
        grpc.ready().await.map_err(|error| tonic::Status::unavailable(with_causes(&error)))?;
        let mut request = tonic::Request::new(ReceiverStream::new(sending));
        put_metadata(request.metadata_mut(), self.grpc);
        let path = PathAndQuery::from_static(method(self.source, self.grpc.delta));
        let response = grpc.streaming(request, path, ProstCodec::<Q, R>::default()).await?;
        Ok(response.into_inner())
    }

    /// Moves what the client has to say into the outbox.
    fn fill<Q>(&mut self, outbox: &mut VecDeque<Q>, pack: fn(Request) -> Option<Q>) {
        while let Some(request) = self.client.poll_request(self.sources.configuration.now()) {
            if let Some(kind) = kind_of_request(&request) {
                self.sources.metrics.count(kind, Outcome::Attempt);
            }
            outbox.extend(pack(request));
        }
    }

    fn want_what_is_referred_to(&mut self) {
        self.interests.mark_unchanged();
        let interests = self.sources.interests_of(self.source);
        for kind in KINDS {
            let interest = interests.iter().find(|(k, _)| *k == kind).map(|(_, interest)| interest.clone());
            self.client.watch(type_url_of(kind), interest.unwrap_or_default());
        }
        for (kind, _) in interests {
            let cached = self.sources.configuration.cached(kind);
            if !cached.is_empty() {
                self.client.expect_cached(type_url_of(kind), cached);
            }
        }
    }

    fn report_missing(&mut self) {
        let now = self.sources.configuration.now();
        while let Some(missing) = self.client.poll_timeout(now) {
            if let Some(kind) = kind_of(&missing.type_url).filter(|_| missing.why == Absence::Unanswered) {
                self.sources.metrics.count(kind, Outcome::InitFetchTimeout);
                self.sources.metrics.count_for(kind, &missing.name, Outcome::InitFetchTimeout);
            }
            self.sources.configuration.not_found(&missing);
        }
    }
}

/// Stages a response, asks for what it refers to, and answers it.
async fn answer(sources: &Sources, source: &Source, mut update: Update<'_>, first: bool) -> Option<Request> {
    let Some(kind) = kind_of_update(&update) else {
        // Only types that have a kind are ever asked for.
        return Some(update.ack());
    };
    let whole = matches!(source, Source::Ads(grpc) | Source::Grpc(_, grpc) if !grpc.delta);
    let rejections = sources.take(kind, &update, whole, first).await;
    for (other, interest) in sources.interests_of(source) {
        if other != kind {
            update.watch(type_url_of(other), interest);
        }
    }
    Some(if rejections.is_empty() { update.ack() } else { update.nack(rejections) })
}

/// Counts a stream as open until it is dropped, whatever ends it.
struct Connected<'s>(&'s Sources);

impl Drop for Connected<'_> {
    fn drop(&mut self) {
        self.0.metrics.disconnected();
    }
}

fn sotw(request: Request) -> Option<DiscoveryRequest> {
    match request {
        Request::Sotw(request) => Some(request),
        Request::Delta(_) => None,
    }
}

fn delta(request: Request) -> Option<DeltaDiscoveryRequest> {
    match request {
        Request::Delta(request) => Some(request),
        Request::Sotw(_) => None,
    }
}

fn kind_of_request(request: &Request) -> Option<Kind> {
    match request {
        Request::Sotw(request) => kind_of(&request.type_url),
        Request::Delta(request) => kind_of(&request.type_url),
    }
}

/// The bootstrap's node, and who we are: small, unlike Envoy's 61 KB.
fn node_of(sources: &Sources) -> Node {
    let mut node = Node::decode(sources.bootstrap.node.encoded.clone()).unwrap_or_default();
    node.id = sources.bootstrap.node.id.to_string();
    node.cluster = sources.bootstrap.node.cluster.to_string();
    node.user_agent_name = "culvert-proxy".to_owned();
    let mut numbers = env!("CARGO_PKG_VERSION").split('.').map(|number| number.parse().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    let version = SemanticVersion { major_number: next(), minor_number: next(), patch: next() };
    node.user_agent_version_type = Some(node::UserAgentVersionType::UserAgentBuildVersion(BuildVersion {
        version: Some(version),
        ..BuildVersion::default()
    }));
    node
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
        // Tunnel agents have no service of their own: an aggregated stream that asks for nothing else.
        (Some(Kind::Agent) | None, false) => {
            "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"
        }
        (Some(Kind::Agent) | None, true) => {
            "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
        }
    }
}

const KINDS: [Kind; 6] = [Kind::Secret, Kind::Cluster, Kind::Endpoints, Kind::Routes, Kind::Listener, Kind::Agent];
const FIRST_DELAY: Duration = Duration::from_millis(500);
const GREATEST_DELAY: Duration = Duration::from_secs(30);
/// gRFC A53, Envoy's `initial_fetch_timeout`.
const RESOURCE_TIME: Duration = Duration::from_secs(15);
const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);
/// Requests that tonic may hold: the first ones of all types fit.
const IN_FLIGHT: usize = 16;
/// One response may carry all of a large deployment.
const MAX_RESPONSE: usize = 256 * 1024 * 1024;
