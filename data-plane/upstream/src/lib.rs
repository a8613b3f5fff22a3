//! Clusters and the hosts in them: slots, balancers, circuit breakers, connection pools, DNS, tunnel hosts.
//!
//! Three layers, by who may touch them:
//! - [`Clusters`] and its [`ClusterSlot`]s are shared. The control runtime writes them ([`Clusters::apply`]), workers
//!   read one immutable generation per slot through `arc_swap::Cache`.
//! - [`WorkerPools`] belongs to one worker and holds its connections, round-robin cursors and statistics blocks.
//! - A [`Checkout`] is one request's hold on a connection; dropping it gives everything back.
//!
//! **Nothing here knows a route or a listener, and nothing shared is written per request** but circuit-breaker counts,
//! a host's active-request count and the checkout of a shared tunnel.

mod balance;
pub mod breaker;
pub mod clusters;
pub mod dns;
pub mod failure;
#[cfg(test)]
mod fixture;
pub mod host;
pub mod pool;
mod sharing;
pub mod slot;
pub mod snapshot;
pub mod stats;
pub mod tunnel;

pub use breaker::{Breaker, Breakers, RetryPermit};
pub use clusters::Clusters;
pub use dns::Resolver;
pub use failure::UpstreamFailure;
pub use host::{Host, HostMetric};
pub use pool::direct::connect;
pub use pool::{Checkout, DownstreamProtocol, PickContext, TcpCheckout, TcpUpstream, UdpCheckout, WorkerPools};
pub use slot::{ClusterConfig, ClusterSlot};
pub use snapshot::{ClusterSnapshot, HostSnapshot, TunnelSnapshot};
pub use stats::ClusterMetric;
pub use tunnel::{RegisterError, ReverseNames, TunnelClaim, TunnelEnd, TunnelLease};
