//! **Begin reading here.** `serve` takes one request through its steps: admit, forward fields, route, act, log. The
//! act of forwarding is `Stream::forward`: choose a cluster, rewrite, then attempts until one of them answers.

mod attempt;
mod choice;
mod connect;
mod connect_udp;
mod failure;
pub(crate) mod limits;
mod on_demand;
mod relay;
mod retry;
pub(crate) mod rewrite;
#[cfg(test)]
mod tests;
mod timeouts;

use std::sync::Arc;
use std::time::Duration;

use culvert_http::{
    BodyKind, Chunk, Exchange, Method, RequestBody, RequestHead, ResponseHead, ResponseSink, StreamErrorKind, Version,
};
use culvert_model::http::UpgradeConfig;
use culvert_model::route::HeaderMutations;
use culvert_upstream::{ClusterMetric, ClusterSlot, UpstreamFailure};
use tokio::time::Instant;

use self::attempt::{Attempt, Attempted};
use self::choice::Chosen;
use self::failure::Failure;
use self::limits::Limits;
use self::relay::{Received, Replay};
use self::retry::Retries;
use crate::flags::ResponseFlag;
use crate::forwarding::{self, path};
use crate::http_manager::HttpConnection;
use crate::local_reply::{LocalReply, Trailing};
use crate::record::Record;
use crate::routes::{CompiledAction, Forward, Found, Matched, RouteTable, Subject};
use crate::stats::HttpMetric;
use crate::timer::Timer;
use crate::worker::Pooled;

/// One request on its way. What is borrowed for `'a` lives as long as the request: its connection and its route table.
#[derive(Debug)]
pub(crate) struct Stream<'a> {
    pub(crate) connection: &'a HttpConnection,
    pub(crate) request: &'a mut RequestHead,
    /// The response's head: upstream's, or our own.
    pub(crate) head: Pooled<ResponseHead>,
    pub(crate) record: Record<'a>,
    pub(crate) matched: Option<Matched<'a>>,
    /// Mutations of the weighted cluster that was chosen.
    weighted: Option<&'a Arc<HeaderMutations>>,
    most_specific_wins: bool,
    pub(crate) trailers: Option<culvert_http::Fields>,
    /// The response came in one piece, so that its first moment is its last.
    pub(crate) prompt: bool,
}

/// How a request ended without a response from upstream.
#[derive(Debug)]
pub(crate) enum Unanswered {
    /// We answer ourselves.
    Reply(Box<LocalReply>),
    /// Nobody is there to be answered, or a response that had begun cannot be completed.
    Abort,
}

impl From<LocalReply> for Unanswered {
    fn from(reply: LocalReply) -> Self {
        Self::Reply(Box::new(reply))
    }
}

/// Takes one request through its steps.
pub(crate) async fn serve(connection: &HttpConnection, exchange: Exchange<'_>) {
    let Exchange { request, mut body, mut response } = exchange;
    // Pinned for the whole request, by a count that only this worker writes.
    let pinned;
    let mut stream = Stream::new(connection, request, Instant::now());

    let outcome = match stream.admit() {
        Ok(()) => {
            pinned = match connection.http.manager.config.on_demand {
                None => connection.http.routes.table(&connection.worker, stream.request),
                Some(_) => Box::pin(on_demand::table(connection, stream.request)).await,
            };
            let table = pinned.as_deref().map(|pinned| &**pinned);
            match stream.route(table) {
                Ok(matched) => stream.act(table, matched, &mut body, &mut response).await,
                Err(reply) => Err(reply.into()),
            }
        }
        Err(reply) => Err(reply.into()),
    };
    match outcome {
        Ok(()) => {}
        Err(Unanswered::Reply(reply)) => stream.reply(&reply, &mut response).await,
        Err(Unanswered::Abort) => response.reset(),
    }
    connection.finished(&mut stream);
}

impl<'a> Stream<'a> {
    /// Inlined, so that it is made where it stays.
    #[inline(always)]
    fn new(connection: &'a HttpConnection, request: &'a mut RequestHead, start: Instant) -> Self {
        connection.began(request.version);
        Self {
            head: connection.worker.heads.take(),
            record: Record::new(&connection.downstream, start),
            connection,
            request,
            matched: None,
            weighted: None,
            most_specific_wins: false,
            trailers: None,
            prompt: true,
        }
    }

