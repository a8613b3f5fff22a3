//! Apply: the last step of a push. Validated resources, in the order in which they are to take effect, become clusters,
//! route tables, listeners and agents.
//!
//! One task on the control runtime owns all that is in force ([`Applier`]); everybody else sends it [`Change`]s through an
//! [`ApplyHandle`]. Parsing, staging, warming and precedence of sources happened before; **what arrives here replaces
//! what has its name**, and a change that fails leaves everything as it was.

mod agents;
mod applier;
mod clusters;
mod extensions;
mod hand_over;
mod listeners;
mod policies;
mod rehearse;
mod reverse;
mod routes;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use culvert_model::Name;
use culvert_model::resource::Resource;
use tokio::sync::{mpsc, oneshot};

pub(crate) use self::applier::{Applier, OnWorker, Parts};
pub(crate) use self::listeners::compile_for_check;

/// One step of a push.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    /// Adds a resource or replaces the one of its name. Endpoints go by their service name.
    Set(Resource),
    /// Removes a resource. One that is not there is no error.
    Remove { kind: Kind, name: Name },
}

/// Kinds of resources.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Kind {
    Secret,
    Cluster,
    Endpoints,
    Routes,
    Listener,
    Agent,
    Policy,
    Extension,
    Runtime,
    Scope,
    VirtualHost,
}

/// What became of a change that did not fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Applied {
    Active,
    /// Taken, and takes effect by itself when what is named here is there (`secret edge-cert`).
    Warming(Vec<String>),
}

