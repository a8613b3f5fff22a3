//! The driver against a control plane on loopback that is nothing but the protocol's server half.

mod files;
mod life;
mod repeated;
mod servers;
mod talker;
mod withdrawn;

use std::fmt::Write as _;
use std::pin::Pin;
use std::time::Duration;

use culvert_api::document::{self, Syntax};
use culvert_api::envoy::config::bootstrap::v3 as bootstrap_api;
use culvert_api::envoy::config::cluster::v3::Cluster;
use culvert_api::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use culvert_api::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use culvert_api::type_url::CLUSTER;
use culvert_runtime::readiness::Readiness;
use culvert_runtime::telemetry::{Registry, Value};
use culvert_xds::server::{ResourceState, StreamKind};
use culvert_xds::{NodeIdentity, Resource, Session, SessionConfig, Snapshot, StreamId, Variant};
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::{Notify, mpsc};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use super::*;
use crate::apply::{Applied, ApplyHandle, Change, Command};
use crate::config::{self, Settings};
use crate::inventory::Inventory;
use crate::overview::{Overview, TunnelView};

/// One node's session behind a socket.
#[derive(Clone)]
struct ControlPlane {
    session: Arc<Mutex<Session>>,
    changed: Arc<Notify>,
    /// Ends every stream.
    hang_up: Arc<Notify>,
    streams: Arc<Mutex<u64>>,
    /// `initial_resource_versions` or `version_info` of the first request of each stream.
    held: Arc<Mutex<Vec<String>>>,
}

impl ControlPlane {
    fn new() -> Self {
        let node = NodeIdentity {
            id: "n".into(),
            client_features: vec![culvert_xds::PARTIAL_ACK.to_owned()],
            ..NodeIdentity::default()
        };
        // Without steps: it has no clock by which they would end.
        let config = SessionConfig { staging: None, ..SessionConfig::default() };
        let session = Session::new(config, Arc::new(node), Arc::default());
        Self {
            session: Arc::new(Mutex::new(session)),
            changed: Arc::default(),
            hang_up: Arc::default(),
            streams: Arc::default(),
            held: Arc::default(),
        }
    }

    fn publish(&self, clusters: &[(&str, u64)]) {
        let mut builder = Snapshot::builder();
        for (name, timeout) in clusters {
            let text = format!(
                "'@type': {CLUSTER}\nname: {name}\nconnect_timeout: {timeout}s\ntype: STATIC\n\
                 load_assignment: {{cluster_name: {name}, endpoints: [{{lb_endpoints: [{{endpoint: {{address: \
                 {{socket_address: {{address: 127.0.0.1, port_value: 1}}}}}}}}]}}]}}"
            );
            let tree = document::parse(text.as_bytes(), Syntax::Yaml, &document::Limits::default()).unwrap().remove(0);
            let mut message: Cluster = document::load_any(&tree).unwrap().unpack().unwrap();
            if *timeout == BAD {
                // Affects where traffic goes, and is honoured by nobody here: refused.
                message.load_assignment = None;
                message.eds_cluster_config = None;
                message.cluster_discovery_type = None;
                message.lb_policy = 99;
            }
            builder.insert(Arc::new(Resource::new(&CLUSTER.into(), *name, &message.encode_to_vec())));
        }
        self.session.lock().on_snapshot(Arc::new(builder.build()), Duration::ZERO);
        self.changed.notify_one();
    }

    async fn serve(&self) -> u16 {
        self.serve_at(0).await.0
    }

