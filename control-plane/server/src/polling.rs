//! The nodes that poll, and how far each of them is on its way to what is in force.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use culvert_xds::server::Polled;
use culvert_xds::{NodeIdentity, Snapshot};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::control::Control;
use crate::nodes::NodeKey;

/// Nodes that are remembered at most; others get every change at once.
const MAX_NODES: usize = 10_000;
/// Who did not poll for so long begins anew.
const REMEMBERED: Duration = Duration::from_secs(600);
/// How often it is looked whom to forget.
const SWEEP: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(crate) struct PollingNodes {
    nodes: Mutex<Nodes>,
    /// Of a change; zero: there are none.
    step: Duration,
    begun: Instant,
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
}

impl PollingNodes {
    /// `refresh`: the longest time between two polls of a node.
    pub(crate) fn new(refresh: Duration) -> Self {
        // Twice: what a poll brought just before a change has clusters that are asked about with the next one.
        Self { nodes: Mutex::default(), step: 2 * refresh, begun: Instant::now() }
    }

    /// What a node that polls is served now.
    pub(crate) fn serve(
        &self,
        control: &Control,
        certificate: Option<Arc<str>>,
        identity: &NodeIdentity,
    ) -> Arc<Snapshot> {
        let now = Instant::now();
        let key = NodeKey { certificate, id: identity.id.clone() };
        let mut nodes = self.nodes.lock();
        nodes.sweep(now);
        // Who comes back as somebody else (other cluster, other metadata) is somebody else.
        if let Some(node) = nodes.by_key.get_mut(&key).filter(|node| node.identity == *identity) {
            node.last = now;
            let target = Arc::clone(&control.place(identity, node.polled.target()).snapshot);
            return node.polled.serve(&target, self.step, now - self.begun);
        }
        let target = Arc::clone(&control.place(identity, &Snapshot::default()).snapshot);
        if nodes.by_key.len() < MAX_NODES {
            let polled = Polled::new(Arc::clone(&target));
            nodes.by_key.insert(key, Polling { identity: identity.clone(), polled, last: now });
        }
        target
    }
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
