//! A push on its way: who has answered, until all have.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use culvert_api::culvert::control::v1 as api;
use culvert_api::culvert::control::v1::node_push::State;
use culvert_runtime::drain::Watch;
use culvert_xds::server::{Progress, ResourceState};
use futures_util::Stream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tonic::Status;

use crate::access::StreamPlace;
use crate::control::Control;
use crate::nodes::{NodeKey, NodeSession, NodeStatus, Standing};

const MAX_WAIT: Duration = Duration::from_secs(3600);
/// Changes within this time are told together.
const GATHER: Duration = Duration::from_millis(20);
/// How often it is looked at the nodes that poll: they are told of a change when they ask.
const POLLS: Duration = Duration::from_secs(1);
/// Resources that are listed of one node.
const MAX_RESOURCES: usize = 100;
/// Nodes that one request may name.
const MAX_NODES: usize = 10_000;

pub(super) struct Watcher {
    control: Arc<Control>,
    drain: Watch,
    _place: Option<StreamPlace>,
    /// Empty: all.
    ids: BTreeSet<String>,
    follow: bool,
    until: Instant,
    /// Nothing is said before this generation.
    from: u64,
    moves: watch::Receiver<u64>,
    generations: watch::Receiver<u64>,
    /// By the address of its session, which this holds.
    known: HashMap<usize, Known>,
    polling: HashMap<NodeKey, api::NodePush>,
    /// The generation of `polling`, and when it is to be looked at again.
    polled: Option<(u64, Instant)>,
    told: bool,
}

/// A node as it was told.
struct Known {
    session: Arc<NodeSession>,
    moves: u64,
    generation: u64,
    push: api::NodePush,
}

impl Watcher {
    pub(super) fn new(
        control: Arc<Control>,
        drain: Watch,
        place: Option<StreamPlace>,
        request: api::WatchPushRequest,
    ) -> Result<Self, Status> {
        let api::WatchPushRequest { node_ids, follow, timeout, generation } = request;
        if node_ids.len() > MAX_NODES {
            return Err(Status::invalid_argument(format!("{} nodes; at most {MAX_NODES}", node_ids.len())));
        }
        let timeout = timeout.map(Duration::try_from).transpose();
        let timeout = timeout.map_err(|_| Status::invalid_argument("timeout: is no positive duration"))?;
        Ok(Self {
            ids: node_ids.into_iter().collect(),
            follow,
            until: Instant::now() + timeout.map_or(MAX_WAIT, |timeout| timeout.min(MAX_WAIT)),
            from: generation,
            moves: control.nodes.moves(),
            generations: control.generations(),
            known: HashMap::new(),
            polling: HashMap::new(),
            polled: None,
            told: false,
            control,
            drain,
            _place: place,
        })
    }

    /// The next message and whether it is the last.
    async fn next(&mut self) -> Result<(api::PushStatus, bool), Status> {
        loop {
            self.moves.mark_unchanged();
            if *self.generations.borrow_and_update() >= self.from {
                let status = self.look();
                let over = !self.follow && status.pending == 0;
                let news = !status.nodes.is_empty() || !status.gone.is_empty() || !self.told;
                if over || news {
                    self.told = true;
                    return Ok((status, over));
                }
            }
            tokio::select! {
                biased;
                _ = self.drain.draining() => return Err(Status::unavailable("the control plane drains")),
                () = sleep_until(self.until) => {
                    return Err(Status::deadline_exceeded("some nodes have not answered"));
                }
                () = sleep(POLLS) => {}
                _ = self.moves.changed() => {}
                _ = self.generations.changed() => {}
            }
            sleep(GATHER).await;
        }
    }

