//! How long one tunnel is the one that serves: what makes a replacement due.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use culvert_runtime::drain::{self, Trigger, Watch};
use tokio::sync::{Notify, watch};
use tokio::time::sleep;

use super::Agent;
use super::dial::Established;
use super::peer::{Names, Order};

/// Why a tunnel is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// `max_connection_age`.
    Age,
    /// What it was dialled with is not what the next one will be.
    Certificate,
    /// The hosting listener serves otherwise now, and this connection belongs to what it was.
    Listener,
    /// It has not been pinged for so long that its server may be gone, or ping less often than was guessed.
    Unpinged,
    /// The server asked for it.
    Asked,
    /// The server ends within that time. What answers at its address now is its successor.
    ServerDrains(Duration),
}

impl Reason {
    /// Whether it is the server that wants it.
    pub(super) const fn is_the_servers(self) -> bool {
        matches!(self, Self::Asked | Self::ServerDrains(_))
    }
}

/// One tunnel's time. `Rc`: it is looked at by the task that hosts the tunnel and by the one that replaces it.
#[derive(Debug)]
pub(super) struct Tenure {
    /// How the server knows it.
    pub(super) names: Names,
    /// Told by the listener.
    pub(super) outdated: Arc<Notify>,
    unpinged: Notify,
    tls: Option<Arc<rustls::ClientConfig>>,
    trigger: Trigger,
    retired: Cell<bool>,
    used: Cell<bool>,
    /// Why it has ended.
    end: RefCell<Cow<'static, str>>,
}

impl Tenure {
    pub(super) fn new(tunnel: &Established) -> Rc<Self> {
        let names = match &tunnel.id {
            Some(id) => Names { ids: vec![id.clone()], ..Names::default() },
            None => Names { addresses: vec![tunnel.local.to_string()], ..Names::default() },
        };
        let (tls, outdated) = (tunnel.tls.clone(), Arc::default());
        Rc::new(Self {
            names,
            outdated,
            unpinged: Notify::new(),
            tls,
            trigger: drain::channel().0,
            retired: Cell::new(false),
            used: Cell::new(false),
            end: RefCell::new(Cow::Borrowed("closed by the server, or broken")),
        })
    }

    /// Of the tunnel's own drain.
    pub(super) fn watch(&self) -> Watch {
        self.trigger.watch()
    }

    pub(super) fn drain(&self, within: Duration) {
        self.trigger.start(within);
    }

    /// Says why it has ended.
    pub(super) fn note_end(&self, why: impl Into<Cow<'static, str>>) {
        *self.end.borrow_mut() = why.into();
    }

    /// Why it has ended; what is said as long as nobody knows better.
    pub(super) fn end(&self) -> Cow<'static, str> {
        self.end.borrow().clone()
    }

    /// No ping came for long.
    pub(super) fn note_unpinged(&self) {
        self.unpinged.notify_one();
    }

    /// Another one has its place.
    pub(super) fn retire(&self) {
        self.retired.set(true);
    }

    /// It has brought a request, or a connection.
    pub(super) fn note_used(&self) {
        self.used.set(true);
    }

    pub(super) fn is_used(&self) -> bool {
        self.used.get()
    }

    pub(super) fn is_retired(&self) -> bool {
        self.retired.get()
    }

    /// Resolves when a replacement is to be dialled.
    pub(super) async fn due(&self, agent: &Agent, orders: &mut watch::Receiver<Order>) -> Reason {
        let age = async {
            match agent.config.max_connection_age {
                Some(age) => sleep(about(age)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            Ok(()) = orders.changed() => {
                let order = *orders.borrow_and_update();
                match order {
                    Order::Leave(within) => Reason::ServerDrains(within),
                    Order::Reconnect(delay) => {
                        sleep(delay).await;
                        Reason::Asked
                    }
                }
            }
            () = self.outdated.notified() => Reason::Listener,
            () = self.unpinged.notified() => Reason::Unpinged,
            () = self.tls_changed(agent) => Reason::Certificate,
            () = age => Reason::Age,
        }
    }

    async fn tls_changed(&self, agent: &Agent) {
        let Some(mut secrets) = agent.inputs.tls.clone() else { return std::future::pending().await };
        let other = |secrets: &Option<Arc<rustls::ClientConfig>>| match (secrets, &self.tls) {
            (Some(now), Some(then)) => !Arc::ptr_eq(now, then),
            (Some(_), None) => true,
            (None, _) => false,
        };
        if secrets.wait_for(other).await.is_err() {
            std::future::pending().await
        }
    }
}

/// Within 10 %, so that what was established in one moment is not replaced in one.
fn about(age: Duration) -> Duration {
    age.mul_f64(0.9 + fastrand::f64() / 5.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_spread_over_a_fifth() {
        let mut ages: Vec<f64> = (0..1000).map(|_| about(Duration::from_secs(100)).as_secs_f64()).collect();
        ages.sort_by(f64::total_cmp);
        let (least, greatest) = (ages[0], ages[999]);
        assert!((90.0..92.0).contains(&least) && (108.0..=110.0).contains(&greatest), "from {least} to {greatest}");
        for tenth in 0..10 {
            let from = 90.0 + 2.0 * f64::from(tenth);
            let count = ages.iter().filter(|age| (from..from + 2.0).contains(*age)).count();
            assert!((50..150).contains(&count), "{count} of 1000 from {from} s on: expected a tenth");
        }
    }
}
