//! The one task that changes what is in force.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use culvert_model::Name;
use culvert_model::bootstrap::reverse::ReverseTunnels;
use culvert_model::endpoint::Endpoints;
use culvert_model::listener::Listener;
use culvert_model::resource::Resource;
use culvert_model::runtime::{Layer, Values};
use culvert_proxy::{Process, TunnelHosting, Worker};
use culvert_runtime::files::FileWatcher;
use culvert_runtime::telemetry::Block;
use culvert_runtime::workers::Workers;
use culvert_tunnel::lifecycle::Journal;
use culvert_upstream::ClusterSlot;
use tokio::sync::{mpsc, watch};

use super::agents::Agents;
use super::clusters::ClusterEntry;
use super::extensions::Extensions;
use super::listeners::Listeners;
use super::policies::InForce;
use super::reverse::ReverseListeners;
use super::routes::Routes;
use super::{Applied, ApplyError, Change, Command, Kind, leaving};
use crate::overview::Overview;
use crate::secrets::Secrets;
use crate::stats::ManagerMetric;

/// What a worker thread has.
#[derive(Debug)]
pub(crate) struct OnWorker {
    pub(crate) worker: Rc<Worker>,
    pub(crate) hosting: TunnelHosting,
}

/// Everything that is in force, and the means to change it.
#[derive(Debug)]
pub(crate) struct Applier {
    pub(super) process: Arc<Process>,
    pub(super) workers: Arc<Workers<OnWorker>>,
    pub(super) overview: Arc<Overview>,
    pub(super) secrets: Secrets,
    pub(super) clusters: HashMap<Name, ClusterEntry>,
    /// The clusters that go by an assignment, by its name.
    pub(super) assigned: HashMap<Name, BTreeSet<Name>>,
    pub(super) listeners: Listeners,
    pub(super) extensions: Extensions,
    pub(super) agents: Agents,
    pub(super) policies: InForce,
    pub(super) reverse: ReverseListeners,
    /// Where the life of agents' connections is logged.
    pub(super) agent_journal: Option<Arc<dyn Journal>>,
    /// Assignments by service name, for clusters and agents that come later.
    pub(super) endpoints: HashMap<Name, Arc<Endpoints>>,
    /// Assignments that agents look at.
    pub(super) assignments: HashMap<Name, watch::Sender<Option<Arc<Endpoints>>>>,
    pub(super) routes: Routes,
    pub(super) metrics: Block<ManagerMetric>,
    pub(super) node_id: Arc<str>,
    /// How long connections of what is replaced may take to finish.
    pub(super) drain_time: Duration,
    /// Addresses may be held by the process whose place this one takes.
    pub(super) successor: bool,
    /// How many files the process may have open.
    pub(super) open_files: Option<u64>,
}

/// What an applier is made of.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) process: Arc<Process>,
    pub(crate) workers: Arc<Workers<OnWorker>>,
    pub(crate) overview: Arc<Overview>,
    pub(crate) secrets: Secrets,
    pub(crate) metrics: Block<ManagerMetric>,
    pub(crate) node_id: Arc<str>,
    /// Envoy's extensions of the bootstrap.
    pub(crate) reverse: ReverseTunnels,
    pub(crate) agent_journal: Option<Arc<dyn Journal>>,
    pub(crate) drain_time: Duration,
    pub(crate) successor: bool,
}

impl Applier {
    pub(crate) fn new(parts: Parts) -> Self {
        Self {
            process: parts.process,
            workers: parts.workers,
            overview: parts.overview,
            secrets: parts.secrets,
            clusters: HashMap::new(),
            assigned: HashMap::new(),
            listeners: Listeners::default(),
            extensions: Extensions::default(),
            agents: Agents::default(),
            policies: InForce::new(),
            reverse: ReverseListeners::new(parts.reverse),
            agent_journal: parts.agent_journal,
            endpoints: HashMap::new(),
            assignments: HashMap::new(),
            routes: Routes::default(),
            metrics: parts.metrics,
            node_id: parts.node_id,
            drain_time: parts.drain_time,
            successor: parts.successor,
            open_files: culvert_runtime::process::open_files(),
        }
    }

