//! The nodes that are, or were lately, connected: a session each, to which their streams attach.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use culvert_store::Conflict;
use culvert_xds::server::{Progress, ResourceState, TypeStatus};
use culvert_xds::{
    Heard, NodeIdentity, RequestError, Resource, Response, Session, Snapshot, StreamId, StreamKind, Version,
};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::control::Control;

/// How often it is looked whom to forget.
const SWEEP: Duration = Duration::from_secs(10);
/// How long a node without a stream is remembered: what it accepted and refused.
const REMEMBERED: Duration = Duration::from_secs(3600);
/// Nodes without a stream that are remembered at most.
const MAX_IDLE: usize = 10_000;

/// Streams of the same types that one node may have: a process or two, and those whose end was not noticed yet.
const MAX_SESSIONS: usize = 100;

/// A node has too many streams.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("node {id:?} has {limit} streams of these types already; do two nodes have one id?")]
pub(crate) struct TooManyStreams {
    id: String,
    limit: usize,
}

/// Who a stream belongs to: what its certificate says (nothing on plaintext), and the id that it gives.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct NodeKey {
    pub(crate) certificate: Option<Arc<str>>,
    pub(crate) id: String,
}

#[derive(Debug)]
pub(crate) struct Nodes {
    /// A second stream of the same types gets a session of its own.
    sessions: Mutex<Sessions>,
    /// The number of the next stream.
    streams: AtomicU64,
    /// Changes when any node moved, if anybody looks.
    moves: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Sessions {
    by_key: HashMap<NodeKey, Vec<Arc<NodeSession>>>,
    swept: Option<Instant>,
}

/// One session and what this process knows of it.
#[derive(Debug)]
pub(crate) struct NodeSession {
    key: NodeKey,
    state: Mutex<State>,
    /// What the session's clock counts from.
    begun: Instant,
    begun_at: SystemTime,
    /// Counts what may have changed its status.
    moved: AtomicU64,
}

#[derive(Debug)]
struct State {
    session: Session,
    /// Of what the session's snapshot was made.
    generation: u64,
    conflicts: Vec<Conflict>,
    /// The session's, when its streams were last told to look again.
    steps: u64,
    /// Of the latest stream.
    peer: Arc<str>,
    idle_since: Option<Instant>,
    /// To tell each stream that there may be something new for it.
    looks: Vec<Arc<Notify>>,
}

/// What is known of a node, for people.
#[derive(Debug)]
pub(crate) struct NodeStatus {
    pub(crate) key: NodeKey,
    pub(crate) identity: Arc<NodeIdentity>,
    pub(crate) peer: Arc<str>,
    pub(crate) connected: bool,
    /// What the snapshot was made of.
    pub(crate) generation: u64,
    pub(crate) progress: Progress,
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) version: Version,
    pub(crate) conflicts: Vec<Conflict>,
    pub(crate) types: Vec<TypeStatus>,
    /// The moment from which the times of `types` count.
    pub(crate) begun: SystemTime,
}

/// How a node stands to what it should have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It has all that it asked for.
    Settled,
    /// It has not answered yet.
    Pending,
    /// It will not have all of it; with what it said.
    Refused(Arc<str>),
}

impl NodeStatus {
    /// How it stands to what generation `now` gives it.
    pub(crate) fn standing(&self, now: u64) -> Standing {
        let resources = || self.types.iter().flat_map(|of_type| &of_type.resources);
        if self.generation != now {
            return Standing::Pending;
        }
        if let Progress::Halted { reason, .. } = &self.progress {
            return Standing::Refused(Arc::clone(reason));
        }
        if self.progress != Progress::Settled || resources().any(|one| one.state == ResourceState::Stale) {
            return Standing::Pending;
        }
        let refused = resources().find(|one| one.state == ResourceState::Error);
        refused.map_or(Standing::Settled, |one| Standing::Refused(one.error.clone().unwrap_or_default()))
    }
}

/// A stream's place in the session of its node; leaves it when dropped.
#[derive(Debug)]
pub(crate) struct Attached {
    control: Arc<Control>,
    node: Arc<NodeSession>,
    stream: StreamId,
    look: Arc<Notify>,
}

/// What a stream is to do.
#[derive(Debug)]
pub(crate) enum Next {
    Send(Response),
    /// Nothing, before something is heard or that moment.
    Wait {
        until: Option<Instant>,
        /// A response is unanswered.
        awaits_answer: bool,
        /// The node is in the middle of a change.
        awaits_change: bool,
    },
}

impl Nodes {
    /// Streams that a process may be sent in a second, on average, before its numbers meet those of the process after it.
    const STREAMS_PER_SECOND: u64 = 256;

