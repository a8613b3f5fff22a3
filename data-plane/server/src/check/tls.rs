//! Mistakes in the TLS contexts of static resources.

use std::collections::HashSet;

use culvert_model::report::Finding;
use culvert_model::tls::{CommonTls, DownstreamTls, UpstreamTls};

use crate::secrets::Secrets;
use crate::tls::{Gathered, Material, MaterialError, gather, unreadable};

/// What contexts may refer to.
#[derive(Debug)]
pub(super) struct Statics<'s> {
    pub(super) secrets: &'s Secrets,
    /// Names of the bootstrap's secrets, those that were refused too.
    pub(super) given: HashSet<&'s str>,
}

impl Statics<'_> {
    /// What a cluster or an agent could not use.
    pub(super) fn upstream(&self, path: &str, context: &UpstreamTls) -> Vec<Finding> {
        self.check(path, &context.common, |material| material.client(context).map(drop).map_err(Into::into))
    }

    /// What a listener could not use.
    pub(super) fn downstream(&self, path: &str, context: &DownstreamTls) -> Vec<Finding> {
        self.check(path, &context.common, |material| material.server(context).map(drop).map_err(Into::into))
    }

    /// Every source that cannot be read; if all can, whether they fit together.
    fn check(
        &self,
        path: &str,
        common: &CommonTls,
        build: impl FnOnce(&Material) -> Result<(), MaterialError>,
    ) -> Vec<Finding> {
        let finding = |path: String, error: &MaterialError| Finding { path, reason: error.to_string() };
        let path = format!("{path}.typed_config.common_tls_context");
        let broken = unreadable(common);
        if !broken.is_empty() {
            return broken.into_iter().map(|(field, error)| finding(format!("{path}.{field}"), &error)).collect();
        }
        let built = gather(common, self.secrets).and_then(|gathered| match gathered {
            Gathered::Complete(material) => build(&material),
            Gathered::Awaiting(_) => Ok(()),
        });
        match built {
            // It is there, and was refused for a reason that is named already.
            Err(MaterialError::NoSuchSecret(name)) if self.given.contains(&*name) => Vec::new(),
            Err(error) => vec![finding(path, &error)],
            Ok(()) => Vec::new(),
        }
    }
}
