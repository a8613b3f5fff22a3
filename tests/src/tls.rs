//! TLS ends of a test's own, with the files of [`crate::ca`].

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::Result;

/// A client that trusts `folder/ca.pem` and shows no certificate.
pub fn client(folder: &Path) -> Result<TlsConnector> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(folder.join("ca.pem"))?)?;
    let config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// A connection of it.
pub async fn connect(client: &TlsConnector, address: SocketAddr) -> Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let socket = TcpStream::connect(address).await?;
    // Gone at once when closed: no port waits.
    socket2::SockRef::from(&socket).set_linger(Some(std::time::Duration::ZERO))?;
    Ok(client.connect(ServerName::from(address.ip()), socket).await?)
}

/// A server that shows `folder/NAME.pem` and asks for no certificate.
pub fn server(folder: &Path, name: &str) -> Result<TlsAcceptor> {
    let certificate = CertificateDer::from_pem_file(folder.join(format!("{name}.pem")))?;
    let key = PrivateKeyDer::from_pem_file(folder.join(format!("{name}-key.pem")))?;
    let config = rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate], key)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}