    /// The port, and what serves until it is aborted.
    async fn serve_at(&self, port: u16) -> (u16, JoinHandle<()>) {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let service = AggregatedDiscoveryServiceServer::new(self.clone());
        let served = tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming);
        (port, tokio::spawn(async move { served.await.unwrap() }))
    }

    fn run<Q: Send + 'static, R: Send + 'static>(
        &self,
        variant: Variant,
        mut requests: Streaming<Q>,
        hear: fn(&mut Session, StreamId, &Q),
        held: fn(&Q) -> String,
        say: fn(&culvert_xds::Response) -> R,
    ) -> Pin<Box<dyn Stream<Item = Result<R, Status>> + Send>> {
        let (responses, out) = mpsc::channel(1);
        let this = self.clone();
        tokio::spawn(async move {
            let stream = {
                let mut streams = this.streams.lock();
                *streams += 1;
                StreamId(*streams)
            };
            this.session.lock().open(stream, StreamKind { variant, type_url: None }).unwrap();
            let mut first = true;
            loop {
                let response = this.session.lock().poll_stream(stream, Duration::ZERO);
                if let Some(response) = response {
                    if responses.send(Ok(say(&response))).await.is_err() {
                        break;
                    }
                    continue;
                }
                tokio::select! {
                    request = requests.next() => {
                        let Some(Ok(request)) = request else { break };
                        if std::mem::take(&mut first) {
                            this.held.lock().push(held(&request));
                        }
                        hear(&mut this.session.lock(), stream, &request);
                    }
                    () = this.changed.notified() => {}
                    () = this.hang_up.notified() => break,
                }
            }
            this.session.lock().on_close(stream);
        });
        Box::pin(tokio_stream::wrappers::ReceiverStream::new(out))
    }

    fn states(&self) -> Vec<(String, ResourceState, Option<String>)> {
        let status = self.session.lock().status();
        let clusters = status.into_iter().filter(|status| &*status.type_url == CLUSTER);
        let resources = clusters.flat_map(|status| status.resources);
        resources
            .map(|status| (status.name.to_string(), status.state, status.error.map(|error| error.to_string())))
            .collect()
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for ControlPlane {
    type StreamAggregatedResourcesStream = Pin<Box<dyn Stream<Item = Result<DiscoveryResponse, Status>> + Send>>;
    type DeltaAggregatedResourcesStream = Pin<Box<dyn Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send>>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Ok(Response::new(self.run(
            Variant::Sotw,
            request.into_inner(),
            |session, stream, request| _ = session.on_request(stream, request).unwrap(),
            |request| request.version_info.clone(),
            culvert_xds::Response::to_sotw,
        )))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        Ok(Response::new(self.run(
            Variant::Delta,
            request.into_inner(),
            |session, stream, request| _ = session.on_delta_request(stream, request).unwrap(),
            |request| request.initial_resource_versions.keys().cloned().collect::<Vec<_>>().join(" "),
            culvert_xds::Response::to_delta,
        )))
    }
}

/// A data plane without data: what it applies is written down.
struct DataPlane {
    applied: Arc<Mutex<Vec<String>>>,
    readiness: Readiness,
    registry: Registry,
    inventory: Inventory,
    configuration: Configuration,
}

impl DataPlane {
    async fn start(port: u16, delta: bool, state_dir: Option<std::path::PathBuf>) -> Self {
        Self::under(&[port], delta, state_dir).await
    }

    /// Under the servers on these ports, in their order.
    async fn under(ports: &[u16], delta: bool, state_dir: Option<std::path::PathBuf>) -> Self {
        let api = if delta { "DELTA_GRPC" } else { "GRPC" };
        let services = ports.iter().map(|port| format!("{{envoy_grpc: {{cluster_name: xds-{port}}}}}"));
        let mut text = format!(
            "node: {{id: n, cluster: c}}\n\
             dynamic_resources:\n\
             \x20 ads_config: {{api_type: {api}, transport_api_version: V3, grpc_services: [{}]}}\n\
             \x20 cds_config: {{ads: {{}}, resource_api_version: V3}}\n\
             static_resources:\n\
             \x20 clusters:\n",
            services.collect::<Vec<_>>().join(", ")
        );
        for port in ports {
            let _written = write!(
                text,
                "\x20 - name: xds-{port}\n\
                 \x20   connect_timeout: 5s\n\
                 \x20   type: STATIC\n\
                 \x20   load_assignment: {{cluster_name: xds-{port}, endpoints: [{{lb_endpoints: [{{endpoint: {{address: \
                 {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}]}}]}}\n"
            );
        }
        Self::booted(&text, state_dir).await
    }

    /// With this bootstrap.
    async fn booted(text: &str, state_dir: Option<std::path::PathBuf>) -> Self {
        Self::with(text, state_dir, DataErrors::default()).await
    }

