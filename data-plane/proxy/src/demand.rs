//! What requests ask a control plane for, and wait for: on demand.
//!
//! A request that lacks something places an [`Order`] and is parked: its body is not read meanwhile, it waits no longer than
//! its deadline, and there are at most `MAX_PARKED` such requests. Whoever takes the orders says when one is answered; what the
//! answer is, the request sees by looking again.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use culvert_model::Name;
use culvert_model::source::ConfigSource;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

/// What kind of thing is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Wanted {
    /// The virtual host of a host, by the name `ROUTES/HOST`.
    VirtualHost,
    Cluster,
    /// The routes of a scope, by the scope's name.
    Scope,
}

/// One thing that a request asks for.
#[derive(Debug, Clone)]
pub struct Order {
    pub wanted: Wanted,
    pub name: Name,
    /// Of a cluster: who is asked. Else that stands where the name does.
    pub source: Option<ConfigSource>,
}

/// What is asked for now, by whom ever. Shared by the workers.
#[derive(Debug)]
pub struct Demands {
    orders: mpsc::Sender<Order>,
    /// A sender is dropped when there is an answer.
    waiting: Mutex<HashMap<(Wanted, Name), watch::Sender<()>>>,
    parked: AtomicUsize,
}

impl Default for Demands {
    /// Nobody takes the orders: requests go on without what they lack.
    fn default() -> Self {
        Self::new().0
    }
}

impl Demands {
    /// With the orders, for whoever carries them out.
    #[must_use]
    pub fn new() -> (Self, mpsc::Receiver<Order>) {
        let (orders, taken) = mpsc::channel(MAX_PARKED);
        (Self { orders, waiting: Mutex::default(), parked: AtomicUsize::new(0) }, taken)
    }

    /// Those who wait for it look again.
    pub fn answer(&self, wanted: Wanted, name: &Name) {
        self.waiting.lock().remove(&(wanted, Arc::clone(name)));
    }

    /// Returns when there is an answer, when `within` is over, or at once if too much is asked for.
    pub(crate) async fn wait(&self, order: Order, within: Duration) {
        let (wanted, name) = (order.wanted, Arc::clone(&order.name));
        let Some(mut parked) = Parked::new(self, order) else {
            tracing::debug!(?wanted, %name, most = MAX_PARKED, "not asked for: too many requests wait, or nobody to ask");
            return;
        };
        // An error says that the sender is gone, which is the answer.
        if tokio::time::timeout(within, parked.answered.changed()).await.is_err() {
            tracing::debug!(?wanted, %name, ?within, "no answer in time");
        }
    }
}

/// A request that waits.
struct Parked<'d> {
    demands: &'d Demands,
    key: (Wanted, Name),
    answered: watch::Receiver<()>,
}

impl<'d> Parked<'d> {
    fn new(demands: &'d Demands, order: Order) -> Option<Self> {
        let key = (order.wanted, Arc::clone(&order.name));
        let mut waiting = demands.waiting.lock();
        if demands.parked.load(Ordering::Relaxed) >= MAX_PARKED {
            return None;
        }
        let answered = match waiting.get(&key) {
            Some(sender) => sender.subscribe(),
            None => {
                demands.orders.try_send(order).ok()?;
                let (sender, answered) = watch::channel(());
                waiting.insert(key.clone(), sender);
                answered
            }
        };
        // Under the lock: the bound is exact.
        demands.parked.fetch_add(1, Ordering::Relaxed);
        Some(Self { demands, key, answered })
    }
}

impl Drop for Parked<'_> {
    fn drop(&mut self) {
        let mut waiting = self.demands.waiting.lock();
        self.demands.parked.fetch_sub(1, Ordering::Relaxed);
        // The last one: whoever asks later asks anew. Those who have done so already wait for an answer of their own.
        let last = |sender: &watch::Sender<()>| {
            sender.receiver_count() <= 1 && sender.subscribe().same_channel(&self.answered)
        };
        if waiting.get(&self.key).is_some_and(last) {
            waiting.remove(&self.key);
        }
    }
}

/// Requests that wait at a time.
const MAX_PARKED: usize = 1024;

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    fn order(name: &str) -> Order {
        Order { wanted: Wanted::Cluster, name: name.into(), source: None }
    }

    #[tokio::test(start_paused = true)]
    async fn many_requests_place_one_order_and_all_wait_for_its_answer() {
        let (demands, mut orders) = Demands::new();
        let long = Duration::from_secs(5);
        let began = Instant::now();
        let answer = async {
            assert_eq!(&*orders.recv().await.unwrap().name, "c");
            assert!(orders.try_recv().is_err(), "a second order for the same");
            demands.answer(Wanted::Cluster, &"c".into());
        };
        tokio::join!(demands.wait(order("c"), long), demands.wait(order("c"), long), answer);
        assert_eq!(began.elapsed(), Duration::ZERO, "nobody waits for a time to pass");
        demands.wait(order("c"), long).await;
        assert_eq!(began.elapsed(), long, "no answer: the deadline");
        assert_eq!(&*orders.recv().await.unwrap().name, "c", "an answered order is placed anew");
        demands.wait(order("c"), long).await;
        assert!(orders.try_recv().is_ok(), "so is one that was given up");
        assert!(demands.waiting.lock().is_empty(), "nothing is left behind");
    }

    #[test]
    fn who_has_an_answer_takes_nobody_elses_place() {
        let (demands, mut orders) = Demands::new();
        let answered = Parked::new(&demands, order("c")).unwrap();
        demands.answer(Wanted::Cluster, &"c".into());
        let later = Parked::new(&demands, order("c")).unwrap();
        drop(answered);
        assert!(orders.try_recv().is_ok() && orders.try_recv().is_ok(), "each has placed an order");
        assert!(later.answered.has_changed().is_ok(), "the later one still waits for its answer");
        drop(later);
        assert!(demands.waiting.lock().is_empty(), "nothing is left behind");
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_wait_than_there_is_room_for() {
        let (demands, _orders) = Demands::new();
        let demands = Arc::new(demands);
        let wait = |index: usize| {
            let demands = Arc::clone(&demands);
            async move { demands.wait(order(&index.to_string()), Duration::from_secs(5)).await }
        };
        let began = Instant::now();
        let mut all: tokio::task::JoinSet<()> = (0..MAX_PARKED).map(wait).collect();
        while demands.parked.load(Ordering::Relaxed) < MAX_PARKED {
            assert_eq!(began.elapsed(), Duration::ZERO, "all begin to wait at once");
            tokio::task::yield_now().await;
        }
        wait(MAX_PARKED).await;
        assert_eq!(began.elapsed(), Duration::ZERO, "one more does not");
        while all.join_next().await.is_some() {}
        assert_eq!(demands.parked.load(Ordering::Relaxed), 0, "all have left");
        Demands::default().wait(order("c"), Duration::from_secs(5)).await;
        assert_eq!(began.elapsed(), Duration::from_secs(5), "nobody waits where nobody is asked");
    }
}
