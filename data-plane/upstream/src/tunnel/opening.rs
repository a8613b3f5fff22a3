//! How a tunnel in Envoy's dialect is opened when it is first used: as it is, or with TLS inside of it, as the
//! `transport_socket` of a `reverse_connection` cluster demands.
//!
//! **A tunnel serves only clusters with one transport socket**, that of the cluster whose request opened it: what one cluster
//! has verified, and whom it has shown itself as, is not another one's. (Envoy shares no tunnel between clusters at all.)

use std::net::Ipv4Addr;
use std::sync::Arc;

use culvert_http::Io;
use culvert_model::tls::UpstreamTls;
use rustls::pki_types::ServerName;
use tokio_rustls::TlsConnector;

/// What a cluster demands inside of tunnels. The default is nothing.
#[derive(Debug, Clone, Default)]
pub(crate) struct Opening(Option<Inner>);

#[derive(Debug, Clone)]
struct Inner {
    /// What it was made of: equal contexts mean the same, whichever cluster has them.
    context: Arc<UpstreamTls>,
    /// `None`: there is nothing to open it with, and it is not opened at all.
    client: Option<Arc<rustls::ClientConfig>>,
}

impl Opening {
    /// `client` offers HTTP/2.
    pub(crate) fn of(context: &Arc<UpstreamTls>, client: Option<&Arc<rustls::ClientConfig>>) -> Self {
        Self(Some(Inner { context: Arc::clone(context), client: client.cloned() }))
    }

    /// Whether a tunnel that is opened in this way serves whoever demands the other.
    pub(crate) fn serves(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (None, None) => true,
            (Some(own), Some(other)) => Arc::ptr_eq(&own.context, &other.context) || own.context == other.context,
            (None, Some(_)) | (Some(_), None) => false,
        }
    }

    /// Does the handshake, if one is demanded.
    ///
    /// # Errors
    /// The agent speaks no TLS, or is not to be believed.
    pub(super) async fn open(&self, io: Io) -> std::io::Result<Io> {
        let Some(inner) = &self.0 else { return Ok(io) };
        let named = inner.context.sni.as_deref().and_then(|name| ServerName::try_from(name.to_owned()).ok());
        // Agents have no names by which they could be addressed: none is sent then, as by Envoy.
        let name = named.unwrap_or_else(|| ServerName::IpAddress(Ipv4Addr::LOCALHOST.into()));
        let client = inner.client.as_ref().ok_or_else(|| std::io::Error::other("its TLS material is not there"))?;
        let connector = TlsConnector::from(Arc::clone(client));
        Ok(Io::tls_client(connector.connect(name, Box::new(io)).await?))
    }
}
