//! Envoy's reverse tunnels: one HTTP/1.1 request and its answer, `RPING` while the tunnel is unused, then HTTP/2 on the
//! same bytes with the server as its client.
//!
//! [`wire`] is the format without I/O, [`ping`] the idle phase of both ends, [`jwt`] what proves who an
//! initiator is.

pub mod jwt;
pub mod ping;
pub mod wire;
