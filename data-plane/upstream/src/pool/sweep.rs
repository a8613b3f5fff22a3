//! Housekeeping of a worker's pools, once a second: what nobody uses is closed.

use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use culvert_model::route::Priority;
use tokio::time::Instant;

use super::WorkerPools;
use super::host::HostPool;
use super::slot::SlotPool;
use crate::clusters::Clusters;

/// Runs until the pools are gone.
pub(super) async fn run(pools: Weak<WorkerPools>, clusters: Arc<Clusters>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {
                let Some(pools) = pools.upgrade() else { return };
                pools.sweep();
            }
            () = clusters.wanted().notified() => {
                let Some(pools) = pools.upgrade() else { return };
                pools.yield_wanted();
            }
        }
    }
}

impl WorkerPools {
    pub(super) fn sweep(&self) {
        self.clock.set(Instant::now());
        self.named.borrow_mut().retain(|_, slot| slot.config().is_some());
        self.slots.borrow_mut().retain(|_, pool| pool.sweep());
        self.yield_wanted();
    }

    /// Closes an idle connection of each cluster in which a request waits for leave to open one.
    fn yield_wanted(&self) {
        for pool in self.slots.borrow().values() {
            let breakers = pool.stats.slot.breakers();
            let wanted = |priority| breakers.of(priority).wanted.load(Ordering::Relaxed);
            for _ in 0..wanted(Priority::Default) + wanted(Priority::High) {
                if !pool.evict_idle() {
                    break;
                }
            }
        }
    }
}

impl SlotPool {
    /// Closes what is too old or gone; whether the pool is of any more use.
    fn sweep(self: &Rc<Self>) -> bool {
        let present = self.is_present();
        let tidy = |host: &HostPool| {
            let stays = present && !host.host().is_gone();
            if stays {
                host.sweep();
            } else {
                host.close_idle();
            }
            stays
        };
        // Exchanges still under way hold a pool.
        self.hosts.borrow_mut().retain(|_, host| tidy(host) || Rc::strong_count(host) > 1);
        self.named.borrow_mut().retain(|host| tidy(host) && !host.is_empty());
        let empty = self.hosts.borrow().is_empty() && self.named.borrow().is_empty();
        present || Rc::strong_count(self) > 1 || !empty
    }
}

const INTERVAL: Duration = Duration::from_secs(1);
