//! Start: from a parsed bootstrap to a process that serves. The order matters and is told here.
//!
//! 1. Static resources are checked as a whole ([`crate::check`]); one mistake and nothing starts.
//! 2. Every address is bound, the admin interface's too; one that is in use and nothing starts.
//! 3. Workers start, static clusters come into force and are given a moment to resolve, then agents and listeners.
//! 4. Dynamic configuration begins: the last accepted set, then the control plane's.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use culvert_model::bootstrap::Bootstrap;
use culvert_model::cluster::{Discovery, UpstreamProtocol};
use culvert_model::resource::Resource;
use culvert_model::tls::UpstreamTls;
use culvert_proxy::{Demands, LogError, Order, Process, TunnelHosting, TunnelLogs, Worker};
use culvert_runtime::access_log::AccessLogs;
use culvert_runtime::drain::{self, Trigger};
use culvert_runtime::files::FileWatcher;
use culvert_runtime::log::LogControl;
use culvert_runtime::process::Signals;
use culvert_runtime::readiness::ReadinessBlocker;
use culvert_runtime::telemetry::{Registry, ScopePath};
use culvert_runtime::workers::Workers;
use culvert_tunnel::lifecycle::Journal;
use culvert_upstream::{Clusters, Resolver, WorkerPools};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::admin::{Admin, AdminSocket, Token, TokenError};
use crate::apply::{Applier, ApplyHandle, OnWorker, Parts};
use crate::bootstrap::Started;
use crate::config;
use crate::inventory::Inventory;
use crate::lifecycle::{Ending, State};
use crate::options::Options;
use crate::overview::{Overview, TunnelView};
use crate::secrets::Secrets;
use crate::stats::{Looked, ManagerMetric};
use crate::tls::{self, Gathered};

