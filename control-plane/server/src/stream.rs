//! One discovery stream: requests in, responses out, one step at a time.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use culvert_api::envoy::config::core::v3::Node;
use culvert_api::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use culvert_runtime::drain::{Blocker, Draining, Watch};
use culvert_xds::{Heard, RequestError, Response, Session, StreamId, StreamKind};
use futures_util::Stream;
use hyper::body::Body;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};

use crate::access::StreamPlace;
use crate::control::Control;
use crate::identity::Peer;
use crate::messages::Requests;
use crate::nodes::{Attached, Next, Nodes};

/// How long a stream may take to say who it is.
const FIRST_REQUEST: Duration = Duration::from_secs(60);

/// How long a drain may be held back by a change that is on its way to the node: for one step that is not answered, and for
/// the answer to the next. Less than the process and an old connection have.
const LAST_STEPS: Duration = Duration::from_secs(8);

/// A request of either variant.
pub(crate) trait Request: prost::Message + Default + 'static {
    /// Only the first message of a stream must carry it.
    fn node(&self) -> Option<&Node>;
    fn hand_to(&self, session: &mut Session, stream: StreamId) -> Result<Heard, RequestError>;
}

impl Request for DiscoveryRequest {
    fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    fn hand_to(&self, session: &mut Session, stream: StreamId) -> Result<Heard, RequestError> {
        session.on_request(stream, self)
    }
}

impl Request for DeltaDiscoveryRequest {
    fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    fn hand_to(&self, session: &mut Session, stream: StreamId) -> Result<Heard, RequestError> {
        session.on_delta_request(stream, self)
    }
}

/// What requests are read from.
pub(crate) trait RequestBody: Body<Data = Bytes, Error: std::fmt::Display> + Send + Unpin + 'static {}

impl<B: Body<Data = Bytes, Error: std::fmt::Display> + Send + Unpin + 'static> RequestBody for B {}

/// The responses of a stream. Made one by one, when the transport asks: **what a slow reader does not read is never
/// built**.
pub(crate) fn responses<R: Request, B: RequestBody>(
    control: Arc<Control>,
    drain: &Watch,
    peer: Peer,
    kind: StreamKind,
    requests: Requests<R, B>,
) -> Result<impl Stream<Item = Result<Response, Status>> + Send + use<R, B>, Status> {
    let place = control.access.begin_stream(&peer).inspect_err(|status| {
        control.metrics.streams_refused.add();
        tracing::warn!(peer = &*peer.address, "discovery stream refused: {}", status.message());
    })?;
    control.metrics.streams_opened.add();
    control.metrics.streams_active.add();
    // In one piece of memory for as long as the stream lives: it is handed on with every response.
    let driver = Box::new(Driver {
        _blocker: drain.block(),
        _place: place,
        turn: Turn::Awaited,
        control,
        draining: drain.draining(),
        ends_by: None,
        peer,
        kind,
        requests,
        attached: None,
    });
    Ok(futures_util::stream::unfold(Some(driver), |driver| async move {
        let mut driver = driver?;
        match driver.next().await {
            Some(Ok(response)) => Some((Ok(response), Some(driver))),
            // A status ends the stream.
            Some(Err(status)) => Some((Err(status), None)),
            None => None,
        }
    }))
}

/// For the answer to a first response; then others take their turn, also if this one's transport is stuck.
const FIRST_ANSWER: Duration = Duration::from_secs(5);

/// Whether a stream may be sent its first response.
enum Turn {
    Awaited,
    /// Until this is dropped.
    Taken(#[expect(dead_code, reason = "what is dropped ends the turn")] oneshot::Sender<()>),
    Over,
}

struct Driver<R, B> {
    control: Arc<Control>,
    /// One for the stream's life: to wait for it once more costs no lock.
    draining: Draining,
    /// The drain has begun, and the stream ends when the present change is over, or then.
    ends_by: Option<Instant>,
    peer: Peer,
    kind: StreamKind,
    requests: Requests<R, B>,
    /// From the first request on.
    attached: Option<Attached>,
    turn: Turn,
    _blocker: Blocker,
    _place: Option<StreamPlace>,
}

enum Event<R> {
    Request(Result<Option<R>, Status>),
    /// There may be something new to send.
    Look,
    Late,
    Drain,
}

impl<R: Request, B: RequestBody> Driver<R, B> {
    async fn next(&mut self) -> Option<Result<Response, Status>> {
        loop {
            if let Err(status) = self.take_turn().await {
                self.control.metrics.streams_refused.add();
                tracing::warn!(peer = &*self.peer.address, "discovery stream refused: {}", status.message());
                return Some(Err(status));
            }
            let until = match self.attached.as_ref().map(Attached::next) {
                Some(Next::Send(response)) => {
                    self.control.metrics.responses.add();
                    self.control.metrics.response_bytes.add_many(response.encoded_len());
                    return Some(Ok(response));
                }
                Some(Next::Wait { awaits_change: false, .. }) | None if self.ends_by.is_some() => return None,
                Some(Next::Wait { until, awaits_answer, .. }) => {
                    if !awaits_answer {
                        self.end_turn();
                    }
                    until
                }
                None => None,
            };
            match self.event(until).await {
                Event::Request(Ok(Some(request))) => {
                    if let Err(status) = self.hear(&request) {
                        self.control.metrics.streams_refused.add();
                        tracing::warn!(peer = &*self.peer.address, "discovery stream refused: {}", status.message());
                        return Some(Err(status));
                    }
                }
                Event::Request(Ok(None)) => return None,
                Event::Request(Err(status)) if status.code() != Code::Cancelled => {
                    self.control.metrics.streams_refused.add();
                    tracing::warn!(peer = &*self.peer.address, "discovery stream refused: {}", status.message());
                    return Some(Err(status));
                }
                Event::Request(Err(status)) => {
                    tracing::debug!(peer = &*self.peer.address, "discovery stream broke: {}", status.message());
                    return None;
                }
                Event::Look => {}
                Event::Late => return Some(Err(Status::deadline_exceeded("no request came on this stream"))),
                // The client comes back to whoever serves then, and who does not know it: not in the middle of a change.
                Event::Drain if self.ends_by.is_none() => self.ends_by = Some(Instant::now() + LAST_STEPS),
                Event::Drain => return None,
            }
        }
    }

