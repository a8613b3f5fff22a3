//! Metrics that cost a plain store per event.
//!
//! Every worker owns a [`Block`] of a [`Scope`] and is its only writer, so an increment is a relaxed load and store on
//! a cache line that no other core writes. Readers add the blocks up when an operator asks (see [`Registry`]).

mod registry;
mod render;
pub mod statuses;

pub use registry::{Registry, Sample, ScopePath, Tag, Value};
pub use render::{Filter, json, prometheus, text};

use std::collections::BTreeMap;
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

/// How a metric is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    Counter,
    Gauge,
    /// Of milliseconds, in Envoy's default buckets (see [`BUCKETS`]); written by [`Block::record`].
    Histogram,
    /// A counter for each HTTP status, named after it (`upstream_rq` becomes `upstream_rq_200`); written by
    /// [`Block::status`].
    Statuses,
}

/// An entry of [`Metrics::ALL`] that only grows.
#[must_use]
pub const fn counter(name: &'static str) -> Metric {
    Metric { name, kind: MetricKind::Counter }
}

/// An entry of [`Metrics::ALL`] that goes up and down.
#[must_use]
pub const fn gauge(name: &'static str) -> Metric {
    Metric { name, kind: MetricKind::Gauge }
}

/// An entry of [`Metrics::ALL`] that holds a distribution of milliseconds.
#[must_use]
pub const fn histogram(name: &'static str) -> Metric {
    Metric { name, kind: MetricKind::Histogram }
}

/// An entry of [`Metrics::ALL`] that counts each HTTP status by itself.
#[must_use]
pub const fn statuses(name: &'static str) -> Metric {
    Metric { name, kind: MetricKind::Statuses }
}

/// Upper bounds of a histogram's buckets in milliseconds, Envoy's defaults; one more bucket has no bound.
pub const BUCKETS: [f64; 19] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1000.0,
    2500.0,
    5000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];

/// All blocks of one thing that is measured (a cluster, a listener), whichever worker they belong to. A clone is the
/// same scope.
pub struct Scope<M> {
    shared: Arc<Shared>,
    metrics: PhantomData<fn() -> M>,
}

impl<M> Clone for Scope<M> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), metrics: PhantomData }
    }
}

impl<M: Metrics> Default for Scope<M> {
    fn default() -> Self {
        Self { shared: Arc::new(Shared::new(M::ALL)), metrics: PhantomData }
    }
}

impl<M: Metrics> Scope<M> {
    /// A block for one worker. What it counted stays counted after the worker has dropped it.
    #[must_use]
    pub fn block(&self) -> Block<M> {
        let cells = self.shared.cells();
        self.shared.blocks.lock().live.push(Arc::clone(&cells));
        Block { cells, shared: Arc::clone(&self.shared), metrics: PhantomData, single_writer: PhantomData }
    }

    /// The metric's value over all workers; of a histogram, how many values it holds.
    #[must_use]
    pub fn read(&self, metric: M) -> u64 {
        self.shared.read(metric.index())
    }
}

impl<M> fmt::Debug for Scope<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scope").field("metrics", &self.shared.all.len()).finish()
    }
}

/// One worker's share of a [`Scope`]. Not `Sync`, and not `Clone`: one writer is what makes the plain store right.
pub struct Block<M> {
    cells: Arc<Cells>,
    shared: Arc<Shared>,
    metrics: PhantomData<fn() -> M>,
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
        self.cell(metric.index(), n);
    }

    /// Gives a gauge its value. Only where one block of the scope writes it: the values of several are added up.
    pub fn set(&self, metric: M, value: u64) {
        if let Some(cell) = self.cells.get(metric.index()) {
            cell.store(value, Ordering::Relaxed);
        }
    }

    /// Puts a value, in milliseconds, into a histogram.
    pub fn record(&self, metric: M, milliseconds: f64) {
        let index = metric.index();
        let Some(place) = self.shared.layout.get(index).copied().filter(|place| *place != 0) else {
            debug_assert!(false, "metric {index} is not a histogram");
            return;
        };
        let bucket = BUCKETS.iter().position(|bound| milliseconds <= *bound).unwrap_or(BUCKETS.len());
        // The cell of the metric itself counts the values; then come the buckets and the sum in microseconds.
        self.cell(index, 1);
        self.cell(place + bucket, 1);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "saturates; a duration is never negative"
        )]
        self.cell(place + BUCKETS.len() + 1, (milliseconds * 1000.0) as u64);
    }

    /// Counts a response with that status. A worker tells [`statuses::CELLS`] statuses of one metric apart; who sends
    /// more of them has the further ones in their classes only.
    pub fn status(&self, metric: M, status: u16) {
        if let Some(place) = self.shared.layout.get(metric.index()).copied().filter(|place| *place != 0) {
            statuses::count(self.cells.get(place..).unwrap_or_default(), status);
        }
    }

    fn cell(&self, index: usize, n: u64) {
        if let Some(cell) = self.cells.get(index) {
            cell.store(cell.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
        }
    }
}

