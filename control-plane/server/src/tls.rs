//! TLS of the gRPC socket, from files that are read again when they change. Connections keep what they began with.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use arc_swap::ArcSwap;
use culvert_runtime::files::FileWatcher;
use culvert_runtime::tls::{Identity, Roots, ServerTls, Trust, Version, server_config};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

use crate::args::Args;
use crate::control::Control;

/// How long nothing may change before a change counts as finished: a certificate and its key are two files.
const QUIET: Duration = Duration::from_millis(200);

#[derive(Debug)]
pub(crate) struct Tls {
    cert: PathBuf,
    key: PathBuf,
    authority: Option<PathBuf>,
    /// Clients need a certificate; where there are tokens, those do as well.
    required: bool,
    /// What is spoken inside (ALPN).
    protocols: &'static [&'static [u8]],
    config: ArcSwap<ServerConfig>,
}

/// Inside of TLS on --listen.
pub(crate) const GRPC: &[&[u8]] = &[b"h2"];
/// Inside of TLS on --rest.
pub(crate) const REST: &[&[u8]] = &[b"h2", b"http/1.1"];

impl Tls {
    /// What the command line says; `None`: plaintext.
    ///
    /// # Errors
    /// A file cannot be read or makes no sense.
    pub(crate) fn new(args: &Args, protocols: &'static [&'static [u8]]) -> anyhow::Result<Option<Self>> {
        let (Some(cert), Some(key)) = (&args.tls_cert, &args.tls_key) else { return Ok(None) };
        let authority = args.tls_client_ca.clone();
        let required = args.tokens.is_none();
        let (cert, key) = (cert.clone(), key.clone());
        let config = ArcSwap::new(read(&cert, &key, authority.as_deref(), required, protocols)?);
        Ok(Some(Self { cert, key, authority, required, protocols, config }))
    }

    /// For the next connection.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.config.load_full())
    }

    /// Reads the files as they change, for ever. What is wrong with them is said, and what was good stays.
    pub(crate) async fn follow(self: Arc<Self>, control: Arc<Control>) {
        let paths = [Some(&self.cert), Some(&self.key), self.authority.as_ref()];
        let mut changes = FileWatcher::new().watch(paths.into_iter().flatten().cloned(), QUIET);
        loop {
            changes.changed().await;
            match read(&self.cert, &self.key, self.authority.as_deref(), self.required, self.protocols) {
                Ok(config) => {
                    self.config.store(config);
                    control.metrics.tls_loads_accepted.add();
                    tracing::info!("the files of TLS changed; new connections use them");
                }
                Err(error) => {
                    control.metrics.tls_loads_refused.add();
                    tracing::error!("the files of TLS changed and are refused, the former stay: {error:#}");
                }
            }
        }
    }
}

fn read(
    cert: &Path,
    key: &Path,
    authority: Option<&Path>,
    required: bool,
    protocols: &[&[u8]],
) -> anyhow::Result<Arc<ServerConfig>> {
    let read = |path: &Path| std::fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let identity = Identity::from_pem(&read(cert)?, &read(key)?).context("--tls-cert, --tls-key")?;
    let trust = match authority {
        Some(path) => Some(Trust { roots: Roots::Pem(read(path)?.into()), crl: None, sans: Vec::new() }),
        None => None,
    };
    let require_client_certificate = required && trust.is_some();
    server_config(ServerTls {
        identities: vec![identity],
        trust,
        require_client_certificate,
        alpn: protocols.iter().map(|protocol| protocol.to_vec()).collect(),
        min: Version::V1_2,
        max: Version::V1_3,
    })
    .context("--tls-cert, --tls-key, --tls-client-ca")
}
