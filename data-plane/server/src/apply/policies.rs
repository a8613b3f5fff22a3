//! Identity policies of tunnel listeners: what their sources hold, read anew when a file changes.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use culvert_model::Name;
use culvert_model::source::DataSource;
use culvert_model::tunnel::jwks::{Jwks, RemoteJwks};
use culvert_model::tunnel::policy::TunnelPolicy;
use culvert_proxy::{SourceError, read_source};
use culvert_tunnel::envoy::jwt::KeySet;
use culvert_tunnel::server::{Policy, PolicyMaterial};

use super::applier::Applier;
use super::{Applied, ApplyError};
use crate::remote_keys::RemoteKeys;
use crate::stats::ManagerMetric;
use crate::tls::source_files;

/// The policies in force, by name.
pub(super) type InForce = HashMap<Name, Arc<TunnelPolicy>>;

impl Applier {
    /// Tunnels that stand are judged by it at once.
    pub(super) fn set_policy(&mut self, config: Arc<TunnelPolicy>) -> Result<Applied, ApplyError> {
        let material = material(&config, &self.overview.remote_keys)?;
        let name = Arc::clone(&config.name);
        let policy = Arc::new(Policy::new(Arc::clone(&config), material));
        self.overview.tunnels.policies().publish(&name, Some(policy));
        self.policies.insert(name, config);
        Ok(Applied::Active)
    }

    /// **Default deny**: listeners that name it admit nobody from now on.
    pub(super) fn remove_policy(&mut self, name: &Name) {
        if self.policies.remove(name).is_some() {
            self.overview.tunnels.policies().publish(name, None);
        }
    }

    /// A file has changed.
    pub(super) fn refresh_policies(&mut self) {
        let follows = |config: &TunnelPolicy| {
            sources(config).flat_map(source_files).count() > 0 || remote(config).next().is_some()
        };
        for (name, config) in self.policies.iter().filter(|(_, config)| follows(config)) {
            match material(config, &self.overview.remote_keys) {
                Ok(material) => {
                    let policy = Arc::new(Policy::new(Arc::clone(config), material));
                    self.overview.tunnels.policies().publish(name, Some(policy));
                    tracing::debug!(policy = %name, "keys and tokens are read anew");
                }
                Err(error) => {
                    self.metrics.inc(ManagerMetric::TlsUpdateRejected);
                    tracing::warn!(policy = %name, %error, "new keys or tokens cannot be used; the old stay in force");
                }
            }
        }
    }

    pub(super) fn policy_files(&self, paths: &mut BTreeSet<PathBuf>) {
        paths.extend(self.policies.values().flat_map(|config| sources(config)).flat_map(source_files));
    }

    /// Keys that policies or tunnel filters in force have fetched.
    pub(super) fn keys_in_use(&self) -> HashSet<Arc<RemoteJwks>> {
        let of_policies = self.policies.values().flat_map(|config| remote(config)).cloned();
        of_policies.chain(self.remote_keys_of_listeners()).collect()
    }
}

fn remote(config: &TunnelPolicy) -> impl Iterator<Item = &Arc<RemoteJwks>> {
    config.providers.iter().filter_map(|provider| provider.jwks.remote())
}

fn sources(config: &TunnelPolicy) -> impl Iterator<Item = &DataSource> {
    let keys = config.providers.iter().filter_map(|provider| provider.jwks.local());
    keys.chain(config.tokens.iter().flat_map(|token| &token.tokens))
}

/// What the sources of a policy hold now.
pub(super) fn material(config: &TunnelPolicy, fetched: &RemoteKeys) -> Result<PolicyMaterial, SourceError> {
    let keys = config.providers.iter().map(|provider| {
        let keys = keys(&provider.jwks, fetched);
        keys.map_err(|error| SourceError::Content(format!("keys of {:?}: {error}", provider.name)))
    });
    let token = |source| read_source(source, TOKEN_LIMIT).map(|bytes| Arc::from(bytes.trim_ascii_end()));
    let tokens = config.tokens.iter().map(|way| way.tokens.iter().map(token).collect());
    Ok(PolicyMaterial { keys: keys.collect::<Result<_, _>>()?, tokens: tokens.collect::<Result<_, _>>()? })
}

/// The keys of a set: those that stand on this machine, or those that were fetched last.
pub(super) fn keys(jwks: &Jwks, fetched: &RemoteKeys) -> Result<Arc<KeySet>, SourceError> {
    match jwks {
        Jwks::Local(source) => {
            let keys = KeySet::parse(&read_source(source, JWKS_LIMIT)?);
            keys.map(Arc::new).map_err(|error| SourceError::Content(error.to_string()))
        }
        Jwks::Remote(remote) => Ok(fetched.keys(remote)),
    }
}

const TOKEN_LIMIT: usize = 64 << 10;
const JWKS_LIMIT: usize = 1 << 20;
