//! Load reports, added up over nodes.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use culvert_api::envoy::config::core::v3::Address;
use culvert_api::envoy::config::core::v3::address::Address as Kind;
use culvert_api::envoy::config::core::v3::socket_address::PortSpecifier;
use culvert_api::envoy::config::endpoint::v3::{ClusterStats, UpstreamEndpointStats, UpstreamLocalityStats};
use parking_lot::Mutex;

/// Clusters that are added up; reports about more are counted and dropped.
const MAX_CLUSTERS: usize = 20_000;
/// Localities of one cluster, and categories of its drops.
const MAX_PARTS: usize = 256;
/// Endpoints of all clusters together.
const MAX_ENDPOINTS: u64 = 100_000;
/// Longest name, in bytes.
const MAX_NAME: usize = 1024;

/// What all nodes reported since the start.
#[derive(Debug, Clone, Default)]
pub(crate) struct Loads(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    totals: Mutex<BTreeMap<Key, ClusterLoad>>,
    reporters: AtomicU64,
    dropped: AtomicU64,
    endpoints: AtomicU64,
}

/// A cluster, and its assignment's name where that is another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    pub(crate) cluster: String,
    pub(crate) service: String,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct ClusterLoad {
    pub(crate) requests: Requests,
    pub(crate) dropped: u64,
    pub(crate) dropped_by_category: BTreeMap<String, u64>,
    pub(crate) localities: BTreeMap<Place, Requests>,
    /// By address, of nodes that were asked for them.
    pub(crate) endpoints: BTreeMap<String, Requests>,
    pub(crate) last_report: Option<SystemTime>,
}

