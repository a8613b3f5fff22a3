//! What a request holds of a tunnel connection.

use std::sync::Arc;

use culvert_http::client::{Http1Client, Http1Rest, Http2Client, Leftover};
use culvert_http::{ClientExchange, Io};
use culvert_model::tunnel::TunnelProtocol;

use super::connection::TunnelConnection;

/// A connection, or a stream's right on it, lent to one request. Dropping it unused gives it back; dropping it in use
/// closes what was lent.
#[derive(Debug)]
#[must_use = "dropping it gives the connection back"]
pub(crate) struct Lent {
    connection: Arc<TunnelConnection>,
    what: What,
    /// For which, by the id of its slot.
    cluster: u64,
}

#[derive(Debug)]
pub(super) enum What {
    Plain(Http1Client),
    /// An exchange on a plain connection was given up.
    Rest(Http1Rest),
    Stream(Http2Client),
    /// In use by an exchange that the request holds.
    Used,
    /// A plain connection, in use by a TCP connection to its end.
    Taken,
}

/// What a TCP proxy gets of a tunnel.
#[derive(Debug)]
pub(crate) enum Whole {
    Io(Io),
    Stream(ClientExchange),
}

impl Lent {
    pub(super) fn new(connection: Arc<TunnelConnection>, what: What, cluster: u64) -> Self {
        Self { connection, what, cluster }
    }

    pub(crate) fn connection(&self) -> &TunnelConnection {
        &self.connection
    }

    /// Begins the exchange; `None` the second time. A plain connection comes back with [`Self::finish`].
    pub(crate) fn begin(&mut self) -> Option<ClientExchange> {
        self.connection.count_request();
        match std::mem::replace(&mut self.what, What::Used) {
            What::Plain(client) => Some(client.exchange()),
            What::Stream(client) => Some(self.connection.begin_stream(&client, self.cluster)),
            What::Rest(_) | What::Used | What::Taken => None,
        }
    }

    /// A plain connection for good, or a stream of an HTTP/2 one. Keep this as long as what it yields: until then the connection
    /// counts as in use, and whoever watches it may cut it.
    pub(crate) fn take(&mut self) -> Option<Whole> {
        self.connection.count_request();
        match std::mem::replace(&mut self.what, What::Used) {
            What::Plain(client) => {
                self.what = What::Taken;
                Some(Whole::Io(client.into_io()))
            }
            What::Stream(client) => Some(Whole::Stream(self.connection.begin_stream(&client, self.cluster))),
            What::Rest(_) | What::Used | What::Taken => None,
        }
    }

    /// The exchange is over, and this is what it leaves of a plain connection.
    pub(crate) fn finish(mut self, exchange: ClientExchange) {
        match exchange.finish_or_rest(REST_BYTES) {
            Leftover::Reusable(client) => self.what = What::Plain(client),
            Leftover::Unread(rest) => self.what = What::Rest(rest),
            Leftover::Nothing => {}
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        match std::mem::replace(&mut self.what, What::Used) {
            What::Plain(client) => self.connection.give_back_plain(Leftover::Reusable(client)),
            What::Rest(rest) => self.connection.give_back_plain(Leftover::Unread(rest)),
            What::Stream(_) => self.connection.give_back_unused_stream(),
            What::Taken => self.connection.give_back_taken(),
            What::Used => match self.connection.claim().protocol {
                TunnelProtocol::Http1 => self.connection.give_back_plain(Leftover::Nothing),
                TunnelProtocol::Http2 => self.connection.give_back_stream(),
            },
        }
    }
}

/// Of a response that nobody wants any more, this much is read before its connection is cut: cheaper than a new
/// connection.
const REST_BYTES: u64 = 64 * 1024;
