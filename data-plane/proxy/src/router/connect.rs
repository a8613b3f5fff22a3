//! CONNECT that ends here (`connect_config`): its bytes go to a host of the cluster as plain TCP.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use culvert_http::{BodyKind, Chunk, Io, RequestBody, ResponseHead, ResponseSink, StreamError};
use culvert_upstream::{DownstreamProtocol, PickContext};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::choice::Chosen;
use super::failure::Failure;
use super::limits::{Expired, Limits};
use super::{Origin, Stream, Unanswered, connect_udp};
use crate::flags::ResponseFlag;
use crate::record::UpstreamSide;
use crate::routes::Forward;
use crate::tcp_proxy::attempt_connect;
use crate::timer::Timer;
use crate::worker::Worker;

/// Why a tunnel broke.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Client(#[from] StreamError),
    #[error(transparent)]
    Host(#[from] std::io::Error),
}

impl<'a> Stream<'a> {
    /// A host for what is not tried again, and speaks no HTTP with it.
    pub(super) fn pick_context<'c>(&'c self, action: &Forward, chosen: &'c Chosen<'a>) -> PickContext<'c> {
        PickContext {
            priority: action.config.priority,
            agent: chosen.agent.as_deref(),
            request: Some(self.request),
            downstream: DownstreamProtocol::Http1,
            tried: &[],
            fresh_picks: 0,
            destinations: self.connection.downstream.destinations(),
        }
    }
}

/// Connects, answers 200, and carries bytes until both sides have ended; datagrams, if those are asked for.
pub(super) async fn terminate<'a>(
    stream: &mut Stream<'a>,
    action: &'a Forward,
    chosen: &Chosen<'a>,
    (limits, timer): (&Limits, &mut Timer<'_>),
    body: &mut RequestBody<'_>,
    response: &mut ResponseSink<'_>,
) -> Result<(), Unanswered> {
    if stream.request.upgrade.is_some() {
        return Box::pin(connect_udp::terminate(stream, action, chosen, (limits, timer), body, response)).await;
    }
    stream.record.attempts = 1;
    let context = stream.pick_context(action, chosen);
    let worker = &stream.connection.worker;
    let connecting = attempt_connect(worker, chosen.slot(), &context, stream.connection.downstream.local);
    let connected = limits.run(timer, pin!(connecting)).await;
    let connected = connected.map_err(Failure::from).and_then(|checkout| checkout.map_err(Failure::Unavailable));
    let (checkout, host) = connected.map_err(|failure| stream.failed(&failure, 0, action))?;
    let address = checkout.host().address();
    stream.record.upstream =
        Some(UpstreamSide { host: address, host_name: None, local: None, remote: address, protocol: None });
    limits.overall.set(None);
    stream.head.status = 200;
    stream.record.details = "via_upstream".into();
    stream.finish_head(Origin::Upstream);
    let _active = stream.connection.upgraded();
    let (mut counts, mut hung_up) = ((0, 0), false);
    let sides = (&mut *body, &mut *response);
    let carried = carry(&stream.head, host, worker, limits, sides, &mut counts, &mut hung_up);
    let outcome = limits.run(timer, pin!(carried)).await;
    (stream.record.bytes_received, stream.record.bytes_sent) = counts;
    stream.prompt = false;
    if hung_up {
        stream.record.hung_up();
    }
    match outcome {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(error)) => {
            tracing::debug!(%error, "a CONNECT broke");
            stream.record.flag(match error {
                Broken::Client(_) => ResponseFlag::DownstreamConnectionTermination,
                Broken::Host(_) => ResponseFlag::UpstreamConnectionTermination,
            });
        }
        Err(Expired::Idle | Expired::Attempt | Expired::Overall | Expired::SlowBody) => {
            stream.record.flag(ResponseFlag::StreamIdleTimeout);
        }
    }
    Err(Unanswered::Abort)
}

/// Answers with `head` and carries bytes both ways; counts those received from the client and sent to it.
async fn carry(
    head: &ResponseHead,
    host: Io,
    worker: &Worker,
    limits: &Limits,
    (body, response): (&mut RequestBody<'_>, &mut ResponseSink<'_>),
    (received, sent): &mut (u64, u64),
    hung_up: &mut bool,
) -> Result<(), Broken> {
    response.head(head, BodyKind::Tunnel).await?;
    let (mut reader, mut writer) = tokio::io::split(host);
    let mut up = pin!(async {
        while let Some(chunk) = body.chunk().await? {
            limits.touch();
            *received += chunk.len() as u64;
            writer.write_all(&chunk).await?;
            writer.flush().await?;
        }
        writer.shutdown().await?;
        Ok::<_, Broken>(())
    });
    let mut down = pin!(async {
        let mut buffer = worker.buffers.take();
        loop {
            let count = reader.read(buffer.space()).await?;
            let bytes = buffer.space().get(..count).unwrap_or_default();
            if bytes.is_empty() {
                return Ok::<_, Broken>(response.finish(None).await?);
            }
            limits.touch();
            *sent += count as u64;
            response.data(Chunk::Borrowed(bytes)).await?;
        }
    });
    let (mut up_done, mut down_done) = (false, false);
    poll_fn(|cx| {
        // Each side ends its direction by itself, and the other one may still have something to say.
        if !up_done && let Poll::Ready(result) = up.as_mut().poll(cx) {
            up_done = true;
            *hung_up = !down_done;
            result?;
        }
        if !down_done && let Poll::Ready(result) = down.as_mut().poll(cx) {
            down_done = true;
            result?;
        }
        if up_done && down_done { Poll::Ready(Ok(())) } else { Poll::Pending }
    })
    .await
}
