//! CONNECT-UDP that ends here (`connect_config`, RFC 9298): its datagrams go to a host of the cluster as plain UDP.
//!
//! **Nothing is queued**: a datagram for which the host's socket has no room is dropped, and while the client takes no more
//! the kernel drops what the host sends.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use culvert_http::capsule::{self, CapsuleError, CapsuleReader};
use culvert_http::{BodyKind, Chunk, RequestBody, ResponseHead, ResponseSink, StreamError};
use culvert_upstream::{ClusterMetric, UdpCheckout, UpstreamFailure};
use tokio::net::UdpSocket;

use super::choice::Chosen;
use super::failure::Failure;
use super::limits::{Expired, Limits};
use super::{Origin, Stream, Unanswered};
use crate::flags::ResponseFlag;
use crate::record::UpstreamSide;
use crate::routes::Forward;
use crate::stats::{HttpMetric, UdpClusterMetric};
use crate::timer::Timer;
use crate::udp_proxy::host_socket;
use crate::worker::{Counters, Pool};

/// Why a session ended before its client did.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Client(#[from] StreamError),
    #[error(transparent)]
    Capsule(#[from] CapsuleError),
    #[error("its socket failed: {0}")]
    Socket(#[from] std::io::Error),
}

/// Opens a socket towards the host, answers 200, and carries datagrams until the client ends the stream.
pub(super) async fn terminate<'a>(
    stream: &mut Stream<'a>,
    action: &'a Forward,
    chosen: &Chosen<'a>,
    (limits, timer): (&Limits, &mut Timer<'_>),
    body: &mut RequestBody<'_>,
    response: &mut ResponseSink<'_>,
) -> Result<(), Unanswered> {
    stream.record.attempts = 1;
    let context = stream.pick_context(action, chosen);
    let worker = &stream.connection.worker;
    let opened = worker.pools.checkout_udp(chosen.slot(), &context).and_then(|checkout| {
        let address = checkout.address();
        let socket = host_socket(address).and_then(UdpSocket::from_std).map_err(|error| {
            tracing::warn!(%address, %error, "no socket for a host's datagrams");
            UpstreamFailure::ConnectFailure { address, reason: error.kind() }
        });
        socket.map(|socket| (checkout, socket))
    });
    let (checkout, socket) = opened.map_err(|failure| stream.failed(&Failure::Unavailable(failure), 0, action))?;
    let address = Some(checkout.address());
    let local = socket.local_addr().ok();
    stream.record.upstream =
        Some(UpstreamSide { host: address, host_name: None, local, remote: address, protocol: None });
    limits.overall.set(None);
    stream.head.status = 200;
    stream.head.fields.set(b"capsule-protocol", b"?1");
    stream.record.details = "via_upstream".into();
    stream.finish_head(Origin::Upstream);
    let _active = stream.connection.upgraded();
    let mut session = Session {
        socket,
        limits,
        counters: worker.udp_counters(chosen.slot()),
        buffers: &worker.buffers,
        received: 0,
        sent: 0,
    };
    let outcome = {
        let carried = session.carry(&stream.head, body, response);
        limits.run(timer, pin!(carried)).await
    };
    let (received, sent) = (session.received, session.sent);
    (stream.record.bytes_received, stream.record.bytes_sent) = (received, sent);
    checkout.add(ClusterMetric::CxTxBytesTotal, received);
    checkout.add(ClusterMetric::CxRxBytesTotal, sent);
    stream.prompt = false;
    ended(stream, outcome, &checkout)
}

fn ended(
    stream: &mut Stream<'_>,
    outcome: Result<Result<(), Broken>, Expired>,
    checkout: &UdpCheckout,
) -> Result<(), Unanswered> {
    match outcome {
        Ok(Ok(())) => {
            stream.record.hung_up();
            return Ok(());
        }
        Ok(Err(error)) => {
            tracing::debug!(%error, host = %checkout.address(), "a CONNECT-UDP broke");
            stream.record.flag(match error {
                Broken::Client(_) => ResponseFlag::DownstreamConnectionTermination,
                Broken::Capsule(_) => {
                    stream.connection.http.counters.inc(HttpMetric::CxProtocolError);
                    ResponseFlag::DownstreamProtocolError
                }
                Broken::Socket(_) => ResponseFlag::UpstreamConnectionTermination,
            });
        }
        Err(Expired::Idle | Expired::Attempt | Expired::Overall | Expired::SlowBody) => {
            stream.record.flag(ResponseFlag::StreamIdleTimeout);
        }
    }
    Err(Unanswered::Abort)
}

/// One stream's socket.
struct Session<'a> {
    socket: UdpSocket,
    limits: &'a Limits,
    counters: Counters<UdpClusterMetric>,
    buffers: &'a Pool<crate::tcp_proxy::CopyBuffer>,
    /// Bytes of datagrams from the client, and to it.
    received: u64,
    sent: u64,
}

