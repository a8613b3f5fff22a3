//! What a connection says of itself before a filter chain is chosen: TLS or not, server name, application protocols.
//! Bytes are looked at only when some chain needs to know, and are copied only when some chain may need them raw.

use std::sync::Arc;

use bytes::BytesMut;
use culvert_http::Io;
use culvert_model::listener::{FilterChain, Listener, TransportProtocol};
use culvert_runtime::tls::CertificateDetails;
use rustls::pki_types::CertificateDer;
use rustls::server::Acceptor;
use rustls::sign::CertifiedKey;
use tokio::io::AsyncReadExt;
use tokio_rustls::{LazyConfigAcceptor, StartHandshake};

/// What has to be known of a connection's first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Inspection {
    /// Addresses decide alone.
    None,
    /// Every chain terminates TLS: its handshake is begun and the chain chosen by its hello.
    Terminate,
    /// Some chain takes bytes as they come: they are read ahead and put back.
    ReadAhead,
}

impl Inspection {
    pub(super) fn of(listener: &Listener) -> Self {
        let chains = || listener.filter_chains.iter().chain(&listener.default_filter_chain);
        let asks = |chain: &Arc<FilterChain>| {
            let matches = &chain.matches;
            !matches.server_names.is_empty()
                || !matches.application_protocols.is_empty()
                || matches.transport_protocol.is_some()
        };
        if !listener.inspect_tls && !chains().any(asks) {
            Self::None
        } else if chains().all(|chain| chain.tls.is_some()) {
            Self::Terminate
        } else {
            Self::ReadAhead
        }
    }
}

/// What was learnt of a connection.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Hello {
    pub tls: bool,
    /// Lower-case.
    pub server_name: Option<Arc<str>>,
    pub alpn: Vec<Vec<u8>>,
}

impl Hello {
    pub(super) const fn transport(&self) -> TransportProtocol {
        if self.tls { TransportProtocol::Tls } else { TransportProtocol::RawBuffer }
    }

    pub(super) fn of(hello: &rustls::server::ClientHello<'_>) -> Self {
        Self {
            tls: true,
            server_name: hello.server_name().map(|name| name.to_ascii_lowercase().into()),
            alpn: hello.alpn().into_iter().flatten().map(<[u8]>::to_vec).collect(),
        }
    }
}

/// A connection after inspection.
pub(super) enum Inspected {
    /// As it came; what was read is put back.
    Plain(Io),
    /// A TLS handshake whose hello has been read.
    Begun(Box<StartHandshake<Box<Io>>>),
}

/// Begins the TLS handshake.
pub(super) async fn begin_tls(io: Box<Io>) -> std::io::Result<StartHandshake<Box<Io>>> {
    LazyConfigAcceptor::new(Acceptor::default(), io).await
}

/// Reads ahead until it is known whether the client speaks TLS, and if so until its hello is complete. What was read is
/// put back.
///
/// # Errors
/// The connection ended before, or its hello has more than 64 KiB.
pub async fn read_ahead(mut io: Io) -> std::io::Result<(Io, Hello)> {
    let mut seen = BytesMut::with_capacity(1024);
    let mut acceptor = Acceptor::default();
    loop {
        let before = seen.len();
        if io.read_buf(&mut seen).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        // RFC 8446 §5.1: a handshake record is type 22, and its version's major byte is 3.
        let is_tls = seen.first() == Some(&0x16) && seen.get(1).is_none_or(|major| *major == 3);
        if !is_tls {
            return Ok((io.with_prefix(seen.freeze()), Hello::default()));
        }
        let mut fresh = seen.get(before..).unwrap_or_default();
        while !fresh.is_empty() {
            acceptor.read_tls(&mut fresh)?;
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => {
                let hello = Hello::of(&accepted.client_hello());
                return Ok((io.with_prefix(seen.freeze()), hello));
            }
            Ok(None) if seen.len() < MAX_HELLO => {}
            Ok(None) => return Err(std::io::Error::other("a TLS hello of more than 64 KiB")),
            // It looks like TLS and is not; whoever gets the bytes will say so.
            Err((error, _)) => {
                tracing::debug!(%error, "the TLS hello cannot be read");
                return Ok((io.with_prefix(seen.freeze()), Hello { tls: true, ..Hello::default() }));
            }
        }
    }
}

/// As Envoy's tls_inspector limits it.
const MAX_HELLO: usize = 64 * 1024;

/// What a TLS handshake established.
#[derive(Debug)]
pub(crate) struct TlsDetails {
    /// `TLSv1.3`
    pub(crate) version: &'static str,
    pub(crate) cipher: String,
    pub(crate) alpn: Option<Vec<u8>>,
    /// Of the client's certificate, if it presented one. It was verified.
    pub(crate) peer: Option<Box<CertificateDetails>>,
    /// What the client presented, the leaf first.
    pub(crate) chain: Arc<[CertificateDer<'static>]>,
    /// First URI name of our own certificate.
    pub(crate) local_uri: Option<Arc<str>>,
}

impl TlsDetails {
    pub(super) fn of(connection: &rustls::ServerConnection, own: Option<&CertifiedKey>) -> Self {
        let details = |chain: &[CertificateDer<'static>]| {
            CertificateDetails::parse(chain.first()?)
                .inspect_err(|error| tracing::debug!(%error, "details of a certificate cannot be read"))
                .ok()
        };
        let peer = connection.peer_certificates().and_then(details).map(Box::new);
        // Nobody asks for it but those who are told of the client's.
        let own = own.filter(|_| peer.is_some()).and_then(|own| details(&own.cert));
        Self {
            version: match connection.protocol_version() {
                Some(rustls::ProtocolVersion::TLSv1_2) => "TLSv1.2",
                Some(rustls::ProtocolVersion::TLSv1_3) => "TLSv1.3",
                _ => "-",
            },
            cipher: connection.negotiated_cipher_suite().map_or_else(String::new, |suite| {
                // As IANA names it: rustls marks the suites of TLS 1.3.
                format!("{:?}", suite.suite()).replacen("TLS13_", "TLS_", 1)
            }),
            alpn: connection.alpn_protocol().map(<[u8]>::to_vec),
            peer,
            chain: connection.peer_certificates().map(Arc::from).unwrap_or_default(),
            local_uri: own.and_then(|own| own.uri_sans.first().map(|uri| Arc::from(uri.as_str()))),
        }
    }
}