    /// Step 1: is it a request that may be looked at? Brings its path into normal form.
    fn admit(&mut self) -> Result<(), LocalReply> {
        let config = &self.connection.http.manager.config;
        if forwarding::underscores(self.request, config.headers_with_underscores) {
            return Err(LocalReply::new(400, "", "unexpected_underscore"));
        }
        if self.request.authority.is_empty() && self.request.version == Version::Http10 {
            self.request.authority.push_str(&config.http1.default_host_for_http_10);
        }
        match path::normalize(&mut self.request.path, config) {
            path::Verdict::Go => {}
            path::Verdict::Redirect => {
                self.connection.http.counters.inc(HttpMetric::RqRedirectedWithNormalizedPath);
                let location = self.request.path.clone();
                return Err(LocalReply::redirect(307, location, "path_normalization_failed"));
            }
            path::Verdict::Refuse => {
                self.connection.http.counters.inc(HttpMetric::RqFailedPathNormalization);
                return Err(LocalReply::new(400, "", "path_normalization_failed"));
            }
        }
        // Step 2: what a proxy does to a head because it is one.
        let client = forwarding::prepare(self.request, config, &self.connection.downstream);
        self.record.remote = client.address;
        Ok(())
    }

    /// Step 3: which route?
    fn route(&mut self, table: Option<&'a RouteTable>) -> Result<Matched<'a>, LocalReply> {
        let counters = &self.connection.http.counters;
        counters.inc(HttpMetric::RqTotalRouter);
        let not_found = |details| LocalReply::new(404, "", details).flagged(ResponseFlag::NoRouteFound);
        let Some(table) = table else {
            counters.inc(HttpMetric::NoRoute);
            return Err(not_found("route_configuration_not_found"));
        };
        let downstream = &self.connection.downstream;
        let subject = Subject {
            head: self.request,
            random: fastrand::u64(..),
            client_certificate: downstream.tls.as_ref().is_some_and(|tls| tls.peer.is_some()),
        };
        match table.find(&subject) {
            None => {
                counters.inc(HttpMetric::NoRoute);
                Err(not_found("route_not_found"))
            }
            Some(Found::NeedsTls(host)) => {
                self.record.virtual_host = &host.name;
                counters.inc(HttpMetric::RqRedirect);
                Err(LocalReply::redirect(301, rewrite::https_location(self.request), "direct_response"))
            }
            Some(Found::Route(matched)) => {
                self.record.virtual_host = &matched.host.name;
                self.record.route = &matched.route.name;
                self.matched = Some(matched);
                self.most_specific_wins = table.config().most_specific_header_mutations_wins;
                Ok(matched)
            }
        }
    }

    /// Step 4: what does the route do?
    async fn act(
        &mut self,
        table: Option<&'a RouteTable>,
        matched: Matched<'a>,
        body: &mut RequestBody<'_>,
        response: &mut ResponseSink<'_>,
    ) -> Result<(), Unanswered> {
        let counters = &self.connection.http.counters;
        match &matched.compiled.action {
            CompiledAction::Forward(action) => self.forward(table, matched, action, body, response).await,
            CompiledAction::Redirect(redirect) => {
                counters.inc(HttpMetric::RqRedirect);
                let location = rewrite::redirect_location(self.request, redirect, &matched.route.matches.path);
                Err(LocalReply::redirect(redirect.config.status, location, "direct_response").into())
            }
            CompiledAction::Direct { status, body } => {
                counters.inc(HttpMetric::RqDirectResponse);
                Err(LocalReply::new(*status, "", "direct_response").with_body(body.to_vec()).into())
            }
            CompiledAction::NonForwarding => Err(LocalReply::new(404, "", "non_forwarding_action").into()),
        }
    }

    /// Sends the request to a cluster: attempts until one answers.
    async fn forward(
        &mut self,
        table: Option<&'a RouteTable>,
        matched: Matched<'a>,
        action: &'a Forward,
        body: &mut RequestBody<'_>,
        response: &mut ResponseSink<'_>,
    ) -> Result<(), Unanswered> {
        let chosen = self.choose_cluster(table, matched, action).await?;
        let ends_here = self.permit_upgrade(action)?;
        let target = chosen.slot();
        self.rewrite(matched, action, &chosen);
        if self.request.method == Method::Connect {
            // A client's CONNECT is a request; what this marks is between the two ends of a tunnel.
            self.request.fields.remove(culvert_http::CONNECTION_FIELD);
        }
        let timeout = self.timeout(action);
        let limits = Limits::new(self.record.start, self.idle_timeout(action));
        let mut retries = Retries::new(action.retry.as_deref(), self.request);
        self.expected_timeout(timeout, &retries);
        let has_body = body.kind() != BodyKind::Empty;
        if !has_body {
            self.record.request_done = Some(self.record.start);
            limits.overall.set(timeout.map(|timeout| self.record.start + timeout));
        } else {
            // Until the request has been received whole, the time that its client has counts instead.
            let request_timeout = self.connection.http.manager.config.request_timeout;
            limits.overall.set(request_timeout.map(|timeout| self.record.start + timeout));
        }
        let mut timer = self.connection.timers.timer();
        if ends_here {
            let limits = (&limits, &mut timer);
            return Box::pin(connect::terminate(self, action, &chosen, limits, body, response)).await;
        }
        // A tunnel that ends is no fault of the request's: one that may be sent twice is.
        let again = retries.are_possible() || (target.has_tunnels() && attempt::is_idempotent(&self.request.method));
        let mut replay = Replay::new(has_body && again);
        let received = Received::default();
        let mut stale = 0;
        loop {
            let attempt = Attempt {
                slot: target,
                action,
                agent: chosen.agent.as_deref(),
                timeout,
                limits: &limits,
                timer: &mut timer,
                retries: &mut retries,
                replay: &mut replay,
                received: &received,
                matched,
            };
            let pause = match attempt.run(self, body, response).await {
                Attempted::Answered => return Ok(()),
                Attempted::Broken => return Err(Unanswered::Abort),
                Attempted::Again(pause) => pause,
                Attempted::Failed { failure, stale: true } if stale < MAX_STALE && received.is_kept() => {
                    // The host had closed a kept connection and did not see the request, or may see it twice: nothing
                    // is lost.
                    tracing::debug!(?failure, "a stale connection is replaced");
                    stale += 1;
                    self.record.attempts -= 1;
                    continue;
                }
                Attempted::Failed { failure, .. } => {
                    let again = retries.covers_failure(&failure) && received.is_kept();
                    match again.then(|| self.another(target, action, &mut retries)).flatten() {
                        Some(pause) => pause,
                        None => {
                            let unanswered = self.failed(&failure, retries.done(), action);
                            if let (Unanswered::Reply(reply), false) = (&unanswered, failure.is_downstreams()) {
                                self.connection.worker.pools.answered(target, reply.status);
                            }
                            return Err(unanswered);
                        }
                    }
                }
            };
            pause_for(&mut timer, pause).await;
        }
    }

    /// Another attempt after a failure, if there is one left and the cluster allows it: the pause before it.
    fn another(&mut self, slot: &Arc<ClusterSlot>, action: &Forward, retries: &mut Retries<'_>) -> Option<Duration> {
        if !retries.are_possible() {
            self.retries_exhausted(slot);
            return None;
        }
        let pools = &self.connection.worker.pools;
        retries.take(|| pools.retry(slot, action.config.priority))
    }

    /// Whether a tunnel is asked for: an upgrade or CONNECT.
    fn wants_tunnel(&self) -> bool {
        self.request.upgrade.is_some() || self.request.method == Method::Connect
    }

    fn retries_exhausted(&mut self, slot: &Arc<ClusterSlot>) {
        self.record.flag(ResponseFlag::UpstreamRetryLimitExceeded);
        self.connection.worker.pools.count(slot, ClusterMetric::RqRetryLimitExceeded);
    }

    /// What the client is told of a failure.
    fn failed(&mut self, failure: &Failure, retried: u32, action: &Forward) -> Unanswered {
        self.record.transport_failure = failure.transport_failure();
        if matches!(failure, Failure::Unavailable(UpstreamFailure::NoCluster)) {
            self.connection.http.counters.inc(HttpMetric::NoCluster);
        }
        if matches!(failure, Failure::Idle) {
            self.connection.http.counters.inc(HttpMetric::RqIdleTimeout);
        }
        if let Failure::Downstream(error) = failure {
            tracing::debug!(%error, "the client did not wait for its response");
            if let StreamErrorKind::Protocol { status, .. } = error.kind {
                self.connection.http.counters.inc(HttpMetric::CxProtocolError);
                return LocalReply::codec_error(status, self.request.version).into();
            }
        }
        let complete = self.record.request_done.is_some();
        match failure.reply(retried, complete, action.config.cluster_not_found) {
            Some(reply) => reply.into(),
            None => {
                self.record.hung_up();
                Unanswered::Abort
            }
        }
    }

    /// Upgrades and CONNECT only where they are configured, on the route or else on the listener. `true`: a CONNECT or
    /// CONNECT-UDP that ends here, so that its bytes or datagrams and not itself are forwarded.
    fn permit_upgrade(&self, action: &'a Forward) -> Result<bool, LocalReply> {
        let kind = match &self.request.upgrade {
            Some(kind) => &**kind,
            None if self.request.method == Method::Connect => "connect",
            None => return Ok(false),
        };
        let config = &self.connection.http.manager.config;
        let of = |upgrades: &'a [UpgradeConfig]| upgrades.iter().find(|one| one.kind.eq_ignore_ascii_case(kind));
        match of(&action.config.upgrades).or_else(|| of(&config.upgrades)) {
            Some(upgrade) if upgrade.enabled => {
                Ok(upgrade.terminate_connect && (self.request.upgrade.is_none() || is_connect_udp(self.request)))
            }
            Some(_) | None => {
                self.connection.http.counters.inc(HttpMetric::RqWsOnNonWsRoute);
                Err(LocalReply::new(403, "", "upgrade_failed"))
            }
        }
    }

    /// What the route changes in the request.
    fn rewrite(&mut self, matched: Matched<'a>, action: &Forward, chosen: &Chosen<'a>) {
        let hostname = &*self.connection.worker.process.hostname;
        for mutations in rewrite::levels(&matched, self.weighted, self.most_specific_wins) {
            rewrite::mutate_request(self.request, mutations, &self.record, hostname);
        }
        let suppress = self.connection.http.manager.suppresses_envoy_headers();
        rewrite::rewrite_request(self.request, action, &matched, chosen.weighted_host, suppress);
    }

    /// Answers in upstream's place.
    async fn reply(&mut self, reply: &LocalReply, response: &mut ResponseSink<'_>) {
        if let Some(flag) = reply.flag {
            self.record.flag(flag);
        }
        if reply.closes {
            response.close_after();
        }
        self.record.details = reply.details.clone();
        let trailing = reply.head(self.request, &mut self.head);
        self.finish_head(Origin::Local);
        let length = BodyKind::Length(reply.body.len() as u64);
        let kind = if trailing == Trailing::Body { length } else { BodyKind::Empty };
        let sent = async {
            response.head(&self.head, kind).await?;
            if trailing == Trailing::Body {
                response.data(Chunk::Borrowed(&reply.body)).await?;
                response.finish(None).await?;
                self.record.bytes_sent = reply.body.len() as u64;
            }
            Ok::<_, culvert_http::StreamError>(())
        };
        if let Err(error) = sent.await {
            tracing::debug!(%error, "a local reply could not be sent");
            self.record.flag(ResponseFlag::DownstreamConnectionTermination);
        }
    }

    /// What the proxy adds to every response: the route's mutations, `date`, `server`, `via`.
    fn finish_head(&mut self, origin: Origin) {
        let connection = self.connection;
        self.record.status = self.head.status;
        let routed = origin == Origin::Upstream || self.record.details == "direct_response";
        if let Some(matched) = self.matched.as_ref().filter(|_| routed) {
            let hostname = &*connection.worker.process.hostname;
            for mutations in rewrite::levels(matched, self.weighted, self.most_specific_wins) {
                rewrite::mutate_response(&mut self.head, mutations, &self.record, self.request, hostname);
            }
        }
        let now = self.record.response_begun.unwrap_or(self.record.start);
        connection.finish_head(&mut self.head, self.request, origin, now);
    }
}

/// CONNECT-UDP (RFC 9298), over whichever version of HTTP.
pub(crate) fn is_connect_udp(request: &RequestHead) -> bool {
    request.upgrade.as_deref().is_some_and(|kind| kind.eq_ignore_ascii_case("connect-udp"))
}

/// Who made a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    Upstream,
    Local,
}

/// Waits before a retry.
async fn pause_for(timer: &mut Timer<'_>, pause: Duration) {
    let until = Instant::now() + pause;
    // Elapsing is the point.
    let _elapsed = timer.until(Some(until), std::future::pending::<()>()).await;
}

/// How often a request may find that a kept connection was closed.
const MAX_STALE: u32 = 2;
