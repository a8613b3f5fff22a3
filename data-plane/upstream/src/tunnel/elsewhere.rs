//! The clusters that share a tunnel besides the one that it is registered in.
//!
//! **Nobody joins who has left**: a cluster is noted, and its queue told, under the lock under which the end is told to
//! all that are noted.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use culvert_model::Name;
use culvert_model::tunnel::NamePattern;
use parking_lot::Mutex;

use super::connection::TunnelConnection;
use super::queue::Queue;
use crate::host::Host;
use crate::slot::ClusterSlot;

#[derive(Debug)]
pub(crate) struct Elsewhere {
    inner: Mutex<Inner>,
    /// How many there are, to be read without the lock; and whose turn it is.
    count: AtomicUsize,
    turn: AtomicUsize,
}

#[derive(Debug)]
struct Inner {
    /// Replaced whole, so that it can be looked at without the lock.
    clusters: Option<Arc<[Further]>>,
    /// `None`: any.
    may_serve: Option<Arc<[NamePattern]>>,
    /// The queues have been told that it takes nothing new.
    has_left: bool,
    /// It is registered no more.
    is_over: bool,
}

/// One of them.
#[derive(Debug, Clone)]
struct Further {
    slot: Weak<ClusterSlot>,
    queue: Arc<Queue>,
    host: Weak<Host>,
}

impl Elsewhere {
    pub(super) fn new(may_serve: Option<Arc<[NamePattern]>>) -> Self {
        let inner = Inner { clusters: None, may_serve, has_left: false, is_over: false };
        Self { inner: Mutex::new(inner), count: AtomicUsize::new(0), turn: AtomicUsize::new(0) }
    }

    fn clusters(&self) -> Option<Arc<[Further]>> {
        self.inner.lock().clusters.clone()
    }

    pub(super) fn host_in(&self, queue: &Queue) -> Option<Arc<Host>> {
        let clusters = self.clusters()?;
        clusters.iter().find(|further| std::ptr::eq(queue, &raw const *further.queue))?.host.upgrade()
    }

    /// Does something with the queue of each cluster, `home` among them. Who comes first changes from call to call.
    pub(super) fn each_queue(&self, home: &Queue, mut each: impl FnMut(&Queue)) {
        let count = self.count.load(Ordering::SeqCst);
        let Some(clusters) = (count > 0).then(|| self.clusters()).flatten() else { return each(home) };
        let all = clusters.len() + 1;
        let first = self.turn.fetch_add(1, Ordering::Relaxed) % all;
        for at in (first..all).chain(0..first) {
            match at.checked_sub(1).and_then(|at| clusters.get(at)) {
                None => each(home),
                Some(further) => each(&further.queue),
            }
        }
    }

    /// The tunnel ends, or drains; its agent, which is called so, is expected back within `window`.
    pub(super) fn leave(&self, agent: &Arc<str>, window: Duration) {
        let mut inner = self.inner.lock();
        inner.has_left = true;
        for further in inner.clusters.iter().flat_map(|clusters| clusters.iter()) {
            further.queue.leave([agent], Some(window));
        }
    }

    fn set(&self, inner: &mut Inner, clusters: Vec<Further>) {
        self.count.store(clusters.len(), Ordering::SeqCst);
        inner.clusters = (!clusters.is_empty()).then(|| clusters.into());
    }
}

impl TunnelConnection {
    pub(crate) fn may_serve(&self, cluster: &str) -> bool {
        let may_serve = self.elsewhere.inner.lock().may_serve.clone();
        may_serve.is_none_or(|patterns| patterns.iter().any(|pattern| pattern.matches(cluster)))
    }

    pub(super) fn set_may_serve(&self, clusters: Option<Arc<[NamePattern]>>) {
        self.elsewhere.inner.lock().may_serve = clusters;
    }

    /// Becomes a host of a further cluster, unless it takes nothing new any more.
    pub(crate) fn join(self: &Arc<Self>, slot: &Arc<ClusterSlot>, host: &Arc<Host>) -> bool {
        let mut inner = self.elsewhere.inner.lock();
        if inner.is_over || inner.has_left {
            return false;
        }
        let queue = Arc::clone(slot.queue());
        let awaited = queue.join(self.claim(), [&self.claim().agent]);
        let mut clusters = inner.clusters.as_deref().unwrap_or_default().to_vec();
        clusters.push(Further { slot: Arc::downgrade(slot), queue: Arc::clone(&queue), host: Arc::downgrade(host) });
        self.elsewhere.set(&mut inner, clusters);
        drop(inner);
        if let Some(opening) = awaited {
            self.want(&opening);
            // It may be open already, and idle: nothing else would look at the queue.
            queue.serve(self);
        }
        true
    }

    /// Is a host of that cluster no more.
    pub(crate) fn part(&self, slot: &ClusterSlot) {
        let mut inner = self.elsewhere.inner.lock();
        let mut clusters = inner.clusters.as_deref().unwrap_or_default().to_vec();
        clusters.retain(|further| !Arc::ptr_eq(&further.queue, slot.queue()));
        if clusters.len() < inner.clusters.as_ref().map_or(0, |clusters| clusters.len()) && !inner.has_left {
            slot.queue().leave([&self.claim().agent], None);
        }
        self.elsewhere.set(&mut inner, clusters);
    }

    /// Joins none any more; those that it is a host of.
    pub(crate) fn end_sharing(&self) -> Vec<Arc<ClusterSlot>> {
        let mut inner = self.elsewhere.inner.lock();
        inner.is_over = true;
        inner
            .clusters
            .iter()
            .flat_map(|clusters| clusters.iter())
            .filter_map(|further| further.slot.upgrade())
            .collect()
    }

    /// Does something with each further cluster.
    pub(crate) fn further(&self, each: impl Fn(&ClusterSlot)) {
        let clusters = self.elsewhere.clusters();
        let slots = clusters.iter().flat_map(|clusters| clusters.iter());
        slots.filter_map(|further| further.slot.upgrade()).for_each(|slot| each(&slot));
    }

    /// The names of those that it did not claim.
    pub(crate) fn further_names(&self) -> Vec<Name> {
        let clusters = self.elsewhere.clusters();
        let slots = clusters.iter().flat_map(|clusters| clusters.iter());
        let mut names: Vec<_> = slots.filter_map(|further| Some(Name::clone(further.slot.upgrade()?.name()))).collect();
        names.retain(|name| *name != self.claim().cluster);
        names.sort();
        names
    }
}
