//! Envoy's dialect on the agent: its request, its answer, and what comes before the tunnel is used.

use std::time::SystemTime;

use culvert_http::Io;
use culvert_model::agent::EnvoyInitiator;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::dial::{DialError, Established, Target, Told, connect_through};
use crate::envoy::wire::{RequestHead, ResponseReader};
use crate::wire::Secret;

/// Who asks, for one connection.
#[derive(Debug)]
pub(super) struct Initiator<'a> {
    pub(super) config: &'a EnvoyInitiator,
    pub(super) node: &'a str,
    pub(super) cluster: &'a str,
    pub(super) worker: usize,
    pub(super) connection: u32,
    /// Presented as a bearer token.
    pub(super) token: Option<Secret>,
}

/// A tunnel connection.
pub(super) async fn establish(
    target: &Target,
    initiator: &Initiator<'_>,
    told: Told<'_>,
) -> Result<Established, DialError> {
    // TLS reads no byte behind the record that it needs: an Envoy goes on without TLS right behind its answer.
    let io = connect_through(target, told, Io::record_by_record).await?;
    let local = io.local_addr().unwrap_or(target.address);
    let head = initiator.head(&target.address.to_string(), io.is_tls());
    let (io, tls_kept) = handshake(io, &head, initiator.config.upgrade).await?;
    if io.is_tls() && !tls_kept {
        if !initiator.config.leaves_tls {
            return Err(DialError::LeavesTls);
        }
        return Ok(Established {
            io: io.leave_tls(),
            local,
            id: None,
            capable: false,
            round_trip: None,
            tls: target.tls.clone(),
        });
    }
    Ok(Established {
        io: io.as_one_stream(),
        local,
        id: None,
        capable: false,
        round_trip: None,
        tls: target.tls.clone(),
    })
}

/// Sends the request and reads the answer; whether the server keeps TLS.
async fn handshake(mut io: Io, request: &[u8], upgrade: bool) -> Result<(Io, bool), DialError> {
    io.write_all(request).await.map_err(DialError::Handshake)?;
    io.flush().await.map_err(DialError::Handshake)?;
    let mut reader = ResponseReader::default();
    let accepted = loop {
        if let Some(accepted) = reader.next_response(upgrade)? {
            break accepted;
        }
        let buffer = reader.buffer();
        buffer.reserve(READ);
        if io.read_buf(buffer).await.map_err(DialError::Handshake)? == 0 {
            return Err(DialError::Closed);
        }
    };
    let surplus = reader.into_surplus();
    if io.is_tls() && !accepted.tls_kept && !surplus.is_empty() {
        // It says both that TLS is over and that it is not.
        return Err(DialError::LeavesTls);
    }
    Ok((io.with_prefix(surplus), accepted.tls_kept))
}

impl Initiator<'_> {
    fn head(&self, host: &str, tls: bool) -> Vec<u8> {
        let config = self.config;
        let mut additional: Vec<(String, String)> =
            config.additional_headers.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        if let Some(token) = &self.token {
            additional.push(("authorization".to_owned(), format!("Bearer {}", token.0)));
        }
        RequestHead {
            path: &config.path,
            host,
            upgrade: config.upgrade,
            prefix: HEADER_PREFIX,
            node: self.node,
            cluster: self.cluster,
            tenant: &config.tenant,
            upstream_cluster: &config.upstream_cluster,
            time: SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_millis()),
            worker: self.worker,
            connection: self.connection,
            additional: &additional,
            tls_kept: tls,
        }
        .encode()
    }
}

const HEADER_PREFIX: &str = "x-envoy";
/// Bytes that are asked for at once.
const READ: usize = 1024;
