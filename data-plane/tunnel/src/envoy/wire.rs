//! The handshake of Envoy's reverse tunnels, without I/O: bytes in, request or answer out, and back.
//!
//! ```text
//! GET /reverse_connections/request HTTP/1.1          HTTP/1.1 200 OK
//! host: 192.0.2.1:9000                               content-length: 0
//! x-envoy-reverse-tunnel-node-id: edge-1
//! x-envoy-reverse-tunnel-cluster-id: edge            or, when the request has connection: upgrade and
//! x-envoy-reverse-tunnel-tenant-id: a                upgrade: reverse-tunnel:
//! ...                                                HTTP/1.1 101 Switching Protocols
//! content-length: 0                                  connection: upgrade
//!                                                    upgrade: reverse-tunnel
//! ```
//! **A head is parsed once, when it is whole**, and a first line that can become no request is refused when it ends.

mod answer;
mod reader;
mod request;
mod response;

pub use answer::Answer;
pub use reader::RequestReader;
pub use request::{Identity, Request, RequestHead};
pub use response::{Accepted, ResponseError, ResponseReader};

/// Where Envoy's initiators ask by default.
pub const DEFAULT_PATH: &str = "/reverse_connections/request";
/// Of a request or an answer, up to the empty line. (Envoy 1.40 takes 60 KiB.)
pub const MAX_HEAD: usize = 64 * 1024;
/// The `upgrade` token of 101 mode.
pub const UPGRADE: &str = "reverse-tunnel";
/// Ours, in a request and in its answer: **the sender keeps its TLS session for the tunnel's whole life**. Envoy leaves TLS
/// after the handshake, and ignores the field.
pub const TLS_KEPT: &str = "culvert-tunnel-tls";

/// Fields of a head.
const MAX_FIELDS: usize = 100;

/// Where a head ends, and how far was looked: bytes that drip in are looked at once.
#[derive(Debug, Default)]
struct HeadEnd {
    seen: usize,
}

impl HeadEnd {
    /// Length of the head with its empty line.
    fn find(&mut self, buffer: &[u8]) -> Option<usize> {
        let from = self.seen.saturating_sub(END.len() - 1);
        let tail = buffer.get(from..).unwrap_or_default();
        self.seen = buffer.len();
        tail.windows(END.len()).position(|window| window == END).map(|at| from + at + END.len())
    }
}

const END: &[u8] = b"\r\n\r\n";

#[cfg(test)]
mod tests;
