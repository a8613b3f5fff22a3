//! What is known of one request (or one TCP connection), gathered as it goes: what logs and header formats speak of.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;

use culvert_http::{Fields, RequestHead, ResponseHead, Version};
use tokio::time::Instant;

use crate::flags::{ResponseFlag, ResponseFlags};
use crate::listener::Downstream;

/// The record of one request. Borrows what lives as long as the request.
#[derive(Debug)]
pub(crate) struct Record<'a> {
    pub(crate) connection: &'a Downstream,
    /// The client's address: the connection's, or the one that `x-forwarded-for` names and the configuration trusts.
    pub(crate) remote: SocketAddr,
    pub(crate) start: Instant,
    /// The request was received whole.
    pub(crate) request_done: Option<Instant>,
    /// The response's head arrived from upstream.
    pub(crate) response_begun: Option<Instant>,
    pub(crate) end: Option<Instant>,
    /// What the client spoke, where there is no request to say it.
    pub(crate) protocol: Option<Version>,
    /// Of the response that was sent; 0: none.
    pub(crate) status: u16,
    pub(crate) details: Cow<'static, str>,
    pub(crate) flags: ResponseFlags,
    pub(crate) bytes_received: u64,
    pub(crate) bytes_sent: u64,
    /// Body bytes to and from upstream.
    pub(crate) upstream_sent: u64,
    pub(crate) upstream_received: u64,
    pub(crate) attempts: u32,
    pub(crate) route: &'a str,
    pub(crate) virtual_host: &'a str,
    pub(crate) cluster: Option<Cow<'a, str>>,
    pub(crate) upstream: Option<UpstreamSide>,
    /// Why the last connection to a host could not be had.
    pub(crate) transport_failure: Option<String>,
}

/// What Envoy calls it when a client goes away.
pub(crate) const CLIENT_GONE: &str = "downstream_remote_disconnect";

/// The connection to the host that served last.
#[derive(Debug, Clone)]
pub(crate) struct UpstreamSide {
    pub(crate) host: Option<SocketAddr>,
    /// Only when somebody logs.
    pub(crate) host_name: Option<Arc<str>>,
    pub(crate) local: Option<SocketAddr>,
    pub(crate) remote: Option<SocketAddr>,
    pub(crate) protocol: Option<Version>,
}

impl<'a> Record<'a> {
    /// Inlined, so that it is made where it stays.
    #[inline(always)]
    pub(crate) fn new(connection: &'a Downstream, start: Instant) -> Self {
        Self {
            connection,
            remote: connection.remote,
            start,
            request_done: None,
            response_begun: None,
            end: None,
            protocol: None,
            status: 0,
            details: Cow::Borrowed(""),
            flags: ResponseFlags::default(),
            bytes_received: 0,
            bytes_sent: 0,
            upstream_sent: 0,
            upstream_received: 0,
            attempts: 0,
            route: "",
            virtual_host: "",
            cluster: None,
            upstream: None,
            transport_failure: None,
        }
    }

    /// The client ended the exchange.
    pub(crate) fn hung_up(&mut self) {
        self.flag(ResponseFlag::DownstreamConnectionTermination);
        self.details = Cow::Borrowed(CLIENT_GONE);
    }

    pub(crate) fn flag(&mut self, flag: ResponseFlag) {
        self.flags.set(flag);
    }
}

/// Everything that a format may ask for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scene<'a> {
    pub(crate) record: &'a Record<'a>,
    pub(crate) request: Option<&'a RequestHead>,
    pub(crate) response: Option<&'a ResponseHead>,
    pub(crate) trailers: Option<&'a Fields>,
    pub(crate) hostname: &'a str,
}
