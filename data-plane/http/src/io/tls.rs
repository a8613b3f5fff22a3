//! TLS handshakes over a connection, and what was agreed in them.

use std::io::Result;
use std::sync::Arc;

use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{
    ClientConfig, ClientConnection, CommonState, ProtocolVersion, ServerConfig, ServerConnection, SupportedCipherSuite,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::{Io, IoKind};

/// What a TLS handshake agreed on.
#[derive(Clone, Copy)]
pub struct TlsInfo<'a> {
    common: &'a CommonState,
    end: End<'a>,
}

/// Which end we are.
#[derive(Clone, Copy)]
enum End<'a> {
    Server(&'a ServerConnection),
    Client(&'a ClientConnection),
}

impl<'a> TlsInfo<'a> {
    /// The application protocol chosen by ALPN.
    #[must_use]
    pub fn alpn(&self) -> Option<&'a [u8]> {
        self.common.alpn_protocol()
    }

    /// The server name that the client asked for; `None` on connections where we are the client.
    #[must_use]
    pub fn server_name(&self) -> Option<&'a str> {
        match self.end {
            End::Server(connection) => connection.server_name(),
            End::Client(_) => None,
        }
    }

    /// The peer's chain, leaf first; `None` when it showed none.
    #[must_use]
    pub fn peer_certificates(&self) -> Option<&'a [CertificateDer<'static>]> {
        self.common.peer_certificates()
    }

    #[must_use]
    pub fn version(&self) -> Option<ProtocolVersion> {
        self.common.protocol_version()
    }

    #[must_use]
    pub fn cipher_suite(&self) -> Option<SupportedCipherSuite> {
        self.common.negotiated_cipher_suite()
    }

    /// RFC 9266's `tls-exporter`: both ends of this connection know it, no other connection has it, and nobody who listens
    /// learns it. `None` before TLS 1.3, where two connections can be made to have the same.
    #[must_use]
    pub fn exporter(&self) -> Option<[u8; 32]> {
        if self.version() != Some(ProtocolVersion::TLSv1_3) {
            return None;
        }
        let (label, context) = (&b"EXPORTER-Channel-Binding"[..], Some(&b""[..]));
        match self.end {
            End::Server(connection) => connection.export_keying_material([0; 32], label, context),
            End::Client(connection) => connection.export_keying_material([0; 32], label, context),
        }
        .ok()
    }

    /// rustls' own view of the connection, for what is not named here (resumption).
    #[must_use]
    pub fn common_state(&self) -> &'a CommonState {
        self.common
    }
}

impl std::fmt::Debug for TlsInfo<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsInfo")
            .field("version", &self.version())
            .field("server_name", &self.server_name())
            .finish_non_exhaustive()
    }
}

impl Io {
    /// Terminates TLS that a client opens on this connection. No deadline of its own.
    ///
    /// # Errors
    /// The handshake failed (an alert was sent where TLS allows it) or the connection did.
    pub async fn accept_tls(self, config: Arc<ServerConfig>) -> Result<Self> {
        Ok(Self::tls_server(TlsAcceptor::from(config).accept(Box::new(self)).await?))
    }

    /// Opens TLS to the server `name` on this connection. No deadline of its own.
    ///
    /// # Errors
    /// The handshake failed (an alert was sent where TLS allows it) or the connection did.
    pub async fn connect_tls(self, config: Arc<ClientConfig>, name: ServerName<'static>) -> Result<Self> {
        Ok(Self::tls_client(TlsConnector::from(config).connect(name, Box::new(self)).await?))
    }

    /// What TLS agreed on; `None` on a connection without.
    #[must_use]
    pub fn tls(&self) -> Option<TlsInfo<'_>> {
        match &self.kind {
            IoKind::TlsServer(stream) => {
                let connection = stream.get_ref().1;
                Some(TlsInfo { common: connection, end: End::Server(connection) })
            }
            IoKind::TlsClient(stream) => {
                let connection = stream.get_ref().1;
                Some(TlsInfo { common: connection, end: End::Client(connection) })
            }
            IoKind::Tcp(_) | IoKind::Memory(_) | IoKind::Stream(_) => None,
        }
    }
}
