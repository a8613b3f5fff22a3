//! The nodes that poll, and how far each of them is on its way to what is in force.

mod asked;

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use culvert_api::envoy::service::discovery::v3::DiscoveryRequest;
use culvert_xds::server::{Poll, Polled, Progress, ResourceState, TypeStatus};
use culvert_xds::{NodeIdentity, Resource, Snapshot};
use parking_lot::Mutex;
use tokio::time::Instant;

use self::asked::Asked;
use crate::control::Control;
use crate::nodes::{NodeKey, NodeStatus};
use crate::wildcards::NamedOnly;

/// Nodes that are remembered at most; others get every change at once.
const MAX_NODES: usize = 10_000;
/// Who did not poll for so long begins anew.
const REMEMBERED: Duration = Duration::from_secs(600);
/// How often it is looked whom to forget.
const SWEEP: Duration = Duration::from_secs(10);
/// Who did not poll for so long, or for a step, is not shown as connected.
const ABSENT: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(crate) struct PollingNodes {
    nodes: Mutex<Nodes>,
    /// Of a change; zero: there are none.
    step: Duration,
    named_only: NamedOnly,
    begun: Instant,
    begun_at: SystemTime,
}

#[derive(Debug, Default)]
struct Nodes {
    by_key: HashMap<NodeKey, Polling>,
    swept: Option<Instant>,
}

#[derive(Debug)]
struct Polling {
    identity: NodeIdentity,
    polled: Polled,
    last: Instant,
    /// Of what the target was made.
    generation: u64,
    asked: Asked,
}

impl PollingNodes {
    /// `refresh`: the longest time between two polls of a node.
    pub(crate) fn new(refresh: Duration, named_only: NamedOnly) -> Self {
        // Twice: what a poll brought just before a change has clusters that are asked about with the next one.
        let step = 2 * refresh;
        Self { nodes: Mutex::default(), step, named_only, begun: Instant::now(), begun_at: SystemTime::now() }
    }

