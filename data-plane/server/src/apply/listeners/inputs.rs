//! What compiling a listener's filter chains takes from files and secrets, and how it follows their changes.

use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::{Arc, Weak};

use culvert_model::Name;
use culvert_model::listener::{FilterChain, Listener, NetworkFilter};
use culvert_model::tls::DownstreamTls;
use culvert_model::tunnel::TunnelServer;
use culvert_model::tunnel::jwks::RemoteJwks;
use culvert_proxy::listener::CompileError;
use culvert_proxy::{ChainInputs, FilterChains, ListenerSlot, Process, SourceError, TlsSlot, read_source};
use culvert_runtime::tls::ClientTrust;
use culvert_tunnel::envoy::jwt::KeySet;
use culvert_tunnel::server::{Acceptor, Tokens, Tunnels};

use super::Listeners;
use crate::apply::policies;
use crate::overview::{CertificateView, Overview};
use crate::remote_keys::RemoteKeys;
use crate::secrets::Secrets;
use crate::tls::{Gathered, Material, MaterialError, files, gather, source_files};

/// A TLS context of a filter chain in force.
#[derive(Debug)]
pub(crate) struct TlsUse {
    pub(super) listener: Name,
    context: Arc<DownstreamTls>,
    slot: Weak<TlsSlot>,
    /// `stat_prefix` of the chain's tunnel filter, if it ends in one.
    tunnels: Option<Name>,
    /// Of what its configuration was built from.
    digest: Option<u128>,
}

impl TlsUse {
    pub(super) fn is_in_use(&self) -> bool {
        self.slot.strong_count() > 0
    }

    pub(super) fn files(&self, secrets: &Secrets) -> Vec<PathBuf> {
        files(&self.context.common, secrets)
    }

    /// Builds the configuration anew if what it is built from differs. Handshakes from now on use it, and agents whose
    /// tunnels stand on what was in force are asked for other ones. **Whom it trusts no more has to go.**
    pub(super) fn refresh(&mut self, secrets: &Secrets, overview: &Overview) -> Result<(), MaterialError> {
        let Some(slot) = self.slot.upgrade() else { return Ok(()) };
        let Gathered::Complete(material) = gather(&self.context.common, secrets)? else { return Ok(()) };
        if self.digest == Some(material.digest()) {
            return Ok(());
        }
        slot.publish(Some(material.server(&self.context)?));
        let asked = match (self.digest, &self.tunnels) {
            (Some(_), Some(stat_prefix)) => {
                if let Some(trust) = material.client_trust()? {
                    judge_again(&overview.tunnels, stat_prefix, trust);
                }
                overview.tunnels.renewed(stat_prefix)
            }
            // There were no handshakes before.
            (None, _) | (_, None) => 0,
        };
        self.digest = Some(material.digest());
        show(overview, &self.listener, &material, &slot);
        tracing::info!(listener = %self.listener, tunnels_asked = asked, "TLS material is in force");
        Ok(())
    }
}

/// Beside everything else: a signature for each tunnel is a second for ten thousand of them.
fn judge_again(tunnels: &Arc<Tunnels>, stat_prefix: &Name, trust: ClientTrust) {
    let (tunnels, listener) = (Arc::clone(tunnels), Arc::clone(stat_prefix));
    tokio::task::spawn_blocking(move || {
        let distrusted = tunnels.judge_certificates(&listener, |chain| trust.judge(chain));
        if distrusted > 0 {
            tracing::warn!(%listener, distrusted, "tunnels whose certificates are trusted no more are closed");
        }
    });
}

fn show(overview: &Overview, listener: &Name, material: &Material, slot: &Arc<TlsSlot>) {
    let (presented, trusted) = material.details();
    let chain = Some(Arc::downgrade(slot));
    overview.show_certificates(format!("listener {listener}"), CertificateView { presented, trusted, chain });
}

/// A tunnel filter in force.
#[derive(Debug)]
pub(crate) struct Credentials {
    config: Arc<TunnelServer>,
    acceptor: Weak<Acceptor>,
}

impl Credentials {
    pub(super) fn is_in_use(&self) -> bool {
        self.acceptor.strong_count() > 0
    }

    pub(super) fn files(&self) -> impl Iterator<Item = PathBuf> {
        let tokens = self.config.policies.iter().flat_map(|policy| &policy.tokens);
        tokens.chain(self.config.reverse.jwt.iter().filter_map(|jwt| jwt.jwks.local())).flat_map(source_files)
    }

    /// What is fetched for it.
    pub(super) fn remote(&self) -> Option<&Arc<RemoteJwks>> {
        self.config.reverse.jwt.as_ref()?.jwks.remote()
    }

    pub(super) fn refresh(&self, fetched: &RemoteKeys) -> Result<(), SourceError> {
        if let Some(acceptor) = self.acceptor.upgrade() {
            acceptor.replace_tokens(tokens(&self.config)?);
            if let Some(keys) = keys(&self.config, fetched)? {
                acceptor.replace_keys(keys);
            }
        }
        Ok(())
    }
}