    /// Carries out commands until the process ends, and watches the files that configurations were built from.
    pub(crate) async fn run(mut self, mut queue: mpsc::Receiver<Command>, files: FileWatcher) {
        let overview = Arc::clone(&self.overview);
        let mut paths = self.paths();
        let mut changes = files.watch(paths.iter().cloned(), FILE_QUIET);
        loop {
            tokio::select! {
                // Commands first: a flood of file events must not hold a push back.
                biased;
                command = queue.recv() => match command {
                    Some(Command::Apply { changes, answer }) => {
                        let has_files = changes.iter().any(|change| self.concerns_files(change));
                        drop(answer.send(self.apply(changes).await));
                        if !has_files {
                            continue;
                        }
                    }
                    Some(Command::Rehearse { changes, answer }) => {
                        // Whoever asked may have given up.
                        drop(answer.send(self.rehearse(&changes)));
                        continue;
                    }
                    Some(Command::Reload) => self.refresh().await,
                    Some(Command::DrainListeners { within, answer }) => {
                        self.drain_listeners(within);
                        // Nobody may wait any more.
                        let _ = answer.send(());
                    }
                    Some(Command::End { answer }) => {
                        self.end();
                        // Nobody may wait any more.
                        let _ = answer.send(());
                        return;
                    }
                    None => return,
                },
                () = changes.changed() => {
                    tracing::info!("certificate or credential files have changed");
                    self.refresh().await;
                }
                () = overview.remote_keys.fetched() => {
                    self.refresh_credentials();
                    self.refresh_policies();
                }
                () = self.listeners.due() => self.advance_all().await,
                () = self.extensions.due() => self.complete_listeners().await,
            }
            overview.remote_keys.retain(&self.keys_in_use());
            let now = self.paths();
            if now != paths {
                paths = now;
                changes.follow(paths.iter().cloned());
                // What was read before it was watched may have changed in between.
                self.refresh().await;
            }
        }
    }

    /// Applies changes in their order.
    pub(crate) async fn apply(&mut self, changes: Vec<Change>) -> Vec<Result<Applied, ApplyError>> {
        // Their addresses may be taken over by listeners that come in the same push.
        self.listeners.leaving = leaving(&changes);
        let mut answers = Vec::with_capacity(changes.len());
        for change in changes {
            let (kind, name) = change.target();
            let answer = match change {
                Change::Set(resource) => self.set(resource).await,
                Change::Remove { kind, name } => {
                    self.remove(kind, &name).await;
                    Ok(Applied::Active)
                }
            };
            match &answer {
                Ok(Applied::Active) => tracing::debug!(?kind, %name, "applied"),
                Ok(Applied::Warming(awaited)) => tracing::debug!(?kind, %name, ?awaited, "waits"),
                // Whoever asked has the error, and knows better what to say of it.
                Err(error) => tracing::debug!(?kind, %name, %error, "refused; what was in force stays"),
            }
            answers.push(answer);
        }
        self.complete_routes().await;
        self.listeners.leaving.clear();
        answers
    }

    /// Applies resources that were checked before.
    ///
    /// # Errors
    /// What could not be put in force, and why.
    pub(crate) async fn set_all(&mut self, resources: impl Iterator<Item = Resource>) -> Result<(), Vec<String>> {
        let changes: Vec<Change> = resources.map(Change::Set).collect();
        let targets: Vec<_> = changes.iter().map(Change::target).collect();
        let mut refused = Vec::new();
        for ((kind, name), answer) in targets.into_iter().zip(self.apply(changes).await) {
            match answer {
                Ok(Applied::Active) => {}
                Ok(Applied::Warming(awaited)) => tracing::info!(?kind, %name, ?awaited, "waits"),
                Err(error) => refused.push(format!("{kind:?} {name}: {error}")),
            }
        }
        if refused.is_empty() { Ok(()) } else { Err(refused) }
    }

    /// Gives the runtime the layers of a bootstrap.
    pub(crate) fn begin_runtime(&self, layers: &[Layer]) {
        self.overview.runtime.begin(layers, &self.process);
    }

    /// The place of a cluster.
    pub(crate) fn cluster_slot(&self, name: &str) -> Arc<ClusterSlot> {
        self.process.clusters.slot(name)
    }