    /// Streams, and with them nonces, are numbered from the present time on: those of an earlier process are others.
    pub(crate) fn new(now: SystemTime) -> Self {
        let seconds = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let streams = AtomicU64::new(seconds.wrapping_mul(Self::STREAMS_PER_SECOND));
        Self { sessions: Mutex::default(), streams, moves: watch::Sender::default() }
    }

    /// Has every stream look what there is for it.
    pub(crate) fn look_again(&self) {
        // Not under the lock, which those who come need: each state may be busy with what its node is served.
        for node in self.unsorted() {
            node.state.lock().looks.iter().for_each(|look| look.notify_one());
        }
    }

    /// Attaches a stream to the session of its node.
    ///
    /// # Errors
    /// The node has more streams of the same types than any node needs.
    pub(crate) fn attach(
        control: &Arc<Control>,
        certificate: Option<Arc<str>>,
        identity: NodeIdentity,
        peer: &Arc<str>,
        kind: &StreamKind,
    ) -> Result<Attached, TooManyStreams> {
        let nodes = &control.nodes;
        let stream = StreamId(nodes.streams.fetch_add(1, Ordering::Relaxed));
        let key = NodeKey { certificate, id: identity.id.clone() };
        let mut sessions = nodes.sessions.lock();
        sessions.sweep();
        let same = sessions.by_key.entry(key.clone()).or_default();
        // A node that comes back as somebody else (other cluster, other metadata) is somebody else.
        same.retain(|node| {
            let state = node.state.lock();
            state.idle_since.is_none() || **state.session.node() == identity
        });
        let found = same.iter().find(|node| {
            let mut state = node.state.lock();
            let joins = **state.session.node() == identity && state.session.open(stream, kind.clone()).is_ok();
            if joins {
                state.idle_since = None;
                state.peer = Arc::clone(peer);
            }
            joins
        });
        if found.is_none() && same.len() >= MAX_SESSIONS {
            return Err(TooManyStreams { id: key.id, limit: MAX_SESSIONS });
        }
        let node = found.cloned().unwrap_or_else(|| {
            let node = Arc::new(NodeSession::new(control, key, identity, peer));
            let opened = node.state.lock().session.open(stream, kind.clone());
            debug_assert!(opened.is_ok(), "a session without streams has room for any");
            same.push(Arc::clone(&node));
            node
        });
        let look = Arc::new(Notify::new());
        node.state.lock().looks.push(Arc::clone(&look));
        Ok(Attached { control: Arc::clone(control), node, stream, look })
    }

    /// Every node, in order of id.
    pub(crate) fn status(&self) -> Vec<NodeStatus> {
        self.all().iter().map(|node| node.status()).collect()
    }

    /// The session of every node, in order of id.
    pub(crate) fn all(&self) -> Vec<Arc<NodeSession>> {
        let mut all = self.unsorted();
        all.sort_by(|a, b| a.key.cmp(&b.key));
        all
    }

    fn unsorted(&self) -> Vec<Arc<NodeSession>> {
        self.sessions.lock().by_key.values().flatten().cloned().collect()
    }

    /// Changes when any node may have moved.
    pub(crate) fn moves(&self) -> watch::Receiver<u64> {
        self.moves.subscribe()
    }

    fn moved(&self, node: &NodeSession) {
        node.moved.fetch_add(1, Ordering::Release);
        if self.moves.receiver_count() > 0 {
            self.moves.send_modify(|moves| *moves += 1);
        }
    }

    /// Nodes with a stream, and all that are remembered.
    pub(crate) fn count(&self) -> (usize, usize) {
        let sessions = self.sessions.lock();
        let all = sessions.by_key.values().flatten();
        all.fold((0, 0), |(connected, known), node| {
            (connected + usize::from(node.state.lock().idle_since.is_none()), known + 1)
        })
    }
}

impl Sessions {
    /// Forgets nodes that were away for long, and beyond the limit those that were away longest. Looks at every node, so not
    /// each time that one connects.
    fn sweep(&mut self) {
        if self.swept.is_some_and(|swept| swept.elapsed() < SWEEP) && self.by_key.len() < 2 * MAX_IDLE {
            return;
        }
        self.swept = Some(Instant::now());
        let all = self.by_key.values().flatten();
        let mut idle: Vec<Duration> = all.filter_map(|node| node.idle()).collect();
        idle.sort();
        let limit = idle.get(MAX_IDLE).copied().unwrap_or(REMEMBERED).min(REMEMBERED);
        self.by_key.retain(|_, same| {
            same.retain(|node| node.idle().is_none_or(|idle| idle < limit));
            !same.is_empty()
        });
    }
}

