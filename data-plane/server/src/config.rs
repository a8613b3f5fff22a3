//! Dynamic configuration: from what a control plane, files and the cache bring to what is in force.
//!
//! ```text
//! ads, files, cache -> judge (parse) -> Stage (stage, warm) -> publish -> ApplyHandle
//! ```
//! [`begin`] starts all of it. A stream's loop judges and stages what it receives and answers at once; **it never waits
//! for a change to be applied**. One task publishes: it takes from the stage what may come into force, has it applied,
//! and says in the inventory and in the log how that went. Another one saves what was accepted.

mod data_errors;
mod judge;
mod persist;
mod publisher;
mod references;
mod saving;
mod stage;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use culvert_api::envoy::config::bootstrap::v3 as api;
use culvert_model::Name;
use culvert_model::bootstrap::Bootstrap;
use culvert_model::resource::Resource;
use culvert_model::source::ConfigSourceKind;
use culvert_model::tls::UpstreamTls;
use culvert_proxy::{Demands, Order};
use culvert_runtime::files::FileWatcher;
use culvert_runtime::readiness::ReadinessBlocker;
use culvert_runtime::telemetry::{Registry, ScopePath};
use culvert_xds::client::{Absence, Failure, Interest, Missing, Rejection};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

pub(crate) use self::data_errors::DataErrors;
use self::judge::Judged;
pub(crate) use self::judge::judge;
pub(crate) use self::references::{kind_of, type_url_of};
pub(crate) use self::stage::{Batch, DeletionGuard};
use self::stage::{Key, Stage};
use crate::ads::Metrics;
use crate::apply::{ApplyError, ApplyHandle, Change, Kind};
use crate::inventory::{Given, Inventory};
use crate::overview::TunnelView;

/// What dynamic configuration needs of the process.
pub(crate) struct Settings {
    pub(crate) bootstrap: Arc<Bootstrap>,
    /// The bootstrap as it was given: another one does not use what was saved under this one.
    pub(crate) message: Arc<api::Bootstrap>,
    /// Where accepted configuration is kept. `None`: nowhere, with a warning.
    pub(crate) state_dir: Option<PathBuf>,
    pub(crate) deletion_guard: DeletionGuard,
    pub(crate) data_errors: DataErrors,
    pub(crate) apply: ApplyHandle,
    pub(crate) inventory: Inventory,
    pub(crate) registry: Registry,
    pub(crate) watcher: FileWatcher,
    /// Builds the TLS configuration of a control-plane connection; called anew for each, so that renewed files count.
    pub(crate) client_tls: ClientTls,
    /// What the control plane is told of.
    pub(crate) tunnels: TunnelView,
    pub(crate) demand: Demand,
    /// Dropped when the first dynamic configuration is in force, or when there is nothing to wait for.
    pub(crate) ready: ReadinessBlocker,
}

/// What requests ask for, and who answers them.
pub(crate) struct Demand {
    pub(crate) orders: mpsc::Receiver<Order>,
    pub(crate) demands: Arc<Demands>,
}

/// From a TLS context to a TLS configuration, or the reason why there is none.
pub(crate) type ClientTls = Arc<dyn Fn(&UpstreamTls) -> Result<Arc<rustls::ClientConfig>, String> + Send + Sync>;

/// Dynamic configuration that runs. Cheap to clone; the tasks behind it live as long as the runtime.
#[derive(Debug, Clone)]
pub(crate) struct Configuration {
    shared: Arc<Shared>,
}

