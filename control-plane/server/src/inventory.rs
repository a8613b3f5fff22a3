//! Where every agent is: the tunnels that tunnel servers report, each over a stream of its own.
//!
//! **A report is a lease**: what a stream has reported is forgotten when it ends, and a later stream that reports the same
//! tunnel takes it over. The number of tunnels is bounded, over all streams and of each.

mod service;
mod shown;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use culvert_api::envoy::extensions::reverse_tunnel_reporters::v3alpha::clients::grpc_client::{
    ReverseTunnel, StreamReverseTunnelsRequest,
};
use parking_lot::Mutex;
use prost_types::Timestamp;

pub(crate) use self::service::{LISTING, REPORTING, Service};
pub(crate) use self::shown::json;

/// The tunnels of all servers. One per process.
#[derive(Debug)]
pub(crate) struct Inventory {
    inner: Mutex<Inner>,
    limits: Limits,
}

#[derive(Debug, Clone, Copy)]
struct Limits {
    tunnels: usize,
    of_a_stream: usize,
}

#[derive(Debug, Default)]
struct Inner {
    tunnels: BTreeMap<Key, Entry>,
    streams: BTreeMap<u64, Reporter>,
    next: u64,
    /// The latest [`MAX_ENDED`], with who had them.
    ended: VecDeque<(Key, Entry, Server)>,
}

/// One tunnel's place: what lists are sorted by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    cluster: Arc<str>,
    agent: Arc<str>,
    server: Arc<str>,
    name: Arc<str>,
}

#[derive(Debug, Clone)]
struct Entry {
    tunnel: Arc<ReverseTunnel>,
    /// The stream that reported it last.
    stream: u64,
    at: SystemTime,
    ended: Option<End>,
}

/// A tunnel's end.
#[derive(Debug, Clone)]
struct End {
    at: Timestamp,
    reason: Arc<str>,
}

impl Entry {
    /// Whether it joined that cluster, or serves it besides.
    fn serves(&self, key: &Key, cluster: &str) -> bool {
        let further = self.tunnel.details.iter().flat_map(|details| &details.further_clusters);
        *key.cluster == *cluster || further.into_iter().any(|name| name == cluster)
    }
}

/// One stream.
#[derive(Debug)]
struct Reporter {
    server: Server,
    since: SystemTime,
    reported: SystemTime,
    /// By the names that the server gave them.
    names: HashMap<Arc<str>, Key>,
}

/// Who reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Server {
    /// Node id.
    pub(crate) id: Arc<str>,
    pub(crate) cluster: Arc<str>,
    pub(crate) peer: Arc<str>,
}

/// Which tunnels are asked for. What is `None` is not asked.
#[derive(Debug, Default, Clone)]
struct Query {
    cluster: Option<String>,
    agent: Option<String>,
    server: Option<String>,
    /// Behind this one.
    after: Option<Key>,
    page_size: usize,
}

/// A page of what was asked for.
#[derive(Debug)]
struct Page {
    tunnels: Vec<(Key, Entry, Server)>,
    /// There are more behind the last.
    more: bool,
    /// On all pages.
    total: usize,
}

/// Why a report is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum Refused {
    #[error("{0}.name: missing, or longer than {MAX_TEXT} bytes")]
    Name(At),
    #[error("{0}.identity: missing, or one of its ids is empty or longer than {MAX_TEXT} bytes")]
    Identity(At),
    #[error("{at}: {size} bytes, {MAX_ENTRY} are the most")]
    TooLarge { at: At, size: usize },
    #[error("one server may report {0} tunnels at most")]
    TooManyOfStream(usize),
    #[error("all servers together may report {0} tunnels at most")]
    TooMany(usize),
}

/// Where in a report a tunnel stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Added(usize),
    Ended(usize),
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Added(index) => write!(f, "added_tunnels[{index}]"),
            Self::Ended(index) => write!(f, "ended_tunnels[{index}].tunnel"),
        }
    }
}

/// A stream's hold on what it reported; dropping it forgets that.
#[derive(Debug)]
#[must_use = "what was reported is forgotten with this value"]
struct Lease {
    inventory: Arc<Inventory>,
    stream: u64,
}