    async fn set(&mut self, resource: Resource) -> Result<Applied, ApplyError> {
        match resource {
            Resource::Secret(secret) => {
                crate::tls::check_secret(&secret)?;
                self.secrets.set(secret);
                self.refresh().await;
                Ok(Applied::Active)
            }
            Resource::Cluster(cluster) => {
                let applied = self.set_cluster(cluster);
                self.reconcile_reverse().await;
                applied
            }
            Resource::Endpoints(endpoints) => {
                self.set_endpoints(&endpoints);
                Ok(Applied::Active)
            }
            Resource::Routes(routes) => {
                let applied = self.set_routes(routes);
                self.advance_all().await;
                applied
            }
            Resource::Scope(scope) => self.set_scope(scope),
            Resource::VirtualHost(host) => self.set_virtual_host(host),
            Resource::Listener(listener) => self.set_configured(listener).await,
            Resource::Extension(extension) => self.set_extension(extension).await,
            Resource::Runtime(runtime) => {
                self.overview.runtime.set(&runtime.name, &runtime.values, &self.process);
                Ok(Applied::Active)
            }
            Resource::Agent(agent) => self.set_agent(agent).await,
            Resource::Policy(policy) => self.set_policy(policy),
        }
    }

    async fn remove(&mut self, kind: Kind, name: &Name) {
        match kind {
            Kind::Secret => self.secrets.remove(name),
            Kind::Cluster => {
                self.remove_cluster(name);
                self.reconcile_reverse().await;
            }
            // The hosts of a cluster stay until it gets others or is removed itself.
            Kind::Endpoints => drop(self.endpoints.remove(name)),
            Kind::Routes => self.remove_routes(name),
            Kind::Scope => self.remove_scope(name),
            Kind::VirtualHost => self.remove_virtual_host(name),
            Kind::Listener => {
                self.extensions.forget(name);
                self.reverse.set(name, &[]);
                self.reconcile_reverse().await;
                self.remove_listener(name);
            }
            Kind::Agent => self.remove_agent(name),
            Kind::Policy => self.remove_policy(name),
            Kind::Extension => self.extensions.remove(name),
            Kind::Runtime => self.overview.runtime.set(name, &Values::new(), &self.process),
        }
    }

    /// Puts a listener in force, with what came for its filters.
    pub(super) async fn set_configured(&mut self, listener: Arc<Listener>) -> Result<Applied, ApplyError> {
        let resolved = self.extensions.resolve(&listener)?;
        let applied = self.set_listener(resolved).await;
        if applied.is_ok() {
            self.reverse.set(&listener.name, &listener.reverse);
            self.reconcile_reverse().await;
        }
        applied
    }

    /// Looks again at everything that was built from files and secrets, and completes what waited for them.
    pub(crate) async fn refresh(&mut self) {
        self.refresh_clusters();
        self.reconcile_reverse().await;
        self.refresh_agents();
        self.refresh_policies();
        self.refresh_listeners().await;
    }

    /// Whether a change may make a difference to [`Self::paths`] or to the keys in use: what most pushes change does not, and
    /// is not looked for among ten thousand clusters.
    fn concerns_files(&self, change: &Change) -> bool {
        match change {
            Change::Set(Resource::Cluster(cluster)) => cluster.tls.is_some() || self.has_tls(&cluster.name),
            Change::Remove { kind: Kind::Cluster, name } => self.has_tls(name),
            change => !matches!(change.target().0, Kind::Endpoints | Kind::Runtime),
        }
    }

    /// The files that configurations are built from.
    fn paths(&self) -> BTreeSet<PathBuf> {
        let mut paths = BTreeSet::new();
        self.cluster_files(&mut paths);
        self.agent_files(&mut paths);
        self.policy_files(&mut paths);
        self.listener_files(&mut paths);
        paths
    }

    /// Lets go of the sockets and of the agents: the process's drain begins.
    fn end(&mut self) {
        self.extensions.forget_all();
        self.listeners.release();
        for name in self.agents.names() {
            self.remove_agent(&name);
        }
    }
}

/// How long certificate files must be left alone before they are read: chain and key are two files.
const FILE_QUIET: Duration = Duration::from_millis(200);
