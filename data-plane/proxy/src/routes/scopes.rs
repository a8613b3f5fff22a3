//! Scoped routes: from the fields of a request to the slot of the routes that it goes by.
//!
//! **All listeners that take scopes by SRDS share one [`ScopeSlot`]**: a scope's key says everything of which requests are
//! its own, and how a request's key is made is each listener's.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use culvert_http::RequestHead;
use culvert_model::Name;
use culvert_model::scope::{KeyPart, Scope};
use foldhash::fast::RandomState;
use smallvec::SmallVec;

use super::RouteSlot;

/// Scopes by their keys. Immutable.
#[derive(Debug, Default)]
pub struct ScopeTable {
    by_key: HashMap<Key, Scoped, RandomState>,
}

/// The parts of a key, each behind its length.
type Key = SmallVec<[u8; 64]>;

/// One scope.
#[derive(Debug)]
pub(crate) struct Scoped {
    pub(crate) name: Name,
    pub(crate) on_demand: bool,
    pub(crate) routes: Arc<RouteSlot>,
}

impl ScopeTable {
    /// Each scope with the slot of its routes. Of equal keys the first counts.
    pub fn compile(scopes: impl Iterator<Item = (Arc<Scope>, Arc<RouteSlot>)>) -> Arc<Self> {
        let mut by_key = HashMap::<Key, Scoped, RandomState>::default();
        for (scope, routes) in scopes {
            let mut key = Key::new();
            scope.key.iter().for_each(|part| push(&mut key, part));
            let scoped = Scoped { name: Arc::clone(&scope.name), on_demand: scope.on_demand, routes };
            by_key.entry(key).or_insert(scoped);
        }
        Arc::new(Self { by_key })
    }

    /// The scope of a request, whose key is made as `parts` say. `None`: it has no key, or nobody has that key.
    pub(crate) fn find(&self, parts: &[KeyPart], head: &RequestHead) -> Option<&Scoped> {
        let mut key = Key::new();
        for part in parts {
            push(&mut key, part.of(first(head, &part.header)?)?);
        }
        self.by_key.get(&key)
    }
}

fn push(key: &mut Key, part: &str) {
    key.extend_from_slice(&part.len().to_le_bytes());
    key.extend_from_slice(part.as_bytes());
}

/// Envoy: of several fields of a name the first counts.
fn first<'h>(head: &'h RequestHead, name: &str) -> Option<&'h str> {
    match name {
        ":path" => Some(&head.path),
        ":method" => Some(head.method.as_str()),
        ":authority" | "host" => Some(&head.authority),
        ":scheme" => Some(head.scheme),
        name => std::str::from_utf8(head.fields.get(name.as_bytes())?).ok(),
    }
}

/// The place of a scope table. Empty until the first publication.
#[derive(Debug, Default)]
pub struct ScopeSlot {
    pub(crate) table: Arc<ArcSwapOption<ScopeTable>>,
}

impl ScopeSlot {
    /// Requests that arrive from now on see `table`.
    pub fn publish(&self, table: Arc<ScopeTable>) {
        drop(self.table.swap(Some(table)));
    }
}

#[cfg(test)]
mod tests {
    use culvert_model::scope::{Pick, ScopeRoutes};

    use super::*;

    fn scope(name: &str, key: &[&str]) -> (Arc<Scope>, Arc<RouteSlot>) {
        let key = key.iter().map(|part| Arc::from(*part)).collect();
        let routes = ScopeRoutes::Named(name.into());
        let slot = RouteSlot::new(name.into());
        (Arc::new(Scope { name: name.into(), key, routes, on_demand: false }), slot)
    }

    fn part(header: &str, separator: &str, pick: Pick) -> KeyPart {
        KeyPart { header: header.into(), separator: separator.into(), pick }
    }

    #[test]
    fn a_request_has_the_scope_of_its_whole_key() {
        let scopes = [scope("one", &["a", "b"]), scope("other", &["ab", ""]), scope("again", &["a", "b"])];
        let table = ScopeTable::compile(scopes.into_iter());
        let parts = [part("x-scope", ",", Pick::Index(1)), part(":authority", "", Pick::Index(0))];
        for (fields, authority, expected) in [
            (&[("x-scope", "z,a")][..], "b", Some("one")),
            (&[("x-scope", "z,a"), ("x-scope", "z,ab")], "b", Some("one")),
            (&[("x-scope", "z,ab")], "", Some("other")),
            (&[("x-scope", "z,a")], "c", None),
            (&[("x-scope", "a")], "b", None),
            (&[], "b", None),
        ] {
            let mut head = RequestHead { authority: authority.to_owned(), ..RequestHead::new() };
            for (name, value) in fields {
                assert!(head.fields.push(name.as_bytes(), value.as_bytes()), "{name} is a field");
            }
            let found = table.find(&parts, &head).map(|scoped| &*scoped.name);
            assert_eq!(found, expected, "{fields:?} to {authority:?}");
        }
    }
}
