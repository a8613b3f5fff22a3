//! From start to end: what state the process is in, and what ends it.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use culvert_runtime::access_log::AccessLogs;
use culvert_runtime::drain::{Drained, Trigger};
use culvert_runtime::process::{Signal, Signals};
use culvert_runtime::readiness::Readiness;
use culvert_runtime::workers::Workers;
use culvert_tunnel::server::Tunnels;
use tokio::sync::Notify;

use crate::apply::{ApplyHandle, OnWorker};
use crate::config::Configuration;

/// What the process says of itself. Shared.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub readiness: Readiness,
    draining: AtomicBool,
    /// An operator wants load balancers to think that we are ill.
    failed: AtomicBool,
    quit: Notify,
}

impl State {
    /// Envoy's word: `LIVE`, `DRAINING`, `PRE_INITIALIZING`.
    #[must_use]
    pub(crate) fn word(&self) -> &'static str {
        match self.code() {
            0 => "LIVE",
            1 => "DRAINING",
            _ => "PRE_INITIALIZING",
        }
    }

    /// Envoy's number for it (`envoy.admin.v3.ServerInfo.State`).
    #[must_use]
    pub(crate) fn code(&self) -> u64 {
        if self.draining.load(Ordering::Acquire) || self.failed.load(Ordering::Acquire) {
            1
        } else if self.readiness.is_ready() {
            0
        } else {
            2
        }
    }

    /// Whether work may be sent here.
    #[must_use]
    pub(crate) fn is_ready(&self) -> bool {
        self.code() == 0
    }

    /// Whether the process does not end.
    #[must_use]
    pub(crate) fn is_live(&self) -> bool {
        !self.draining.load(Ordering::Acquire)
    }

    /// Load balancers are told to stay away; nothing else happens.
    pub(crate) fn fail(&self) {
        self.failed.store(true, Ordering::Release);
    }

    /// Takes [`Self::fail`] back.
    pub(crate) fn heal(&self) {
        self.failed.store(false, Ordering::Release);
    }

    /// Asks for an end as SIGTERM does.
    pub(crate) fn quit(&self) {
        self.quit.notify_one();
    }
}

/// What an end needs.
#[derive(Debug)]
pub(crate) struct Ending {
    pub state: Arc<State>,
    pub apply: ApplyHandle,
    pub configuration: Configuration,
    pub drain: Trigger,
    /// Those that agents have to this process: the last to go.
    pub tunnels: Arc<Tunnels>,
    pub drain_time: Duration,
    pub logs: AccessLogs,
    /// They end with their last handle, and their connections with them: it must be this one.
    pub workers: Arc<Workers<OnWorker>>,
}

impl Ending {
    /// Serves signals until one of them, or an operator, ends the process; then ends it.
    pub(crate) async fn run(self, mut signals: Signals) -> ExitCode {
        loop {
            let signal = tokio::select! {
                signal = signals.next() => signal,
                () = self.state.quit.notified() => Signal::Terminate,
            };
            match signal {
                Signal::Terminate => return self.end(signals).await,
                Signal::Reload => {
                    tracing::info!("SIGHUP: certificate and credential files are read again");
                    self.apply.reload().await;
                }
                Signal::ReopenLogs => {
                    tracing::info!("SIGUSR1: access logs are opened again");
                    self.logs.reopen();
                }
            }
        }
    }

    /// Not ready, stops accepting, finishes what is in flight. A second signal ends it now.
    async fn end(self, mut signals: Signals) -> ExitCode {
        tracing::info!(within = ?self.drain_time, in_flight = self.drain.blockers(), "ending: finishing what is in flight");
        self.state.draining.store(true, Ordering::Release);
        self.configuration.end().await;
        self.tunnels.end();
        self.apply.end().await;
        self.drain.start(self.drain_time);
        let finishing = finish_tunnels(&self.drain, &self.tunnels);
        tokio::pin!(finishing);
        let mut finished = false;
        let code = loop {
            tokio::select! {
                () = &mut finishing, if !finished => finished = true,
                drained = self.drain.drained() => match drained {
                    Drained::Idle => {
                        tracing::info!("ended: nothing is in flight any more");
                        break ExitCode::SUCCESS;
                    }
                    Drained::DeadlinePassed(left) => {
                        tracing::warn!(left, "ended: the drain time is over; what is left is cut off");
                        break ExitCode::SUCCESS;
                    }
                },
                signal = signals.next() => if signal == Signal::Terminate {
                    tracing::warn!(left = self.drain.blockers(), "ended at once by a second signal");
                    break ExitCode::FAILURE;
                },
            }
        };
        drop(self.workers);
        let logs = self.logs.clone();
        // The thread cannot be lost, and there is nothing to do if it were.
        drop(tokio::task::spawn_blocking(move || logs.flush()).await);
        code
    }
}

/// Tunnels serve until nothing else is in flight: each of them holds the drain back once.
async fn finish_tunnels(drain: &Trigger, tunnels: &Tunnels) {
    let mut look = tokio::time::interval(LOOK);
    while drain.blockers() > tunnels.live() {
        look.tick().await;
    }
    tunnels.finish();
}

const LOOK: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn envoys_words_follow_readiness_health_and_drain() {
        let state = State::default();
        let blocker = state.readiness.block("static configuration");
        assert_eq!((state.word(), state.is_ready()), ("PRE_INITIALIZING", false), "something blocks");
        drop(blocker);
        assert_eq!((state.word(), state.is_ready()), ("LIVE", true), "nothing blocks");
        state.fail();
        assert_eq!((state.word(), state.is_ready()), ("DRAINING", false), "an operator failed it");
        assert!(state.is_live(), "it does not end");
        state.heal();
        assert_eq!(state.word(), "LIVE", "an operator healed it");
    }
}
