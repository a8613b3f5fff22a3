//! One attempt: a connection to a host, the request over it, and its response back, if this is the one that counts.

mod ended;

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use culvert_http::{
    BodyKind, FieldName, RequestBody, RequestSink, ResponseHead, ResponseSink, ResponseSource, StreamError, Version,
};
use culvert_model::route::HostRewrite;
use culvert_upstream::{Checkout, ClusterSlot, DownstreamProtocol, PickContext};
use tokio::time::Instant;

pub(super) use self::ended::{Attempted, is_idempotent};
use super::failure::Failure;
use super::limits::Limits;
use super::relay::{Counts, Received, Replay, download, gone, tunnel_up, upload};
use super::retry::Retries;
use super::{Origin, Stream, rewrite};
use crate::record::UpstreamSide;
use crate::routes::{Forward, Matched};
use crate::timer::Timer;

const SERVICE_TIME: FieldName = FieldName::of(b"x-envoy-upstream-service-time: ");

/// What an attempt works with.
#[derive(Debug)]
pub(super) struct Attempt<'r, 'a> {
    pub(super) slot: &'r Arc<ClusterSlot>,
    pub(super) action: &'a Forward,
    pub(super) agent: Option<&'r str>,
    /// The route's, to be set once the request has been received whole.
    pub(super) timeout: Option<Duration>,
    pub(super) limits: &'r Limits,
    pub(super) timer: &'r mut Timer<'a>,
    pub(super) retries: &'r mut Retries<'a>,
    pub(super) replay: &'r mut Replay,
    pub(super) received: &'r Received,
    pub(super) matched: Matched<'a>,
}

