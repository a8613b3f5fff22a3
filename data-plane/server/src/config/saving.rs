//! What outlives the process: opened and staged when it starts, and saved as it is accepted.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use culvert_model::Name;
use prost::Message;
use tokio::sync::watch;

use super::persist::{StateDir, Unusable};
use super::stage::Stage;
use super::{Settings, Shared, judge};

pub(super) fn open(settings: &Settings) -> Option<StateDir> {
    let Some(path) = &settings.state_dir else {
        tracing::warn!("no --state-dir and no $STATE_DIRECTORY: accepted configuration does not survive this process");
        return None;
    };
    let hash = xxhash_rust::xxh3::xxh3_64(&settings.message.encode_to_vec());
    StateDir::open(path, &settings.bootstrap.node.id, hash)
        .inspect_err(|error| tracing::warn!(%error, "accepted configuration is not kept"))
        .ok()
}

/// Stages what was kept. Returns when a control plane confirmed it.
pub(super) fn load(state: &StateDir, stage: &mut Stage) -> Option<SystemTime> {
    match state.load() {
        Ok(last) => {
            let age = last.confirmed.elapsed().unwrap_or_default().as_secs();
            let resources = last.resources.len();
            tracing::info!(resources, age, "starting with the configuration that was accepted last");
            let judged = last.resources.into_iter().map(|kept| {
                let name = Name::from(kept.name);
                judge(&kept.body.type_url, &name, &kept.version, &kept.body, None)
            });
            stage.load_cached(judged.collect());
            return Some(last.confirmed);
        }
        Err(Unusable::Absent) => tracing::debug!("no accepted configuration was kept"),
        Err(reason) => {
            let file = state.file();
            tracing::warn!(file = %file.display(), %reason, "the accepted configuration that was kept is ignored");
        }
    }
    None
}

/// Saves what is accepted, at most once a second.
pub(super) async fn save(shared: Arc<Shared>, mut state: StateDir, mut saving: watch::Receiver<u64>) {
    let mut ending = shared.ending.subscribe();
    loop {
        let ended = tokio::select! {
            biased;
            changed = saving.changed() => changed.is_err(),
            _ = ending.wait_for(|ending| *ending) => true,
        };
        if ended {
            return;
        }
        let (accepted, (_, cached)) = {
            let stage = shared.stage.lock();
            (stage.accepted(), stage.origins())
        };
        // As long as some of it is what the cache had, none of it is younger than that.
        let confirmed = shared.confirmed.filter(|_| cached > 0).unwrap_or_else(SystemTime::now);
        let written = tokio::task::spawn_blocking(move || {
            state.save(&accepted, confirmed);
            state
        });
        match written.await {
            Ok(returned) => state = returned,
            Err(error) => {
                tracing::error!(%error, "saving accepted configuration panicked; it is not kept any more");
                return;
            }
        }
        // Cut short by the end of the process: what changed meanwhile is saved at once, then nothing more.
        drop(tokio::time::timeout(SAVE_INTERVAL, ending.wait_for(|ending| *ending)).await);
    }
}

const SAVE_INTERVAL: Duration = Duration::from_secs(1);