    /// What a node that polls for a type is served now.
    pub(crate) fn serve(
        &self,
        control: &Control,
        key: &NodeKey,
        identity: &NodeIdentity,
        (of, request): (&'static str, &DiscoveryRequest),
    ) -> Arc<Snapshot> {
        let now = Instant::now();
        let mut nodes = self.nodes.lock();
        nodes.sweep(now);
        let generation = control.generation();
        // Who comes back as somebody else (other cluster, other metadata) is somebody else.
        if let Some(node) = nodes.by_key.get_mut(key).filter(|node| node.identity == *identity) {
            let target = Arc::clone(&control.place(identity, node.polled.target()).snapshot);
            (node.last, node.generation) = (now, generation);
            let served = node.polled.serve(&target, self.step, now - self.begun);
            node.asked.note(of, request, &served, now - self.begun);
            return served;
        }
        let target = Arc::clone(&control.place(identity, &Snapshot::default()).snapshot);
        if nodes.by_key.len() < MAX_NODES {
            let (polled, identity) = (Polled::new(Arc::clone(&target)), identity.clone());
            let mut node = Polling { identity, polled, last: now, generation, asked: Asked::default() };
            node.asked.note(of, request, &target, now - self.begun);
            nodes.by_key.insert(key.clone(), node);
        }
        target
    }

    /// The node has its answer.
    pub(crate) fn answered(&self, key: &NodeKey, of: &'static str, poll: Poll<'_>) {
        if let Some(node) = self.nodes.lock().by_key.get_mut(key) {
            node.asked.answered(of, poll.given);
            node.polled.answered(poll, self.begun.elapsed());
        }
    }

    /// Nodes that poll on and have not accepted within a step what it gave them.
    pub(crate) fn waiting(&self) -> usize {
        let now = self.begun.elapsed();
        self.nodes.lock().by_key.values().filter(|node| node.polled.is_held(self.step, now)).count()
    }

    /// Every node that polls, in order of id.
    pub(crate) fn status(&self) -> Vec<NodeStatus> {
        self.status_of(|_| true)
    }

    /// Who is remembered, and whether it is shown as connected.
    pub(crate) fn keys(&self) -> Vec<(NodeKey, bool)> {
        let now = Instant::now();
        let nodes = self.nodes.lock();
        nodes.by_key.iter().map(|(key, node)| (key.clone(), now - node.last < self.step.max(ABSENT))).collect()
    }

    /// What a node holds, as far as its latest request of each type says; nothing of a node that is not known.
    pub(crate) fn held(&self, key: &NodeKey) -> Vec<Arc<Resource>> {
        let known = self.nodes.lock().by_key.get(key).map(|node| (node.asked.clone(), node.identity.clone()));
        let Some((asked, identity)) = known else { return Vec::new() };
        asked.held(&self.named_only.config_for(&identity), &Arc::new(identity))
    }

    /// Of the nodes that are wanted.
    pub(crate) fn status_of(&self, wanted: impl Fn(&NodeKey) -> bool) -> Vec<NodeStatus> {
        let now = Instant::now();
        let mut nodes = self.nodes.lock();
        let all = nodes.by_key.iter_mut().filter(|(key, _)| wanted(key)).map(|(key, node)| {
            let present = node.polled.serve(&Arc::clone(node.polled.target()), self.step, now - self.begun);
            let is_held = node.polled.is_held(self.step, now - self.begun);
            let target = Arc::clone(node.polled.target());
            let progress = if Arc::ptr_eq(&present, &target) { Progress::Settled } else { Progress::Switching };
            let identity = Arc::new(node.identity.clone());
            let replayed = (node.asked.clone(), Arc::clone(&identity), present, is_held);
            let status = NodeStatus {
                key: key.clone(),
                identity,
                peer: "polls".into(),
                connected: now - node.last < self.step.max(ABSENT),
                generation: node.generation,
                progress,
                version: target.version(),
                snapshot: target,
                conflicts: Vec::new(),
                types: Vec::new(),
                begun: self.begun_at,
            };
            (status, replayed)
        });
        let all: Vec<_> = all.collect();
        // Not under the lock: it costs what there is.
        drop(nodes);
        let mut all: Vec<_> = all
            .into_iter()
            .map(|(status, (asked, identity, present, is_held))| {
                let types = asked.status(self.named_only.config_for(&identity), identity, present);
                let halted = if is_held { halted(&types) } else { None };
                NodeStatus { progress: halted.unwrap_or(status.progress), types, ..status }
            })
            .collect();
        all.sort_by(|a, b| a.key.cmp(&b.key));
        all
    }
}

/// What holds up a node that polls on without taking what it was given: what it refused, or at least does not take.
fn halted(types: &[TypeStatus]) -> Option<Progress> {
    let lacking = |state: ResourceState| {
        let all = types.iter().flat_map(|of_type| of_type.resources.iter().map(move |one| (of_type, one)));
        all.into_iter().find(|(_, one)| one.state == state)
    };
    let (of_type, one) = lacking(ResourceState::Error).or_else(|| lacking(ResourceState::Stale))?;
    let silent = || format!("it polls on and does not take {:?}", one.name).into();
    let reason = one.error.clone().unwrap_or_else(silent);
    Some(Progress::Halted { type_url: Arc::clone(&of_type.type_url), reason })
}

/// A client polls for each set of names by itself.
pub(crate) fn subscription(of: &'static str, names: &[String]) -> u64 {
    let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
    names.sort_unstable();
    let mut hasher = DefaultHasher::new();
    (of, names).hash(&mut hasher);
    hasher.finish()
}

impl Nodes {
    fn sweep(&mut self, now: Instant) {
        if self.swept.is_some_and(|swept| now - swept < SWEEP) {
            return;
        }
        self.swept = Some(now);
        self.by_key.retain(|_, node| now - node.last < REMEMBERED);
    }
}