impl ClusterLoad {
    fn without_endpoints(&self) -> Self {
        Self {
            requests: self.requests,
            dropped: self.dropped,
            dropped_by_category: self.dropped_by_category.clone(),
            localities: self.localities.clone(),
            endpoints: BTreeMap::new(),
            last_report: self.last_report,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Place {
    pub(crate) region: String,
    pub(crate) zone: String,
    pub(crate) sub_zone: String,
    pub(crate) priority: u32,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Requests {
    pub(crate) successes: u64,
    pub(crate) errors: u64,
    pub(crate) issued: u64,
    /// In the latest reports.
    pub(crate) in_progress: u64,
}

/// What of a cluster a count is about.
#[derive(Debug, PartialEq, Eq, Hash)]
enum Part {
    Locality(Place),
    Endpoint(String),
}

/// One node's stream of reports; what it has in progress is forgotten when it ends.
#[derive(Debug)]
pub(crate) struct Reporter {
    loads: Loads,
    in_progress: Mutex<HashMap<(Key, Part), u64>>,
}

impl Loads {
    pub(crate) fn reporter(&self) -> Reporter {
        self.0.reporters.fetch_add(1, Ordering::Relaxed);
        Reporter { loads: self.clone(), in_progress: Mutex::default() }
    }

    /// The clusters that are wanted, in order of name.
    pub(crate) fn clusters(&self, wanted: impl Fn(&Key) -> bool) -> Vec<(Key, ClusterLoad)> {
        let totals = self.0.totals.lock();
        totals.iter().filter(|(key, _)| wanted(key)).map(|(key, load)| (key.clone(), load.clone())).collect()
    }

    /// Every cluster, in order of name; endpoints, of which there may be very many, are left out.
    pub(crate) fn without_endpoints(&self) -> Vec<(Key, ClusterLoad)> {
        self.0.totals.lock().iter().map(|(key, load)| (key.clone(), load.without_endpoints())).collect()
    }

    /// Streams of reports that are open.
    pub(crate) fn reporters(&self) -> u64 {
        self.0.reporters.load(Ordering::Relaxed)
    }

    /// Reports on clusters beyond the limit.
    pub(crate) fn dropped(&self) -> u64 {
        self.0.dropped.load(Ordering::Relaxed)
    }

    /// In Prometheus' text format.
    pub(crate) fn prometheus(&self, text: &mut String) {
        let clusters = self.without_endpoints();
        let name = "culvert_control_load_requests_total";
        // Writing to a string does not fail.
        let _ = writeln!(text, "# HELP {name} Requests that nodes reported, by cluster.\n# TYPE {name} counter");
        for (key, load) in &clusters {
            let cluster = escaped(&key.cluster);
            let Requests { successes, errors, .. } = load.requests;
            for (result, count) in [("success", successes), ("error", errors), ("dropped", load.dropped)] {
                let _ = writeln!(text, "{name}{{cluster=\"{cluster}\",result=\"{result}\"}} {count}");
            }
        }
        let name = "culvert_control_load_requests_in_progress";
        let _ = writeln!(text, "# HELP {name} Requests in progress in the latest reports.\n# TYPE {name} gauge");
        for (key, load) in &clusters {
            let _ = writeln!(text, "{name}{{cluster=\"{}\"}} {}", escaped(&key.cluster), load.requests.in_progress);
        }
    }
}

impl Reporter {
    pub(crate) fn report(&self, stats: &[ClusterStats]) {
        let mut totals = self.loads.0.totals.lock();
        for cluster in stats {
            let key = Key { cluster: cluster.cluster_name.clone(), service: cluster.cluster_service_name.clone() };
            let fits = key.cluster.len() <= MAX_NAME && key.service.len() <= MAX_NAME;
            if !fits || (totals.len() >= MAX_CLUSTERS && !totals.contains_key(&key)) {
                self.loads.0.dropped.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            let load = totals.entry(key.clone()).or_default();
            load.last_report = Some(SystemTime::now());
            load.dropped = load.dropped.saturating_add(cluster.total_dropped_requests);
            for dropped in &cluster.dropped_requests {
                let known = load.dropped_by_category.contains_key(&dropped.category);
                if known || (load.dropped_by_category.len() < MAX_PARTS && dropped.category.len() <= MAX_NAME) {
                    let count = load.dropped_by_category.entry(dropped.category.clone()).or_default();
                    *count = count.saturating_add(dropped.dropped_count);
                }
            }
            for locality in &cluster.upstream_locality_stats {
                self.locality(load, &key, locality);
            }
        }
    }

    fn locality(&self, load: &mut ClusterLoad, key: &Key, stats: &UpstreamLocalityStats) {
        let locality = stats.locality.clone().unwrap_or_default();
        let (region, zone, sub_zone) = (locality.region, locality.zone, locality.sub_zone);
        let fits = [&region, &zone, &sub_zone].iter().all(|name| name.len() <= MAX_NAME);
        let place = Place { region, zone, sub_zone, priority: stats.priority };
        if !fits || (load.localities.len() >= MAX_PARTS && !load.localities.contains_key(&place)) {
            self.loads.0.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let latest = Requests {
            successes: stats.total_successful_requests,
            errors: stats.total_error_requests,
            issued: stats.total_issued_requests,
            in_progress: stats.total_requests_in_progress,
        };
        let before = self.before(key, Part::Locality(place.clone()), latest);
        load.localities.entry(place).or_default().add(latest, before);
        load.requests.add(latest, before);
        for endpoint in &stats.upstream_endpoint_stats {
            self.endpoint(load, key, endpoint);
        }
    }

    fn endpoint(&self, load: &mut ClusterLoad, key: &Key, stats: &UpstreamEndpointStats) {
        let Some(address) = stats.address.as_ref().and_then(shown) else { return };
        if !load.endpoints.contains_key(&address) {
            let endpoints = &self.loads.0.endpoints;
            if address.len() > MAX_NAME || endpoints.load(Ordering::Relaxed) >= MAX_ENDPOINTS {
                self.loads.0.dropped.fetch_add(1, Ordering::Relaxed);
                return;
            }
            endpoints.fetch_add(1, Ordering::Relaxed);
        }
        let latest = Requests {
            successes: stats.total_successful_requests,
            errors: stats.total_error_requests,
            issued: stats.total_issued_requests,
            in_progress: stats.total_requests_in_progress,
        };
        let before = self.before(key, Part::Endpoint(address.clone()), latest);
        load.endpoints.entry(address).or_default().add(latest, before);
    }

    /// What was in progress by the report before.
    fn before(&self, key: &Key, part: Part, latest: Requests) -> u64 {
        self.in_progress.lock().insert((key.clone(), part), latest.in_progress).unwrap_or_default()
    }
}

impl Requests {
    /// Counts since the last report; of those in progress then, `before`, none is any more.
    fn add(&mut self, latest: Self, before: u64) {
        self.successes = self.successes.saturating_add(latest.successes);
        self.errors = self.errors.saturating_add(latest.errors);
        self.issued = self.issued.saturating_add(latest.issued);
        self.in_progress = self.in_progress.saturating_sub(before).saturating_add(latest.in_progress);
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.loads.0.reporters.fetch_sub(1, Ordering::Relaxed);
        let mut totals = self.loads.0.totals.lock();
        for ((key, part), count) in self.in_progress.get_mut().drain() {
            let Some(load) = totals.get_mut(&key) else { continue };
            let of_part = match &part {
                Part::Locality(place) => {
                    load.requests.in_progress = load.requests.in_progress.saturating_sub(count);
                    load.localities.get_mut(place)
                }
                Part::Endpoint(address) => load.endpoints.get_mut(address),
            };
            if let Some(requests) = of_part {
                requests.in_progress = requests.in_progress.saturating_sub(count);
            }
        }
    }
}

/// Of an endpoint: `ADDRESS:PORT`, or a path.
fn shown(address: &Address) -> Option<String> {
    Some(match address.address.as_ref()? {
        Kind::SocketAddress(socket) => {
            let PortSpecifier::PortValue(port) = socket.port_specifier.as_ref()? else { return None };
            let host = &socket.address;
            if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
        }
        Kind::Pipe(pipe) => pipe.path.clone(),
        Kind::EnvoyInternalAddress(_) => return None,
    })
}

/// A label's value.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(cluster: &str, successes: u64, in_progress: u64) -> ClusterStats {
        let locality = UpstreamLocalityStats {
            total_successful_requests: successes,
            total_requests_in_progress: in_progress,
            ..UpstreamLocalityStats::default()
        };
        ClusterStats {
            cluster_name: cluster.into(),
            upstream_locality_stats: vec![locality],
            ..ClusterStats::default()
        }
    }

    #[test]
    fn counts_add_up_and_what_is_in_progress_ends_with_its_reporter() {
        let loads = Loads::default();
        let (first, second) = (loads.reporter(), loads.reporter());
        first.report(&[stats("a", 5, 3)]);
        first.report(&[stats("a", 5, 1)]);
        second.report(&[stats("a", 1, 7)]);
        let (_, load) = loads.clusters(|_| true).remove(0);
        assert_eq!((load.requests.successes, load.requests.in_progress), (11, 8));
        drop(second);
        let (_, load) = loads.clusters(|_| true).remove(0);
        assert_eq!((load.requests.successes, load.requests.in_progress, loads.reporters()), (11, 1, 1));
    }

    #[test]
    fn what_nodes_say_is_bounded() {
        let loads = Loads::default();
        let reporter = loads.reporter();
        reporter.report(&[stats("a", u64::MAX, 1), stats("a", u64::MAX, 1)]);
        let many: Vec<_> = (0..MAX_CLUSTERS + 10).map(|index| stats(&format!("c{index}"), 1, 0)).collect();
        reporter.report(&many);
        reporter.report(&[stats(&"x".repeat(MAX_NAME + 1), 1, 0)]);
        let clusters = loads.clusters(|_| true);
        assert_eq!((clusters.len(), clusters[0].1.requests.successes, loads.dropped()), (MAX_CLUSTERS, u64::MAX, 12));
    }

    #[test]
    fn a_cluster_named_by_an_attacker_is_one_label() {
        let loads = Loads::default();
        loads.reporter().report(&[stats("a\"} 1\nevil 2", 1, 0)]);
        let mut text = String::new();
        loads.prometheus(&mut text);
        assert!(text.contains("cluster=\"a\\\"} 1\\nevil 2\",result=\"success\"} 1"), "{text}");
        assert!(!text.lines().any(|line| line.starts_with("evil")), "{text}");
    }
}