impl<'a> Attempt<'_, 'a> {
    pub(super) async fn run(
        mut self,
        stream: &mut Stream<'a>,
        body: &mut RequestBody<'_>,
        response: &mut ResponseSink<'_>,
    ) -> Attempted {
        stream.record.attempts += 1;
        // Connecting is limited by the cluster, not by the attempt before this one.
        self.limits.end_attempt();
        let mut checkout = match self.checkout(stream).await {
            Ok(checkout) => checkout,
            Err(failure) => {
                let host = failure.host();
                self.retries.note_tried(host);
                stream.record.upstream = host.map(|host| UpstreamSide {
                    host: Some(host),
                    host_name: None,
                    local: None,
                    remote: None,
                    protocol: None,
                });
                return failure.into();
            }
        };
        self.retries.note_tried(checkout.host().address());
        self.prepare(stream, &checkout);
        stream.head.status = 0;
        let attempted = self.exchange(stream, &mut checkout, body, response).await;
        stream.record.bytes_received = self.received.bytes.get();
        stream.record.upstream_sent = self.received.bytes.get();
        if stream.head.status > 0 && !matches!(attempted, Attempted::Failed { .. }) {
            checkout.response(stream.head.status);
        }
        if matches!(attempted, Attempted::Answered) {
            let record = &mut stream.record;
            // A response that came in one piece ended when it began: the clock is not asked again.
            let end = record.response_begun.filter(|_| stream.prompt).unwrap_or_else(Instant::now);
            record.end = Some(end);
            checkout.response_time(end.saturating_duration_since(record.request_done.unwrap_or(record.start)));
        }
        self.count(&attempted, &checkout);
        attempted.judged(&checkout, &stream.request.method)
    }

    /// Steps 5 and 6: a host, and a connection to it.
    async fn checkout(&mut self, stream: &Stream<'a>) -> Result<Checkout, Failure> {
        let context = PickContext {
            priority: self.action.config.priority,
            agent: self.agent,
            request: Some(stream.request),
            downstream: match stream.request.version {
                Version::Http2 => DownstreamProtocol::Http2,
                Version::Http10 | Version::Http11 => DownstreamProtocol::Http1,
            },
            tried: self.retries.tried(),
            fresh_picks: self.retries.fresh_picks(),
            destinations: stream.connection.downstream.destinations(),
        };
        let pools = &stream.connection.worker.pools;
        // Dropped when a limit passes: the checkout gives up cleanly.
        self.limits.run(self.timer, pin!(pools.checkout(self.slot, &context))).await?.map_err(Failure::Unavailable)
    }

    /// What is known now that there is a connection.
    fn prepare(&self, stream: &mut Stream<'a>, checkout: &Checkout) {
        let host = checkout.host();
        let logs = !stream.connection.http.logs.is_empty();
        stream.record.upstream = Some(UpstreamSide {
            host: host.address(),
            host_name: logs.then(|| Arc::clone(host.hostname())),
            local: checkout.local_address().filter(|_| logs),
            remote: checkout.remote_address().filter(|_| logs),
            protocol: Some(checkout.protocol()),
        });
        if matches!(self.action.config.host_rewrite, Some(HostRewrite::Auto)) {
            rewrite::set_host(stream.request, host.hostname(), self.action.config.append_x_forwarded_host);
        }
        if self.matched.host.include_attempt_count_in_request {
            let mut digits = itoa::Buffer::new();
            let count = digits.format(stream.record.attempts);
            stream.request.fields.set(b"x-envoy-attempt-count", count.as_bytes());
        }
        if let Some(limit) = self.retries.attempt_limit() {
            self.limits.attempt.set(Some(Instant::now() + limit));
        }
        if let Some(limit) = self.retries.attempt_idle_limit() {
            self.limits.touch_at(Instant::now());
            self.limits.attempt_idle.set(Some(limit));
        }
    }

    /// Step 7: the request to the host, its response to the client.
    async fn exchange(
        &mut self,
        stream: &mut Stream<'a>,
        checkout: &mut Checkout,
        body: &mut RequestBody<'_>,
        response: &mut ResponseSink<'_>,
    ) -> Attempted {
        let kind = body.kind();
        let exchange = checkout.exchange();
        if let Err(error) = exchange.send_head(stream.request, kind).await {
            return error.into();
        }
        let (mut sink, mut source) = exchange.split();
        let sides = (&mut sink, &mut source);
        if kind == BodyKind::Empty {
            self.without_body(stream, sides, body, response).await
        } else {
            // Boxed: requests with bodies are fewer, and the others should not carry this state.
            Box::pin(self.with_body(stream, sides, body, response)).await
        }
    }

    /// The usual case: one thing after the other.
    async fn without_body(
        &mut self,
        stream: &mut Stream<'a>,
        (sink, source): (&mut RequestSink<'_>, &mut ResponseSource<'_>),
        body: &mut RequestBody<'_>,
        response: &mut ResponseSink<'_>,
    ) -> Attempted {
        let tunnels = stream.wants_tunnel();
        let sent = if tunnels { sink.flush().await } else { sink.finish(None).await };
        if let Err(error) = sent {
            return error.into();
        }
        let head = {
            let mut heading = pin!(final_head(source, &mut stream.head, response));
            let mut closed = pin!(body.closed());
            let either = poll_fn(|cx| match heading.as_mut().poll(cx) {
                Poll::Pending => closed.as_mut().poll(cx).map(|()| Err(gone())),
                ready => ready,
            });
            self.limits.run(self.timer, pin!(either)).await
        };
        let kind = match head {
            Ok(Ok(kind)) => kind,
            Ok(Err(error)) => return error.into(),
            Err(expired) => return Failure::from(expired).into(),
        };
        let begun = Instant::now();
        if let Some(pause) = self.wants_another(stream) {
            return Attempted::Again(pause);
        }
        self.begin_response(stream, begun);
        if kind == BodyKind::Tunnel {
            return Box::pin(self.tunnel(stream, (sink, source), body, response)).await;
        }
        let mut down = Counts::default();
        let outcome = {
            let sent = pin!(send_response(&stream.head, kind, source, response, self.limits, &mut down));
            self.limits.run(self.timer, sent).await
        };
        self.ended(stream, outcome, down, source)
    }

    /// Both directions at the same time: the response may come, and end, before the request has ended.
    async fn with_body(
        &mut self,
        stream: &mut Stream<'a>,
        (sink, source): (&mut RequestSink<'_>, &mut ResponseSource<'_>),
        body: &mut RequestBody<'_>,
        response: &mut ResponseSink<'_>,
    ) -> Attempted {
        let (limits, timeout, received) = (self.limits, self.timeout, self.received);
        // Moved out, so that the upload may borrow it beside the rest of the attempt.
        let mut replay = std::mem::take(self.replay);
        let mut down = Counts::default();
        let outcome = {
            let mut uploading = pin!(upload(body, sink, &mut replay, received, limits, |now| {
                // The route's time begins when the request has been received whole.
                limits.overall.set(timeout.map(|timeout| now + timeout));
            }));
            let head = {
                let mut heading = pin!(final_head(source, &mut stream.head, response));
                let both = poll_fn(|cx| match uploading.as_mut().poll(cx) {
                    Poll::Ready(error) => Poll::Ready(Err(error)),
                    Poll::Pending => heading.as_mut().poll(cx),
                });
                limits.run(self.timer, pin!(both)).await
            };
            let begun = Instant::now();
            stream.record.request_done = received.whole.get();
            match head {
                Ok(Ok(kind)) => match self.wants_another(stream) {
                    Some(pause) => Err(Attempted::Again(pause)),
                    None => {
                        self.begin_response(stream, begun);
                        let sent = send_response(&stream.head, kind, source, response, limits, &mut down);
                        let mut sending = pin!(sent);
                        let both = poll_fn(|cx| match sending.as_mut().poll(cx) {
                            // A client that is gone shows in the sending; one that broke its body shows here.
                            Poll::Pending if received.whole.get().is_none() => uploading.as_mut().poll(cx).map(Err),
                            sent => sent,
                        });
                        Ok(limits.run(self.timer, pin!(both)).await)
                    }
                },
                Ok(Err(error)) => Err(error.into()),
                Err(expired) => Err(Failure::from(expired).into()),
            }
        };
        *self.replay = replay;
        match outcome {
            Ok(sent) => self.ended(stream, sent, down, source),
            Err(attempted) => attempted,
        }
    }

    /// An upgrade or CONNECT that upstream has accepted: bytes both ways until either side ends.
    async fn tunnel(
        &mut self,
        stream: &mut Stream<'a>,
        (sink, source): (&mut RequestSink<'_>, &mut ResponseSource<'_>),
        body: &mut RequestBody<'_>,
        response: &mut ResponseSink<'_>,
    ) -> Attempted {
        let limits = self.limits;
        // The route's timeout was for the answer, which is here.
        limits.overall.set(None);
        let _active = stream.connection.upgraded();
        let mut down = Counts::default();
        let hung_up = Cell::new(false);
        let outcome = {
            let received = self.received;
            let both = async {
                response.head(&stream.head, BodyKind::Tunnel).await?;
                let mut up = pin!(tunnel_up(body, sink, received, limits));
                let mut sending = pin!(download(source, response, limits, &mut down));
                let mut ended = false;
                poll_fn(|cx| {
                    if !ended && let Poll::Ready(result) = up.as_mut().poll(cx) {
                        // The client has ended its direction; upstream may still have something to say.
                        ended = true;
                        hung_up.set(true);
                        result?;
                    }
                    sending.as_mut().poll(cx)
                })
                .await
            };
            limits.run(self.timer, pin!(both)).await
        };
        let attempted = self.ended(stream, outcome, down, source);
        if hung_up.get() && stream.record.flags.is_empty() {
            stream.record.hung_up();
        }
        attempted
    }

    /// Whether the policy wants another attempt instead of this response, and may have it: the pause before it.
    fn wants_another(&mut self, stream: &mut Stream<'a>) -> Option<Duration> {
        if !self.retries.covers_response(&stream.head) {
            return None;
        }
        if !self.retries.are_possible() {
            stream.retries_exhausted(self.slot);
            return None;
        }
        // While the request is still coming nobody knows whether all of it can be kept.
        if stream.record.request_done.is_none() || !self.received.is_kept() {
            stream.connection.http.counters.inc(crate::stats::HttpMetric::RqRetrySkippedRequestNotComplete);
            return None;
        }
        let (pools, priority) = (&stream.connection.worker.pools, self.action.config.priority);
        self.retries.take(|| pools.retry(self.slot, priority))
    }

    /// The response is the one that counts: its head is completed.
    fn begin_response(&self, stream: &mut Stream<'a>, begun: Instant) {
        self.limits.end_attempt();
        self.limits.touch_at(begun);
        stream.record.response_begun = Some(begun);
        stream.record.details = std::borrow::Cow::Borrowed("via_upstream");
        let mut digits = itoa::Buffer::new();
        if !stream.connection.http.manager.suppresses_envoy_headers() {
            let taken = begun.saturating_duration_since(stream.record.request_done.unwrap_or(stream.record.start));
            let taken = digits.format(taken.as_millis());
            stream.head.fields.set_known(SERVICE_TIME, taken.as_bytes());
        }
        if self.matched.host.include_attempt_count_in_response {
            let count = digits.format(stream.record.attempts);
            stream.head.fields.set(b"x-envoy-attempt-count", count.as_bytes());
        }
        stream.finish_head(Origin::Upstream);
    }
}

/// The final head of the response; those before it (RFC 9110 §15.2) are passed on.
async fn final_head(
    source: &mut ResponseSource<'_>,
    head: &mut ResponseHead,
    response: &mut ResponseSink<'_>,
) -> Result<BodyKind, StreamError> {
    loop {
        // The codec limits how many there may be.
        let kind = source.head(head).await?;
        if !head.is_informational() {
            return Ok(kind);
        }
        response.head(head, BodyKind::Empty).await?;
    }
}

/// Head and body of the response.
async fn send_response(
    head: &ResponseHead,
    kind: BodyKind,
    source: &mut ResponseSource<'_>,
    response: &mut ResponseSink<'_>,
    limits: &Limits,
    down: &mut Counts,
) -> Result<(), StreamError> {
    response.head(head, kind).await?;
    if kind == BodyKind::Empty {
        return Ok(());
    }
    download(source, response, limits, down).await
}
