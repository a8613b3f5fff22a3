//! One stream to a control plane, made again for ever.
//!
//! The loop waits for whichever comes first: room to send, a response, a change of what is wanted, a timer. A response is
//! rehearsed before it is answered, so that what could not be applied is refused; **the loop never waits for a response to
//! be applied**. Who does not take what we have to say is not read further: what waits to be sent is a few requests of each
//! type.

mod open;
mod preferred;

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
use prost::Message;
use tokio::sync::{mpsc, watch};
use tonic::transport::Channel;

use self::open::{Event, Incoming};
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
    /// Which of the source's servers is asked, in their order.
    server: usize,
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
    #[error("a server that comes first answers again")]
    Preferred(usize),
}

impl<'s> Driver<'s> {
    pub(super) fn new(sources: &'s Sources, source: &'s Source, grpc: &'s GrpcSource) -> Self {
        Self {
            sources,
            source,
            grpc,
            client: client(sources, grpc),
            backoff: Backoff::new(FIRST_DELAY, GREATEST_DELAY),
            interests: sources.configuration.watch_interests(),
            server: 0,
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
            let control_plane = self.control_plane();
            if let Ended::Preferred(server) = ended {
                tracing::info!(control_plane, error = %ended, "a new stream is opened to it");
                self.turn_to(server);
                continue;
            } else if answered && matches!(ended, Ended::Closed) {
                tracing::info!(control_plane, "the stream ended; a new one is opened");
            } else if quiet {
                tracing::debug!(control_plane, error = %ended, "still no stream");
            } else {
                tracing::warn!(control_plane, error = %ended, "no stream; what is in force stays");
                quiet = !answered;
            }
            if !answered {
                self.count_failure();
            }
            // gRFC A71: the next server is asked only if this one cannot be had and something was never received.
            let next = self.server + 1;
            if !answered && next < self.grpc.clusters.len() && self.client.lacks_anything() {
                self.turn_to(next);
                continue;
            }
            self.turn_to(0);
            self.sources.configuration.unreachable();
            let delay = self.backoff.next_delay();
            self.meanwhile(tokio::time::sleep(delay)).await;
        }
    }

    /// Waits without a stream. TTLs go on: they are for the time when nobody says any more what there is.
    async fn meanwhile<T>(&mut self, what: impl Future<Output = T>) -> T {
        let mut what = std::pin::pin!(what);
        loop {
            self.report_missing();
            let (timeout, now) = (self.client.next_timeout(), self.sources.configuration.now());
            tokio::select! {
                done = &mut what => return done,
                () = tokio::time::sleep(timeout.unwrap_or(FOREVER).saturating_sub(now)), if timeout.is_some() => {}
            }
        }
    }

    fn control_plane(&self) -> String {
        self.grpc.clusters.get(self.server).map(ToString::to_string).unwrap_or_default()
    }

    fn turn_to(&mut self, server: usize) {
        if self.server != server {
            self.server = server;
            self.client.forget_versions();
            self.client.set_resource_timer(self.sources.data_errors.timer_of(self.grpc.clusters.get(server)));
            tracing::info!(control_plane = self.control_plane(), "this server is asked now");
        }
    }

    fn count_failure(&self) {
        for (kind, interest) in self.sources.interests_of(self.source) {
            self.sources.metrics.count(kind, Outcome::Failure);
            for name in &interest.names {
                self.sources.metrics.count_for(kind, name, Outcome::Failure);
            }
        }
    }

