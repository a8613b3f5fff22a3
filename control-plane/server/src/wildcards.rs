//! Whether a first request without names asks for everything: who does not mean that is named on the command line.

use culvert_store::Selector;
use culvert_xds::{NodeIdentity, SessionConfig};

/// The nodes of `--no-legacy-wildcard`. Cheap enough to clone: there is one.
#[derive(Debug, Clone, Default)]
pub(crate) struct NamedOnly(pub(crate) Option<Selector>);

impl NamedOnly {
    /// How a node is served.
    pub(crate) fn config_for(&self, node: &NodeIdentity) -> SessionConfig {
        let named_only = self.0.as_ref().is_some_and(|selector| selector.matches(node));
        SessionConfig { legacy_wildcard: !named_only, ..SessionConfig::default() }
    }
}
