//! What the suites and `scripts/quickstart` share: daemons that end with their handle, backends, a steady load that
//! counts failures, a development CA, and the site of configs/ with its ports and certificates substituted.
//!
//! Everything listens on loopback on a port that the kernel picked, and nothing sleeps to wait for something: see
//! [`wait::eventually`].

pub mod backend;
pub mod ca;
pub mod checked;
pub mod client;
pub mod datagrams;
pub mod envoy;
pub mod gateway;
pub mod grpc;
pub mod load;
pub mod namespace;
pub mod pair;
pub mod peer;
pub mod plane;
pub mod process;
pub mod relay;
pub mod reverse;
pub mod scale;
pub mod scripted;
pub mod site;
pub mod tls;
pub mod tunnel;
pub mod wait;

/// Errors of the harness; each says what was expected and what was seen.
pub type Result<T = ()> = anyhow::Result<T>;