impl Default for Inventory {
    fn default() -> Self {
        Self { inner: Mutex::default(), limits: Limits { tunnels: MAX_TUNNELS, of_a_stream: MAX_OF_A_STREAM } }
    }
}

impl Inventory {
    /// A stream of `server` begins.
    fn begin(self: &Arc<Self>, server: Server) -> Lease {
        let mut inner = self.inner.lock();
        let stream = inner.next;
        inner.next += 1;
        let now = SystemTime::now();
        inner.streams.insert(stream, Reporter { server, since: now, reported: now, names: HashMap::new() });
        Lease { inventory: Arc::clone(self), stream }
    }

    /// Servers that report, and tunnels.
    pub(crate) fn count(&self) -> (usize, usize) {
        let inner = self.inner.lock();
        (inner.streams.len(), inner.tunnels.len())
    }

    /// What is asked for, of servers for which `visible` holds.
    fn find(&self, query: &Query, visible: impl Fn(&Server) -> bool) -> Page {
        let inner = self.inner.lock();
        let matching = inner
            .tunnels
            .iter()
            .filter(|(key, entry)| query.asks_for(key, entry))
            .filter_map(|(key, entry)| Some((key, entry, &inner.streams.get(&entry.stream)?.server)))
            .filter(|(.., server)| visible(server));
        let (mut tunnels, mut more, mut total) = (Vec::new(), false, 0);
        for (key, entry, server) in matching {
            total += 1;
            if query.after.as_ref().is_some_and(|after| key <= after) {
                continue;
            }
            if tunnels.len() < query.page_size {
                tunnels.push((key.clone(), entry.clone(), server.clone()));
            } else {
                more = true;
            }
        }
        Page { tunnels, more, total }
    }

    /// The same of those that ended, latest first.
    fn find_ended(&self, query: &Query, visible: impl Fn(&Server) -> bool) -> Page {
        let inner = self.inner.lock();
        let ended = inner.ended.iter().rev();
        let matching = ended.filter(|(key, entry, server)| query.asks_for(key, entry) && visible(server));
        let tunnels: Vec<_> = matching.cloned().collect();
        let total = tunnels.len();
        Page { tunnels: tunnels.into_iter().take(query.page_size).collect(), more: false, total }
    }

    /// Who reports, since when, when last, and how many tunnels.
    fn servers(&self) -> Vec<(Server, SystemTime, SystemTime, usize)> {
        let inner = self.inner.lock();
        let all = inner.streams.values();
        all.map(|one| (one.server.clone(), one.since, one.reported, one.names.len())).collect()
    }
}

impl Lease {
    /// Takes a report; all of it, or nothing of what it adds.
    fn report(&self, request: StreamReverseTunnelsRequest) -> Result<(), Refused> {
        let mut checked = Vec::with_capacity(request.added_tunnels.len());
        let limits = self.inventory.limits;
        let mut inner = self.inventory.inner.lock();
        let Some(server) = inner.streams.get(&self.stream).map(|reporter| reporter.server.clone()) else {
            debug_assert!(false, "the stream is there as long as its lease");
            return Ok(());
        };
        for (index, tunnel) in request.added_tunnels.into_iter().enumerate() {
            checked.push((key_of(At::Added(index), &tunnel, &server.id)?, tunnel));
        }
        let mut ended = Vec::with_capacity(request.ended_tunnels.len());
        for (index, one) in request.ended_tunnels.into_iter().enumerate() {
            let tunnel = one.tunnel.unwrap_or_default();
            let end = End { at: one.ended_at.unwrap_or_default(), reason: one.reason.into() };
            ended.push((key_of(At::Ended(index), &tunnel, &server.id)?, tunnel, end));
        }
        if request.full_push {
            inner.forget(self.stream);
        }
        for name in &request.removed_tunnel_names {
            inner.remove(self.stream, name);
        }
        let now = SystemTime::now();
        for (key, tunnel) in checked {
            let entry = Entry { tunnel: Arc::new(tunnel), stream: self.stream, at: now, ended: None };
            inner.add(self.stream, key, entry, limits)?;
        }
        for (key, tunnel, end) in ended {
            let entry = Entry { tunnel: Arc::new(tunnel), stream: self.stream, at: now, ended: Some(end) };
            inner.remember((key, entry, server.clone()));
        }
        if let Some(reporter) = inner.streams.get_mut(&self.stream) {
            reporter.reported = now;
        }
        Ok(())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut inner = self.inventory.inner.lock();
        inner.forget(self.stream);
        inner.streams.remove(&self.stream);
    }
}

