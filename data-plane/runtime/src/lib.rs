//! Life of a process: workers, drain, readiness, back-off, limits, sockets, TLS, telemetry.
//!
//! **Knows no proxy word**: nothing here has heard of listeners, routes, clusters or tunnels.

pub mod telemetry;
