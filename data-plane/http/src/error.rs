//! What can go wrong on a stream: whose fault it is and whether a retry is safe are decided where the error is born.

/// Whose fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    Downstream,
    Upstream,
    Internal,
}

/// What went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamErrorKind {
    /// The peer closed or reset the connection.
    Closed,
    /// The peer reset this stream (HTTP/2), with its error code.
    Reset(u32),
    /// REFUSED_STREAM or a GOAWAY below our stream: the peer did not look at the request.
    Refused,
    /// The peer broke the protocol; the status that answers it (400, 413, 414, 431, 501, 502, 505 ...).
    Protocol { status: u16, detail: &'static str },
    /// A deadline passed.
    Timeout,
    /// A limit of ours was hit.
    Overflow,
}

/// Why a stream ended early.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{blame:?} {kind:?}")]
pub struct StreamError {
    pub blame: Blame,
    pub kind: StreamErrorKind,
    /// No byte of this exchange was seen by the peer's application: sending it again cannot do it twice.
    pub untouched: bool,
}

impl StreamError {
    /// Whether the peer broke the protocol.
    #[must_use]
    pub const fn is_protocol(&self) -> bool {
        matches!(self.kind, StreamErrorKind::Protocol { .. })
    }

    pub(crate) const fn new(blame: Blame, kind: StreamErrorKind) -> Self {
        Self { blame, kind, untouched: false }
    }

    pub(crate) const fn closed(blame: Blame) -> Self {
        Self::new(blame, StreamErrorKind::Closed)
    }

    pub(crate) const fn protocol(blame: Blame, status: u16, detail: &'static str) -> Self {
        Self::new(blame, StreamErrorKind::Protocol { status, detail })
    }

    /// The caller used the interface in a way that cannot be put on the wire.
    pub(crate) const fn misuse(detail: &'static str) -> Self {
        Self::protocol(Blame::Internal, 500, detail)
    }

    pub(crate) const fn untouched(mut self, untouched: bool) -> Self {
        self.untouched = untouched;
        self
    }
}
