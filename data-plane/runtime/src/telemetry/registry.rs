//! Every scope of the process by name, for those who read metrics.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::{BUCKETS, Metric, MetricKind, Metrics, Scope, Shared};

/// What the name of a scope's metrics begins with: `cluster.edge.upstream_rq_total` to those who read text,
/// `envoy_cluster_upstream_rq_total{envoy_cluster_name="edge"}` to Prometheus.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ScopePath {
    /// `cluster`, `http`, `listener` ...
    pub root: &'static str,
    /// The part of the name that is a value: a tag in Prometheus.
    pub name: Option<Tag>,
    /// What follows the name, without dots at its ends: `circuit_breakers.default`. May be empty.
    pub suffix: &'static str,
    /// A second value, behind the suffix: `http.in.rds.ROUTES`.
    pub inner: Option<Tag>,
}

impl ScopePath {
    /// `root.suffix` of nothing in particular (`server`).
    #[must_use]
    pub fn process(root: &'static str) -> Self {
        Self { root, name: None, suffix: "", inner: None }
    }

    /// `cluster.NAME`, tag `envoy_cluster_name`.
    #[must_use]
    pub fn cluster(name: impl Into<Arc<str>>) -> Self {
        Self::named("cluster", "envoy_cluster_name", name)
    }

    /// `http.PREFIX`, tag `envoy_http_conn_manager_prefix`.
    #[must_use]
    pub fn http(prefix: impl Into<Arc<str>>) -> Self {
        Self::named("http", "envoy_http_conn_manager_prefix", prefix)
    }

    /// `listener.ADDRESS`, tag `envoy_listener_address`; colons of the address become underscores, as in Envoy.
    #[must_use]
    pub fn listener(address: &str) -> Self {
        Self::named("listener", "envoy_listener_address", address.replace(':', "_"))
    }

    /// `tcp.PREFIX`, tag `envoy_tcp_prefix`.
    #[must_use]
    pub fn tcp(prefix: impl Into<Arc<str>>) -> Self {
        Self::named("tcp", "envoy_tcp_prefix", prefix)
    }

    /// `udp.PREFIX`, tag `envoy_udp_prefix`.
    #[must_use]
    pub fn udp(prefix: impl Into<Arc<str>>) -> Self {
        Self::named("udp", "envoy_udp_prefix", prefix)
    }

    /// `root.NAME` with a tag of the caller's.
    #[must_use]
    pub fn named(root: &'static str, tag: &'static str, name: impl Into<Arc<str>>) -> Self {
        Self { root, name: Some(Tag { key: tag, value: name.into() }), suffix: "", inner: None }
    }

    /// The same scope's sub-group.
    #[must_use]
    pub fn with_suffix(mut self, suffix: &'static str) -> Self {
        self.suffix = suffix;
        self
    }

    /// The same scope's part for a value of its own.
    #[must_use]
    pub fn with_inner(mut self, suffix: &'static str, tag: &'static str, name: impl Into<Arc<str>>) -> Self {
        self.suffix = suffix;
        self.inner = Some(Tag { key: tag, value: name.into() });
        self
    }

    /// `cluster.edge.`
    pub(super) fn text_prefix(&self) -> String {
        let name = self.name.as_ref().map(|tag| &*tag.value);
        let inner = self.inner.as_ref().map(|tag| &*tag.value);
        let parts = [Some(self.root), name, Some(self.suffix), inner];
        parts.into_iter().flatten().filter(|part| !part.is_empty()).fold(String::new(), |text, part| text + part + ".")
    }

    /// `envoy_cluster_`
    pub(super) fn prometheus_prefix(&self) -> String {
        let parts = ["envoy", self.root, self.suffix];
        parts.into_iter().filter(|part| !part.is_empty()).fold(String::new(), |text, part| text + part + "_")
    }
}

/// A label and its value.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Tag {
    pub key: &'static str,
    pub value: Arc<str>,
}

/// The process's metrics. Cheap to clone; holds no scope alive.
#[derive(Clone, Default)]
pub struct Registry {
    shared: Arc<Mutex<Entries>>,
}

#[derive(Default)]
struct Entries {
    scopes: HashMap<(ScopePath, usize), Weak<Shared>>,
    sources: Vec<Source>,
    /// How many scopes were left when dead ones were last removed.
    swept: usize,
}

type Source = Box<dyn Fn(&mut Vec<Sample>) + Send>;