    /// Where every node is now; in detail those that moved.
    fn look(&mut self) -> api::PushStatus {
        let generation = self.control.generation();
        let mut status = api::PushStatus { generation, ..api::PushStatus::default() };
        let mut before = std::mem::take(&mut self.known);
        for session in self.control.nodes.all() {
            if !session.is_connected() || !(self.ids.is_empty() || self.ids.contains(session.id())) {
                continue;
            }
            let place = Arc::as_ptr(&session).addr();
            // Before it is looked at: what moves meanwhile is looked at again.
            let moves = session.moves();
            let old = before.remove(&place);
            let is_as_it_was = |old: &Known| old.moves == moves && old.generation == generation;
            let push = match &old {
                Some(old) if is_as_it_was(old) => old.push.clone(),
                _ => of_node(&session.status(), generation),
            };
            count(&mut status, &push);
            if old.is_none_or(|old| old.push != push) {
                status.nodes.push(push.clone());
            }
            self.known.insert(place, Known { session, moves, generation, push });
        }
        let mut gone: BTreeSet<String> = before.into_values().map(|known| known.session.id().to_owned()).collect();
        gone.extend(self.look_at_polling(&mut status, generation));
        let there: BTreeSet<&str> = self.known.values().map(|known| known.session.id()).collect();
        gone.retain(|id| !there.contains(id.as_str()) && self.polling.keys().all(|key| key.id != *id));
        status.gone = gone.into_iter().collect();
        status
    }

    /// The same of those that poll; the ids of those that do so no more.
    fn look_at_polling(&mut self, status: &mut api::PushStatus, generation: u64) -> Vec<String> {
        let now = Instant::now();
        if self.polled.is_some_and(|(of, until)| of == generation && now < until) {
            self.polling.values().for_each(|push| count(status, push));
            return Vec::new();
        }
        self.polled = Some((generation, now + POLLS));
        let mut before = std::mem::take(&mut self.polling);
        let nodes = self.control.polling.status_of(|key| self.ids.is_empty() || self.ids.contains(&key.id));
        for node in nodes.into_iter().filter(|node| node.connected) {
            let push = of_node(&node, generation);
            count(status, &push);
            if before.remove(&node.key).is_none_or(|old| old != push) {
                status.nodes.push(push.clone());
            }
            self.polling.insert(node.key, push);
        }
        before.into_keys().map(|key| key.id).collect()
    }
}

fn count(status: &mut api::PushStatus, push: &api::NodePush) {
    match push.state() {
        State::Settled => status.settled += 1,
        State::Refused => status.refused += 1,
        State::Pending | State::Unspecified => status.pending += 1,
    }
}

/// Until the last, or for ever.
pub(super) fn statuses(watcher: Watcher) -> impl Stream<Item = Result<api::PushStatus, Status>> + Send {
    futures_util::stream::unfold(Some(watcher), |watcher| async move {
        let mut watcher = watcher?;
        match watcher.next().await {
            Ok((status, over)) => Some((Ok(status), (!over).then_some(watcher))),
            Err(status) => Some((Err(status), None)),
        }
    })
}

fn of_node(node: &NodeStatus, generation: u64) -> api::NodePush {
    let (state, refusal) = match node.standing(generation) {
        Standing::Settled => (State::Settled, String::new()),
        Standing::Pending => (State::Pending, String::new()),
        Standing::Refused(reason) => (State::Refused, reason.to_string()),
    };
    let differs = node.types.iter().flat_map(|of_type| {
        let differing = of_type.resources.iter().filter_map(|one| {
            let status = match one.state {
                ResourceState::Stale => "STALE",
                ResourceState::Error => "ERROR",
                ResourceState::Synced | ResourceState::NotSent => return None,
            };
            Some((status, one))
        });
        differing.map(|(status, one)| api::ResourcePush {
            type_url: of_type.type_url.to_string(),
            name: one.name.to_string(),
            status: status.to_owned(),
            wanted_version: one.version.map(|version| version.to_string()).unwrap_or_default(),
            accepted_version: one.accepted.map(|version| version.to_string()).unwrap_or_default(),
            error: one.error.as_deref().unwrap_or_default().to_owned(),
        })
    });
    let step = match &node.progress {
        Progress::Settled => "settled",
        Progress::Adding => "adding",
        Progress::Switching => "switching",
        Progress::Halted { .. } => "halted",
    };
    let differs: Vec<_> = differs.take(MAX_RESOURCES).collect();
    api::NodePush {
        node_id: node.key.id.clone(),
        node_cluster: node.identity.cluster.clone(),
        state: state.into(),
        generation: node.generation,
        step: step.to_owned(),
        differs,
        refusal,
    }
}
