//! A connection to a control plane: the endpoints of a static cluster, with its TLS.

mod noting;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use culvert_model::bootstrap::Bootstrap;
use culvert_model::cluster::{Cluster, Discovery};
use culvert_model::endpoint::{Address, Endpoint};
use culvert_model::source::GrpcSource;
use culvert_runtime::sockets::set_user_timeout;
use http::Uri;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tonic::transport::{Channel, Endpoint as Target};

pub(super) use self::noting::Cause;
use self::noting::Noting;
use crate::config::ClientTls;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error("no static cluster is named {0}")]
    NoCluster(culvert_model::Name),
    #[error("cluster {0} has no endpoints; the control plane's cluster must be STATIC, STRICT_DNS or LOGICAL_DNS")]
    NoEndpoints(culvert_model::Name),
    #[error("TLS of cluster {cluster}: {reason}")]
    Tls { cluster: culvert_model::Name, reason: String },
    #[error("{0:?} cannot be an authority")]
    Authority(String),
    #[error("{0}")]
    Transport(String),
}

/// Connects to the first endpoint of a source's server that answers, beginning with another one at each attempt. `server` counts
/// in the source's order of preference.
pub(super) async fn connect(
    bootstrap: &Bootstrap,
    source: &GrpcSource,
    server: usize,
    client_tls: &ClientTls,
    attempt: u32,
) -> Result<(Channel, Cause), ConnectError> {
    let none = || ConnectError::NoEndpoints("".into());
    let name = source.clusters.get(server).ok_or_else(none)?;
    let cluster = bootstrap.clusters.iter().find(|cluster| cluster.name == *name);
    let cluster = cluster.ok_or_else(|| ConnectError::NoCluster(Arc::clone(name)))?;
    let endpoints = endpoints(cluster);
    if endpoints.is_empty() {
        return Err(ConnectError::NoEndpoints(Arc::clone(name)));
    }
    let mut last = None;
    let count = endpoints.len();
    let first = usize::try_from(attempt).unwrap_or(0) % count;
    for endpoint in endpoints.iter().cycle().skip(first).take(count) {
        match connect_to(cluster, endpoint, source, client_tls).await {
            Ok(connected) => return Ok(connected),
            Err(error) => {
                tracing::debug!(cluster = %name, address = ?endpoint.address, %error, "cannot connect");
                last = Some(error);
            }
        }
    }
    Err(last.unwrap_or_else(none))
}

fn endpoints(cluster: &Cluster) -> Vec<Endpoint> {
    let (Discovery::Static(endpoints)
    | Discovery::StrictDns { endpoints, .. }
    | Discovery::LogicalDns { endpoints, .. }) = &cluster.discovery
    else {
        return Vec::new();
    };
    endpoints.localities.iter().flat_map(|locality| locality.endpoints.iter().cloned()).collect()
}

async fn connect_to(
    cluster: &Cluster,
    endpoint: &Endpoint,
    source: &GrpcSource,
    client_tls: &ClientTls,
) -> Result<(Channel, Cause), ConnectError> {
    let tls = cluster.tls.as_ref().map(|tls| {
        let config =
            client_tls(tls).map_err(|reason| ConnectError::Tls { cluster: Arc::clone(&cluster.name), reason })?;
        let mut config = rustls::ClientConfig::clone(&config);
        // gRPC speaks HTTP/2 and nothing else.
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(TlsTo { config: Arc::new(config), name: server_name(tls.sni.as_deref(), endpoint)? })
    });
    let tls = tls.transpose()?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    let authority = source.authority.as_deref().unwrap_or(&cluster.name);
    let origin = format!("{scheme}://{authority}");
    let origin: Uri = origin.parse().map_err(|_| ConnectError::Authority(authority.to_owned()))?;
    let address = endpoint.address.clone();
    let cause = Cause::default();
    let noted = cause.clone();
    let (interval, timeout) = match cluster.http2.keepalive_interval {
        Some(interval) => (interval, cluster.http2.keepalive_timeout),
        None => (KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT),
    };
    // One dial, one connection: the channel would dial again by itself, past the back-off.
    let dialled = Arc::new(AtomicBool::new(false));
    let connector = tower::service_fn(move |_uri: Uri| {
        let over = dialled.swap(true, Ordering::Relaxed);
        let (address, tls, noted) = (address.clone(), tls.clone(), noted.clone());
        async move {
            if over {
                return Err(std::io::Error::new(std::io::ErrorKind::NotConnected, "the connection has ended"));
            }
            open(address, tls, noted, interval + timeout).await
        }
    });
    let connected = Target::from_static("http://control-plane")
        .origin(origin)
        .connect_timeout(cluster.connect_timeout)
        .http2_keep_alive_interval(interval)
        .keep_alive_timeout(timeout)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .connect_with_connector(connector)
        .await;
    match connected {
        Ok(channel) => Ok((channel, cause)),
        Err(error) => Err(ConnectError::Transport(with_causes(&error))),
    }
}

#[derive(Clone)]
struct TlsTo {
    config: Arc<rustls::ClientConfig>,
    name: ServerName<'static>,
}

fn server_name(sni: Option<&str>, endpoint: &Endpoint) -> Result<ServerName<'static>, ConnectError> {
    let host = match (sni, &endpoint.address) {
        (Some(sni), _) => sni.to_owned(),
        (None, _) if !endpoint.hostname.is_empty() => endpoint.hostname.to_string(),
        (None, Address::Name { host, .. }) => host.to_string(),
        (None, Address::Ip(address)) => address.ip().to_string(),
        (None, Address::Path(path)) => path.to_string(),
    };
    ServerName::try_from(host.clone()).map_err(|_| ConnectError::Authority(host))
}

async fn open(
    address: Address,
    tls: Option<TlsTo>,
    cause: Cause,
    unacknowledged: Duration,
) -> std::io::Result<TokioIo<Noting>> {
    let stream = match address {
        Address::Ip(address) => TcpStream::connect(address).await?,
        Address::Name { host, port } => {
            let addresses: Vec<SocketAddr> = tokio::net::lookup_host((&*host, port)).await?.collect();
            TcpStream::connect(&addresses[..]).await?
        }
        Address::Path(path) => {
            // unix(7): an abstract one begins with a zero byte, which configurations write as `@`.
            let path = path.strip_prefix('@').map_or_else(|| path.to_string(), |name| format!("\0{name}"));
            return secured(UnixStream::connect(path).await?, tls, cause).await;
        }
    };
    stream.set_nodelay(true)?;
    // While sent bytes are unacknowledged the kernel would go on for a quarter of an hour.
    set_user_timeout(&stream, unacknowledged)?;
    secured(stream, tls, cause).await
}

async fn secured(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    tls: Option<TlsTo>,
    cause: Cause,
) -> std::io::Result<TokioIo<Noting>> {
    let Some(TlsTo { config, name }) = tls else { return Ok(TokioIo::new(Noting { inner: Box::new(stream), cause })) };
    let handshake = tokio_rustls::TlsConnector::from(config).connect(name, stream);
    let stream = tokio::time::timeout(HANDSHAKE_TIME, handshake)
        .await
        .map_err(|_| std::io::Error::new(std::io::ErrorKind::TimedOut, "the TLS handshake took too long"))??;
    Ok(TokioIo::new(Noting { inner: Box::new(stream), cause }))
}

/// The error and what caused it, on one line: tonic's own text is only `transport error`.
pub(super) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

/// Unless the cluster has a `connection_keepalive` of its own: a dead control plane is noticed within 40 s.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
const HANDSHAKE_TIME: Duration = Duration::from_secs(5);
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
