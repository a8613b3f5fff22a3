//! Draining: one side says that work must end, the other finishes what it has and lets go.
//!
//! Three types. A [`Trigger`] starts the drain and waits for it; a [`Watch`] is told; a [`Blocker`] is held by work
//! that must finish. Drains nest: a [`Watch::child`] drains with its parent or on its own, and what blocks it blocks
//! the parent too (process > listener > filter chain > connection).
//!
//! **Waiting costs no lock**: a [`Draining`] that is polled again by the same task reads one atomic.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use slab::Slab;
use tokio::sync::Notify;
use tokio::time::Instant;

/// A drain of its own. The trigger does not drain when it is dropped.
#[must_use]
pub fn channel() -> (Trigger, Watch) {
    let node = Node::new(None);
    (Trigger { node: Arc::clone(&node) }, Watch { node })
}

/// Starts a drain.
#[derive(Debug)]
pub struct Trigger {
    node: Arc<Node>,
}

impl Trigger {
    /// Tells every watch. Work should have ended `within` that time; a second call can only bring the deadline forward.
    pub fn start(&self, within: Duration) {
        self.node.start(Instant::now() + within);
    }

    /// Returns when no blocker is held or the deadline has passed. Before [`Self::start`] there is no deadline.
    pub async fn drained(&self) -> Drained {
        loop {
            let deadline = self.node.deadline();
            let sooner = self.node.changed.notified();
            tokio::select! {
                biased;
                () = self.node.idle() => return Drained::Idle,
                () = sleep_until(deadline) => return Drained::DeadlinePassed(self.blockers()),
                () = sooner => {}
            }
        }
    }

    /// How many blockers are held, those of children included.
    #[must_use]
    pub fn blockers(&self) -> usize {
        self.node.blockers.load(Ordering::Acquire)
    }

    /// Another watch of this drain.
    #[must_use]
    pub fn watch(&self) -> Watch {
        Watch { node: Arc::clone(&self.node) }
    }
}

/// How a drain ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// Nothing is left.
    Idle,
    /// So many blockers were still held.
    DeadlinePassed(usize),
}

/// Is told when a drain starts. Cheap to clone; does not hold the drain back.
#[derive(Debug, Clone)]
pub struct Watch {
    node: Arc<Node>,
}

impl Watch {
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.node.draining.load(Ordering::Acquire)
    }

    /// Whether the drain that this one is a child of has started: what is here will not be there again, where otherwise
    /// something takes its place.
    #[must_use]
    pub fn is_inherited(&self) -> bool {
        self.node.parent.as_ref().is_some_and(|parent| parent.draining.load(Ordering::Acquire))
    }

    /// When work must have ended; `None` while no drain has started.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.node.deadline()
    }

    /// Resolves when the drain starts, to its deadline at that moment.
    pub fn draining(&self) -> Draining {
        Draining { node: Arc::clone(&self.node), waiting: None }
    }

    /// Resolves when the drain has started and its deadline has passed: work that is left must be cut off.
    pub async fn expired(&self) {
        self.draining().await;
        loop {
            let deadline = self.node.deadline();
            let sooner = self.node.changed.notified();
            tokio::select! {
                biased;
                () = sleep_until(deadline) => return,
                () = sooner => {}
            }
        }
    }

    /// The drain waits for the returned value to be dropped.
    pub fn block(&self) -> Blocker {
        self.node.count(1);
        Blocker { node: Arc::clone(&self.node) }
    }

    /// A drain that starts with this one or on its own, and whose blockers hold this one back too.
    #[must_use]
    pub fn child(&self) -> (Trigger, Self) {
        let node = Node::new(Some(Arc::clone(&self.node)));
        (Trigger { node: Arc::clone(&node) }, Self { node })
    }
}

/// Work that a drain waits for.
#[must_use = "a drain waits only while this value lives"]
#[derive(Debug)]
pub struct Blocker {
    node: Arc<Node>,
}

