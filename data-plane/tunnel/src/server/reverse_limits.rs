//! What Envoy's bootstrap extension for responders says.

/// What Envoy's bootstrap says of all its tunnels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReverseLimits {
    pub ping_failure_threshold: u32,
    /// Ids count within their tenant.
    pub tenant_isolation: bool,
    /// Holds where a listener enables it; over all workers.
    pub max_connections_per_node: usize,
}

impl Default for ReverseLimits {
    fn default() -> Self {
        Self { ping_failure_threshold: 3, tenant_isolation: false, max_connections_per_node: 0 }
    }
}