/// Loads the cache, puts it in force, and subscribes to everything that the bootstrap says comes from elsewhere. Static
/// resources are in force already. Must be called inside the control runtime; returns when what was cached is applied.
pub(crate) async fn begin(settings: Settings) -> Configuration {
    let mut stage = Stage::new(&settings.bootstrap, settings.deletion_guard);
    let dynamic = !stage.interests().is_empty();
    let state = if dynamic { saving::open(&settings) } else { None };
    let confirmed = state.as_ref().and_then(|state| saving::load(state, &mut stage));
    for cluster in settings.data_errors.unknown(&settings.bootstrap) {
        tracing::warn!(cluster, "--resource-timer-is-transient-error names no static cluster");
    }
    let (wanted, _) = watch::channel(0);
    let shared = Arc::new(Shared {
        stage: Mutex::new(stage),
        confirmed,
        started: Instant::now(),
        work: Notify::new(),
        wanted,
        apply: settings.apply.clone(),
        inventory: settings.inventory.clone(),
        demands: settings.demand.demands,
        gives_up_refused: settings.data_errors.fail,
        failed_once: watch::channel(false).0,
        ending: watch::channel(false).0,
        saver: Mutex::default(),
    });
    let metrics = Metrics::new(&settings.registry, Configuration { shared: Arc::clone(&shared) });
    let publisher = publisher::Publisher::new(Arc::clone(&shared));
    publisher.publish().await;
    let (saves, saving) = watch::channel(0);
    if dynamic {
        tokio::spawn(release_when_ready(Arc::clone(&shared), settings.ready));
        if let Some(state) = state {
            let saver = tokio::spawn(saving::save(Arc::clone(&shared), state, saving));
            *shared.saver.lock() = Some(saver);
        }
    }
    // Also where nothing is subscribed to yet: requests may ask for clusters.
    tokio::spawn(publisher.run(saves));
    tokio::spawn(take_orders(Arc::clone(&shared), settings.demand.orders));
    let sources = crate::ads::Sources {
        bootstrap: settings.bootstrap,
        configuration: Configuration { shared: Arc::clone(&shared) },
        metrics,
        watcher: settings.watcher,
        client_tls: settings.client_tls,
        tunnels: settings.tunnels,
        data_errors: settings.data_errors,
        connection: watch::channel(None).0,
    };
    tokio::spawn(sources.run());
    Configuration { shared }
}

/// What a response says not to be there.
struct Withdrawn {
    removed: Vec<Name>,
    /// Everything there is, where the response says so.
    present: Option<BTreeSet<Name>>,
}

#[derive(Debug)]
struct Shared {
    /// Held for moments, never across an await.
    stage: Mutex<Stage>,
    /// When a control plane confirmed what this process began with from the cache.
    confirmed: Option<SystemTime>,
    started: Instant,
    /// Something was staged.
    work: Notify,
    /// [`Stage::referred`] as it was told last.
    wanted: watch::Sender<u64>,
    apply: ApplyHandle,
    inventory: Inventory,
    demands: Arc<Demands>,
    /// [`DataErrors::fail`].
    gives_up_refused: bool,
    /// A control plane could not be reached.
    failed_once: watch::Sender<bool>,
    /// What was accepted is saved a last time.
    ending: watch::Sender<bool>,
    saver: Mutex<Option<JoinHandle<()>>>,
}

impl Configuration {
    /// The time that the stage counts in.
    pub(crate) fn now(&self) -> Duration {
        self.shared.started.elapsed()
    }

    /// Stages what a source brought, and says what of it is refused; what was in force for that stays. Waits until it is
    /// known what could not be applied, never until something is applied.
    pub(crate) async fn receive(&self, mut batch: Batch) -> Vec<Rejection> {
        self.rehearse(&mut batch).await;
        let type_url = type_url_of(batch.kind);
        let rejections: Vec<Rejection> = batch.resources.iter().filter_map(Judged::rejection).collect();
        for judged in &batch.resources {
            if let Some(Rejection { reason, .. }) = judged.rejection() {
                let short = culvert_api::type_url::short_name(type_url);
                tracing::warn!("{short}/{}: refused: {reason}", judged.name);
                self.shared.inventory.refused(type_url, &judged.name, judged.given.clone(), reason);
            }
        }
        let kind = batch.kind;
        let withdrawn = batch.removed.clone();
        if self.shared.gives_up_refused {
            // One whose address somebody else holds is not refused for what it is: it is tried again.
            let refused = batch.resources.iter().filter(|judged| judged.verdict.is_err());
            batch.removed.extend(refused.map(|judged| Arc::clone(&judged.name)));
        }
        let withdrawn = {
            let mut stage = self.shared.stage.lock();
            let named = batch.resources.iter().map(|judged| &judged.name).chain(&batch.malformed);
            let present: Option<BTreeSet<Name>> = stage.is_all(&batch).then(|| named.cloned().collect());
            stage.receive(batch, self.now());
            Withdrawn { removed: withdrawn, present }
        };
        self.forget(kind, &withdrawn);
        self.shared.changed();
        rejections
    }

    /// What was withdrawn without ever having been in force is not shown any more, and of the others that they were refused.
    fn forget(&self, kind: Kind, Withdrawn { removed, present }: &Withdrawn) {
        let stage = self.shared.stage.lock();
        let inventory = &self.shared.inventory;
        let type_url = type_url_of(kind);
        for name in removed {
            if stage.knows(&(kind, Name::clone(name))) {
                inventory.withdrawn(type_url, name);
            } else {
                inventory.removed(type_url, name);
            }
        }
        if let Some(present) = present {
            inventory.retain(type_url, |name, entry| {
                entry.is_failure() || present.contains(name) || stage.knows(&(kind, Arc::clone(name)))
            });
        }
    }

