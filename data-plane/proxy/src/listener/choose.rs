//! Which filter chain an accepted connection gets, and its TLS handshake if the chain has one.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use culvert_http::Io;
use culvert_runtime::drain::Blocker;
use tokio::time::timeout;

use super::Chain;
use super::accept::{Arrived, Downstream, WorkerListener};
use super::generation::{Generation, WorkerChain, WorkerFilter};
use super::inspect::{self, Hello, Inspected, Inspection, TlsDetails};
use super::matching::Arrival;
use crate::stats::ListenerMetric;
use crate::tunnel::{self, Admission};
use crate::worker::Worker;

/// A connection with its chain.
pub(super) struct Ready {
    pub(super) io: Io,
    pub(super) downstream: Rc<Downstream>,
    pub(super) chain: Rc<WorkerChain>,
    /// Holds the chain's drain back.
    pub(super) _held: Blocker,
    /// Of a chain that makes tunnels of connections within TLS.
    pub(super) admission: Option<Admission>,
}

impl WorkerListener {
    /// Chooses the chain of a connection that has to be waited for in no way; `Err`: it is another one.
    pub(super) fn choose_by_address(
        &self,
        worker: &Worker,
        generation: &Generation,
        arrived: Box<Arrived>,
    ) -> Result<Option<Ready>, Box<Arrived>> {
        if generation.chains.inspection != Inspection::None {
            return Err(arrived);
        }
        let ends = (arrived.remote, arrived.local);
        let Some(chain) = self.chain(worker, generation, ends, &Hello::default()) else { return Ok(None) };
        if chain.chain.tls.is_some() {
            return Err(arrived);
        }
        let held = chain.chain.watch.block();
        let downstream = Rc::new(Downstream {
            id: worker.connection_id(),
            remote: arrived.remote,
            local: arrived.local,
            start: arrived.start,
            tls: None,
            server_name: None,
            chain: Arc::clone(&chain.chain.config.name),
            hosted: arrived.hosted,
        });
        Ok(Some(Ready { io: arrived.io, downstream, chain, _held: held, admission: None }))
    }

    /// Inspects the connection, chooses its chain and terminates TLS.
    pub(super) async fn choose(&self, worker: &Worker, generation: &Generation, arrived: Arrived) -> Option<Ready> {
        let ends = (arrived.remote, arrived.local);
        let (inspected, hello) = self.inspect(generation, arrived.io).await?;
        let chain = self.chain(worker, generation, ends, &hello)?;
        let held = chain.chain.watch.block();
        let admission = match &chain.filter {
            WorkerFilter::Tunnel(tunnel) if chain.chain.tls.is_some() => Some(tunnel::admit(tunnel, arrived.remote)?),
            _ => None,
        };
        let (io, tls, server_name) = self.terminate(&chain.chain, inspected, hello.server_name).await?;
        let tls = tls.map(Box::new);
        let downstream = Rc::new(Downstream {
            id: worker.connection_id(),
            remote: arrived.remote,
            local: arrived.local,
            start: arrived.start,
            tls,
            server_name,
            chain: Arc::clone(&chain.chain.config.name),
            hosted: arrived.hosted,
        });
        Some(Ready { io, downstream, chain, _held: held, admission })
    }

    /// The chain that fits; `None` is counted.
    fn chain(
        &self,
        worker: &Worker,
        generation: &Generation,
        (remote, local): (SocketAddr, SocketAddr),
        hello: &Hello,
    ) -> Option<Rc<WorkerChain>> {
        let arrival = Arrival {
            local,
            remote,
            direct: remote.ip(),
            transport: hello.transport(),
            server_name: hello.server_name.as_deref(),
            alpn: &hello.alpn,
        };
        let chain = generation.chain(&arrival, worker);
        if chain.is_none() {
            self.counters.inc(ListenerMetric::NoFilterChainMatch);
            tracing::debug!(listener = %self.slot.name, %remote, "no filter chain matches");
        }
        chain
    }

