//! Counters by HTTP status without a table of all statuses: each cell holds a status and its count, and a new status takes
//! the next free cell. The first cells hold what is frequent, so that the usual status is found at once.

use std::sync::atomic::{AtomicU64, Ordering};

/// Statuses that one worker tells apart.
pub const CELLS: usize = 16;

const COUNT_BITS: u32 = 48;
const COUNT: u64 = (1 << COUNT_BITS) - 1;

/// Counts one; not at all if all cells are taken by others. One writer.
pub(super) fn count(cells: &[AtomicU64], status: u16) {
    let key = u64::from(status) << COUNT_BITS;
    for cell in cells.iter().take(CELLS) {
        let value = cell.load(Ordering::Relaxed);
        if value == 0 || value & !COUNT == key {
            cell.store(key | (value + 1) & COUNT, Ordering::Relaxed);
            return;
        }
    }
}

/// What was counted.
pub(super) fn read(cells: &[AtomicU64]) -> impl Iterator<Item = (u16, u64)> {
    let values = cells.iter().take(CELLS).map(|cell| cell.load(Ordering::Relaxed)).take_while(|value| *value != 0);
    values.map(|value| (u16::try_from(value >> COUNT_BITS).unwrap_or_default(), value & COUNT))
}
