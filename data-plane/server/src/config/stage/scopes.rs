//! Scopes: what they refer to depends on the listeners that go by them, and on what requests ask for.

use std::sync::Arc;

use culvert_model::Name;
use culvert_model::resource::Resource;
use culvert_proxy::Wanted;

use super::{Key, Slot, Stage};
use crate::apply::Kind;
use crate::config::references::{self, Reference, ScopeSources};

impl Stage {
    /// What `resource` refers to, as things stand.
    pub(super) fn references_of(&self, resource: &Resource) -> Arc<[Reference]> {
        match resource {
            Resource::Scope(scope) if !scope.on_demand || self.is_demanded(Wanted::Scope, &scope.name) => {
                let sources = self.scope_sources(None);
                sources.map(|(_, routes)| references::of_scope(scope, &routes)).unwrap_or_default().into()
            }
            resource => references::of(resource).into(),
        }
    }

    /// Where scopes come from, and the routes that they name: as the listeners say, which say all the same. But for the one
    /// of name `but`.
    pub(super) fn scope_sources(&self, but: Option<&Name>) -> Option<ScopeSources> {
        let users = self.of_kind(Kind::Listener).chain(self.of_kind(Kind::Extension));
        let users = users.filter(|((_, name), _)| but != Some(name));
        let candidates = users.flat_map(|(_, slot)| slot.wanted.iter().chain(&slot.active));
        candidates.flat_map(|candidate| references::scope_sources(&candidate.resource)).next()
    }

    /// What scopes refer to has changed: where their routes come from, or which of them are asked for.
    pub(super) fn refer_scopes(&mut self) {
        let keys: Vec<Key> = self.of_kind(Kind::Scope).map(|(key, _)| key.clone()).collect();
        for key in keys {
            let Some(slot) = self.slots.get(&key) else { continue };
            let wanted = slot.wanted.as_ref().map(|candidate| self.references_of(&candidate.resource));
            let active = slot.active.as_ref().map(|candidate| self.references_of(&candidate.resource));
            let Some(slot) = self.slots.get_mut(&key) else { continue };
            for (candidate, references) in [(&mut slot.wanted, wanted), (&mut slot.active, active)] {
                if let (Some(candidate), Some(references)) = (candidate, references) {
                    candidate.references = references;
                }
            }
        }
        self.referred += 1;
    }

    fn of_kind(&self, kind: Kind) -> impl Iterator<Item = (&Key, &Slot)> {
        self.slots.range((kind, Name::from(""))..).take_while(move |((k, _), _)| *k == kind)
    }
}
