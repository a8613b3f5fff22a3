//! The agent's end of the control service: a server of ours opens it on each connection that carries HTTP/2.

use std::collections::HashMap;

use bytes::Bytes;
use culvert_http::{BodyKind, Chunk, Exchange, Fields, Method, RequestHead, ResponseHead, ResponseSink, StreamError};
use culvert_model::control::{AgentNotice, NoticeError, PATH, ServerNotice};
use culvert_runtime::drain::Watch;
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;

use super::Agent;
use super::peer::{Order, Peer};
use crate::control::{CONTENT_TYPE, MessageError, Messages, PACE, framed};

/// Graceful close of connections: what the server is to be told, and who waits for its answer.
#[derive(Debug)]
pub(super) struct Close {
    pub(super) connection_ids: Vec<String>,
    /// How many it has found.
    pub(super) answer: oneshot::Sender<u64>,
}

/// A stream's end.
#[derive(Debug, thiserror::Error)]
enum ControlError {
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error(transparent)]
    Message(#[from] MessageError),
    #[error(transparent)]
    Notice(#[from] NoticeError),
}

pub(super) fn is_asked_for(request: &RequestHead) -> bool {
    request.method == Method::Post && request.path == PATH
}

/// Serves the stream until either end ends it, or the connection drains.
pub(super) async fn serve(exchange: Exchange<'_>, agent: &Agent, peer: &Peer, drain: &Watch) {
    let (sender, orders) = mpsc::channel(ORDERS);
    peer.set_control(sender.clone());
    let Exchange { mut body, mut response, .. } = exchange;
    let mut conversation =
        Conversation { agent, peer, messages: Messages::default(), sequence: 0, waiting: HashMap::new() };
    let chunks = async {
        conversation.begin(&mut response).await?;
        conversation.run(&mut body, &mut response, orders, drain).await
    };
    if let Err(error) = chunks.await {
        tracing::debug!(agent = %agent.config.name, server = %peer.address, %error, "a control stream has ended");
    }
    peer.forget_control(&sender);
    let mut trailers = Fields::default();
    trailers.push(b"grpc-status", b"0");
    if let Err(error) = response.finish(Some(&trailers)).await {
        tracing::trace!(%error, "a control stream's end was not sent");
    }
}

struct Conversation<'a> {
    agent: &'a Agent,
    peer: &'a Peer,
    messages: Messages,
    sequence: u64,
    waiting: HashMap<u64, oneshot::Sender<u64>>,
}

impl Conversation<'_> {
    async fn begin(&self, response: &mut ResponseSink<'_>) -> Result<(), ControlError> {
        let mut head = ResponseHead::new(200);
        head.fields.push(b"content-type", CONTENT_TYPE);
        response.head(&head, BodyKind::Stream).await?;
        Ok(response.flush().await?)
    }

    async fn run(
        &mut self,
        body: &mut culvert_http::RequestBody<'_>,
        response: &mut ResponseSink<'_>,
        mut orders: mpsc::Receiver<Close>,
        drain: &Watch,
    ) -> Result<(), ControlError> {
        let mut weight = self.agent.weight.subscribe();
        loop {
            let notice = tokio::select! {
                biased;
                () = drain.draining() => return Ok(()),
                Some(close) = orders.recv() => self.close(close),
                Ok(()) = weight.changed() => {
                    self.sequence += 1;
                    Some(AgentNotice::Weight { sequence: self.sequence, weight: *weight.borrow_and_update() })
                }
                chunk = body.chunk() => match chunk? {
                    Some(chunk) => {
                        self.messages.push(&chunk);
                        None
                    }
                    None => return Ok(()),
                },
            };
            if let Some(notice) = notice {
                response.data(Chunk::Owned(framed(&notice.encode()))).await?;
                response.flush().await?;
            }
            while let Some(message) = self.messages.next()? {
                self.take(message)?;
                sleep(PACE).await;
            }
        }
    }

    fn close(&mut self, close: Close) -> Option<AgentNotice> {
        self.waiting.retain(|_, answer| !answer.is_closed());
        if self.waiting.len() >= ORDERS {
            tracing::debug!(server = %self.peer.address, "a server answers no graceful close");
            return None;
        }
        self.sequence += 1;
        self.waiting.insert(self.sequence, close.answer);
        Some(AgentNotice::Close { sequence: self.sequence, connection_ids: close.connection_ids })
    }

    fn take(&mut self, message: Bytes) -> Result<(), NoticeError> {
        let (agent, server) = (&self.agent.config.name, self.peer.address);
        match ServerNotice::decode(message)? {
            None => tracing::debug!(%agent, %server, "a notice of a later version"),
            Some(ServerNotice::Drain { within }) => {
                tracing::info!(%agent, %server, ?within, "the tunnel server drains");
                self.peer.order(Order::Leave(within));
                self.agent.avoid(server);
            }
            Some(ServerNotice::Reconnect { delay, target }) => {
                tracing::info!(%agent, %server, ?delay, ?target, "the tunnel server asks for other connections");
                self.peer.order(Order::Reconnect(delay));
                if let Some(target) = target {
                    self.agent.steer(server, target);
                }
            }
            Some(ServerNotice::CloseAck { sequence, closed }) => {
                // Whoever asked may have given up.
                let asked = self.waiting.remove(&sequence);
                tracing::debug!(%agent, %server, closed, asked = asked.is_some(), "graceful close acknowledged");
                asked.map(|answer| answer.send(closed));
            }
            Some(ServerNotice::WeightAck { changed, .. }) => {
                tracing::info!(%agent, %server, changed, "the tunnel server has taken the weight");
            }
        }
        Ok(())
    }
}

/// Graceful closes that may wait, or be unanswered, at a time.
const ORDERS: usize = 16;