/// One metric's value at the moment of reading.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    pub path: ScopePath,
    /// `upstream_rq_total`
    pub name: Cow<'static, str>,
    pub value: Value,
}

/// A value, by its kind.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Counter(u64),
    Gauge(u64),
    Histogram {
        /// How many values each bucket holds by itself, the unbounded one last.
        buckets: [u64; BUCKETS.len() + 1],
        count: u64,
        sum_milliseconds: f64,
    },
    /// Envoy's text readouts; not shown to Prometheus.
    Text(String),
}

impl Sample {
    #[must_use]
    pub fn gauge(path: ScopePath, name: impl Into<Cow<'static, str>>, value: u64) -> Self {
        Self { path, name: name.into(), value: Value::Gauge(value) }
    }

    #[must_use]
    pub fn counter(path: ScopePath, name: impl Into<Cow<'static, str>>, value: u64) -> Self {
        Self { path, name: name.into(), value: Value::Counter(value) }
    }

    /// `cluster.edge.upstream_rq_total`
    #[must_use]
    pub fn full_name(&self) -> String {
        self.path.text_prefix() + &self.name
    }
}

impl Registry {
    /// The scope of that path: the one that lives already, or a new one. It is read as long as somebody holds it.
    #[must_use]
    pub fn scope<M: Metrics>(&self, path: ScopePath) -> Scope<M> {
        let key = (path, M::ALL.as_ptr().addr());
        let mut entries = self.shared.lock();
        if let Some(shared) = entries.scopes.get(&key).and_then(Weak::upgrade) {
            return Scope { shared, metrics: std::marker::PhantomData };
        }
        let scope = Scope::<M>::default();
        entries.insert(key, &scope.shared);
        scope
    }

    /// Makes a scope that exists already readable under that path, in place of another one there.
    pub fn add<M: Metrics>(&self, path: ScopePath, scope: &Scope<M>) {
        self.shared.lock().insert((path, M::ALL.as_ptr().addr()), &scope.shared);
    }

    /// Has `source` asked for values whenever metrics are read: for what is not counted but looked up.
    pub fn add_source(&self, source: impl Fn(&mut Vec<Sample>) + Send + 'static) {
        self.shared.lock().sources.push(Box::new(source));
    }

    /// All metrics at this moment, sorted by name.
    #[must_use]
    pub fn samples(&self) -> Vec<Sample> {
        let mut samples = Vec::new();
        let entries = self.shared.lock();
        let scopes: Vec<_> =
            entries.scopes.iter().filter_map(|((path, _), scope)| Some((path.clone(), scope.upgrade()?))).collect();
        for source in &entries.sources {
            source(&mut samples);
        }
        drop(entries);
        for (path, scope) in scopes {
            for (index, metric) in scope.all.iter().enumerate() {
                scope.sample(&path, index, *metric, &mut samples);
            }
        }
        samples.sort_by_cached_key(Sample::full_name);
        samples
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("scopes", &self.shared.lock().scopes.len()).finish()
    }
}

impl Entries {
    fn insert(&mut self, key: (ScopePath, usize), scope: &Arc<Shared>) {
        if self.scopes.len() > 2 * self.swept + 64 {
            self.scopes.retain(|_, scope| scope.strong_count() > 0);
            self.swept = self.scopes.len();
        }
        self.scopes.insert(key, Arc::downgrade(scope));
    }
}

impl Shared {
    fn sample(&self, path: &ScopePath, index: usize, metric: Metric, samples: &mut Vec<Sample>) {
        let place = self.layout.get(index).copied().unwrap_or(0);
        let value = match metric.kind {
            MetricKind::Counter => Value::Counter(self.read(index)),
            MetricKind::Gauge => Value::Gauge(self.read(index)),
            MetricKind::Histogram => {
                let buckets = std::array::from_fn(|bucket| self.read(place + bucket));
                let microseconds = self.read(place + BUCKETS.len() + 1);
                #[expect(clippy::cast_precision_loss, reason = "a sum of durations for dashboards")]
                let sum_milliseconds = microseconds as f64 / 1000.0;
                Value::Histogram { buckets, count: self.read(index), sum_milliseconds }
            }
            MetricKind::Statuses => {
                let counted = self.read_statuses(place).into_iter();
                let name = |status| format!("{}_{status}", metric.name);
                samples.extend(counted.map(|(status, count)| Sample::counter(path.clone(), name(status), count)));
                return;
            }
        };
        samples.push(Sample { path: path.clone(), name: Cow::Borrowed(metric.name), value });
    }
}