/// Why a start failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// One line for each mistake.
    #[error("the configuration is wrong")]
    Configuration(Vec<String>),
    #[error("{}", .0.join("\n"))]
    Bind(Vec<String>),
    #[error("{what}: {source}")]
    System { what: &'static str, source: std::io::Error },
    #[error(transparent)]
    AdminToken(#[from] TokenError),
    #[error(transparent)]
    AccessLog(#[from] LogError),
    #[error(transparent)]
    Workers(#[from] culvert_runtime::workers::StartError),
    #[error("{}: cannot be written: {source}", path.display())]
    AdminAddress { path: std::path::PathBuf, source: std::io::Error },
}

/// What exists before anything is in force.
struct Base {
    process: Arc<Process>,
    /// What requests will ask a control plane for.
    orders: mpsc::Receiver<Order>,
    drain: Trigger,
    logs: AccessLogs,
    secrets: Secrets,
}

impl Base {
    /// Must be called inside the control runtime.
    fn new(bootstrap: &Bootstrap, logs: AccessLogs, successor: bool) -> Self {
        let clusters = Clusters::new(tokio::runtime::Handle::current(), Resolver::system());
        if successor {
            clusters.expect_agents(Instant::now() + ARRIVALS);
        }
        let (drain, watch) = drain::channel();
        let (demands, orders) = Demands::new();
        let process = Arc::new(Process {
            clusters,
            listeners: culvert_proxy::Listeners::default(),
            routes: culvert_proxy::RouteSlots::default(),
            scopes: Arc::default(),
            demands: Arc::new(demands),
            shares: culvert_proxy::Shares::default(),
            registry: Registry::default(),
            logs: logs.clone(),
            hostname: rustix::system::uname().nodename().to_string_lossy().into(),
            drain: watch,
        });
        Self { process, orders, drain, logs, secrets: Secrets::new(&bootstrap.secrets) }
    }

    /// Where the life of tunnels is logged: of the server's, and of the agents'.
    fn journals(&self, bootstrap: &Bootstrap) -> Result<[Option<Arc<dyn Journal>>; 2], LogError> {
        let open = |logs| TunnelLogs::open(logs, &self.process);
        Ok([open(&bootstrap.reverse.server_logs)?, open(&bootstrap.reverse.agent_logs)?])
    }
}

/// Checks the static resources and nothing else: no file is made, nothing is bound.
///
/// # Errors
/// Every mistake, those that were found when the bootstrap was read among them.
pub(crate) async fn validate(started: &Started) -> Result<(), StartError> {
    let base = Base::new(&started.bootstrap, AccessLogs::dry(), false);
    let found = crate::check::statics(started, &base.process, &base.secrets);
    let new = found.iter().filter(|finding| !started.texts.explain(finding));
    let mut errors: Vec<String> =
        started.errors.iter().cloned().chain(new.map(|new| started.texts.place(new))).collect();
    errors.extend(base.journals(&started.bootstrap).err().map(|error| format!("bootstrap_extensions: {error}")));
    if errors.is_empty() { Ok(()) } else { Err(StartError::Configuration(errors)) }
}

/// Serves until it is told to end.
///
/// # Errors
/// Nothing was started.
pub(crate) async fn serve(options: Options, started: Started, log: LogControl) -> Result<ExitCode, StartError> {
    validate(&started).await?;
    let token = options.admin_token_file.as_deref().map(Token::new).transpose()?;
    let system = |what| move |source| StartError::System { what, source };
    let signals = Signals::new().map_err(system("cannot take signals over"))?;
    let state = Arc::new(State::default());
    let blocker = state.readiness.block("static configuration");
    let logs = AccessLogs::start().map_err(system("cannot start the access-log thread"))?;
    let base = Base::new(&started.bootstrap, logs, options.successor);

    let (workers, drain_time) = (options.workers(), Duration::from_secs(options.drain_time_s.into()));
    let process = Arc::clone(&base.process);
    let threads = Arc::new(start_workers(workers, &process)?);
    let [server_journal, agent_journal] = base.journals(&started.bootstrap)?;
    let (overview, inventory) = (Overview::new(&started.bootstrap.reverse, server_journal), Inventory::default());
    let mut applier = Applier::new(Parts {
        process: Arc::clone(&process),
        workers: Arc::clone(&threads),
        overview: Arc::clone(&overview),
        secrets: base.secrets,
        metrics: process.registry.scope::<ManagerMetric>(ScopePath::process("")).block(),
        node_id: Arc::clone(&started.bootstrap.node.id),
        reverse: started.bootstrap.reverse.clone(),
        agent_journal,
        drain_time,
        successor: options.successor,
    });
    let admin_socket = bind_all(&mut applier, &started.bootstrap)?;

    let tunnels = Arc::clone(&overview.tunnels);
    let looked = Looked {
        process: Arc::clone(&process),
        overview: Arc::clone(&overview),
        logs: base.logs.clone(),
        log: log.clone(),
        concurrency: workers,
        started: Instant::now(),
        state: Arc::clone(&state),
    };
    looked.sampled();
    overview.remote_keys.begin(&process.clusters);
    let (queue, commands) = mpsc::channel(COMMANDS);
    let apply = ApplyHandle::new(queue);
    if let Some(socket) = admin_socket {
        let admin = Admin::new(&options, token, &started, looked, inventory.clone(), apply.clone(), drain_time);
        serve_admin(socket, admin, &options)?;
    }
    put_in_force(&mut applier, &started.bootstrap, &state).await.map_err(StartError::Bind)?;
    announce(&overview, &started.bootstrap, workers);
    let watcher = FileWatcher::new();
    tokio::spawn(applier.run(commands, watcher.clone()));
    let ready = state.readiness.block("dynamic configuration");
    drop(blocker);
    let tunnel_view = TunnelView::new(&overview, &process);
    let settings = dynamic(&options, &started, inventory, process.registry.clone(), watcher, tunnel_view);
    let configuration = config::begin(settings(apply.clone(), ready, (base.orders, &process))).await;
    let ending = Ending {
        state,
        apply,
        configuration,
        drain: base.drain,
        tunnels,
        drain_time,
        logs: base.logs,
        workers: threads,
    };
    Ok(ending.run(signals).await)
}

fn start_workers(count: usize, process: &Arc<Process>) -> Result<Workers<OnWorker>, StartError> {
    let process = Arc::clone(process);
    let workers = Workers::start(count, "worker", move |_index| {
        let pools = WorkerPools::new(Arc::clone(&process.clusters));
        let worker = Worker::new(Arc::clone(&process), pools);
        OnWorker { hosting: TunnelHosting::new(std::rc::Rc::clone(&worker)), worker }
    })?;
    Ok(workers)
}

fn serve_admin(socket: AdminSocket, admin: Arc<Admin>, options: &Options) -> Result<(), StartError> {
    let address = socket.serve(admin);
    tracing::info!(%address, "admin interface");
    let Some(path) = &options.admin_address_path else { return Ok(()) };
    let written = std::fs::write(path, address.to_string());
    written.map_err(|source| StartError::AdminAddress { path: path.clone(), source })
}

/// Every address of the bootstrap, before anything serves.
fn bind_all(applier: &mut Applier, bootstrap: &Bootstrap) -> Result<Option<AdminSocket>, StartError> {
    let mut errors = Vec::new();
    if let Err(refused) = applier.reserve(&bootstrap.listeners) {
        errors.extend(refused.into_iter().map(|(name, error)| format!("listener {name}: {error}")));
    }
    let admin = bootstrap.admin.as_ref().map(|admin| AdminSocket::bind(admin.address)).transpose();
    let admin = admin.map_err(|error| errors.push(format!("admin: {error}"))).unwrap_or_default();
    if errors.is_empty() { Ok(admin) } else { Err(StartError::Bind(errors)) }
}

/// Static resources: what is referred to comes before what refers to it.
///
/// # Errors
/// What cannot be put in force although it was found to be right: somebody took an address meanwhile, or a file.
async fn put_in_force(applier: &mut Applier, bootstrap: &Bootstrap, state: &State) -> Result<(), Vec<String>> {
    applier.begin_runtime(&bootstrap.runtime);
    applier.set_all(bootstrap.clusters.iter().cloned().map(Resource::Cluster)).await?;
    let resolving = bootstrap.clusters.iter().filter(|cluster| !matches!(cluster.discovery, Discovery::Eds { .. }));
    let resolving: Vec<_> = resolving.map(|cluster| applier.cluster_slot(&cluster.name)).collect();
    let resolved = async {
        for slot in &resolving {
            slot.warmed().await;
        }
    };
    if tokio::time::timeout(RESOLVE_TIME, resolved).await.is_err() {
        tracing::warn!(within = ?RESOLVE_TIME, "some static clusters are not resolved yet; serving begins without them");
    }
    for cluster in bootstrap.clusters.iter().filter(|cluster| matches!(cluster.discovery, Discovery::Eds { .. })) {
        let blocker = state.readiness.block(&format!("cluster {}", cluster.name));
        let slot = applier.cluster_slot(&cluster.name);
        tokio::spawn(async move {
            let warmed = tokio::time::timeout(FIRST_ASSIGNMENT, slot.warmed()).await;
            if warmed.is_err() {
                tracing::warn!(cluster = %slot.name(), "no assignment yet; ready without it");
            }
            drop(blocker);
        });
    }
    applier.set_all(bootstrap.agents.iter().cloned().map(Resource::Agent)).await?;
    applier.set_all(bootstrap.policies.iter().cloned().map(Resource::Policy)).await?;
    applier.set_static(&bootstrap.listeners).await
}

/// What dynamic configuration begins with.
fn dynamic(
    options: &Options,
    started: &Started,
    inventory: Inventory,
    registry: Registry,
    watcher: FileWatcher,
    tunnels: TunnelView,
) -> impl FnOnce(ApplyHandle, ReadinessBlocker, (mpsc::Receiver<Order>, &Process)) -> config::Settings {
    let secrets = Secrets::new(&started.bootstrap.secrets);
    let client_tls = move |context: &UpstreamTls| match tls::gather(&context.common, &secrets) {
        Ok(Gathered::Complete(material)) => {
            material.client_of(context, Some(UpstreamProtocol::Http2), None).map_err(|error| error.to_string())
        }
        Ok(Gathered::Awaiting(names)) => {
            Err(format!("it takes {} from SDS, which only a control plane could bring", names.join(", ")))
        }
        Err(error) => Err(error.to_string()),
    };
    let (bootstrap, state_dir) = (Arc::new(started.bootstrap.clone()), options.state_dir.clone());
    let (deletion_guard, data_errors) = (options.deletion_guard(), options.data_errors());
    let message = Arc::clone(&started.message);
    move |apply, ready, (orders, process)| config::Settings {
        bootstrap,
        message,
        state_dir,
        deletion_guard,
        data_errors,
        apply,
        inventory,
        registry,
        watcher,
        client_tls: Arc::new(client_tls),
        tunnels,
        demand: config::Demand { orders, demands: Arc::clone(&process.demands) },
        ready,
    }
}

fn announce(overview: &Overview, bootstrap: &Bootstrap, workers: usize) {
    let listeners: Vec<String> = overview
        .listeners
        .lock()
        .iter()
        .map(|(name, view)| view.bound.map_or_else(|| name.to_string(), |bound| format!("{name}={bound}")))
        .collect();
    let node = &bootstrap.node.id;
    tracing::info!(%node, workers, listeners = listeners.join(" "), "culvert-proxy {} serves", env!("CARGO_PKG_VERSION"));
}

/// Pushes that may wait to be applied.
const COMMANDS: usize = 64;
/// How long static clusters may take to resolve before listeners start without them.
const RESOLVE_TIME: Duration = Duration::from_secs(5);
/// xDS: `initial_fetch_timeout`'s default.
const FIRST_ASSIGNMENT: Duration = Duration::from_secs(15);
/// After a start in the place of another process: for agents to be told by that one, to dial, and to join.
const ARRIVALS: Duration = Duration::from_secs(10);
