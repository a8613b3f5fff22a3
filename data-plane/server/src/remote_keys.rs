//! Keys that are fetched (`remote_jwks`): one task for each server and path, whoever uses its keys, as long as anybody does.
//!
//! **What was fetched last stays** when nothing newer can be had; before the first fetch there is no key, so that no token is
//! good. Nothing here runs on a worker.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use culvert_http::Version;
use culvert_model::tunnel::jwks::RemoteJwks;
use culvert_runtime::backoff::Backoff;
use culvert_tunnel::envoy::jwt::{JwksError, KeySet};
use culvert_upstream::{Clusters, UpstreamFailure};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

/// Every set of keys that is fetched. Without clusters (a check, a rehearsal) nothing is.
#[derive(Debug, Default)]
pub(crate) struct RemoteKeys {
    clusters: OnceLock<Arc<Clusters>>,
    fetchers: Mutex<HashMap<Arc<RemoteJwks>, Fetcher>>,
    fetched: Arc<Notify>,
    counts: Arc<Counts>,
}

/// Of all fetches.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    succeeded: AtomicU64,
    failed: AtomicU64,
}

#[derive(Debug)]
struct Fetcher {
    keys: Arc<ArcSwapOption<KeySet>>,
    _task: AbortOnDropHandle<()>,
}

/// Why there are no newer keys.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error(transparent)]
    Upstream(#[from] UpstreamFailure),
    #[error("the request cannot be made: {0}")]
    Request(#[from] http::Error),
    #[error("HTTP: {0}")]
    Http(#[from] hyper::Error),
    #[error("the answer is {0}")]
    Status(http::StatusCode),
    #[error("the body: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
    #[error("what came {0}")]
    Keys(#[from] JwksError),
}

impl RemoteKeys {
    /// Over these clusters keys are fetched from now on.
    pub(crate) fn begin(&self, clusters: &Arc<Clusters>) {
        // Said once, when the process starts.
        drop(self.clusters.set(Arc::clone(clusters)));
    }

    /// The keys as they were fetched last. Who asks first has them fetched.
    pub(crate) fn keys(&self, remote: &Arc<RemoteJwks>) -> Arc<KeySet> {
        let Some(clusters) = self.clusters.get() else { return Arc::default() };
        let mut fetchers = self.fetchers.lock();
        let fetcher = fetchers.entry(Arc::clone(remote)).or_insert_with(|| {
            let keys = Arc::new(ArcSwapOption::empty());
            let following = Following {
                remote: Arc::clone(remote),
                clusters: Arc::clone(clusters),
                keys: Arc::clone(&keys),
                fetched: Arc::clone(&self.fetched),
                counts: Arc::clone(&self.counts),
            };
            Fetcher { keys, _task: AbortOnDropHandle::new(tokio::spawn(following.run())) }
        });
        fetcher.keys.load_full().unwrap_or_default()
    }

    /// Fetches no more what nobody uses.
    pub(crate) fn retain(&self, used: &HashSet<Arc<RemoteJwks>>) {
        self.fetchers.lock().retain(|remote, _| used.contains(remote));
    }

    /// Waits until other keys have come than before.
    pub(crate) async fn fetched(&self) {
        self.fetched.notified().await;
    }

    /// Fetches that succeeded, and attempts that failed.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.counts.succeeded.load(Ordering::Relaxed), self.counts.failed.load(Ordering::Relaxed))
    }
}

/// One set of keys, kept up to date.
struct Following {
    remote: Arc<RemoteJwks>,
    clusters: Arc<Clusters>,
    keys: Arc<ArcSwapOption<KeySet>>,
    fetched: Arc<Notify>,
    counts: Arc<Counts>,
}

impl Following {
    async fn run(self) {
        let remote = &*self.remote;
        let mut retry = Backoff::new(remote.retry_base, remote.retry_max);
        let mut again = Backoff::new(remote.refetch, remote.refetch.max(MOST_WAIT));
        let mut content = None;
        loop {
            let wait = match self.fetch().await {
                Ok((bytes, keys)) => {
                    self.counts.succeeded.fetch_add(1, Ordering::Relaxed);
                    retry.reset();
                    again.reset();
                    if content.as_ref() != Some(&bytes) {
                        tracing::info!(cluster = %remote.cluster, path = %remote.path, "keys were fetched");
                        content = Some(bytes);
                        self.keys.store(Some(Arc::new(keys)));
                        self.fetched.notify_one();
                    }
                    // Before they are too old, and not everybody at the same time.
                    remote.lifetime.mul_f64(0.8 + 0.1 * fastrand::f64())
                }
                Err(error) => {
                    self.counts.failed.fetch_add(1, Ordering::Relaxed);
                    let wait = if retry.attempts() < remote.retries {
                        retry.next_delay()
                    } else {
                        retry.reset();
                        // Never at once: what is asked may be what is overloaded.
                        again.next_delay().max(remote.refetch / 2)
                    };
                    let known = content.is_some();
                    tracing::warn!(
                        cluster = %remote.cluster, path = %remote.path, %error, known, ?wait,
                        "keys cannot be fetched; those that came last stay"
                    );
                    wait
                }
            };
            sleep(wait).await;
        }
    }

    async fn fetch(&self) -> Result<(Bytes, KeySet), FetchError> {
        let limit = self.remote.timeout;
        let bytes = timeout(limit, self.get()).await.map_err(|_| FetchError::Timeout(limit))??;
        let keys = KeySet::parse(&bytes)?;
        Ok((bytes, keys))
    }

    async fn get(&self) -> Result<Bytes, FetchError> {
        let remote = &*self.remote;
        let (io, version) = culvert_upstream::connect(&self.clusters, &remote.cluster, &remote.authority).await?;
        let io = TokioIo::new(io);
        let request = http::Request::get(&*remote.path).header("accept", "application/json");
        match version {
            Version::Http2 => {
                let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
                let _driver = AbortOnDropHandle::new(tokio::spawn(connection));
                let request = request.uri(format!("https://{}{}", remote.authority, remote.path));
                body(sender.send_request(request.body(Empty::<Bytes>::new())?).await?).await
            }
            Version::Http10 | Version::Http11 => {
                let (mut sender, connection) = http1::handshake(io).await?;
                let _driver = AbortOnDropHandle::new(tokio::spawn(connection));
                let request = request.header("host", &*remote.authority).header("connection", "close");
                body(sender.send_request(request.body(Empty::<Bytes>::new())?).await?).await
            }
        }
    }
}

/// The whole body of a success.
async fn body(response: http::Response<hyper::body::Incoming>) -> Result<Bytes, FetchError> {
    if response.status() != http::StatusCode::OK {
        return Err(FetchError::Status(response.status()));
    }
    let body = Limited::new(response.into_body(), JWKS_LIMIT).collect().await.map_err(FetchError::Body)?;
    Ok(body.to_bytes())
}

/// Of what is fetched, in bytes.
const JWKS_LIMIT: usize = 1 << 20;
/// The longest wait after a fetch that failed.
const MOST_WAIT: Duration = Duration::from_secs(60);
