//! A tunnel that carries HTTP/2: its streams are requests for the hosting listener, or connections to it.
//!
//! **Each stream meets the listener as it is at that moment**: a listener that changes needs no new tunnel.

use std::rc::Rc;

use culvert_http::{Exchange, Handler, Io, RoundTrip};

use super::{Hosted, HostedRequests, Hosting};
use crate::http2::server_options;

/// Serves the tunnel until it ends, or `hosted.drain` has started and its streams are finished.
pub(super) async fn serve<H: Hosting>(hosting: &H, io: Io, hosted: Hosted, round_trip: RoundTrip) {
    let drain = hosted.drain.draining();
    let mux = Mux { requests: hosting.requests(&hosted), hosting: hosting.clone(), hosted };
    Box::pin(culvert_http::serve(io, &server_options(round_trip), Rc::new(mux), drain)).await;
}

struct Mux<H: Hosting> {
    hosting: H,
    hosted: Hosted,
    requests: H::Requests,
}

impl<H: Hosting> Handler for Mux<H> {
    async fn handle(self: &Rc<Self>, exchange: Exchange<'_>) {
        self.requests.serve(exchange).await;
    }

    async fn connection(self: &Rc<Self>, io: Io) {
        self.hosting.serve(io, self.hosted.clone()).await;
    }

    fn refused(&self, status: u16, detail: &'static str) {
        let agent = &self.hosted.agent;
        tracing::debug!(%agent, server = %self.hosted.peer, status, detail, "a tunnel's stream was refused");
    }
}
