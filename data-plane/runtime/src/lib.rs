//! Life of a process: workers, drain, readiness, back-off, sockets, TLS, telemetry, logs, files that change.
//!
//! **Knows no proxy word**: nothing here has heard of listeners, routes, clusters or tunnels.

pub mod access_log;
pub mod backoff;
pub mod drain;
pub mod files;
pub mod log;
pub mod process;
pub mod readiness;
pub mod rebinding;
pub mod sockets;
pub mod telemetry;
pub mod tls;
pub mod workers;