    /// Waits for its turn before the first response: of the nodes that come together, so many are filled up at a time.
    async fn take_turn(&mut self) -> Result<(), Status> {
        if self.attached.is_none() || !matches!(self.turn, Turn::Awaited) {
            return Ok(());
        }
        let wait = self.control.admission_wait;
        let turn = tokio::time::timeout(wait, Arc::clone(&self.control.first_pushes).acquire_owned());
        let permit = tokio::select! {
            biased;
            () = &mut self.draining => return Ok(()),
            permit = turn => permit.map_err(|_| come_back(wait))?,
        };
        let (over, ended) = oneshot::channel::<()>();
        tokio::spawn(async move {
            // Answered, gone, or late: all the same.
            drop(tokio::time::timeout(FIRST_ANSWER, ended).await);
            drop(permit);
        });
        self.turn = Turn::Taken(over);
        Ok(())
    }

    fn end_turn(&mut self) {
        if matches!(self.turn, Turn::Taken(_)) {
            self.turn = Turn::Over;
        }
    }

    async fn event(&mut self, until: Option<Instant>) -> Event<R> {
        let late = async {
            if self.attached.is_some() {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(FIRST_REQUEST).await;
        };
        let look = async {
            match &self.attached {
                Some(attached) => attached.look().await,
                None => std::future::pending().await,
            }
        };
        let due = async {
            match until {
                Some(until) => tokio::time::sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        let (draining, ends_by) = (&mut self.draining, self.ends_by);
        let drain = async {
            match ends_by {
                Some(by) => tokio::time::sleep_until(by).await,
                None => draining.await,
            }
        };
        tokio::select! {
            // A drain ends a stream however busy it is; requests before changes, so that an ACK makes room for them.
            biased;
            () = drain => Event::Drain,
            request = self.requests.next() => Event::Request(request),
            () = look => Event::Look,
            () = due => Event::Look,
            () = late => Event::Late,
        }
    }

    fn hear(&mut self, request: &R) -> Result<(), Status> {
        self.control.metrics.requests.add();
        let attached = match &self.attached {
            Some(attached) => attached,
            None => {
                let identity = self.peer.identify(&self.control, request.node().cloned())?;
                let certificate = self.peer.certificate.clone();
                tracing::info!(node = identity.id, peer = &*self.peer.address, "a discovery stream begins");
                let attached = Nodes::attach(&self.control, certificate, identity, &self.peer.address, &self.kind)
                    .map_err(|refused| Status::resource_exhausted(refused.to_string()))?;
                self.attached.insert(attached)
            }
        };
        let heard = attached
            .hear(|session, stream| request.hand_to(session, stream))
            .map_err(|error| Status::new(Code::from_i32(error.code()), error.to_string()))?;
        if matches!(heard, Heard::Ack | Heard::Nack) {
            self.end_turn();
        }
        match heard {
            Heard::Ack => self.control.metrics.acks.add(),
            Heard::Nack => self.control.metrics.nacks.add(),
            Heard::Stale => self.control.metrics.stale_requests.add(),
            Heard::Subscription => {}
        }
        Ok(())
    }
}

/// Too many nodes came before this one.
fn come_back(waited: Duration) -> Status {
    let reason = format!("so many nodes come at once that this one had no turn for {waited:?}; see --admission-wait");
    // gRPC, retry design (A6): when to try again. The turns of those that do not answer are over by then.
    let mut metadata = MetadataMap::new();
    metadata.insert("grpc-retry-pushback-ms", MetadataValue::from(FIRST_ANSWER.as_secs() * 1000));
    Status::with_metadata(Code::ResourceExhausted, reason, metadata)
}

impl<R, B> Drop for Driver<R, B> {
    fn drop(&mut self) {
        self.control.metrics.streams_active.sub();
    }
}

#[cfg(test)]
mod tests;