    /// Has everything that is new in a batch tried without effect, and notes what would fail.
    async fn rehearse(&self, batch: &mut Batch) {
        let kind = batch.kind;
        let (mut changes, fresh) = {
            let stage = self.shared.stage.lock();
            let leaving = stage.leaving(batch).into_iter().map(|name| Change::Remove { kind, name });
            let good = batch.resources.iter().enumerate().filter_map(|(index, judged)| {
                let resource = judged.verdict.as_ref().ok().filter(|resource| !stage.has(kind, resource))?;
                Some((index, resource.clone()))
            });
            (leaving.collect::<Vec<_>>(), good.collect::<Vec<_>>())
        };
        let mut scopes = None;
        for judged in &mut batch.resources {
            let stage = self.shared.stage.lock();
            let misfit = judged.verdict.as_ref().ok().and_then(|resource| stage.misfit(resource, &mut scopes));
            drop(stage);
            if let Some(misfit) = misfit {
                judged.verdict = Err(misfit);
            }
        }
        if fresh.is_empty() || kind == Kind::Endpoints {
            return;
        }
        let leaving = changes.len();
        changes.extend(fresh.iter().map(|(_, resource)| Change::Set(resource.clone())));
        let answers = self.shared.apply.rehearse(changes).await.into_iter().skip(leaving);
        for ((index, _), answer) in fresh.into_iter().zip(answers) {
            let Some(judged) = batch.resources.get_mut(index) else { continue };
            match answer {
                Ok(()) | Err(ApplyError::Ending) => {}
                Err(error) if error.may_pass() => judged.hindrance = Some(error.to_string()),
                Err(error) => judged.verdict = Err(error.to_string()),
            }
        }
    }

    /// A resource's time is up.
    pub(crate) fn not_found(&self, missing: &Missing) {
        let Some(kind) = kind_of(&missing.type_url) else { return };
        let short = culvert_api::type_url::short_name(&missing.type_url);
        let key = (kind, Arc::clone(&missing.name));
        match missing.why {
            Absence::Unanswered => {
                tracing::warn!("{short}/{}: the control plane did not deliver it in time", missing.name);
                self.shared.stage.lock().unanswered(key, self.now());
            }
            Absence::Unavailable => {
                let message = "the control plane did not deliver it in time";
                tracing::warn!("{short}/{}: {message}", missing.name);
                self.shared.inventory.failed(&missing.type_url, &missing.name, Failure::UNAVAILABLE, message);
                self.shared.stage.lock().unavailable(&key);
            }
            Absence::Expired => {
                tracing::warn!("{short}/{}: its TTL is over, and it did not come again", missing.name);
                self.shared.stage.lock().expire(key, self.now());
            }
        }
        self.shared.changed();
    }

    /// The control plane says that it cannot give a resource. What was accepted stays; what does not exist is not waited
    /// for.
    pub(crate) fn failed(&self, kind: Kind, failure: &Failure) {
        let type_url = type_url_of(kind);
        let Failure { name, code, message } = failure;
        let short = culvert_api::type_url::short_name(type_url);
        tracing::warn!(code, "{short}/{name}: the control plane cannot give it: {message}");
        self.shared.inventory.failed(type_url, name, *code, message);
        if *code == Failure::NOT_FOUND {
            self.shared.stage.lock().not_found((kind, Arc::clone(name)));
            self.shared.changed();
        }
    }

    /// See [`Stage::accepted_last`].
    pub(crate) fn accepted_last(&self, kind: Kind, name: &Name) -> Option<(Given, Resource)> {
        self.shared.stage.lock().accepted_last(kind, name)
    }

    /// See [`Stage::held_deletions`].
    pub(crate) fn held_deletions(&self) -> usize {
        self.shared.stage.lock().held_deletions()
    }

    /// See [`Stage::scopes`].
    pub(crate) fn scopes(&self) -> Vec<(Kind, Name, ScopePath)> {
        self.shared.stage.lock().scopes()
    }

    /// What is subscribed to, by kind and source.
    pub(crate) fn interests(&self) -> Vec<(Kind, ConfigSourceKind, Interest)> {
        self.shared.stage.lock().interests()
    }

    /// Changes whenever [`Configuration::interests`] may have.
    pub(crate) fn watch_interests(&self) -> watch::Receiver<u64> {
        self.shared.wanted.subscribe()
    }

    /// Names for which a cached resource stands in.
    pub(crate) fn cached(&self, kind: Kind) -> Vec<Name> {
        self.shared.stage.lock().cached(kind)
    }

