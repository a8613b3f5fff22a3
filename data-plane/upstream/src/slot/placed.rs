//! Tunnels that are registered elsewhere and serve a cluster too.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::host::{Host, HostPlace, Target};
use crate::sharing::Place;
use crate::tunnel::TunnelConnection;

/// Those of one cluster, by the ids of their hosts where they are registered.
#[derive(Debug, Default)]
pub(super) struct PlacedTunnels(BTreeMap<u64, Placed>);

#[derive(Debug)]
enum Placed {
    Serves { host: Arc<Host>, priority: u32 },
    Withheld,
}

/// What became of one.
#[derive(Debug)]
pub(super) enum Change {
    /// It serves with another priority, or is withheld, or was.
    Moved,
    /// It serves, as this host.
    Came(Arc<Host>),
    /// It did.
    Went(Arc<Host>),
}

impl PlacedTunnels {
    /// Says what a tunnel is here; `None`: as before.
    pub(super) fn place(&mut self, id: u64, connection: &Arc<TunnelConnection>, place: Place) -> Option<Change> {
        match (self.0.get_mut(&id), place) {
            (None, Place::None) | (Some(Placed::Withheld), Place::Withheld) => None,
            (Some(Placed::Serves { priority: before, .. }), Place::Serves { priority }) => {
                (std::mem::replace(before, priority) != priority).then_some(Change::Moved)
            }
            (Some(Placed::Withheld) | None, Place::Serves { priority }) => {
                // Of its own: what it does for this cluster is counted by itself.
                let place = HostPlace::of_agent(Arc::clone(&connection.claim().agent));
                let host = Host::new(Target::Tunnel(Arc::clone(connection)), place);
                self.0.insert(id, Placed::Serves { host: Arc::clone(&host), priority });
                Some(Change::Came(host))
            }
            (_, Place::Withheld | Place::None) => {
                let change = self.displace(id).unwrap_or(Change::Moved);
                if place == Place::Withheld {
                    self.0.insert(id, Placed::Withheld);
                }
                Some(change)
            }
        }
    }

    /// Forgets a tunnel; what that changes, if it was known.
    pub(super) fn displace(&mut self, id: u64) -> Option<Change> {
        match self.0.remove(&id)? {
            Placed::Serves { host, .. } => {
                host.set_gone();
                Some(Change::Went(host))
            }
            Placed::Withheld => Some(Change::Moved),
        }
    }

    /// All that are known.
    pub(super) fn ids(&self) -> Vec<u64> {
        self.0.keys().copied().collect()
    }

    pub(super) fn withholds(&self, id: u64) -> bool {
        matches!(self.0.get(&id), Some(Placed::Withheld))
    }

    pub(super) fn withheld(&self) -> u64 {
        self.0.values().filter(|placed| matches!(placed, Placed::Withheld)).count() as u64
    }

    /// With their priorities.
    pub(super) fn serving(&self) -> impl Iterator<Item = (&Arc<Host>, u32)> {
        self.0.values().filter_map(|placed| match placed {
            Placed::Serves { host, priority } => Some((host, *priority)),
            Placed::Withheld => None,
        })
    }
}
