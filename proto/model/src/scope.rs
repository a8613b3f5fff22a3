//! Scoped routes (SRDS): which route configuration a request goes by, as a key says that is made of its header fields.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;

use culvert_api::envoy::config::route::v3 as api;
use culvert_api::envoy::extensions::filters::network::http_connection_manager::v3 as manager;

use crate::Name;
use crate::report::{Report, clip};
use crate::route::{self, RouteConfiguration};
use crate::scalar;
use crate::source::{self, ConfigSource};

/// `ScopedRoutes`: how requests find their scope, and where scopes come from.
#[derive(Debug, Clone, PartialEq)]
pub struct ScopedRoutes {
    /// What the parts of a request's key are, in order. Not empty.
    pub key: Vec<KeyPart>,
    pub scopes: Scopes,
}

/// `HeaderValueExtractor`: one part of the key, out of the first field of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyPart {
    /// Lower-case, or a pseudo-header.
    pub header: Arc<str>,
    /// What stands between the elements of the value. Empty: the value is one element.
    pub separator: Arc<str>,
    pub pick: Pick,
}

/// Which element of a field's value counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pick {
    /// The one at this place, from 0.
    Index(usize),
    /// What follows `separator` in the first element that begins with `key` and it.
    Keyed { key: Arc<str>, separator: Arc<str> },
}

#[derive(Debug, Clone, PartialEq)]
pub enum Scopes {
    /// They stand in the listener, with their routes and with keys of their own.
    Listed(Vec<Arc<Scope>>),
    /// They come by SRDS from `source`, and the routes that they name by RDS from `routes`.
    Discovered { source: ConfigSource, routes: ConfigSource },
}

/// `ScopedRouteConfiguration`
#[derive(Debug, Clone, PartialEq)]
pub struct Scope {
    pub name: Name,
    pub key: Vec<Arc<str>>,
    pub routes: ScopeRoutes,
    /// Its routes are asked for when a request needs them, and not before.
    pub on_demand: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub enum ScopeRoutes {
    Named(Name),
    Inline(Arc<RouteConfiguration>),
}

impl KeyPart {
    /// The part of the key that the value of the field gives.
    #[must_use]
    pub fn of<'v>(&self, value: &'v str) -> Option<&'v str> {
        if self.separator.is_empty() { self.pick(value) } else { self.pick_of(value.split(&*self.separator)) }
    }

    fn pick<'v>(&self, value: &'v str) -> Option<&'v str> {
        self.pick_of(std::iter::once(value))
    }

    fn pick_of<'v>(&self, mut elements: impl Iterator<Item = &'v str>) -> Option<&'v str> {
        match &self.pick {
            Pick::Index(index) => elements.nth(*index),
            Pick::Keyed { key, separator } => elements.find_map(|element| {
                // Envoy: an element without separator is a key with an empty value.
                let (name, value) = element.split_once(&**separator).unwrap_or((element, ""));
                (name == &**key).then_some(value)
            }),
        }
    }
}

/// Parses the `ScopedRoutes` at hand.
pub(crate) fn scoped_routes(report: &mut Report, message: &manager::ScopedRoutes) -> Option<ScopedRoutes> {
    use manager::scoped_routes::ConfigSpecifier;
    scalar::name(report, "name", &message.name);
    let parts = message.scope_key_builder.as_ref().map_or(&[][..], |builder| &builder.fragments);
    let key = report.field("scope_key_builder", |report| {
        if parts.is_empty() {
            report.error_at("fragments", "is empty: no request would have a key");
        }
        report.items("fragments", parts, key_part)
    });
    let scopes = match &message.config_specifier {
        Some(ConfigSpecifier::ScopedRouteConfigurationsList(list)) => {
            if message.rds_config_source.is_some() {
                report.warn_at("rds_config_source", "is not used: scopes that stand here hold their routes");
            }
            Scopes::Listed(report.field("scoped_route_configurations_list", |report| listed(report, list)))
        }
        Some(ConfigSpecifier::ScopedRds(discovered)) => {
            let source = report.field("scoped_rds", |report| {
                required_source(report, "scoped_rds_config_source", discovered.scoped_rds_config_source.as_ref())
            });
            let routes = required_source(report, "rds_config_source", message.rds_config_source.as_ref());
            Scopes::Discovered { source: source?, routes: routes? }
        }
        None => {
            report.error("names no scopes; set scoped_rds or scoped_route_configurations_list");
            return None;
        }
    };
    Some(ScopedRoutes { key, scopes })
}

