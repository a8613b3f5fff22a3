//! What a connection says of itself before a filter chain is chosen: TLS or not, server name, application protocols.
//! Bytes are looked at only when some chain needs to know.

use culvert_model::listener::Listener;

/// What has to be known of a connection's first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Inspection {
    /// Addresses decide alone.
    None,
}

impl Inspection {
    pub(super) fn of(listener: &Listener) -> Self {
        let _ = listener;
        Self::None
    }
}

/// What a TLS handshake established.
#[derive(Debug)]
pub(crate) struct TlsDetails {}
