//! The crate from outside: raw bytes in, raw bytes out, in memory and with the clock paused.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod closing;
mod connections;
mod floods;
mod foreign;
mod greed;
mod http2_codes;
mod http2_order;
mod http2_upstream_codes;
mod http2_wire;
mod lifecycle;
mod peers;
mod proxying;
mod splicing;
mod tls;
mod upstream_faults;
mod vectors;
mod verdicts;
