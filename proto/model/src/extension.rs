//! Filters whose configuration comes by name (ECDS): where a listener asks for one, and what comes.
//!
//! A parsed listener holds [`Discovery`]s; [`resolve`](crate::listener::Listener::resolve) puts what came in their places. **Whoever serves a
//! listener has it resolved**: a filter without its configuration lets nothing through.

mod resolve;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use culvert_api::Any;
use culvert_api::envoy::config::core::v3 as api;
use culvert_api::envoy::extensions::filters::http::router::v3::Router;
use prost::Name as _;

pub use self::resolve::{Asked, Defaults, Unresolved};
use crate::Name;
use crate::http::{self, RouterOptions};
use crate::listener::{self, NetworkFilter};
use crate::report::{Report, clip};
use crate::scalar;
use crate::source::{self, ConfigSource};

/// `TypedExtensionConfig`: the configuration of a filter.
#[derive(Debug, Clone, PartialEq)]
pub struct Extension {
    pub name: Name,
    /// Full name of the message that it is.
    pub type_name: Arc<str>,
    pub filter: Filter,
}

/// What an [`Extension`] configures.
#[derive(Debug, Clone, PartialEq)]
pub enum Filter {
    Router(RouterOptions),
    Network(NetworkFilter),
}

/// `ExtensionConfigSource`: a filter whose configuration comes from elsewhere.
#[derive(Debug, Clone, PartialEq)]
pub struct Discovery<T> {
    pub name: Name,
    pub source: ConfigSource,
    /// Full names of the messages that may come and that this build knows.
    pub types: Vec<Arc<str>>,
    /// What holds if nothing came in time (`initial_fetch_timeout`). `None`: it is waited for as long as it takes.
    pub default: Option<T>,
    /// `apply_default_config_without_warming`: the default holds from the beginning.
    pub at_once: bool,
}

/// Parses the `TypedExtensionConfig` at hand.
pub(crate) fn extension(report: &mut Report, message: &api::TypedExtensionConfig) -> Option<Extension> {
    let name = scalar::name(report, "name", &message.name);
    let Some(config) = &message.typed_config else {
        report.error_at("typed_config", "is missing; nothing stands in for a filter's configuration");
        return None;
    };
    let filter = report.field("typed_config", |report| {
        if config.type_name() == Router::full_name() {
            http::router_options(report, config).map(Filter::Router)
        } else {
            listener::typed_filter(report, config).map(Filter::Network)
        }
    });
    Some(Extension { name: name?, type_name: config.type_name().into(), filter: filter? })
}

/// Parses the `ExtensionConfigSource` at hand, of the filter of this name. `known` are the filters that are there, by their
/// full names, and `parse` takes a default that is one of them.
pub(crate) fn discovery<T>(
    report: &mut Report,
    name: &str,
    message: &api::ExtensionConfigSource,
    known: &[String],
    parse: impl FnOnce(&mut Report, &Any) -> Option<T>,
) -> Option<Discovery<T>> {
    let types = message.type_urls.iter().map(|url| type_name(url));
    let types: Vec<Arc<str>> = types.filter(|name| known.iter().any(|known| known == name)).map(Into::into).collect();
    if types.is_empty() {
        report.error_at("type_urls", "names no filter that is there: what comes may decide who may connect");
    }
    if name.is_empty() {
        report.error("stands in a filter without a name, and that is what its configuration is asked for by");
    }
    let source = match &message.config_source {
        Some(source) => report.field("config_source", |report| source::config_source(report, source)),
        None => {
            report.error_at("config_source", "is missing; use `ads: {}`");
            None
        }
    };
    let default = message.default_config.as_ref().map(|default| {
        report.field("default_config", |report| {
            if !types.iter().any(|known| **known == *default.type_name()) {
                report.error(format!("is a {}, which is not among type_urls or not there", clip(default.type_name())));
                return None;
            }
            parse(report, default)
        })
    });
    let at_once = message.apply_default_config_without_warming;
    if at_once && default.is_none() {
        report.error_at("apply_default_config_without_warming", "is set, and there is no default_config");
    }
    let default = match default {
        Some(default) => Some(default?),
        None => None,
    };
    Some(Discovery { name: name.into(), source: source?, types, default, at_once })
}

/// Whether a message of this full name may come.
pub(crate) fn may_be(message: &api::ExtensionConfigSource, wanted: &str) -> bool {
    message.type_urls.iter().any(|url| type_name(url) == wanted)
}

fn type_name(url: &str) -> &str {
    url.rsplit('/').next().unwrap_or(url)
}
