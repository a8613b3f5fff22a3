//! Metrics that cost a plain store per event.
//!
//! Every worker owns a [`Block`] of a [`Scope`] and is its only writer, so an increment is a relaxed load and store on
//! a cache line that no other core writes. Readers add the blocks up when an operator asks.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

/// A closed set of metrics: a `#[repr(usize)]` enum that lists its members in order.
pub trait Metrics: Copy + 'static {
    /// One entry per member, in order of their discriminants.
    const ALL: &'static [Metric];
    /// The member's place in [`Self::ALL`].
    fn index(self) -> usize;
}

/// Name and kind of one metric.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// Envoy's name without prefix: `upstream_rq_total`.
    pub name: &'static str,
    pub kind: MetricKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    Counter,
    Gauge,
}

/// All blocks of one thing that is measured (a cluster, a listener), whichever worker they belong to.
#[derive(Debug)]
pub struct Scope<M> {
    blocks: Mutex<Vec<Arc<Cells>>>,
    metrics: PhantomData<M>,
}

impl<M: Metrics> Default for Scope<M> {
    fn default() -> Self {
        Self { blocks: Mutex::new(Vec::new()), metrics: PhantomData }
    }
}

impl<M: Metrics> Scope<M> {
    /// A block for one worker. It stays counted after the worker has dropped its handle.
    #[must_use]
    pub fn block(&self) -> Block<M> {
        let cells: Arc<Cells> = M::ALL.iter().map(|_| AtomicU64::new(0)).collect();
        self.blocks.lock().push(Arc::clone(&cells));
        Block { cells, metrics: PhantomData, single_writer: PhantomData }
    }

    /// The metric's value over all workers.
    #[must_use]
    pub fn read(&self, metric: M) -> u64 {
        let index = metric.index();
        self.blocks.lock().iter().fold(0, |sum: u64, cells| {
            sum.wrapping_add(cells.get(index).map_or(0, |cell| cell.load(Ordering::Relaxed)))
        })
    }
}

type Cells = [AtomicU64];

/// One worker's share of a [`Scope`]. Not `Sync`, and not `Clone`: one writer is what makes the plain store right.
pub struct Block<M> {
    cells: Arc<Cells>,
    metrics: PhantomData<M>,
    single_writer: PhantomData<std::cell::Cell<()>>,
}

impl<M: Metrics> Block<M> {
    /// Counts one.
    pub fn inc(&self, metric: M) {
        self.add(metric, 1);
    }

    /// Takes one off a gauge. The sum over workers is what counts: one block alone may wrap below zero.
    pub fn dec(&self, metric: M) {
        self.add(metric, u64::MAX);
    }

    /// Counts `n`.
    pub fn add(&self, metric: M, n: u64) {
        if let Some(cell) = self.cells.get(metric.index()) {
            cell.store(cell.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
        }
    }
}

impl<M> fmt::Debug for Block<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Block").field("metrics", &self.cells.len()).finish()
    }
}