impl Session<'_> {
    /// Answers with `head`, and carries datagrams both ways until the client ends its direction.
    async fn carry(
        &mut self,
        head: &ResponseHead,
        body: &mut RequestBody<'_>,
        response: &mut ResponseSink<'_>,
    ) -> Result<(), Broken> {
        response.head(head, BodyKind::Tunnel).await?;
        response.flush().await?;
        // Known to the reactor from here on: without it the first datagram would find no room.
        self.socket.writable().await?;
        let Self { socket, limits, counters, buffers, received, sent } = self;
        let (socket, counters) = (&*socket, &*counters);
        {
            let mut up = pin!(async {
                let mut reader = CapsuleReader::default();
                while let Some(chunk) = body.chunk().await? {
                    reader.read(&chunk, |payload| {
                        limits.touch();
                        *received += payload.len() as u64;
                        send(socket, payload, counters);
                    })?;
                    counters.add(UdpClusterMetric::TxErrors, reader.take_foreign());
                    tokio::task::consume_budget().await;
                }
                Ok::<_, Broken>(reader.finish()?)
            });
            let mut down = pin!(async {
                loop {
                    socket.readable().await?;
                    *sent += forward(socket, buffers, response, counters).await?;
                    limits.touch();
                }
            });
            poll_fn(|cx| match up.as_mut().poll(cx) {
                Poll::Pending => down.as_mut().poll(cx),
                ended => ended,
            })
            .await?;
        }
        Ok(response.finish(None).await?)
    }
}

/// A datagram for the host; what finds no room is lost, as anywhere on its way.
fn send(socket: &UdpSocket, payload: &[u8], counters: &Counters<UdpClusterMetric>) {
    match socket.try_send(payload) {
        Ok(_) => counters.inc(UdpClusterMetric::TxDatagrams),
        Err(error) => {
            // Also that of an earlier one: that the host takes none at this port.
            tracing::debug!(%error, "a datagram was not sent to its host");
            counters.inc(UdpClusterMetric::TxErrors);
        }
    }
}

/// What the host has sent, a batch of it, as capsules; how many bytes of datagrams.
async fn forward(
    socket: &UdpSocket,
    buffers: &Pool<crate::tcp_proxy::CopyBuffer>,
    response: &mut ResponseSink<'_>,
    counters: &Counters<UdpClusterMetric>,
) -> Result<u64, Broken> {
    let mut buffer = buffers.take();
    let mut bytes = 0;
    for _ in 0..BATCH {
        let Some((room, space)) = buffer.space().split_first_chunk_mut() else { break };
        let length = match socket.try_recv(space) {
            Ok(length) => length,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
            Err(error) => {
                tracing::debug!(%error, "a host takes no datagrams");
                counters.inc(UdpClusterMetric::RxErrors);
                continue;
            }
        };
        counters.inc(UdpClusterMetric::RxDatagrams);
        bytes += length as u64;
        let start = capsule::put_header(room, length);
        let capsule = buffer.space().get(start..capsule::HEADER_ROOM + length).unwrap_or_default();
        response.queue(Chunk::Borrowed(capsule)).await?;
    }
    response.flush().await?;
    Ok(bytes)
}

/// Datagrams that are read before others have their turn.
const BATCH: usize = 32;