impl Inner {
    fn add(&mut self, stream: u64, key: Key, entry: Entry, limits: Limits) -> Result<(), Refused> {
        let known = self.tunnels.contains_key(&key);
        if !known && self.tunnels.len() >= limits.tunnels {
            return Err(Refused::TooMany(limits.tunnels));
        }
        let Some(reporter) = self.streams.get_mut(&stream) else { return Ok(()) };
        if !reporter.names.contains_key(&key.name) && reporter.names.len() >= limits.of_a_stream {
            return Err(Refused::TooManyOfStream(limits.of_a_stream));
        }
        let before = reporter.names.insert(Arc::clone(&key.name), key.clone());
        // The same name, and another agent.
        if let Some(before) = before.filter(|before| *before != key) {
            self.tunnels.remove(&before);
        }
        self.tunnels.insert(key, entry);
        Ok(())
    }

    /// Once, also if a server says it again on a later stream.
    fn remember(&mut self, ended: (Key, Entry, Server)) {
        if self.ended.iter().any(|(key, ..)| *key == ended.0) {
            return;
        }
        if self.ended.len() >= MAX_ENDED {
            self.ended.pop_front();
        }
        self.ended.push_back(ended);
    }

    fn remove(&mut self, stream: u64, name: &str) {
        let key = self.streams.get_mut(&stream).and_then(|reporter| reporter.names.remove(name));
        if let Some(key) = key {
            self.remove_of(stream, &key);
        }
    }

    fn forget(&mut self, stream: u64) {
        let names = self.streams.get_mut(&stream).map(|reporter| std::mem::take(&mut reporter.names));
        for key in names.into_iter().flat_map(HashMap::into_values) {
            self.remove_of(stream, &key);
        }
    }

    /// Unless a later stream has taken it over.
    fn remove_of(&mut self, stream: u64, key: &Key) {
        if self.tunnels.get(key).is_some_and(|entry| entry.stream == stream) {
            self.tunnels.remove(key);
        }
    }
}

/// Where a reported tunnel stands.
fn key_of(at: At, tunnel: &ReverseTunnel, server: &Arc<str>) -> Result<Key, Refused> {
    let good = |text: &str| !text.is_empty() && text.len() <= MAX_TEXT;
    if !good(&tunnel.name) {
        return Err(Refused::Name(at));
    }
    let identity = tunnel.identity.as_ref().ok_or(Refused::Identity(at))?;
    if ![&identity.tenant_id, &identity.cluster_id, &identity.node_id].into_iter().all(|text| good(text)) {
        return Err(Refused::Identity(at));
    }
    let size = prost::Message::encoded_len(tunnel);
    if size > MAX_ENTRY {
        return Err(Refused::TooLarge { at, size });
    }
    Ok(Key {
        cluster: identity.cluster_id.as_str().into(),
        agent: identity.node_id.as_str().into(),
        server: Arc::clone(server),
        name: tunnel.name.as_str().into(),
    })
}

/// Of all servers, and of one. A tunnel takes 500 bytes to 1 KB.
const MAX_TUNNELS: usize = 1_000_000;
const MAX_OF_A_STREAM: usize = 250_000;
/// That ended, of all servers.
const MAX_ENDED: usize = 4096;
/// Of a name or an id. (Envoy's API says 128; its reporters do not look.)
const MAX_TEXT: usize = 1024;
/// Of one tunnel with all that is said of it.
const MAX_ENTRY: usize = 16 << 10;
