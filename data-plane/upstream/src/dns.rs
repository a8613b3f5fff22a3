//! STRICT_DNS and LOGICAL_DNS: names of endpoints become addresses, on the control runtime.

/// Resolves names. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Resolver(());

impl Resolver {
    /// By the system's configuration (`/etc/resolv.conf`, `/etc/hosts`).
    ///
    /// # Errors
    /// When the system's configuration cannot be read.
    pub fn system() -> Result<Self, ResolverError> {
        todo!()
    }
}

/// Why there is no resolver.
#[derive(Debug, thiserror::Error)]
#[error("cannot use the system's DNS configuration: {reason}")]
pub struct ResolverError {
    pub reason: String,
}