impl<M> Drop for Block<M> {
    fn drop(&mut self) {
        self.shared.retire(&self.cells);
    }
}

impl<M> fmt::Debug for Block<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Block").field("cells", &self.cells.len()).finish()
    }
}

type Cells = [AtomicU64];

/// What a scope, its blocks and the registry share.
#[derive(Debug)]
struct Shared {
    all: &'static [Metric],
    /// Of a histogram or statuses: where their further cells begin; else 0.
    layout: Box<[usize]>,
    size: usize,
    blocks: Mutex<Blocks>,
}

#[derive(Debug, Default)]
struct Blocks {
    live: Vec<Arc<Cells>>,
    /// What dropped blocks have counted.
    retired: Vec<u64>,
    /// Statuses that dropped blocks have counted, by the place of their cells.
    retired_statuses: BTreeMap<(usize, u16), u64>,
}

impl Shared {
    fn new(all: &'static [Metric]) -> Self {
        let mut size = all.len();
        let layout = all
            .iter()
            .map(|metric| {
                let place = size;
                let further = match metric.kind {
                    MetricKind::Counter | MetricKind::Gauge => 0,
                    MetricKind::Histogram => HISTOGRAM_CELLS,
                    MetricKind::Statuses => statuses::CELLS,
                };
                size += further;
                if further > 0 { place } else { 0 }
            })
            .collect();
        Self { all, layout, size, blocks: Mutex::default() }
    }

    fn cells(&self) -> Arc<Cells> {
        (0..self.size).map(|_| AtomicU64::new(0)).collect()
    }

    fn read(&self, cell: usize) -> u64 {
        let blocks = self.blocks.lock();
        let retired = blocks.retired.get(cell).copied().unwrap_or(0);
        blocks.live.iter().fold(retired, |sum, cells| {
            sum.wrapping_add(cells.get(cell).map_or(0, |cell| cell.load(Ordering::Relaxed)))
        })
    }

    /// Where the cells of statuses begin.
    fn statuses(&self) -> impl Iterator<Item = usize> {
        let kinds = self.all.iter().zip(&self.layout);
        kinds.filter(|(metric, _)| metric.kind == MetricKind::Statuses).map(|(_, place)| *place)
    }

    /// The counts of the statuses at `place`, over all workers.
    fn read_statuses(&self, place: usize) -> BTreeMap<u16, u64> {
        let blocks = self.blocks.lock();
        let retired = blocks.retired_statuses.range((place, 0)..=(place, u16::MAX));
        let mut counts: BTreeMap<u16, u64> = retired.map(|((_, status), count)| (*status, *count)).collect();
        for cells in &blocks.live {
            for (status, count) in statuses::read(cells.get(place..).unwrap_or_default()) {
                *counts.entry(status).or_default() += count;
            }
        }
        counts
    }

    fn retire(&self, cells: &Arc<Cells>) {
        let mut blocks = self.blocks.lock();
        let Some(place) = blocks.live.iter().position(|live| Arc::ptr_eq(live, cells)) else { return };
        blocks.live.swap_remove(place);
        for place in self.statuses() {
            for (status, count) in statuses::read(cells.get(place..).unwrap_or_default()) {
                *blocks.retired_statuses.entry((place, status)).or_default() += count;
            }
        }
        blocks.retired.resize(self.size, 0);
        for (sum, cell) in blocks.retired.iter_mut().zip(cells.iter()) {
            *sum = sum.wrapping_add(cell.load(Ordering::Relaxed));
        }
    }
}

/// The buckets, the one without a bound, and the sum.
const HISTOGRAM_CELLS: usize = BUCKETS.len() + 2;

#[cfg(test)]
mod tests;
