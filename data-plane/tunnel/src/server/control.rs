//! The server's end of the control service: one stream on each connection that carries HTTP/2, as long as it lasts.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use culvert_http::{BodyKind, Chunk, ClientExchange, Method, RequestHead, RequestSink, ResponseHead, StreamError};
use culvert_model::control::{AgentNotice, NoticeError, PATH, ServerNotice};
use culvert_runtime::telemetry::Block;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::sleep;

use super::tunnels::Tunnels;
use super::{Claim, HostLease};
use crate::control::{CONTENT_TYPE, MessageError, Messages, PACE, framed};
use crate::metrics::ServerMetric;
use crate::wire::GracefulClose;

/// A connection's way to tell its agent something. Cheap to clone, and small: a channel of tokio's has room for 32 from the
/// start.
#[derive(Debug, Clone, Default)]
pub(super) struct Notices(Arc<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    notices: Mutex<VecDeque<ServerNotice>>,
    news: Notify,
}

impl Notices {
    /// Never waits: an agent that takes nothing is told nothing.
    pub(super) fn send(&self, notice: ServerNotice) {
        let mut notices = self.0.notices.lock();
        if notices.len() < MAX_WAITING {
            notices.push_back(notice);
            self.0.news.notify_one();
        } else {
            tracing::debug!("an agent was not told: it takes nothing");
        }
    }

    /// The next one. For one waiter.
    pub(super) async fn next(&self) -> ServerNotice {
        loop {
            let next = self.0.notices.lock().pop_front();
            match next {
                Some(notice) => return notice,
                None => self.0.news.notified().await,
            }
        }
    }
}

/// Why the stream ended.
#[derive(Debug, thiserror::Error)]
enum ControlError {
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error("the agent answered {0}")]
    Status(u16),
    #[error(transparent)]
    Message(#[from] MessageError),
    #[error(transparent)]
    Notice(#[from] NoticeError),
}

/// One connection's control service. Never ends: the connection does.
pub(super) async fn run<L: HostLease>(
    lease: &L,
    claim: &Claim,
    tunnels: &Tunnels,
    metrics: &Block<ServerMetric>,
    notices: &Notices,
) {
    if let Some(exchange) = lease.exchange().await {
        match Box::pin(converse(exchange, claim, tunnels, metrics, notices)).await {
            Ok(()) => tracing::debug!(id = %claim.id, "an agent has ended its control stream"),
            Err(error) => tracing::debug!(id = %claim.id, %error, "an agent's control stream has ended"),
        }
    }
    std::future::pending().await
}

async fn converse(
    mut exchange: ClientExchange,
    claim: &Claim,
    tunnels: &Tunnels,
    metrics: &Block<ServerMetric>,
    notices: &Notices,
) -> Result<(), ControlError> {
    exchange.send_head(&request(), BodyKind::Stream).await?;
    let (mut sink, mut source) = exchange.split();
    sink.flush().await?;
    let mut head = ResponseHead::default();
    source.head(&mut head).await?;
    if head.status != 200 {
        return Err(ControlError::Status(head.status));
    }
    let mut messages = Messages::default();
    loop {
        tokio::select! {
            biased;
            notice = notices.next() => send(&mut sink, &notice).await?,
            chunk = source.chunk() => match chunk? {
                Some(chunk) => messages.push(&chunk),
                None => return Ok(()),
            },
        }
        while let Some(message) = messages.next()? {
            if let Some(answer) = answer(message, claim, tunnels, metrics)? {
                send(&mut sink, &answer).await?;
                sleep(PACE).await;
            }
        }
    }
}

/// Does what a notice asks for.
fn answer(
    message: Bytes,
    claim: &Claim,
    tunnels: &Tunnels,
    metrics: &Block<ServerMetric>,
) -> Result<Option<ServerNotice>, NoticeError> {
    Ok(match AgentNotice::decode(message)? {
        None => None,
        Some(AgentNotice::Close { sequence, connection_ids }) => {
            let cluster_name = claim.cluster.to_string();
            let request = GracefulClose { addresses: None, cluster_name, connection_ids };
            let done = tunnels.close(&claim.peer.origin(), &request);
            metrics.add(ServerMetric::GracefulClose, done.closed);
            metrics.add(ServerMetric::GracefulCloseIgnored, done.ignored);
            tracing::info!(id = %claim.id, closed = done.closed, ignored = done.ignored, "graceful close of tunnels");
            Some(ServerNotice::CloseAck { sequence, closed: done.closed })
        }
        Some(AgentNotice::Weight { sequence, weight }) => {
            let changed = tunnels.reweigh(claim, weight);
            tracing::info!(id = %claim.id, weight, changed, "an agent has another weight");
            Some(ServerNotice::WeightAck { sequence, changed })
        }
    })
}

async fn send(sink: &mut RequestSink<'_>, notice: &ServerNotice) -> Result<(), StreamError> {
    sink.data(Chunk::Owned(framed(&notice.encode()))).await?;
    sink.flush().await
}

fn request() -> RequestHead {
    let mut head = RequestHead {
        method: Method::Post,
        path: PATH.to_owned(),
        authority: "culvert".to_owned(),
        ..RequestHead::default()
    };
    head.fields.push(b"content-type", CONTENT_TYPE);
    head.fields.push(b"te", b"trailers");
    head
}

/// Runs the control service beside `connection`, until that ends.
pub(super) async fn beside<T>(
    mut control: Pin<&mut impl Future<Output = ()>>,
    mut connection: Pin<&mut impl Future<Output = T>>,
) -> T {
    tokio::select! {
        biased;
        ended = &mut connection => ended,
        () = &mut control => connection.await,
    }
}

/// Notices on their way to one agent.
const MAX_WAITING: usize = 8;