impl Drop for Blocker {
    fn drop(&mut self) {
        self.node.release();
    }
}

/// See [`Watch::draining`].
#[must_use = "futures do nothing unless polled"]
#[derive(Debug)]
pub struct Draining {
    node: Arc<Node>,
    /// Our place among the node's wakers, and whom it wakes.
    waiting: Option<(usize, Waker)>,
}

impl Future for Draining {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        if this.node.draining.load(Ordering::Acquire) {
            return Poll::Ready(());
        }
        if this.waiting.as_ref().is_some_and(|(_, waker)| waker.will_wake(cx.waker())) {
            return Poll::Pending;
        }
        let mut wakers = this.node.wakers.lock();
        // Looked at again under the lock, which `start` takes after it has set the flag.
        if this.node.draining.load(Ordering::Acquire) {
            return Poll::Ready(());
        }
        let waker = cx.waker().clone();
        match &this.waiting {
            Some((key, _)) if wakers.contains(*key) => {
                wakers[*key] = waker.clone();
                this.waiting = Some((*key, waker));
            }
            _ => this.waiting = Some((wakers.insert(waker.clone()), waker)),
        }
        Poll::Pending
    }
}

impl Drop for Draining {
    fn drop(&mut self) {
        if let Some((key, _)) = self.waiting.take() {
            drop(self.node.wakers.lock().try_remove(key));
        }
    }
}

#[derive(Debug)]
struct Node {
    parent: Option<Arc<Self>>,
    children: Mutex<Vec<Weak<Self>>>,
    draining: AtomicBool,
    deadline: Mutex<Option<Instant>>,
    wakers: Mutex<Slab<Waker>>,
    blockers: AtomicUsize,
    /// The deadline was set or brought forward, or the last blocker is gone. One for both: there is a node for every tunnel.
    changed: Notify,
}

impl Node {
    fn new(parent: Option<Arc<Self>>) -> Arc<Self> {
        let node = Arc::new(Self {
            parent,
            children: Mutex::default(),
            draining: AtomicBool::new(false),
            deadline: Mutex::default(),
            wakers: Mutex::default(),
            blockers: AtomicUsize::new(0),
            changed: Notify::new(),
        });
        if let Some(parent) = &node.parent {
            let mut children = parent.children.lock();
            if children.len() == children.capacity() {
                children.retain(|child| child.strong_count() > 0);
            }
            children.push(Arc::downgrade(&node));
            drop(children);
            // Registered first, looked at afterwards: a drain that starts in between is seen by one of the two.
            if let Some(deadline) = parent.deadline() {
                node.start(deadline);
            }
        }
        node
    }

    fn start(&self, deadline: Instant) {
        {
            let mut current = self.deadline.lock();
            if current.is_some_and(|current| current <= deadline) {
                return;
            }
            *current = Some(deadline);
        }
        self.draining.store(true, Ordering::Release);
        let mut wakers = self.wakers.lock();
        let woken: Vec<Waker> = wakers.drain().collect();
        drop(wakers);
        for waker in woken {
            waker.wake();
        }
        self.changed.notify_waiters();
        let children = self.children.lock().clone();
        for child in children.iter().filter_map(Weak::upgrade) {
            child.start(deadline);
        }
    }

    fn deadline(&self) -> Option<Instant> {
        *self.deadline.lock()
    }

    fn count(&self, n: usize) {
        let mut node = Some(self);
        while let Some(this) = node {
            this.blockers.fetch_add(n, Ordering::AcqRel);
            node = this.parent.as_deref();
        }
    }

    fn release(&self) {
        let mut node = Some(self);
        while let Some(this) = node {
            if this.blockers.fetch_sub(1, Ordering::AcqRel) == 1 {
                this.changed.notify_waiters();
            }
            node = this.parent.as_deref();
        }
    }

    async fn idle(&self) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.blockers.load(Ordering::Acquire) == 0 {
                return;
            }
            changed.await;
        }
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