fn required_source(
    report: &mut Report,
    field: &'static str,
    message: Option<&culvert_api::envoy::config::core::v3::ConfigSource>,
) -> Option<ConfigSource> {
    let Some(message) = message else {
        report.error_at(field, "is missing; use `ads: {}`");
        return None;
    };
    report.field(field, |report| source::config_source(report, message))
}

fn key_part(
    report: &mut Report,
    message: &manager::scoped_routes::scope_key_builder::FragmentBuilder,
) -> Option<KeyPart> {
    use manager::scoped_routes::scope_key_builder::fragment_builder::Type;
    use manager::scoped_routes::scope_key_builder::fragment_builder::header_value_extractor::ExtractType;
    let Some(Type::HeaderValueExtractor(extractor)) = &message.r#type else {
        report.error("says nothing of where it comes from; set header_value_extractor");
        return None;
    };
    report.field("header_value_extractor", |report| {
        let header = scalar::field_name(report, "name", &extractor.name);
        let pick = match &extractor.extract_type {
            Some(ExtractType::Index(index)) => {
                if *index > 0 && extractor.element_separator.is_empty() {
                    report.error_at("index", "is not 0, and without element_separator there is one element");
                }
                Pick::Index(usize::try_from(*index).unwrap_or(usize::MAX))
            }
            Some(ExtractType::Element(element)) => report.field("element", |report| {
                let separator = scalar::name(report, "separator", &element.separator);
                let key = scalar::name(report, "key", &element.key);
                Some(Pick::Keyed { key: key?, separator: separator? })
            })?,
            None => {
                report.error("says nothing of which element counts; set index or element");
                return None;
            }
        };
        Some(KeyPart { header: header?, separator: extractor.element_separator.as_str().into(), pick })
    })
}

/// Scopes in the listener. Envoy: each holds its routes.
fn listed(report: &mut Report, list: &manager::ScopedRouteConfigurationsList) -> Vec<Arc<Scope>> {
    let field = "scoped_route_configurations";
    let scopes = report.items(field, &list.scoped_route_configurations, |report, message| {
        let scope = scope(report, message)?;
        if let ScopeRoutes::Named(_) = scope.routes {
            report
                .error_at("route_configuration_name", "stands in a list; give route_configuration, or use scoped_rds");
        }
        Some(Arc::new(scope))
    });
    let mut keys: HashMap<&[Arc<str>], &Name> = HashMap::new();
    for (index, scope) in scopes.iter().enumerate() {
        if let Some(other) = keys.insert(&scope.key, &scope.name) {
            report.item(field, index, |report| {
                report.error_at("key", format!("is that of scope {:?} as well", clip(other)));
            });
        }
    }
    scopes
}

/// Parses the `ScopedRouteConfiguration` at hand.
pub(crate) fn scope(report: &mut Report, message: &api::ScopedRouteConfiguration) -> Option<Scope> {
    use api::scoped_route_configuration::key::fragment::Type;
    let name = scalar::name(report, "name", &message.name);
    let fragments = message.key.as_ref().map_or(&[][..], |key| &key.fragments);
    let key = report.field("key", |report| {
        if fragments.is_empty() {
            report.error_at("fragments", "is empty: no request has an empty key");
        }
        report.items("fragments", fragments, |report, fragment| match &fragment.r#type {
            Some(Type::StringKey(key)) => Some(Arc::from(key.as_str())),
            None => {
                report.error("is empty; set string_key");
                None
            }
        })
    });
    let routes = match (message.route_configuration_name.as_str(), &message.route_configuration) {
        ("", Some(routes)) => {
            let place = route::Place::Inline;
            let routes = report.field("route_configuration", |report| route::configuration(report, routes, place));
            ScopeRoutes::Inline(Arc::new(routes?))
        }
        (_, None) => {
            ScopeRoutes::Named(scalar::name(report, "route_configuration_name", &message.route_configuration_name)?)
        }
        (_, Some(_)) => {
            report.error_at("route_configuration_name", "stands beside route_configuration; give one of them");
            return None;
        }
    };
    Some(Scope { name: name?, key, routes, on_demand: message.on_demand })
}
