//! What requests ask for (on demand): asked of a control plane by name, until it is known whether there is such a thing.
//!
//! What there is stays subscribed to, as in Envoy. What there is not is forgotten after a while; until then whoever asks for
//! it has the answer at once. Names come from clients: there are at most [`MOST`] that lead to nothing.

use std::sync::Arc;
use std::time::Duration;

use culvert_model::Name;
use culvert_model::source::{ConfigSource, ConfigSourceKind};
use culvert_proxy::{Order, Wanted};

use super::{Batch, Key, Stage};
use crate::apply::Kind;
use crate::config::references;

/// What is known of one name.
#[derive(Debug)]
pub(super) struct Demanded {
    /// Of a cluster. What else is asked for comes from where its kind does.
    source: Option<ConfigSource>,
    since: Duration,
    state: State,
    /// Somebody waits.
    awaited: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Asked,
    Found,
    Missing,
}

impl Stage {
    /// A request asks for something: see [`Stage::take_answers`]. What it asks for, if too many names lead to nothing.
    pub(crate) fn demand(&mut self, order: Order, now: Duration) -> Option<(Wanted, Name)> {
        let Order { wanted, name, source } = order;
        let before = self.demanded.len();
        self.demanded.retain(|_, demanded| demanded.state == State::Found || now < demanded.since + KEPT);
        self.referred += u64::from(self.demanded.len() != before);
        if let Some(demanded) = self.demanded.get_mut(&(wanted, Arc::clone(&name))) {
            demanded.awaited = true;
            return None;
        }
        let unknown = self.demanded.values().filter(|demanded| demanded.state != State::Found).count();
        if unknown >= MOST {
            tracing::debug!(?wanted, %name, most = MOST, "not asked for: too many names lead to nothing");
            return Some((wanted, name));
        }
        let demanded = Demanded { source, since: now, state: State::Asked, awaited: true };
        self.demanded.insert((wanted, name), demanded);
        match wanted {
            Wanted::Scope => self.refer_scopes(),
            Wanted::VirtualHost | Wanted::Cluster => self.referred += 1,
        }
        None
    }

    /// What of the things that requests wait for is in force by now, or known not to come.
    pub(crate) fn take_answers(&mut self) -> Vec<(Wanted, Name)> {
        let awaited = self.demanded.iter().filter(|(_, demanded)| demanded.awaited);
        let answered = awaited.filter(|((wanted, name), demanded)| match demanded.state {
            State::Missing => true,
            State::Asked => *wanted == Wanted::Scope && self.has_routes(name),
            State::Found => !self.is_coming(*wanted, name),
        });
        let answers: Vec<_> = answered.map(|(key, _)| key.clone()).collect();
        for key in &answers {
            if let Some(demanded) = self.demanded.get_mut(key) {
                demanded.awaited = false;
                // A scope is not given up: its routes stay subscribed to.
                if demanded.state == State::Asked {
                    demanded.state = State::Found;
                }
            }
        }
        answers
    }

    pub(super) fn is_demanded(&self, wanted: Wanted, name: &Name) -> bool {
        self.demanded.contains_key(&(wanted, Arc::clone(name)))
    }

    /// What is to be subscribed to by name because requests asked for it.
    pub(super) fn demanded_names(&self) -> impl Iterator<Item = (Kind, &Name, &ConfigSourceKind)> {
        self.demanded.iter().filter_map(|((wanted, name), demanded)| {
            let source = match wanted {
                Wanted::Cluster => demanded.source.as_ref()?,
                Wanted::VirtualHost => {
                    let (kind, all) = references::collection(Kind::VirtualHost, name)?;
                    let mut hosts = self.references().filter(|reference| reference.kind == kind);
                    &hosts.find(|reference| reference.name == all)?.source
                }
                // It came with all scopes; what is asked for are its routes.
                Wanted::Scope => return None,
            };
            Some((kind_of(*wanted), name, &source.kind))
        })
    }

    /// A response says something of what is asked for.
    pub(super) fn answered_by(&mut self, batch: &Batch) {
        let wanted = match batch.kind {
            Kind::VirtualHost => Wanted::VirtualHost,
            Kind::Cluster => Wanted::Cluster,
            _ => return,
        };
        let there = batch.resources.iter().map(|judged| &judged.name).chain(&batch.aliases);
        let states =
            there.map(|name| (name, State::Found)).chain(batch.removed.iter().map(|name| (name, State::Missing)));
        for (name, state) in states {
            if let Some(demanded) = self.demanded.get_mut(&(wanted, Arc::clone(name))) {
                demanded.state = state;
            }
        }
    }

    /// A control plane has no such thing, or does not say.
    pub(super) fn refuse_demand(&mut self, (kind, name): &Key) {
        for wanted in [Wanted::VirtualHost, Wanted::Cluster].into_iter().filter(|wanted| kind_of(*wanted) == *kind) {
            let demanded = self.demanded.get_mut(&(wanted, Arc::clone(name)));
            if let Some(demanded) = demanded.filter(|demanded| demanded.state == State::Asked) {
                demanded.state = State::Missing;
            }
        }
    }

    /// Whether what was found is accepted and not in force yet.
    fn is_coming(&self, wanted: Wanted, name: &Name) -> bool {
        let kind = kind_of(wanted);
        self.busy_of(kind).filter(|(_, slot)| slot.is_pending()).any(|((_, other), _)| match wanted {
            // Under which name it came is not known.
            Wanted::VirtualHost => references::collection(kind, other) == references::collection(kind, name),
            Wanted::Cluster | Wanted::Scope => other == name,
        })
    }

    /// Whether the routes of a scope are in force, or there is no such scope.
    fn has_routes(&self, scope: &Name) -> bool {
        let slot = self.slots.get(&(Kind::Scope, Arc::clone(scope)));
        let candidate = slot.and_then(|slot| slot.active.as_ref());
        candidate.is_none_or(|candidate| {
            candidate.references.iter().all(|reference| {
                let routes = self.slots.get(&(reference.kind, Arc::clone(&reference.name)));
                routes.is_some_and(|routes| routes.active.is_some())
            })
        })
    }
}

fn kind_of(wanted: Wanted) -> Kind {
    match wanted {
        Wanted::VirtualHost => Kind::VirtualHost,
        Wanted::Cluster => Kind::Cluster,
        Wanted::Scope => Kind::Scope,
    }
}

/// Names that lead to nothing, or of which nothing is known.
const MOST: usize = 1000;
/// How long what leads to nothing is remembered.
const KEPT: Duration = Duration::from_secs(30);