    async fn with(text: &str, state_dir: Option<std::path::PathBuf>, data_errors: DataErrors) -> Self {
        let loaded = document::load::<bootstrap_api::Bootstrap>(text.as_bytes(), Syntax::Yaml).unwrap();
        let bootstrap = Arc::new(culvert_model::bootstrap::parse(&loaded.message).value.unwrap());
        let (queue, mut commands) = mpsc::channel(4);
        let applied: Arc<Mutex<Vec<String>>> = Arc::default();
        let written = Arc::clone(&applied);
        tokio::spawn(async move {
            while let Some(command) = commands.recv().await {
                let (changes, answer) = match command {
                    Command::Apply { changes, answer } => (changes, answer),
                    Command::Rehearse { changes, answer } => {
                        drop(answer.send(changes.iter().map(|_| Ok(())).collect()));
                        continue;
                    }
                    _ => continue,
                };
                let count = changes.len();
                written.lock().extend(changes.iter().map(|change| {
                    let sign = if matches!(change, Change::Set(_)) { '+' } else { '-' };
                    format!("{sign}{}", change.target().1)
                }));
                drop(answer.send((0..count).map(|_| Ok(Applied::Active)).collect()));
            }
        });
        let readiness = Readiness::default();
        let registry = Registry::default();
        let inventory = Inventory::default();
        let (demands, orders) = culvert_proxy::Demands::new();
        let configuration = config::begin(Settings {
            bootstrap,
            message: Arc::default(),
            state_dir,
            deletion_guard: config::DeletionGuard::default(),
            data_errors,
            apply: ApplyHandle::new(queue),
            inventory: inventory.clone(),
            registry: registry.clone(),
            watcher: FileWatcher::new(),
            client_tls: Arc::new(|_| Err("none here".to_owned())),
            tunnels: TunnelView::new(&Overview::default(), &crate::testing::process().0),
            demand: config::Demand { orders, demands: Arc::new(demands) },
            ready: readiness.block("dynamic configuration"),
        })
        .await;
        Self { applied, readiness, registry, inventory, configuration }
    }

    fn applied(&self) -> String {
        self.applied.lock().join(" ")
    }

    fn metric(&self, name: &str) -> String {
        let samples = self.registry.samples();
        let sample = samples.iter().find(|sample| sample.full_name() == name);
        sample.map_or_else(
            || "absent".to_owned(),
            |sample| match &sample.value {
                Value::Counter(value) | Value::Gauge(value) => value.to_string(),
                other => format!("{other:?}"),
            },
        )
    }
}

