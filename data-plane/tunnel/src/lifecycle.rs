//! The life of tunnels as access logs tell it, in the words of Envoy's: a namespace of metadata for each end, an `event`, and
//! who it is about. (Seen on Envoy 1.40. It has `fd` too, which says nothing to anybody here.)
//!
//! **Nothing is gathered where nobody logs.**

use std::borrow::Cow;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use crate::server::PeerNames;

/// Where events go: implemented by whoever writes access logs. Called by workers: it must not wait.
pub trait Journal: fmt::Debug + Send + Sync {
    fn log(&self, event: &Lifecycle<'_>);
}

/// One event. It happens now.
#[derive(Debug)]
pub struct Lifecycle<'a> {
    /// `envoy.reverse_tunnel.lifecycle` on the server, `envoy.reverse_tunnel.initiator` on the agent.
    pub namespace: &'static str,
    /// What is known, by name.
    pub fields: Vec<(&'static str, Cow<'a, str>)>,
    /// How long the tunnel has stood; zero before it does.
    pub age: Duration,
    /// The other end, and ours.
    pub remote: Option<SocketAddr>,
    pub local: Option<SocketAddr>,
    /// Within TLS.
    pub received: u64,
    pub sent: u64,
    /// Of the other end's certificate.
    pub names: Option<&'a PeerNames>,
}

/// As Envoy calls its threads.
pub(crate) fn worker(index: usize) -> String {
    format!("worker_{index}")
}

/// Of the server's events.
pub(crate) const SERVER: &str = "envoy.reverse_tunnel.lifecycle";
/// Of the agent's events.
pub(crate) const AGENT: &str = "envoy.reverse_tunnel.initiator";
