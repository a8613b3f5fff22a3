//! Which route of a virtual host a path belongs to: the first in configuration order whose match holds, found without
//! walking the list. Exact paths are one hash, prefixes one hash per distinct length that occurs.

use std::collections::HashMap;

use culvert_model::route::{PathMatch, RouteMatch};
use foldhash::fast::RandomState;
use smallvec::SmallVec;

use super::conditions::Subject;
use crate::router::is_connect_udp;

/// Routes of one path or prefix, in configuration order.
type Indices = SmallVec<[u32; 2]>;
type Map = HashMap<Box<[u8]>, Indices, RandomState>;

/// An index over the routes of one virtual host.
#[derive(Debug, Default)]
pub(crate) struct Paths {
    cased: Texts,
    /// `case_sensitive: false`; keys are lower-case.
    folded: Texts,
    regexes: Vec<(u32, culvert_model::matcher::SafeRegex)>,
    connect: Indices,
}

#[derive(Debug, Default)]
struct Texts {
    exact: Map,
    /// By length, shortest first.
    prefixes: Vec<(usize, Map)>,
    /// Prefixes that must be followed by `/` or the end.
    separated: Vec<(usize, Map)>,
}

impl Paths {
    pub(crate) fn compile<'a>(routes: impl Iterator<Item = &'a RouteMatch>) -> Self {
        let mut paths = Self::default();
        for (route, index) in routes.zip(0..) {
            let texts = if route.ignore_case { &mut paths.folded } else { &mut paths.cased };
            let key = |text: &str| -> Box<[u8]> {
                if route.ignore_case { text.to_ascii_lowercase().into_bytes().into() } else { text.as_bytes().into() }
            };
            match &route.path {
                PathMatch::Exact(path) => texts.exact.entry(key(path)).or_default().push(index),
                PathMatch::Prefix(prefix) => insert(&mut texts.prefixes, key(prefix), index),
                PathMatch::PathSeparatedPrefix(prefix) => insert(&mut texts.separated, key(prefix), index),
                PathMatch::Regex(regex) => paths.regexes.push((index, regex.clone())),
                PathMatch::Connect => paths.connect.push(index),
            }
        }
        for texts in [&mut paths.cased, &mut paths.folded] {
            texts.prefixes.sort_by_key(|(length, _)| *length);
            texts.separated.sort_by_key(|(length, _)| *length);
        }
        paths
    }

    /// The lowest index whose path matches and of which `holds` is true.
    pub(crate) fn find(&self, subject: &Subject<'_>, holds: impl Fn(u32) -> bool) -> Option<u32> {
        let mut best = Best { index: u32::MAX, holds };
        if subject.is_connect() {
            best.offer(&self.connect);
            return best.found();
        }
        let path = subject.path().as_bytes();
        self.cased.find(path, &mut best);
        if !self.folded.is_empty() {
            let lower: SmallVec<[u8; 256]> = path.iter().map(u8::to_ascii_lowercase).collect();
            self.folded.find(&lower, &mut best);
        }
        for (index, regex) in &self.regexes {
            // In configuration order: none after the best can be better.
            if *index >= best.index {
                break;
            }
            if regex.whole.is_match(path) {
                best.offer(&[*index]);
            }
        }
        // Envoy: a WebSocket is no CONNECT, not even as an extended one over HTTP/2 (RFC 8441).
        if subject.is_connect() || is_connect_udp(subject.head) {
            best.offer(&self.connect);
        }
        best.found()
    }
}

impl Texts {
    fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.prefixes.is_empty() && self.separated.is_empty()
    }

    fn find<H: Fn(u32) -> bool>(&self, path: &[u8], best: &mut Best<H>) {
        if let Some(indices) = (!self.exact.is_empty()).then(|| self.exact.get(path)).flatten() {
            best.offer(indices);
        }
        for (length, map) in &self.prefixes {
            let Some(prefix) = path.get(..*length) else { break };
            if let Some(indices) = map.get(prefix) {
                best.offer(indices);
            }
        }
        for (length, map) in &self.separated {
            let Some(prefix) = path.get(..*length) else { break };
            if path.get(*length).is_none_or(|next| *next == b'/')
                && let Some(indices) = map.get(prefix)
            {
                best.offer(indices);
            }
        }
    }
}

/// The lowest index so far.
struct Best<H> {
    index: u32,
    holds: H,
}

impl<H: Fn(u32) -> bool> Best<H> {
    /// `indices` ascend.
    fn offer(&mut self, indices: &[u32]) {
        let better = indices.iter().take_while(|index| **index < self.index).find(|index| (self.holds)(**index));
        if let Some(index) = better {
            self.index = *index;
        }
    }

    fn found(self) -> Option<u32> {
        (self.index != u32::MAX).then_some(self.index)
    }
}

fn insert(lengths: &mut Vec<(usize, Map)>, key: Box<[u8]>, index: u32) {
    let length = key.len();
    let at = lengths.iter().position(|(candidate, _)| *candidate == length).unwrap_or_else(|| {
        lengths.push((length, Map::default()));
        lengths.len() - 1
    });
    if let Some((_, map)) = lengths.get_mut(at) {
        map.entry(key).or_default().push(index);
    }
}
