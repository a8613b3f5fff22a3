//! Names of tunnel servers, each looked up again and again by itself: one that has no answer holds up no other.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use culvert_model::Name;
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio::time::{sleep, timeout};

/// A host and a port.
pub(super) type Named = (Name, u16);
/// What a look-up has come to.
type Found = Result<Vec<SocketAddr>, String>;

/// How names become addresses.
#[derive(Debug, Clone, Copy, Default)]
pub enum Resolver {
    #[default]
    System,
    /// `None`: an answer that never comes.
    #[cfg(test)]
    Scripted(fn(&str) -> Option<io::Result<Vec<std::net::IpAddr>>>),
}

impl Resolver {
    async fn look_up(self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        match self {
            Self::System => Ok(tokio::net::lookup_host((host, port)).await?.collect()),
            #[cfg(test)]
            Self::Scripted(answer) => match answer(host) {
                Some(found) => Ok(found?.into_iter().map(|ip| SocketAddr::new(ip, port)).collect()),
                None => std::future::pending().await,
            },
        }
    }
}

/// The names of one source.
#[derive(Debug)]
pub(super) struct Names {
    resolver: Resolver,
    refresh: Duration,
    /// Taken by look-ups that are under way.
    slots: Arc<Semaphore>,
    lookups: JoinSet<(Named, Found)>,
    known: BTreeMap<Named, Known>,
}

#[derive(Debug)]
struct Known {
    /// The one that is under way, or waits for its time.
    lookup: AbortHandle,
    /// Since it is followed; be it with an error.
    answered: bool,
    /// As found last: a look-up that fails leaves them.
    addresses: Vec<SocketAddr>,
    error: Option<String>,
}

impl Names {
    pub(super) fn new(resolver: Resolver, refresh: Duration) -> Self {
        let slots = Arc::new(Semaphore::new(AT_A_TIME));
        Self { resolver, refresh, slots, lookups: JoinSet::new(), known: BTreeMap::new() }
    }

    /// Exactly these from now on. New ones are looked up at once.
    pub(super) fn follow(&mut self, wanted: &BTreeSet<Named>) {
        self.known.retain(|name, known| {
            let stays = wanted.contains(name);
            if !stays {
                known.lookup.abort();
            }
            stays
        });
        for name in wanted {
            if !self.known.contains_key(name) {
                let lookup = self.look_up(name.clone(), Duration::ZERO);
                let known = Known { lookup, answered: false, addresses: Vec::new(), error: None };
                self.known.insert(name.clone(), known);
            }
        }
    }

    /// One look-up, on the `LocalSet`.
    fn look_up(&mut self, name: Named, after: Duration) -> AbortHandle {
        let (resolver, slots) = (self.resolver, Arc::clone(&self.slots));
        self.lookups.spawn_local(async move {
            sleep(after).await;
            let found = resolve(resolver, &slots, &name).await;
            (name, found)
        })
    }

    /// Waits until an answer says something new; for ever where nothing is followed.
    pub(super) async fn change(&mut self) {
        loop {
            let Some(mut ended) = self.lookups.join_next_with_id().await else { return std::future::pending().await };
            let mut changed = false;
            // Those that come together are one change.
            loop {
                changed |= self.take(ended);
                match self.lookups.try_join_next_with_id() {
                    Some(next) => ended = next,
                    None => break,
                }
            }
            if changed {
                return;
            }
        }
    }

    fn take(&mut self, ended: Result<(Id, (Named, Found)), JoinError>) -> bool {
        // Otherwise it was aborted.
        let Ok((id, (name, found))) = ended else { return false };
        let Some(known) = self.known.get_mut(&name).filter(|known| known.lookup.id() == id) else { return false };
        let (addresses, error) = match found {
            Ok(addresses) => (addresses, None),
            Err(error) => (known.addresses.clone(), Some(error)),
        };
        let changed = !known.answered || known.addresses != addresses || known.error != error;
        if let Some(error) = error.as_ref().filter(|_| changed) {
            tracing::warn!(host = &*name.0, %error, "tunnel servers cannot be looked up");
        }
        (known.answered, known.addresses, known.error) = (true, addresses, error);
        // Names that came together do not stay together: those whose answers do not come would be the first every time.
        let next = self.look_up(name.clone(), self.refresh.mul_f32(0.75 + fastrand::f32() / 2.0));
        if let Some(known) = self.known.get_mut(&name) {
            known.lookup = next;
        }
        changed
    }

    /// Every address of a name that is followed.
    pub(super) fn addresses(&self, name: &Named) -> &[SocketAddr] {
        self.known.get(name).map_or(&[], |known| &known.addresses)
    }

    /// Whether some name was not even refused yet.
    pub(super) fn unanswered(&self) -> bool {
        self.known.values().any(|known| !known.answered)
    }

    /// What one of the names has met, if any has.
    pub(super) fn error(&self) -> Option<String> {
        self.known.values().find_map(|known| known.error.clone())
    }
}

/// The deadline covers the wait for a slot: all names that come together have their verdict by then.
async fn resolve(resolver: Resolver, slots: &Semaphore, (host, port): &Named) -> Found {
    let found = timeout(RESOLVE, async {
        let _slot = slots.acquire().await;
        resolver.look_up(host, *port).await
    });
    let found = found.await.map_err(|_| format!("{host}: no answer within {} s", RESOLVE.as_secs()))?;
    let mut found = found.map_err(|error| format!("{host}: {error}"))?;
    if found.is_empty() {
        return Err(format!("{host}: has no addresses"));
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// Of one source: each takes a thread while the system looks it up.
const AT_A_TIME: usize = 16;
/// One look-up.
pub(super) const RESOLVE: Duration = Duration::from_secs(5);
