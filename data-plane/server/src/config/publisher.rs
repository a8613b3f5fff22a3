//! The one who has changes applied, in order, and says how that went.

use std::sync::Arc;
use std::time::Duration;

use culvert_api::type_url;
use tokio::sync::watch;

use super::Shared;
use super::references::type_url_of;
use super::stage::{Publication, Step, Went};
use crate::apply::{Applied, ApplyError, Change};

#[derive(Debug)]
pub(super) struct Publisher {
    shared: Arc<Shared>,
}

impl Publisher {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Publishes whenever something was staged or a wait is over. Counts up `saves` when the accepted set may differ.
    pub(super) async fn run(self, saves: watch::Sender<u64>) {
        let mut pace = Pace::default();
        loop {
            let now = self.shared.started.elapsed();
            let next = self.shared.stage.lock().next_look(now);
            let staged = self.shared.work.notified();
            match next {
                Some(at) => {
                    // Reaching the time is as good as being told.
                    let _timed_out = tokio::time::timeout(at.saturating_sub(now), staged).await;
                }
                None => staged.await,
            }
            let now = self.shared.started.elapsed();
            tokio::time::sleep(pace.next(now).saturating_sub(now)).await;
            self.publish().await;
            saves.send_modify(|count| *count += 1);
        }
    }

    /// Publishes until nothing more may come into force: one step may be what another one waited for.
    pub(super) async fn publish(&self) {
        loop {
            let publication = self.shared.stage.lock().publish(self.shared.started.elapsed());
            self.announce(&publication);
            if publication.steps.is_empty() {
                // What was given up before it came into force may have referred to something.
                self.shared.tell_what_is_wanted();
                let answers = self.shared.stage.lock().take_answers();
                for (wanted, name) in answers {
                    self.shared.demands.answer(wanted, &name);
                }
                return;
            }
            let changes: Vec<Change> = publication.steps.iter().map(|step| step.change.clone()).collect();
            let results = self.shared.apply.apply(changes).await;
            let mut ending = false;
            for (step, result) in publication.steps.iter().zip(results) {
                ending |= matches!(result, Err(ApplyError::Ending));
                let went = match &result {
                    Ok(_) => Went::Well,
                    Err(error) if error.may_pass() => Went::ForNow,
                    Err(_) => Went::Wrong,
                };
                self.shared.stage.lock().applied(step, went, self.shared.started.elapsed());
                self.note(step, result);
            }
            // What is in force decides what is referred to.
            self.shared.tell_what_is_wanted();
            if ending {
                return;
            }
        }
    }

    fn announce(&self, publication: &Publication) {
        for (kind, name) in &publication.swept {
            self.shared.inventory.out_of_force(type_url_of(*kind), name);
        }
        for ((kind, name), given) in &publication.confirmed {
            self.shared.inventory.active(type_url_of(*kind), name, given.clone());
        }
        for ((kind, name), given, on) in &publication.waiting {
            let short = type_url::short_name(type_url_of(*kind));
            tracing::info!("{short}/{name}: warming, waits for {}", on.join(", "));
            self.shared.inventory.warming(type_url_of(*kind), name, given.clone(), on.clone());
        }
    }

    fn note(&self, step: &Step, result: Result<Applied, ApplyError>) {
        let (kind, name) = &step.key;
        let type_url = type_url_of(*kind);
        let short = type_url::short_name(type_url);
        let inventory = &self.shared.inventory;
        match (result, &step.given) {
            (Ok(Applied::Active), Some(given)) => {
                tracing::debug!("{short}/{name}: in force at version {}", given.version);
                inventory.active(type_url, name, given.clone());
            }
            (Ok(Applied::Warming(on)), Some(given)) => {
                tracing::info!("{short}/{name}: warming, waits for {}", on.join(", "));
                inventory.warming(type_url, name, given.clone(), on);
            }
            (Ok(_), None) if matches!(step.change, Change::Set(_)) => {
                tracing::info!("{short}/{name}: did not come; an empty one stands in for it");
            }
            (Ok(_), None) => {
                tracing::debug!("{short}/{name}: removed");
                inventory.out_of_force(type_url, name);
            }
            (Err(error), Some(given)) => {
                let more = if error.may_pass() { "; it is tried again" } else { "" };
                tracing::warn!("{short}/{name}: cannot be applied, what was in force stays: {error}{more}");
                inventory.refused(type_url, name, given.clone(), error.to_string());
            }
            (Err(error), None) => tracing::warn!("{short}/{name}: cannot be changed: {error}"),
        }
    }
}

/// How often something may come into force: so often at once, since what a resource refers to comes right after it, then once
/// in each interval. **What a control plane sends faster is one change.**
#[derive(Debug, Default)]
struct Pace {
    /// When what was granted so far would be over at one in each interval.
    granted: Duration,
}

impl Pace {
    /// When the next change may come into force; it is granted.
    fn next(&mut self, now: Duration) -> Duration {
        let at = now.max(self.granted.saturating_sub(INTERVAL * AT_ONCE));
        self.granted = self.granted.max(at) + INTERVAL;
        at
    }
}

const INTERVAL: Duration = Duration::from_millis(50);
const AT_ONCE: u32 = 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_control_plane_that_does_not_rest_changes_something_twenty_times_a_second() {
        let mut pace = Pace::default();
        let mut at = Duration::from_secs(100);
        let end = at + Duration::from_secs(60);
        let mut changes = 0;
        // As soon as one is over there is another one.
        while at < end {
            at = pace.next(at + Duration::from_millis(10));
            changes += 1;
        }
        let expected = 60 * 20 + AT_ONCE;
        assert!((expected..=expected + AT_ONCE).contains(&changes), "expected {expected} in a minute, saw {changes}");
        let rested = at + Duration::from_secs(5);
        for count in 0..AT_ONCE {
            assert_eq!(pace.next(rested), rested, "after a rest, {count} before it");
        }
        assert!(pace.next(rested + INTERVAL) <= rested + 2 * INTERVAL, "then one in each interval");
    }
}
