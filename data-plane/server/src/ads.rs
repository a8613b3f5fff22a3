//! The driver of the subscription protocol: one task per source that is in use.
//!
//! A source is the bootstrap's ADS stream, a stream of its own for one type, or a file. [`Sources`] starts and stops the
//! tasks as the configuration refers to them; each feeds [`Configuration::receive`] and answers at once.

#[cfg(test)]
mod bad_responses;
mod connect;
mod files;
mod metrics;
mod report;
mod stream;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::sync::Arc;

use culvert_model::Name;
use culvert_model::bootstrap::Bootstrap;
use culvert_model::source::{ConfigSourceKind, GrpcSource};
use culvert_runtime::files::FileWatcher;
use culvert_xds::client::{Interest, Rejection, Update};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::transport::Channel;

pub(crate) use self::metrics::{Metrics, Outcome};
use crate::apply::Kind;
use crate::config::{Batch, ClientTls, Configuration, DataErrors, judge, kind_of};
use crate::overview::TunnelView;

/// Where resources come from, as a task sees it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Source {
    /// The stream of `ads_config`, for every kind that names it.
    Ads(GrpcSource),
    /// A stream for one kind.
    Grpc(Kind, GrpcSource),
    /// A file that holds resources of one kind.
    File { kind: Kind, path: std::path::PathBuf, directory: Option<std::path::PathBuf> },
}

/// Runs the tasks of all sources.
pub(crate) struct Sources {
    pub(crate) bootstrap: Arc<Bootstrap>,
    pub(crate) configuration: Configuration,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) watcher: FileWatcher,
    pub(crate) client_tls: ClientTls,
    /// What the control plane is told of.
    pub(crate) tunnels: TunnelView,
    pub(crate) data_errors: DataErrors,
    /// The connection of the ADS stream while that is open.
    pub(crate) connection: watch::Sender<Option<Channel>>,
}

impl Sources {
    /// Keeps the tasks that the configuration needs, for ever.
    pub(crate) async fn run(self) {
        let shared = Arc::new(self);
        tokio::spawn(report::run(Arc::clone(&shared), shared.connection.subscribe()));
        let mut interests = shared.configuration.watch_interests();
        let mut running: Vec<(Source, JoinHandle<()>)> = Vec::new();
        loop {
            let wanted = shared.wanted();
            running.retain(|(source, task)| {
                let keep = wanted.contains(source);
                if !keep {
                    tracing::info!(?source, "no longer subscribed to");
                    task.abort();
                }
                keep
            });
            for source in wanted {
                if !running.iter().any(|(other, _)| *other == source) {
                    let task = tokio::spawn(Arc::clone(&shared).feed(source.clone()));
                    running.push((source, task));
                }
            }
            if interests.changed().await.is_err() {
                return;
            }
        }
    }

    async fn feed(self: Arc<Self>, source: Source) {
        match &source {
            Source::Ads(grpc) | Source::Grpc(_, grpc) => {
                Box::pin(stream::Driver::new(&self, &source, grpc).run()).await;
            }
            Source::File { kind, path, directory } => {
                files::run(&self, &source, *kind, path, directory.as_deref()).await
            }
        }
    }

    /// The sources of everything that is subscribed to.
    fn wanted(&self) -> Vec<Source> {
        let mut sources = Vec::new();
        for (kind, config, _) in self.configuration.interests() {
            match self.source_of(kind, config) {
                Some(source) if !sources.contains(&source) => sources.push(source),
                Some(_) => {}
                None => tracing::error!(?kind, "ads is named as a source, and the bootstrap has no ads_config"),
            }
        }
        sources
    }

    fn source_of(&self, kind: Kind, config: ConfigSourceKind) -> Option<Source> {
        Some(match config {
            ConfigSourceKind::Ads => Source::Ads(self.bootstrap.dynamic.ads.clone()?),
            ConfigSourceKind::Grpc(grpc) => Source::Grpc(kind, grpc),
            ConfigSourceKind::Path { path, watched_directory } => {
                Source::File { kind, path, directory: watched_directory }
            }
        })
    }

    /// What is to be asked of `source`, by kind.
    fn interests_of(&self, source: &Source) -> Vec<(Kind, Interest)> {
        let interests = self.configuration.interests().into_iter();
        interests
            .filter(|(kind, config, _)| self.source_of(*kind, config.clone()).as_ref() == Some(source))
            .map(|(kind, _, interest)| (kind, interest))
            .collect()
    }

    /// Judges and stages a response; what is refused of it.
    /// `first`: of its kind on its stream.
    async fn take(&self, kind: Kind, update: &Update<'_>, whole: bool, first: bool) -> Vec<Rejection> {
        let type_url = update.type_url();
        let resources: Vec<_> = update
            .resources()
            .iter()
            .map(|received| {
                let before = self.configuration.accepted_last(kind, &received.name);
                let mut judged = judge(type_url, &received.name, &received.version, &received.body, before.as_ref());
                judged.given.temporary = update.is_temporary(&received.name);
                judged
            })
            .collect();
        for rejection in update.rejections() {
            let short = culvert_api::type_url::short_name(type_url);
            tracing::warn!("{short}/{}: refused: {}", rejection.name, rejection.reason);
        }
        let malformed = update.rejections().iter().map(|rejection| rejection.name.as_str().into()).collect();
        for failure in update.failures() {
            self.configuration.failed(kind, failure);
        }
        let removed = update.removed().to_vec();
        let aliases = update.aliases().to_vec();
        let names: Vec<Name> = update.resources().iter().map(|received| Name::clone(&received.name)).collect();
        let rejections =
            self.configuration.receive(Batch { kind, resources, removed, aliases, malformed, whole, first }).await;
        let refused = !rejections.is_empty() || !update.rejections().is_empty();
        self.metrics.count(kind, if refused { Outcome::Rejected } else { Outcome::Success });
        let bad: HashSet<&str> = rejections.iter().map(|rejection| rejection.name.as_str()).collect();
        for name in &names {
            let outcome = if bad.contains(&**name) { Outcome::Rejected } else { Outcome::Success };
            self.metrics.count_for(kind, name, Outcome::Attempt);
            self.metrics.count_for(kind, name, outcome);
        }
        for rejection in update.rejections().iter().filter(|rejection| !rejection.name.is_empty()) {
            self.metrics.count_for(kind, &rejection.name.as_str().into(), Outcome::Rejected);
        }
        rejections
    }
}

impl std::fmt::Debug for Sources {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sources").field("configuration", &self.configuration).finish_non_exhaustive()
    }
}

/// The kind of a response's type, which was asked for by kind.
fn kind_of_update(update: &Update<'_>) -> Option<Kind> {
    kind_of(update.type_url())
}
