//! What was in force, and what each content changed.

use std::collections::BTreeMap;

use culvert_api::type_url;
use culvert_xds::Version;

use crate::control::{Control, Past};

/// One former content, or the present one.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) past: Past,
    /// Beside the one before; `None`: that is not remembered.
    pub(crate) changes: Option<Changes>,
}

/// Names that differ, as `TYPE/NAME (NODES)`.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    pub(crate) added: Vec<String>,
    pub(crate) changed: Vec<String>,
    pub(crate) removed: Vec<String>,
}

/// The present first.
pub(crate) fn entries(control: &Control) -> Vec<Entry> {
    let history = control.history();
    let mut entries: Vec<Entry> = Vec::with_capacity(history.len());
    let mut before: Option<&Past> = None;
    for past in &history {
        entries.push(Entry { past: past.clone(), changes: before.map(|before| changes(before, past)) });
        // What only some nodes had was never in force.
        before = if past.taken_back.is_none() { Some(past) } else { before };
    }
    entries.reverse();
    entries
}

fn changes(before: &Past, after: &Past) -> Changes {
    let (old, new) = (titles(before), titles(after));
    Changes {
        added: new.keys().filter(|title| !old.contains_key(*title)).cloned().collect(),
        changed: new
            .iter()
            .filter(|(title, version)| old.get(*title).is_some_and(|old| old != *version))
            .map(|(title, _)| title.clone())
            .collect(),
        removed: old.keys().filter(|title| !new.contains_key(*title)).cloned().collect(),
    }
}

fn titles(past: &Past) -> BTreeMap<String, Version> {
    let title = |(resource, selector, _): (&std::sync::Arc<culvert_xds::Resource>, &culvert_store::Selector, &str)| {
        let title = format!("{}/{} ({selector})", type_url::short_name(resource.type_url()), resource.name());
        (title, resource.version())
    };
    past.directory.resources().map(title).collect()
}