    /// Connects to the server whose turn it is.
    async fn connect(&mut self) -> Result<(Channel, Cause), ConnectError> {
        self.want_what_is_referred_to();
        let Sources { bootstrap, client_tls, .. } = self.sources;
        let connecting = connect(bootstrap, self.grpc, self.server, client_tls, self.backoff.attempts());
        let connected = Box::pin(self.meanwhile(connecting)).await;
        // What is over is not said to be held.
        self.report_missing();
        connected
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
        let (channel, cause) = match self.connect().await {
            Ok(connected) => connected,
            Err(error) => return error.into(),
        };
        self.client.on_connected();
        let mut outbox: VecDeque<Q> = VecDeque::new();
        self.fill(&mut outbox, pack);
        let (requests, sending) = mpsc::channel(IN_FLIGHT);
        let mut incoming = Incoming::<R>::new(self.source, self.grpc, channel.clone(), sending);
        let mut connected: Option<Connected<'_>> = None;
        let preferred = preferred::answers::<Q, R>(self.sources, self.source, self.grpc, self.server, pack);
        let mut preferred = Box::pin(preferred);
        // The kinds of which there was a response on this stream.
        let mut heard = BTreeSet::new();
        loop {
            let timeout = self.client.next_timeout();
            let now = self.sources.configuration.now();
            tokio::select! {
                // Why it could not be opened is what comes in its place.
                permit = requests.reserve(), if !outbox.is_empty() && (incoming.is_open() || !requests.is_closed()) => {
                    let Ok(permit) = permit else {
                        if incoming.is_open() {
                            return Ended::Closed;
                        }
                        continue;
                    };
                    if let Some(request) = outbox.pop_front() {
                        permit.send(request);
                    }
                }
                received = incoming.next(), if !incoming.is_open() || outbox.len() <= KINDS.len() => match received {
                    Ok(Event::Opened) => {
                        connected.get_or_insert_with(|| self.connected(&channel));
                    }
                    Ok(Event::Response(response)) => {
                        *answered = true;
                        match take(&mut self.client, response) {
                            Ok(update) => {
                                let first = kind_of_update(&update).is_some_and(|kind| heard.insert(kind));
                                let request = answer(self.sources, self.source, update, first, &self.interests).await;
                                self.sources.metrics.heard_from(self.client.control_plane());
                                // Requests for what the response refers to go before its answer.
                                self.fill(&mut outbox, pack);
                                outbox.extend(request.and_then(pack));
                            }
                            Err(error @ ResponseError::NeverRequested { .. }) => self.ignore(&error, &mut outbox, pack),
                            Err(error) => return error.into(),
                        }
                    }
                    Ok(Event::Closed) => return Ended::Closed,
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
                server = &mut preferred, if self.server > 0 => return Ended::Preferred(server),
            }
        }
    }

    fn connected(&self, channel: &Channel) -> Connected<'s> {
        tracing::info!(control_plane = self.control_plane(), delta = self.grpc.delta, "a stream is open");
        Connected::new(self.sources, self.source, self.server, channel.clone())
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

    /// What nobody asked for is refused where the stream is of all types; on the stream of one type it cannot be spoken of.
    fn ignore<Q>(&mut self, error: &ResponseError, outbox: &mut VecDeque<Q>, pack: fn(Request) -> Option<Q>) {
        tracing::warn!(%error, "it is ignored");
        self.sources.metrics.ignored();
        if let (ResponseError::NeverRequested { type_url, nonce }, Source::Ads(_)) = (error, self.source) {
            outbox.extend(self.client.refuse_unrequested(type_url, nonce).and_then(pack));
        }
    }

    fn report_missing(&mut self) {
        let now = self.sources.configuration.now();
        while let Some(missing) = self.client.poll_timeout(now) {
            if let Some(kind) = kind_of(&missing.type_url).filter(|_| missing.why != Absence::Expired) {
                self.sources.metrics.count(kind, Outcome::InitFetchTimeout);
                self.sources.metrics.count_for(kind, &missing.name, Outcome::InitFetchTimeout);
            }
            self.sources.configuration.not_found(&missing);
        }
    }
}

/// Stages a response, asks for what it refers to, and answers it.
async fn answer(
    sources: &Sources,
    source: &Source,
    mut update: Update<'_>,
    first: bool,
    interests: &watch::Receiver<u64>,
) -> Option<Request> {
    let Some(kind) = kind_of_update(&update) else {
        // Only types that have a kind are ever asked for.
        return Some(update.ack());
    };
    let whole = matches!(source, Source::Ads(grpc) | Source::Grpc(_, grpc) if !grpc.delta);
    let rejections = sources.take(kind, &update, whole, first).await;
    if interests.has_changed().unwrap_or(true) {
        for (other, interest) in sources.interests_of(source).into_iter().filter(|(other, _)| *other != kind) {
            update.watch(type_url_of(other), interest);
        }
    }
    Some(if rejections.is_empty() { update.ack() } else { update.nack(rejections) })
}

/// Counts a stream as open until it is dropped, whatever ends it.
struct Connected<'s> {
    sources: &'s Sources,
    source: &'s Source,
    server: usize,
}

impl<'s> Connected<'s> {
    fn new(sources: &'s Sources, source: &'s Source, server: usize, channel: Channel) -> Self {
        sources.metrics.connected(server);
        if matches!(source, Source::Ads(_)) {
            sources.connection.send_replace(Some(channel));
        }
        Self { sources, source, server }
    }
}

impl Drop for Connected<'_> {
    fn drop(&mut self) {
        self.sources.metrics.disconnected(self.server);
        if matches!(self.source, Source::Ads(_)) {
            self.sources.connection.send_replace(None);
        }
    }
}

fn client(sources: &Sources, grpc: &GrpcSource) -> Client {
    Client::new(ClientConfig {
        variant: if grpc.delta { Variant::Delta } else { Variant::Sotw },
        node: node_of(sources),
        node_on_first_message_only: grpc.set_node_on_first_message_only,
        resource_timer: sources.data_errors.timer_of(grpc.clusters.first()),
        fail_on_data_errors: sources.data_errors.fail,
    })
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
pub(super) fn node_of(sources: &Sources) -> Node {
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

const KINDS: [Kind; 11] = [
    Kind::Secret,
    Kind::Cluster,
    Kind::Endpoints,
    Kind::Routes,
    Kind::Listener,
    Kind::Agent,
    Kind::Policy,
    Kind::Extension,
    Kind::Runtime,
    Kind::Scope,
    Kind::VirtualHost,
];
const FIRST_DELAY: Duration = Duration::from_millis(500);
const GREATEST_DELAY: Duration = Duration::from_secs(30);
const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);
/// Requests that tonic may hold: the first ones of all types fit.
const IN_FLIGHT: usize = 16;
