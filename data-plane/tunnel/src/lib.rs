//! Reverse tunnels, both ends.
//!
//! [`server`]: an [`Acceptor`](server::Acceptor) takes connections of a tunnel listener through the handshake, has each
//! registered as a host by a [`HostRegistry`](server::HostRegistry), and runs it until its end.
//! [`agent`]: an [`Agent`](agent::Agent) keeps connections to tunnel servers and hands each to a
//! [`Hosting`](agent::Hosting), which serves it as an accepted connection of a listener.
//!
//! **Knows neither clusters nor listeners**: both traits speak in plain values and are implemented by the proxy.
//! **A tunnel exists only after its handshake was accepted**: no other value yields one.

pub mod agent;
mod binding;
mod control;
mod diagnosis;
pub mod dialect;
pub mod envoy;
pub mod history;
mod http2;
mod keepalive;
pub mod lifecycle;
pub mod metrics;
pub mod server;
pub mod status;
pub mod wire;

#[cfg(test)]
mod tests;
