//! Secrets by name: those of the bootstrap, and those that SDS brought.

use std::collections::HashMap;
use std::sync::Arc;

use culvert_model::Name;
use culvert_model::secret::{Secret, SecretKind};
use culvert_model::source::ConfigSource;

/// All secrets that are there. `Debug` of a [`Secret`] shows no key material.
#[derive(Debug, Default)]
pub(crate) struct Secrets {
    fixed: HashMap<Name, Arc<Secret>>,
    dynamic: HashMap<Name, Arc<Secret>>,
}

/// What a reference to a secret leads to.
#[derive(Debug)]
pub(crate) enum Lookup<'a> {
    Found(&'a Arc<Secret>),
    /// It is to come by SDS and has not come yet.
    Awaited,
    /// No static secret has that name.
    Unknown,
}

impl Secrets {
    /// With the static secrets of the bootstrap.
    #[must_use]
    pub(crate) fn new(fixed: &[Arc<Secret>]) -> Self {
        let fixed = fixed.iter().map(|secret| (Arc::clone(&secret.name), Arc::clone(secret))).collect();
        Self { fixed, dynamic: HashMap::new() }
    }

    /// Adds or replaces a secret of SDS.
    pub(crate) fn set(&mut self, secret: Arc<Secret>) {
        self.dynamic.insert(Arc::clone(&secret.name), secret);
    }

    /// Removes a secret of SDS.
    pub(crate) fn remove(&mut self, name: &str) {
        self.dynamic.remove(name);
    }

    /// The secret that a reference names: a static one where the reference says nothing of a source.
    #[must_use]
    pub(crate) fn lookup(&self, name: &str, config: Option<&ConfigSource>) -> Lookup<'_> {
        match config {
            None => self.fixed.get(name).map_or(Lookup::Unknown, Lookup::Found),
            Some(_) => self.dynamic.get(name).map_or(Lookup::Awaited, Lookup::Found),
        }
    }
}

/// What a secret is, for messages.
#[must_use]
pub(crate) fn describe(kind: &SecretKind) -> &'static str {
    match kind {
        SecretKind::Certificate(_) => "a certificate",
        SecretKind::Validation(_) => "a validation context",
        SecretKind::Generic(_) => "a generic secret",
    }
}