    async fn inspect(&self, generation: &Generation, io: Io) -> Option<(Inspected, Hello)> {
        let inspect = async {
            Ok(match generation.chains.inspection {
                Inspection::None => (Inspected::Plain(io), Hello::default()),
                Inspection::Terminate => {
                    let begun = inspect::begin_tls(Box::new(io)).await?;
                    let hello = Hello::of(&begun.client_hello());
                    (Inspected::Begun(Box::new(begun)), hello)
                }
                Inspection::ReadAhead => {
                    let (io, hello) = inspect::read_ahead(io).await?;
                    (Inspected::Plain(io), hello)
                }
            })
        };
        let limit = generation.chains.listener.listener_filters_timeout;
        let inspected: Result<std::io::Result<_>, _> =
            if limit.is_zero() || generation.chains.inspection == Inspection::None {
                Ok(inspect.await)
            } else {
                timeout(limit, inspect).await
            };
        match inspected {
            Ok(Ok(inspected)) => Some(inspected),
            Ok(Err(error)) => {
                if generation.chains.inspection == Inspection::Terminate {
                    self.counters.inc(ListenerMetric::SslConnectionError);
                }
                tracing::debug!(listener = %self.slot.name, %error, "a connection's first bytes are no use");
                None
            }
            Err(_elapsed) => {
                self.counters.inc(ListenerMetric::PreCxTimeout);
                None
            }
        }
    }

    /// The TLS handshake, if the chain has one.
    async fn terminate(
        &self,
        chain: &Chain,
        inspected: Inspected,
        server_name: Option<Arc<str>>,
    ) -> Option<(Io, Option<TlsDetails>, Option<Arc<str>>)> {
        let Some(slot) = &chain.tls else {
            return match inspected {
                Inspected::Plain(io) => Some((io, None, server_name)),
                // Cannot be: handshakes are begun only where every chain terminates TLS.
                Inspected::Begun(_) => None,
            };
        };
        let counters = &self.counters;
        let Some(config) = slot.current() else {
            counters.inc(ListenerMetric::SslNotReady);
            tracing::debug!(listener = %self.slot.name, "the certificates of a filter chain have not arrived");
            return None;
        };
        let handshake = async {
            let begun = match inspected {
                Inspected::Begun(begun) => begun,
                Inspected::Plain(io) => Box::new(inspect::begin_tls(Box::new(io)).await?),
            };
            // The same that the handshake presents, for it is chosen by the same hello.
            let own = config.cert_resolver.resolve(begun.client_hello());
            begun.into_stream(config).await.map(|stream| (stream, own))
        };
        let limit = chain.config.transport_timeout;
        let limit = if limit.is_zero() { NO_LIMIT } else { limit };
        match timeout(limit, handshake).await {
            Ok(Ok((stream, own))) => {
                counters.inc(ListenerMetric::SslHandshake);
                let connection = stream.get_ref().1;
                let details = TlsDetails::of(connection, own.as_deref());
                if details.peer.is_none() {
                    counters.inc(ListenerMetric::SslNoCertificate);
                }
                let server_name = connection.server_name().map(|name| name.to_ascii_lowercase().into());
                Some((Io::tls_server(stream), Some(details), server_name))
            }
            Ok(Err(error)) => {
                counters.inc(ListenerMetric::SslConnectionError);
                if let Some(metric) = refused_certificate(&error) {
                    counters.inc(metric);
                }
                tracing::debug!(listener = %self.slot.name, %error, "TLS handshake failed");
                None
            }
            Err(_elapsed) => {
                counters.inc(ListenerMetric::SslConnectionError);
                tracing::debug!(listener = %self.slot.name, "TLS handshake took too long");
                None
            }
        }
    }
}

/// What a handshake is counted as that failed for the client's certificate: there is none, or it is not trusted.
fn refused_certificate(error: &std::io::Error) -> Option<ListenerMetric> {
    match error.get_ref()?.downcast_ref::<rustls::Error>()? {
        rustls::Error::NoCertificatesPresented => Some(ListenerMetric::SslFailVerifyNoCert),
        rustls::Error::InvalidCertificate(_) => Some(ListenerMetric::SslFailVerifyError),
        _ => None,
    }
}

const NO_LIMIT: Duration = Duration::from_secs(86_400);
