//! Opens connections: TCP, then TLS, under one deadline.

use std::net::SocketAddr;
use std::time::Duration;

use culvert_http::Io;
use culvert_model::cluster::UpstreamProtocol;
use culvert_runtime::sockets::{KeepAlive, set_keepalive};
use rustls::pki_types::ServerName;
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;

use super::DownstreamProtocol;
use crate::failure::UpstreamFailure;
use crate::host::Host;
use crate::slot::ClusterConfig;

/// An open connection, ready for its protocol.
#[derive(Debug)]
pub(super) struct Dialled {
    pub(super) io: Io,
    pub(super) wire: Wire,
    pub(super) local: Option<SocketAddr>,
    pub(super) remote: SocketAddr,
}

/// What is spoken on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wire {
    Http1,
    Http2,
}

/// What a connection may speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Offer {
    Http1,
    Http2,
    /// ALPN decides.
    Either,
    /// No HTTP: bytes.
    Raw,
}

impl Offer {
    pub(super) fn of(config: &ClusterConfig, downstream: DownstreamProtocol) -> Self {
        match (config.cluster.protocol, downstream) {
            (UpstreamProtocol::Http1, _) | (UpstreamProtocol::Downstream, DownstreamProtocol::Http1) => Self::Http1,
            (UpstreamProtocol::Http2, _) | (UpstreamProtocol::Downstream, DownstreamProtocol::Http2) => Self::Http2,
            // Without TLS there is no ALPN: Envoy's automatic protocol is then HTTP/1.
            (UpstreamProtocol::Auto, _) if config.tls.is_none() => Self::Http1,
            (UpstreamProtocol::Auto, _) => Self::Either,
        }
    }
}

/// Connects to the host within the cluster's `connect_timeout`. `asked`: by which name, if requests choose it.
pub(super) async fn dial(
    config: &ClusterConfig,
    host: &Host,
    offer: Offer,
    asked: Option<&ServerName<'static>>,
) -> Result<Dialled, UpstreamFailure> {
    let address = host.address().ok_or(UpstreamFailure::NoHealthyHost)?;
    let limit = config.cluster.connect_timeout;
    match tokio::time::timeout(limit, connect(config, host, address, offer, asked)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(UpstreamFailure::ConnectTimeout { address, limit }),
    }
}

async fn connect(
    config: &ClusterConfig,
    host: &Host,
    address: SocketAddr,
    offer: Offer,
    asked: Option<&ServerName<'static>>,
) -> Result<Dialled, UpstreamFailure> {
    let failed = |error: std::io::Error| UpstreamFailure::ConnectFailure { address, reason: error.kind() };
    let stream = tcp(config, address).await.map_err(failed)?;
    let local = stream.local_addr().ok();
    let Some(tls) = config.tls_for(host) else {
        let wire = if offer == Offer::Http2 { Wire::Http2 } else { Wire::Http1 };
        return Ok(Dialled { io: Io::tcp(stream), wire, local, remote: address });
    };
    let client = match offer {
        Offer::Http1 | Offer::Raw => &tls.http1,
        Offer::Http2 => &tls.http2,
        Offer::Either => &tls.either,
    };
    let connector = TlsConnector::from(std::sync::Arc::clone(client));
    let name = asked.cloned().unwrap_or_else(|| server_name(config, host, address));
    let stream = connector
        .connect(name, Box::new(Io::tcp(stream)))
        .await
        .map_err(|error| UpstreamFailure::TlsFailure { address, reason: error.to_string() })?;
    let wire = match (offer, stream.get_ref().1.alpn_protocol()) {
        (Offer::Http2, _) | (Offer::Either, Some(b"h2")) => Wire::Http2,
        (Offer::Http1 | Offer::Raw | Offer::Either, _) => Wire::Http1,
    };
    Ok(Dialled { io: Io::tls_client(stream), wire, local, remote: address })
}

async fn tcp(config: &ClusterConfig, address: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(source) = config.cluster.source_address
        && source.is_ipv4() == address.is_ipv4()
    {
        socket.set_reuseaddr(true)?;
        socket.bind(source)?;
    }
    socket.set_nodelay(true)?;
    if let Some(keepalive) = config.cluster.tcp_keepalive {
        let whole = |duration: Option<Duration>| duration.map(|duration| duration.max(Duration::from_secs(1)));
        let (time, interval) = (whole(keepalive.time), whole(keepalive.interval));
        set_keepalive(&socket, KeepAlive { time, interval, probes: keepalive.probes })?;
    }
    socket.connect(address).await
}

/// By which name the host is addressed: the context's SNI, else the endpoint's host name, else its IP address (no
/// SNI is sent then).
fn server_name(config: &ClusterConfig, host: &Host, address: SocketAddr) -> ServerName<'static> {
    let sni = config.cluster.tls.as_ref().and_then(|tls| tls.sni.as_deref());
    let candidates = [sni, Some(&**host.hostname())];
    candidates
        .into_iter()
        .flatten()
        .find_map(|name| ServerName::try_from(name.to_owned()).ok())
        .unwrap_or_else(|| ServerName::IpAddress(address.ip().into()))
}
