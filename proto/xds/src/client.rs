//! The data plane's half: what it wants, what it holds, and the next thing to say about it.

use std::collections::BTreeSet;
use std::time::Duration;

use culvert_api::Any;
use culvert_api::envoy::config::core::v3::Node;
use culvert_api::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};

use crate::resource::TypeUrl;
use crate::{Name, Variant};

/// Settings of a [`Client`].
#[derive(Debug, Clone)]
pub struct ClientConfig {
    pub variant: Variant,
    pub node: Node,
    /// `set_node_on_first_message_only`. Delta streams carry it once in any case.
    pub node_on_first_message_only: bool,
    /// How long a named resource may stay unanswered on a connected stream before it is said not to exist. gRFC A53,
    /// Envoy: 15 s.
    pub resource_timeout: Duration,
}

/// What of a type is wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interest {
    pub wildcard: bool,
    pub names: BTreeSet<Name>,
}

/// A request to send.
#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    Sotw(DiscoveryRequest),
    Delta(DeltaDiscoveryRequest),
}

/// One resource of a response.
#[derive(Debug, Clone, PartialEq)]
pub struct Received {
    pub name: Name,
    /// Delta: the resource's version. State of the world: the response's.
    pub version: String,
    pub body: Any,
}

/// A refused resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// Empty: the resource did not even yield a name.
    pub name: String,
    /// `path: reason`, or several of them separated by `; `.
    pub reason: String,
}

/// A named resource that the control plane did not deliver in time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    pub type_url: TypeUrl,
    pub name: Name,
}

/// Subscriptions to one control plane over one stream at a time.
#[derive(Debug)]
pub struct Client {
    config: ClientConfig,
}

/// A response that waits for its answer. Only [`Update::ack`] and [`Update::nack`] answer it; until then nothing of it
/// counts as held.
#[must_use = "a response that is neither accepted nor refused stops its type"]
#[derive(Debug)]
pub struct Update<'c> {
    client: &'c mut Client,
}

/// Why a response cannot be answered at all. The stream is to be closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResponseError {
    #[error("a response of type {type_url:?}, which was never asked for on this stream")]
    NeverRequested { type_url: String },
    #[error("a response without a nonce")]
    NoNonce,
    #[error("a response of the other variant of the protocol, or on no stream")]
    NoStream,
}

impl Client {
    #[must_use]
    pub fn new(config: ClientConfig) -> Self {
        Self { config }
    }

    /// Says what is wanted of a type from now on. Names no longer wanted are forgotten at once.
    pub fn watch(&mut self, type_url: &str, interest: Interest) {
        todo!()
    }

    /// Names that a cache has: no timer runs for them. They do not count as held.
    pub fn expect_cached(&mut self, type_url: &str, names: impl IntoIterator<Item = Name>) {
        todo!()
    }

    /// A stream is open: [`Client::poll_request`] yields the first request of every type, in order.
    pub fn on_connected(&mut self) {
        todo!()
    }

    /// The stream is gone. Everything held stays held.
    pub fn on_disconnected(&mut self) {
        todo!()
    }

    /// The next request to send, `now` being when it is sent.
    pub fn poll_request(&mut self, now: Duration) -> Option<Request> {
        todo!()
    }

    /// Takes a state-of-the-world response.
    ///
    /// # Errors
    /// It cannot be answered; the stream is to be closed.
    pub fn on_response(&mut self, response: DiscoveryResponse) -> Result<Update<'_>, ResponseError> {
        todo!()
    }

    /// Takes a delta response.
    ///
    /// # Errors
    /// It cannot be answered; the stream is to be closed.
    pub fn on_delta_response(&mut self, response: DeltaDiscoveryResponse) -> Result<Update<'_>, ResponseError> {
        todo!()
    }

    /// When [`Client::poll_timeout`] has something to say.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Duration> {
        todo!()
    }

    /// The next named resource whose time is up: it does not exist until it is delivered.
    pub fn poll_timeout(&mut self, now: Duration) -> Option<Missing> {
        todo!()
    }
}

impl Update<'_> {
    #[must_use]
    pub fn type_url(&self) -> &TypeUrl {
        todo!()
    }

    #[must_use]
    pub fn version_info(&self) -> &str {
        todo!()
    }

    /// Resources to judge, each of a name that was asked for and that occurs once.
    #[must_use]
    pub fn resources(&self) -> &[Received] {
        todo!()
    }

    /// Names that no longer exist, or that never did and were asked for.
    #[must_use]
    pub fn removed(&self) -> &[Name] {
        todo!()
    }

    /// Says what is wanted of another type because of this response, before it is answered.
    pub fn watch(&mut self, type_url: &str, interest: Interest) {
        self.client.watch(type_url, interest);
    }

    /// Every resource is accepted: the request that says so. (It refuses all the same what the response itself got
    /// wrong: duplicates, other types, bytes without a name.)
    pub fn ack(self) -> Request {
        todo!()
    }

    /// The named resources are refused, the others accepted: the request that says so.
    pub fn nack(self, rejections: Vec<Rejection>) -> Request {
        todo!()
    }
}
