//! The one who has changes applied, in order, and says how that went.

use std::sync::Arc;

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
                inventory.removed(type_url, name);
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