/// Why a change was refused. What had the name before stays in force.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApplyError {
    #[error("address.socket_address: {0}")]
    Bind(#[from] culvert_runtime::sockets::BindError),
    #[error("address.socket_address: {address} belongs to listener {listener}; give one of the two another address")]
    Duplicate { address: SocketAddr, listener: Name },
    #[error("{0}")]
    Compile(#[from] culvert_proxy::listener::CompileError),
    #[error("{0}")]
    Routes(#[from] culvert_proxy::routes::CompileError),
    #[error("{0}")]
    Tls(#[from] crate::tls::MaterialError),
    #[error(
        "address.socket_address: {listeners} listeners take {needed} file descriptors, more than half of the {limit} that the process may \
         have; raise the limit (LimitNOFILE, ulimit -n) or use fewer listeners"
    )]
    Descriptors { listeners: u64, needed: u64, limit: u64 },
    /// Of a policy.
    #[error("{0}")]
    Source(#[from] culvert_proxy::SourceError),
    #[error("filters: {0}")]
    Extension(#[from] culvert_model::extension::Unresolved),
    /// Of a filter's configuration: a listener that asks for it could not use it.
    #[error("listener {listener}: {source}")]
    User { listener: Name, source: Box<Self> },
    #[error("key: is that of scope {0:?} as well")]
    ScopeKey(Name),
    #[error("name: no route configuration stands before its last `/`")]
    NoRoutes,
    #[error("domains: {domain:?} stands in virtual host {other:?} already")]
    Domain { domain: Arc<str>, other: Name },
    #[error("the process is ending")]
    Ending,
}

impl ApplyError {
    /// Whether the same change may succeed later: somebody else holds its address, or others take the room for it.
    pub(crate) fn may_pass(&self) -> bool {
        matches!(self, Self::Bind(_) | Self::Duplicate { .. } | Self::Descriptors { .. })
    }
}

/// The listeners that a push removes: their addresses may be taken over by others that come with it.
fn leaving(changes: &[Change]) -> HashSet<Name> {
    let removals = changes.iter().filter(|change| matches!(change, Change::Remove { kind: Kind::Listener, .. }));
    removals.map(|change| change.target().1).collect()
}

/// Sends changes to the one who applies them. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct ApplyHandle {
    queue: mpsc::Sender<Command>,
}

/// What the applier is asked to do.
#[derive(Debug)]
pub(crate) enum Command {
    Apply {
        changes: Vec<Change>,
        answer: oneshot::Sender<Vec<Result<Applied, ApplyError>>>,
    },
    /// See [`ApplyHandle::rehearse`].
    Rehearse {
        changes: Vec<Change>,
        answer: oneshot::Sender<Vec<Result<(), ApplyError>>>,
    },
    /// Read certificate and credential files again.
    Reload,
    /// Stop accepting everywhere.
    DrainListeners {
        within: Duration,
        answer: oneshot::Sender<()>,
    },
    /// Let go of sockets and agents, and end.
    End {
        answer: oneshot::Sender<()>,
    },
}

impl ApplyHandle {
    pub(crate) fn new(queue: mpsc::Sender<Command>) -> Self {
        Self { queue }
    }

    /// Applies changes in their order; one answer for each, in the same order. A listener may take over the address of
    /// one that is removed in the same call: connections that wait to be accepted are not lost.
    pub(crate) async fn apply(&self, changes: Vec<Change>) -> Vec<Result<Applied, ApplyError>> {
        let count = changes.len();
        let (answer, answered) = oneshot::channel();
        let ending = || (0..count).map(|_| Err(ApplyError::Ending)).collect();
        if self.queue.send(Command::Apply { changes, answer }).await.is_err() {
            return ending();
        }
        answered.await.unwrap_or_else(|_| ending())
    }

    /// Whether changes could be applied as a push of their own; one answer for each, in the same order. Nothing changes.
    pub(crate) async fn rehearse(&self, changes: Vec<Change>) -> Vec<Result<(), ApplyError>> {
        let count = changes.len();
        let (answer, answered) = oneshot::channel();
        let asked = async {
            self.queue.send(Command::Rehearse { changes, answer }).await.ok()?;
            answered.await.ok()
        };
        match tokio::time::timeout(REHEARSAL_TIME, asked).await {
            Ok(answers) => answers.unwrap_or_else(|| (0..count).map(|_| Err(ApplyError::Ending)).collect()),
            Err(_) => {
                tracing::warn!(within = ?REHEARSAL_TIME, "no answer whether changes can be applied; they are tried");
                (0..count).map(|_| Ok(())).collect()
            }
        }
    }

    /// Has certificate and credential files read again.
    pub(crate) async fn reload(&self) {
        if self.queue.send(Command::Reload).await.is_err() {
            tracing::info!("nothing is reloaded: the process is ending");
        }
    }

    /// Has every listener stop accepting; connections have `within` to finish.
    pub(crate) async fn drain_listeners(&self, within: Duration) {
        self.ask(|answer| Command::DrainListeners { within, answer }).await;
    }

    /// Lets go of every socket and stops every agent. Nothing is applied from now on.
    pub(crate) async fn end(&self) {
        self.ask(|answer| Command::End { answer }).await;
    }

    async fn ask(&self, command: impl FnOnce(oneshot::Sender<()>) -> Command) {
        let (answer, answered) = oneshot::channel();
        // An applier that is gone has nothing left to do.
        if self.queue.send(command(answer)).await.is_ok() {
            drop(answered.await);
        }
    }
}

impl Change {
    /// What is changed: its kind and name.
    #[must_use]
    pub(crate) fn target(&self) -> (Kind, Name) {
        match self {
            Self::Set(Resource::Secret(secret)) => (Kind::Secret, Arc::clone(&secret.name)),
            Self::Set(Resource::Cluster(cluster)) => (Kind::Cluster, Arc::clone(&cluster.name)),
            Self::Set(Resource::Endpoints(endpoints)) => (Kind::Endpoints, Arc::clone(&endpoints.cluster)),
            Self::Set(Resource::Routes(routes)) => (Kind::Routes, Arc::clone(&routes.name)),
            Self::Set(Resource::Listener(listener)) => (Kind::Listener, Arc::clone(&listener.name)),
            Self::Set(Resource::Agent(agent)) => (Kind::Agent, Arc::clone(&agent.name)),
            Self::Set(Resource::Policy(policy)) => (Kind::Policy, Arc::clone(&policy.name)),
            Self::Set(Resource::Extension(extension)) => (Kind::Extension, Arc::clone(&extension.name)),
            Self::Set(Resource::Runtime(runtime)) => (Kind::Runtime, Arc::clone(&runtime.name)),
            Self::Set(Resource::Scope(scope)) => (Kind::Scope, Arc::clone(&scope.name)),
            Self::Set(Resource::VirtualHost(host)) => (Kind::VirtualHost, Arc::clone(&host.name)),
            Self::Remove { kind, name } => (*kind, Arc::clone(name)),
        }
    }
}

/// For a rehearsal, which waits until the push before it is applied.
const REHEARSAL_TIME: Duration = Duration::from_secs(10);
