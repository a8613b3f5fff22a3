//! A tunnel that carries HTTP/2: its streams are requests for the hosting listener, or connections to it.
//!
//! **Each stream meets the listener as it is at that moment**: a listener that changes needs no new tunnel.

use std::rc::Rc;
use std::sync::Arc;

use culvert_http::{Exchange, Handler, Io, RoundTrip};

use super::peer::Peer;
use super::tenure::Tenure;
use super::{Agent, Hosted, HostedRequests, Hosting, control};
use crate::http2::server_options;

/// Serves the tunnel until it ends, or `hosted.drain` has started and its streams are finished.
pub(super) async fn serve<H: Hosting>(hosting: &H, io: Io, hosted: Hosted, link: Link, round_trip: RoundTrip) {
    let drain = hosted.drain.draining();
    let options = server_options(round_trip, hosted.ping_interval);
    let mux = Mux { requests: hosting.requests(&hosted), hosting: hosting.clone(), hosted, link };
    Box::pin(culvert_http::serve(io, &options, Rc::new(mux), drain)).await;
}

/// Whose tunnel it is.
pub(super) struct Link {
    pub(super) agent: Arc<Agent>,
    pub(super) peer: Arc<Peer>,
    pub(super) tenure: Rc<Tenure>,
}

struct Mux<H: Hosting> {
    hosting: H,
    hosted: Hosted,
    link: Link,
    requests: H::Requests,
}

impl<H: Hosting> Handler for Mux<H> {
    async fn handle(self: &Rc<Self>, exchange: Exchange<'_>) {
        if control::is_asked_for(exchange.request) {
            let Link { agent, peer, .. } = &self.link;
            return Box::pin(control::serve(exchange, agent, peer, &self.hosted.drain)).await;
        }
        self.link.tenure.note_used();
        self.requests.serve(exchange).await;
    }

    async fn connection(self: &Rc<Self>, io: Io) {
        self.link.tenure.note_used();
        self.hosting.serve(io, self.hosted.clone()).await;
    }

    fn refused(&self, status: u16, detail: &'static str) {
        let agent = &self.hosted.agent;
        tracing::debug!(%agent, server = %self.hosted.peer, status, detail, "a tunnel's stream was refused");
    }
}
