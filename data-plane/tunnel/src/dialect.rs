//! Which protocol a peer speaks on a tunnel port, told from its first bytes.

use crate::wire;

/// The closed set of tunnel protocols. Each has its own handshake; what follows the handshake is the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Dialect {
    /// MOSN's frames (magic `20 88`).
    Mosn,
    /// Ours. It begins as MOSN's and is told apart by what the handshake says, never by its first bytes.
    Culvert,
    /// Envoy's reverse tunnels: an HTTP/1.1 request.
    Envoy,
}

/// What the first bytes say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sniff {
    /// So far they fit; more are needed.
    NeedMore,
    Is(Dialect),
    /// They fit no dialect: the connection is closed without an answer.
    Unknown,
}

impl Dialect {
    /// As it is written in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Mosn => "mosn",
            Self::Culvert => "culvert",
            Self::Envoy => "envoy",
        }
    }

    /// Decides as early as the bytes allow: a first byte that no dialect begins with is enough to refuse.
    #[must_use]
    pub fn sniff(first: &[u8]) -> Sniff {
        match first {
            [] => Sniff::NeedMore,
            [a] if *a == wire::MAGIC[0] => Sniff::NeedMore,
            [a, b, ..] if [*a, *b] == wire::MAGIC => Sniff::Is(Self::Mosn),
            // RFC 9110 §9.1: a method. Which one, and whether the rest is a request, the dialect's own parser says.
            [a, ..] if a.is_ascii_alphabetic() => Sniff::Is(Self::Envoy),
            _ => Sniff::Unknown,
        }
    }
}