/// Waits until `seen` gives what is expected.
#[track_caller]
fn eventually<T: PartialEq + std::fmt::Debug>(expected: T, seen: impl Fn() -> T) -> impl Future<Output = ()> {
    let caller = std::panic::Location::caller();
    async move {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        while seen() != expected {
            assert!(tokio::time::Instant::now() < deadline, "{caller}: expected {expected:?}, saw {:?}", seen());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn kept_in(dir: &std::path::Path) -> bool {
    std::fs::read_dir(dir).unwrap().any(|entry| {
        let name = entry.unwrap().file_name().to_string_lossy().into_owned();
        name.starts_with("dynamic-") && !name.ends_with(".new")
    })
}

fn resources_of(source: &str) -> String {
    format!("control_plane.config_source.{source}.resources")
}

/// However often a process starts from the cache, what it has is as old as the last word of a control plane, and no longer of
/// the cache once there is one.
#[tokio::test]
async fn a_cache_is_as_old_as_what_a_control_plane_said_last() {
    let dir = tempfile::tempdir().unwrap();
    let control = ControlPlane::new();
    control.publish(&[("a", 1)]);
    let port = control.serve().await;
    let data = DataPlane::start(port, true, Some(dir.path().to_owned())).await;
    eventually("+a".to_owned(), || data.applied()).await;
    eventually(true, || kept_in(dir.path())).await;
    let age = |of: &DataPlane| of.metric("control_plane.cache_age_seconds").parse::<u64>().unwrap();
    let (mut from, mut before) = (dir, 0);
    for start in 1..=2 {
        let next = tempfile::tempdir().unwrap();
        copy_all(from.path(), next.path());
        let cold = DataPlane::start(1, true, Some(next.path().to_owned())).await;
        assert!(age(&cold) >= before, "start {start}: expected {before} s or more, saw {}", age(&cold));
        eventually(true, || age(&cold) > before).await;
        (from, before) = (next, age(&cold));
    }
    let last = tempfile::tempdir().unwrap();
    copy_all(from.path(), last.path());
    let another = ControlPlane::new();
    another.publish(&[("a", 1)]);
    let warm = DataPlane::start(another.serve().await, true, Some(last.path().to_owned())).await;
    eventually(["1".to_owned(), "0".to_owned()], || ["live", "cache"].map(|of| warm.metric(&resources_of(of)))).await;
    assert_eq!(age(&warm), 0, "nothing of the cache is in use");
}

fn copy_all(from: &std::path::Path, to: &std::path::Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

fn state(name: &str, state: ResourceState) -> (String, ResourceState, Option<String>) {
    (name.to_owned(), state, None)
}

const BAD: u64 = 99;

#[tokio::test]
async fn a_push_is_applied_and_accepted_and_survives_a_new_stream() {
    for delta in [false, true] {
        let control = ControlPlane::new();
        control.publish(&[("a", 1), ("b", 1)]);
        let data = DataPlane::start(control.serve().await, delta, None).await;
        eventually("+a +b".to_owned(), || data.applied()).await;
        eventually(vec![state("a", ResourceState::Synced), state("b", ResourceState::Synced)], || control.states())
            .await;
        eventually(true, || data.readiness.is_ready()).await;
        assert_eq!(data.metric("control_plane.connected_state"), "1");
        assert_eq!(data.metric("cluster_manager.cds.update_success"), "1");
        control.publish(&[("a", 2)]);
        eventually("+a +b +a -b".to_owned(), || data.applied()).await;
        eventually(vec![state("a", ResourceState::Synced)], || control.states()).await;
        // The stream ends, and the next one says what is held.
        control.hang_up.notify_one();
        eventually(2, || control.held.lock().len()).await;
        let held = control.held.lock().clone();
        assert_eq!(held[0], "", "nothing is held at first");
        assert!(if delta { held[1] == "a" } else { !held[1].is_empty() }, "{held:?}");
        control.publish(&[("a", 3)]);
        eventually("+a +b +a -b +a".to_owned(), || data.applied()).await;
    }
}

#[tokio::test]
async fn a_control_plane_that_restarts_with_the_same_content_changes_nothing() {
    for delta in [false, true] {
        let control = ControlPlane::new();
        control.publish(&[("a", 1), ("b", 1)]);
        let (port, serving) = control.serve_at(0).await;
        let data = DataPlane::start(port, delta, None).await;
        eventually("+a +b".to_owned(), || data.applied()).await;
        serving.abort();
        control.hang_up.notify_one();
        eventually("0".to_owned(), || data.metric("control_plane.connected_state")).await;
        let next = ControlPlane::new();
        next.publish(&[("a", 1), ("b", 1)]);
        let (_, _serving) = next.serve_at(port).await;
        eventually("1".to_owned(), || data.metric("control_plane.connected_state")).await;
        eventually(vec![state("a", ResourceState::Synced), state("b", ResourceState::Synced)], || next.states()).await;
        assert_eq!(data.applied(), "+a +b", "nothing was applied again");
    }
}

#[tokio::test]
async fn a_bad_resource_is_refused_by_name_and_the_good_one_applies() {
    for delta in [false, true] {
        let control = ControlPlane::new();
        control.publish(&[("good", 1), ("wrong", BAD)]);
        let data = DataPlane::start(control.serve().await, delta, None).await;
        eventually("+good".to_owned(), || data.applied()).await;
        eventually(vec![ResourceState::Synced, ResourceState::Error], || {
            control.states().into_iter().map(|(_, state, _)| state).collect()
        })
        .await;
        let reason = control.states()[1].2.clone().unwrap();
        assert!(reason.contains("lb_policy"), "the reason names the field: {reason}");
        let entries = data.inventory.entries(CLUSTER);
        let (_, entry) = entries.iter().find(|(name, _)| &**name == "wrong").unwrap();
        assert!(entry.refused.is_some() && entry.active.is_none(), "{entry:?}");
        assert_eq!(data.metric("cluster_manager.cds.update_rejected"), "1");
    }
}

#[tokio::test]
async fn what_was_accepted_serves_the_next_start_without_a_control_plane() {
    let dir = tempfile::tempdir().unwrap();
    let control = ControlPlane::new();
    control.publish(&[("a", 1)]);
    let port = control.serve().await;
    let data = DataPlane::start(port, true, Some(dir.path().to_owned())).await;
    eventually("+a".to_owned(), || data.applied()).await;
    eventually(true, || kept_in(dir.path())).await;
    // The first process still holds the directory: what it saved is copied, as if it had ended.
    let copy = tempfile::tempdir().unwrap();
    copy_all(dir.path(), copy.path());
    // Nobody listens on port 1.
    let cold = DataPlane::start(1, true, Some(copy.path().to_owned())).await;
    assert_eq!(cold.applied(), "+a", "in force before anybody was asked");
    let origins = |of: &DataPlane| ["live", "cache"].map(|source| of.metric(&resources_of(source)));
    assert_eq!(origins(&data), ["1", "0"], "of the process that was given it: live, cache");
    assert_eq!(origins(&cold), ["0", "1"], "of the process that began with it: live, cache");
    assert_eq!(data.metric("control_plane.cache_age_seconds"), "0", "what a cache had is not in use");
    eventually("0".to_owned(), || cold.metric("control_plane.connected_state")).await;
}