impl NodeSession {
    fn new(control: &Arc<Control>, key: NodeKey, identity: NodeIdentity, peer: &Arc<str>) -> Self {
        let generation = control.generation();
        let placement = control.place(&identity, &Snapshot::default());
        let config = control.named_only.config_for(&identity);
        let session = Session::new(config, Arc::new(identity), Arc::clone(&placement.snapshot));
        log_conflicts(&key, &placement.conflicts);
        let conflicts = placement.conflicts.clone();
        let steps = session.steps();
        let (peer, looks) = (Arc::clone(peer), Vec::new());
        let state = State { session, generation, conflicts, steps, peer, idle_since: None, looks };
        Self {
            key,
            state: Mutex::new(state),
            begun: Instant::now(),
            begun_at: SystemTime::now(),
            moved: AtomicU64::new(0),
        }
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.state.lock().idle_since.is_none()
    }

    /// For how long it has had no stream.
    fn idle(&self) -> Option<Duration> {
        self.state.lock().idle_since.map(|since| since.elapsed())
    }

    pub(crate) fn id(&self) -> &str {
        &self.key.id
    }

    /// Greater than before if the status may be another.
    pub(crate) fn moves(&self) -> u64 {
        self.moved.load(Ordering::Acquire)
    }

    /// What it accepted last.
    pub(crate) fn held(&self) -> Vec<Arc<Resource>> {
        self.state.lock().session.held().cloned().collect()
    }

    pub(crate) fn status(&self) -> NodeStatus {
        let state = self.state.lock();
        NodeStatus {
            key: self.key.clone(),
            identity: Arc::clone(state.session.node()),
            peer: Arc::clone(&state.peer),
            connected: state.idle_since.is_none(),
            generation: state.generation,
            progress: state.session.progress(),
            snapshot: Arc::clone(state.session.snapshot()),
            version: state.session.snapshot().version(),
            conflicts: state.conflicts.clone(),
            types: state.session.status(),
            begun: self.begun_at,
        }
    }
}

impl Attached {
    /// What the stream is to do now.
    pub(crate) fn next(&self) -> Next {
        let now = self.node.begun.elapsed();
        let mut state = self.node.state.lock();
        let generation = self.control.generation();
        if state.generation != generation {
            let placement = self.control.place(state.session.node(), state.session.snapshot());
            state.session.on_snapshot(Arc::clone(&placement.snapshot), now);
            if state.conflicts != placement.conflicts {
                log_conflicts(&self.node.key, &placement.conflicts);
                state.conflicts.clone_from(&placement.conflicts);
            }
            state.generation = generation;
        }
        let response = state.session.poll_stream(self.stream, now);
        let steps = state.session.steps();
        if std::mem::replace(&mut state.steps, steps) != steps {
            // What is served moved on without a new generation.
            let others = state.looks.iter().filter(|look| !Arc::ptr_eq(look, &self.look));
            others.for_each(|look| look.notify_one());
        }
        let next = response.map_or_else(
            || Next::Wait {
                until: state.session.poll_timeout(self.stream).map(|timeout| self.node.begun + timeout),
                awaits_answer: state.session.awaits_answer(self.stream),
                awaits_change: matches!(state.session.progress(), Progress::Adding | Progress::Switching),
            },
            Next::Send,
        );
        drop(state);
        if matches!(next, Next::Send(_)) {
            self.control.nodes.moved(&self.node);
        }
        next
    }

    /// Returns when there may be something new for the stream: another generation, or what is served moved on.
    pub(crate) async fn look(&self) {
        self.look.notified().await;
    }

    /// Hands a request to the session.
    pub(crate) fn hear(
        &self,
        on_request: impl FnOnce(&mut Session, StreamId) -> Result<Heard, RequestError>,
    ) -> Result<Heard, RequestError> {
        let mut state = self.node.state.lock();
        state.session.tell_time(self.node.begun.elapsed());
        let unknown = state.session.unknown_types();
        let heard = on_request(&mut state.session, self.stream);
        self.control.metrics.unknown_types.add_many(state.session.unknown_types() - unknown);
        drop(state);
        self.control.nodes.moved(&self.node);
        heard
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let mut state = self.node.state.lock();
        state.session.on_close(self.stream);
        state.looks.retain(|look| !Arc::ptr_eq(look, &self.look));
        if state.session.is_idle() {
            state.idle_since = Some(Instant::now());
        }
        drop(state);
        self.control.nodes.moved(&self.node);
    }
}

fn log_conflicts(key: &NodeKey, conflicts: &[Conflict]) {
    for conflict in conflicts {
        let origins = conflict.origins.join(", ");
        let what = if conflict.kept { "keeps what it had" } else { "does not get it" };
        tracing::error!(
            node = key.id,
            type_url = &*conflict.type_url,
            name = &*conflict.name,
            "files tie for a resource and the node {what}; make one selector more specific: {origins}"
        );
    }
}
