//! Listeners to routes: accept, inspect, filter chains, HTTP, TCP and tunnel filters, route tables, the router.
//!
//! The composition root builds one [`Process`], one [`Worker`] per thread, and for every listener a [`ListenerSlot`]:
//!
//! - [`FilterChains::compile`] turns a validated listener into what connections are matched against;
//!   [`ListenerSlot::publish`] puts it in force. Chains that did not change keep their connections, the others drain.
//! - [`RouteTable::compile`] turns a route configuration into a table; [`RouteSlot::publish`] puts it in force.
//! - [`serve_listener`] runs a socket's accept loop on a worker; [`TunnelHosting`] serves what tunnels bring.
//!
//! Both `compile`s read files and take time: they run on the control runtime, never on a worker.
//!
//! **The request path holds names of nothing**: routes hold cluster slots, connections hold their filter chain. It
//! writes nothing shared, and it does not allocate while requests are small.
//!
//! Where to begin reading: `router.rs`, the one function that takes a request through its steps.

pub mod access_log;
pub mod demand;
mod flags;
mod format;
mod forwarding;
mod http_manager;
pub mod listener;
mod local_reply;
mod record;
mod router;
pub mod routes;
mod routing;
mod shares;
pub mod source;
pub mod stats;
mod tcp_proxy;
#[cfg(test)]
mod testing;
mod timer;
mod tunnel;
mod tunnel_log;
mod udp_proxy;
mod worker;

pub use access_log::{LogError, LogSinks};
pub use demand::{Demands, Order, Wanted};
pub use flags::{ResponseFlag, ResponseFlags};
pub use listener::{ChainInputs, CompileError, FilterChains, ListenerSlot, Listeners, TlsSlot, serve_listener};
pub use routes::{RouteSlot, RouteSlots, RouteTable, ScopeSlot, ScopeTable};
pub use shares::Shares;
pub use source::{SourceError, read_source};
pub use stats::{HttpMetric, ListenerMetric, TcpMetric, UdpClusterMetric, UdpMetric};
pub use tunnel::TunnelHosting;
pub use tunnel_log::TunnelLogs;
pub use udp_proxy::serve_datagrams;
pub use worker::{Process, Worker};
