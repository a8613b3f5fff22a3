//! Which fields of the API culvert-proxy honours, and what happens to those that it does not.
//!
//! **No field that is set goes unnoticed.** The tables below give a verdict for every field of every message that a
//! parser reads; a test walks the descriptor set and fails where one is missing, so a newer API cannot slip in. The
//! parsers handle honoured fields only: [`walk`] reports the others, on the encoded message, before they run.
//! docs/xds.md prints the same tables.

mod access_log;
mod bootstrap;
mod cluster;
mod core;
#[cfg(test)]
mod documentation;
mod http;
mod listener;
mod matcher;
mod route;
#[cfg(test)]
mod tests;
mod tls;
mod tunnel;
mod wire;

pub(crate) use wire::walk;

/// What happens when a field is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// The parser reads it, and refuses values that culvert-proxy cannot honour.
    Honoured,
    /// It tells people or a control plane something and changes nothing here, nor in Envoy by itself.
    Carried,
    /// Reported as a warning: the rest works without it.
    Warned(&'static str),
    /// Reported as an error: it affects who may connect, where traffic goes or what is checked.
    Refused(&'static str),
}

/// The verdicts over one message.
#[derive(Debug)]
struct Covered {
    /// Full name of the message.
    message: &'static str,
    groups: &'static [Group],
}

/// Fields that share a verdict.
#[derive(Debug)]
struct Group {
    verdict: Verdict,
    fields: &'static [&'static str],
}

const fn covered(message: &'static str, groups: &'static [Group]) -> Covered {
    Covered { message, groups }
}

const fn honoured(fields: &'static [&'static str]) -> Group {
    Group { verdict: Verdict::Honoured, fields }
}

const fn carried(fields: &'static [&'static str]) -> Group {
    Group { verdict: Verdict::Carried, fields }
}

/// Not honoured; `reason` says what holds instead, or is empty.
const fn warned(fields: &'static [&'static str], reason: &'static str) -> Group {
    Group { verdict: Verdict::Warned(reason), fields }
}

/// Not honoured, and not without consequence; `reason` says which, and what to do instead.
const fn refused(fields: &'static [&'static str], reason: &'static str) -> Group {
    Group { verdict: Verdict::Refused(reason), fields }
}

/// Every table, in the order of docs/xds.md.
const TABLES: &[&[Covered]] = &[
    bootstrap::TABLE,
    listener::TABLE,
    http::TABLE,
    route::TABLE,
    cluster::TABLE,
    tls::TABLE,
    access_log::TABLE,
    matcher::TABLE,
    core::TABLE,
    tunnel::TABLE,
];