/// The credentials of each policy. A line feed at the end of a file is not part of them.
fn tokens(config: &TunnelServer) -> Result<Tokens, SourceError> {
    let read = |source| {
        let bytes = read_source(source, TOKEN_LIMIT)?;
        let trimmed = bytes.trim_ascii_end();
        Ok(Arc::from(trimmed))
    };
    config.policies.iter().map(|policy| policy.tokens.iter().map(read).collect()).collect()
}

/// The keys of the `jwt_validator`, if there is one.
fn keys(config: &TunnelServer, fetched: &RemoteKeys) -> Result<Option<Arc<KeySet>>, SourceError> {
    config.reverse.jwt.as_ref().map(|validator| policies::keys(&validator.jwks, fetched)).transpose()
}

/// TLS of one chain that is not in force yet.
#[derive(Debug)]
struct Context {
    tls: Arc<DownstreamTls>,
    slot: Arc<TlsSlot>,
    /// `stat_prefix` of the chain's tunnel filter, if it ends in one.
    tunnels: Option<Name>,
    /// `None`: secrets are awaited.
    material: Option<Material>,
}

impl Context {
    fn new(chain: &FilterChain, tls: &Arc<DownstreamTls>, slot: Arc<TlsSlot>, material: Option<Material>) -> Self {
        let tunnels = match &chain.filter {
            NetworkFilter::Tunnel(config) => Some(Arc::clone(&config.stat_prefix)),
            NetworkFilter::Http(_) | NetworkFilter::Tcp(_) | NetworkFilter::Discovered(_) => None,
        };
        Self { tls: Arc::clone(tls), slot, tunnels, material }
    }
}

/// What new chains of a listener need, read before they are compiled.
#[derive(Debug)]
pub(super) struct Prepared {
    /// TLS contexts of chains that are not in force already.
    contexts: Vec<Context>,
    /// Secrets that have not come yet.
    pub(super) awaited: Vec<Name>,
}

impl Prepared {
    pub(super) fn new(listener: &Listener, slot: &ListenerSlot, secrets: &Secrets) -> Result<Self, MaterialError> {
        let before = slot.current();
        let before = before.as_ref().map(|chains| chains.listener());
        let mut prepared = Self { contexts: Vec::new(), awaited: Vec::new() };
        for chain in chains(listener) {
            // It is taken over as it is, with its slot.
            let kept = before.is_some_and(|before| chains(before).any(|known| known == chain));
            let Some(tls) = chain.tls.as_ref().filter(|_| !kept) else { continue };
            match gather(&tls.common, secrets)? {
                Gathered::Complete(material) => {
                    let slot = TlsSlot::new(Some(material.server(tls)?));
                    prepared.contexts.push(Context::new(chain, tls, slot, Some(material)));
                }
                Gathered::Awaiting(names) => {
                    prepared.contexts.push(Context::new(chain, tls, TlsSlot::new(None), None));
                    prepared.awaited.extend(names);
                }
            }
        }
        Ok(prepared)
    }

    /// Compiles the listener, and remembers what its chains use.
    pub(super) fn compile(
        &self,
        listener: Arc<Listener>,
        slot: &ListenerSlot,
        process: &Process,
        overview: &Overview,
        listeners: &mut Listeners,
    ) -> Result<Arc<FilterChains>, CompileError> {
        let name = Arc::clone(&listener.name);
        let acceptors = RefCell::new(Vec::new());
        let tls = |context: &Arc<DownstreamTls>| {
            let known = self.contexts.iter().find(|known| Arc::ptr_eq(&known.tls, context));
            // Every context of a chain that is not in force was prepared.
            known.map_or_else(|| TlsSlot::new(None), |known| Arc::clone(&known.slot))
        };
        let tunnel = |config: &Arc<TunnelServer>| {
            let tunnels: Arc<Tunnels> = Arc::clone(&overview.tunnels);
            let acceptor = Acceptor::new(Arc::clone(config), tokens(config)?, tunnels);
            if let Some(keys) = keys(config, &overview.remote_keys)? {
                acceptor.replace_keys(keys);
            }
            let acceptor_use = Credentials { config: Arc::clone(config), acceptor: Arc::downgrade(&acceptor) };
            acceptors.borrow_mut().push(acceptor_use);
            Ok(acceptor)
        };
        let inputs = ChainInputs { tls: &tls, tunnel: &tunnel };
        let compiled = FilterChains::compile(listener, slot, process, &inputs)?;
        listeners.credentials.extend(acceptors.into_inner());
        for Context { tls, slot, tunnels, material } in &self.contexts {
            listeners.tls.push(TlsUse {
                listener: Arc::clone(&name),
                context: Arc::clone(tls),
                slot: Arc::downgrade(slot),
                tunnels: tunnels.clone(),
                digest: material.as_ref().map(Material::digest),
            });
            material.iter().for_each(|material| show(overview, &name, material, slot));
        }
        Ok(compiled)
    }
}

fn chains(listener: &Listener) -> impl Iterator<Item = &Arc<FilterChain>> {
    listener.filter_chains.iter().chain(&listener.default_filter_chain)
}

/// Of one credential.
const TOKEN_LIMIT: usize = 64 << 10;
