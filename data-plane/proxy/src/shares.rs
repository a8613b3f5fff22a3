//! Shares that runtime keys change: of a route's traffic, of what is logged.
//!
//! A share is bound to its key when a push arrives. **A request that no share concerns reads nothing of this**; one that
//! is concerned reads one number.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use culvert_model::Name;
use culvert_model::runtime::Share;
use parking_lot::Mutex;

/// The values of all keys that are shares, and who is bound to them.
#[derive(Debug, Default)]
pub struct Shares {
    keys: Mutex<Keys>,
}

#[derive(Debug, Default)]
struct Keys {
    /// Of 1,000,000.
    values: HashMap<Name, u32>,
    bound: HashMap<Name, Arc<AtomicU32>>,
}

impl Shares {
    /// From now on these are the values of all keys.
    pub fn set(&self, values: HashMap<Name, u32>) {
        let mut keys = self.keys.lock();
        keys.values = values;
        let Keys { values, bound } = &mut *keys;
        bound.retain(|_, cell| Arc::strong_count(cell) > 1);
        for (key, cell) in bound {
            cell.store(values.get(key).copied().unwrap_or(NONE), Ordering::Relaxed);
        }
    }

    pub(crate) fn bind(&self, share: &Share) -> BoundShare {
        let cell = share.key.as_ref().map(|key| {
            let mut keys = self.keys.lock();
            let Keys { values, bound } = &mut *keys;
            let value = values.get(key).copied().unwrap_or(NONE);
            // Keys that nobody goes by any more go when there are new ones.
            if !bound.contains_key(key) {
                bound.retain(|_, cell| Arc::strong_count(cell) > 1);
            }
            Arc::clone(bound.entry(Arc::clone(key)).or_insert_with(|| Arc::new(AtomicU32::new(value))))
        });
        BoundShare { default: share.default, cell }
    }
}

/// A share and the place of its key's value.
#[derive(Debug)]
pub(crate) struct BoundShare {
    default: u32,
    cell: Option<Arc<AtomicU32>>,
}

impl BoundShare {
    /// Whether something with this random number is part of it.
    pub(crate) fn has(&self, random: u64) -> bool {
        let set = self.cell.as_ref().map(|cell| cell.load(Ordering::Relaxed)).filter(|value| *value != NONE);
        random % 1_000_000 < u64::from(set.unwrap_or(self.default))
    }
}

/// No share is that large: the key has no value.
const NONE: u32 = u32::MAX;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_goes_by_its_key_and_without_a_value_by_its_default() {
        let shares = Shares::default();
        let one = shares.bind(&Share { default: 0, key: Some("k".into()) });
        let two = shares.bind(&Share { default: 1_000_000, key: Some("k".into()) });
        let fixed = shares.bind(&Share::fixed(8));
        let now = |random| [one.has(random), two.has(random), fixed.has(random)];
        assert_eq!(now(7), [false, true, true], "defaults hold");
        shares.set(HashMap::from([("k".into(), 8), ("other".into(), 0)]));
        assert_eq!((now(7), now(8)), ([true, true, true], [false, false, false]), "the key's value holds for both");
        shares.set(HashMap::new());
        assert_eq!(now(7), [false, true, true], "the value is gone");
        shares.set(HashMap::from([("late".into(), 8)]));
        assert!(shares.bind(&Share { default: 0, key: Some("late".into()) }).has(7), "values wait for who comes later");
    }

    #[test]
    fn keys_that_nobody_goes_by_are_forgotten() {
        let shares = Shares::default();
        for index in 0..100 {
            drop(shares.bind(&Share { default: 0, key: Some(format!("k{index}").into()) }));
        }
        assert!(shares.keys.lock().bound.len() <= 1, "{:?}", shares.keys.lock().bound);
    }
}