    /// How many resources in use a control plane (or file) gave to this process, and how many only a cache.
    pub(crate) fn origins(&self) -> (usize, usize) {
        self.shared.stage.lock().origins()
    }

    /// How long ago a control plane confirmed what the cache had, as long as any of that is in use.
    pub(crate) fn cache_age(&self) -> Option<Duration> {
        let (_, cached) = self.origins();
        let confirmed = self.shared.confirmed.filter(|_| cached > 0)?;
        // A clock that was set back makes it new, and no error.
        Some(confirmed.elapsed().unwrap_or_default())
    }

    /// The process ends: saves what was accepted since the last time.
    pub(crate) async fn end(&self) {
        self.shared.ending.send_replace(true);
        let saver = self.shared.saver.lock().take();
        if let Some(saver) = saver
            && tokio::time::timeout(SAVE_DEADLINE, saver).await.is_err()
        {
            tracing::warn!(within = ?SAVE_DEADLINE, "the configuration accepted last could not be saved in time");
        }
    }

    /// A control plane could not be reached: whoever can serve without it need not wait any longer.
    pub(crate) fn unreachable(&self) {
        self.shared.failed_once.send_replace(true);
    }
}

impl Shared {
    /// Accepted resources that are not in force yet: `Listener edge waits for Secret edge-cert`.
    fn warming(&self) -> Vec<String> {
        let warming = self.stage.lock().warming(self.started.elapsed());
        let line = |((kind, name), on): (Key, Vec<String>)| {
            let short = culvert_api::type_url::short_name(type_url_of(kind));
            format!("{short} {name} waits for {}", on.join(", "))
        };
        warming.into_iter().map(line).collect()
    }

    fn changed(&self) {
        self.tell_what_is_wanted();
        self.work.notify_one();
    }

    /// Wakes who subscribes, if it may have to.
    fn tell_what_is_wanted(&self) {
        let referred = self.stage.lock().referred();
        if self.wanted.send_if_modified(|told| std::mem::replace(told, referred) != referred) {
            self.forget_the_unwanted();
        }
    }

    /// What was refused, or could not be given, is of no interest to anybody once nobody asks for it.
    fn forget_the_unwanted(&self) {
        let interests = self.stage.lock().interests();
        for type_url in self.inventory.type_urls() {
            let of_type: Vec<&Interest> = interests
                .iter()
                .filter_map(|(kind, _, interest)| (type_url_of(*kind) == type_url).then_some(interest))
                .collect();
            self.inventory.retain(&type_url, |name, entry| {
                let is_there = entry.active.is_some() || entry.warming.is_some();
                // Of everything there is, what cannot be given is what somebody asked for by name.
                let wanted =
                    |interest: &&Interest| interest.names.contains(name) || (interest.wildcard && !entry.is_failure());
                is_there || of_type.iter().any(wanted)
            });
        }
    }
}

/// Asks control planes for what requests ask for.
async fn take_orders(shared: Arc<Shared>, mut orders: mpsc::Receiver<Order>) {
    while let Some(order) = orders.recv().await {
        let refused = shared.stage.lock().demand(order, shared.started.elapsed());
        if let Some((wanted, name)) = refused {
            shared.demands.answer(wanted, &name);
        }
        shared.changed();
    }
}

/// Ready when the control plane has said what there is and that is in force, when it cannot be reached and there is
/// something to serve without it, or after the time that Envoy gives it.
async fn release_when_ready(shared: Arc<Shared>, ready: ReadinessBlocker) {
    let mut failed = shared.failed_once.subscribe();
    let mut wanted = shared.wanted.subscribe();
    let settled = async {
        loop {
            {
                let stage = shared.stage.lock();
                let answered = [Kind::Cluster, Kind::Listener].into_iter().all(|kind| stage.is_answered(kind));
                if (answered && stage.has_fixed() && stage.is_settled()) || (*failed.borrow() && stage.has_listener()) {
                    return;
                }
            }
            tokio::select! {
                _ = failed.changed() => {}
                _ = wanted.changed() => {}
                () = tokio::time::sleep(LOOK_AGAIN) => {}
            }
        }
    };
    if tokio::time::timeout(READY_TIME, settled).await.is_err() {
        let waiting = shared.warming().join("; ");
        tracing::warn!(within = ?READY_TIME, waiting, "no complete dynamic configuration yet; ready without it");
    }
    drop(ready);
}

/// Envoy: `initial_fetch_timeout`.
const READY_TIME: Duration = Duration::from_secs(15);
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// For the last save; a disk that hangs must not hold the end back.
const SAVE_DEADLINE: Duration = Duration::from_secs(5);
