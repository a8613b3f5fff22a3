//! Runtime keys: values that may change while the configuration that goes by them stays.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::Arc;

use culvert_api::envoy::config::bootstrap::v3 as api;
use culvert_api::envoy::config::core::v3::RuntimeFractionalPercent;
use culvert_api::envoy::r#type::v3 as types;
use prost_types::Struct;
use prost_types::value::Kind;

use crate::Name;
use crate::report::{Report, clip};
use crate::scalar::{self, MILLION};
use crate::source::{self, ConfigSource};

/// A share of something, which a runtime key may change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// Of 1,000,000: while the key has no value that is a share.
    pub default: u32,
    pub key: Option<Name>,
}

impl Share {
    /// A share that nothing changes, of 1,000,000.
    #[must_use]
    pub const fn fixed(default: u32) -> Self {
        Self { default, key: None }
    }
}

/// The value of a runtime key.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Number(f64),
    Bool(bool),
    Text(Arc<str>),
    /// `numerator` and `denominator`, of 1,000,000.
    Share(u32),
}

impl Value {
    /// As a share, of 1,000,000. Envoy: a whole number is a percentage; what is neither leaves the default.
    #[must_use]
    pub fn share(&self) -> Option<u32> {
        let percent = match self {
            Self::Share(share) => return Some(*share),
            Self::Number(number) => format!("{number}").parse::<u64>().ok(),
            Self::Text(text) => text.parse::<u64>().ok(),
            Self::Bool(_) => None,
        };
        percent.map(|percent| u32::try_from(percent.min(100)).unwrap_or(100) * (MILLION / 100))
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Bool(yes) => write!(f, "{yes}"),
            Self::Text(text) => f.write_str(text),
            Self::Share(share) => write!(f, "{share}/{MILLION}"),
        }
    }
}

/// Values by key: the path through nested objects, with dots.
pub type Values = BTreeMap<Arc<str>, Value>;

/// `envoy.service.runtime.v3.Runtime`: what RTDS brings.
#[derive(Debug, Clone, PartialEq)]
pub struct Runtime {
    pub name: Name,
    pub values: Values,
}

/// `RuntimeLayer`: later ones stand above earlier ones.
#[derive(Debug, Clone, PartialEq)]
pub struct Layer {
    pub name: Name,
    pub source: LayerSource,
}

#[derive(Debug, Clone, PartialEq)]
pub enum LayerSource {
    Static(Values),
    /// What is set over the admin interface.
    Admin,
    Rtds {
        name: Name,
        source: ConfigSource,
    },
}

/// The message of RTDS, which has no type among those of `culvert-api`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct RuntimeMessage {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(message, optional, tag = "2")]
    pub(crate) layer: Option<Struct>,
}

impl prost::Name for RuntimeMessage {
    const NAME: &'static str = "Runtime";
    const PACKAGE: &'static str = "envoy.service.runtime.v3";
}

/// Parses the `Runtime` at hand.
pub(crate) fn runtime(report: &mut Report, message: &RuntimeMessage) -> Option<Runtime> {
    let name = scalar::name(report, "name", &message.name);
    let values = values(report, "layer", message.layer.as_ref());
    Some(Runtime { name: name?, values })
}

/// Parses the `RuntimeFractionalPercent` at hand. Envoy: without a default it is all.
pub(crate) fn share(report: &mut Report, message: &RuntimeFractionalPercent) -> Share {
    let default = message.default_value.as_ref();
    Share {
        default: default.map_or(MILLION, |default| scalar::fraction(report, "default_value", default)),
        key: key(&message.runtime_key),
    }
}

pub(crate) fn key(key: &str) -> Option<Name> {
    Some(key).filter(|key| !key.is_empty()).map(Into::into)
}

/// Parses the `LayeredRuntime` at hand. Without one there is a layer for the admin interface, as in Envoy.
pub(crate) fn layers(report: &mut Report, message: Option<&api::LayeredRuntime>) -> Vec<Layer> {
    let Some(message) = message else { return vec![Layer { name: "admin".into(), source: LayerSource::Admin }] };
    let mut names = HashSet::new();
    let mut has_admin = false;
    report.items("layers", &message.layers, |report, layer| {
        let name = scalar::name(report, "name", &layer.name)?;
        if !names.insert(Arc::clone(&name)) {
            report.error_at("name", format!("{:?} stands there twice", clip(&name)));
        }
        let source = source_of(report, layer)?;
        if source == LayerSource::Admin && std::mem::replace(&mut has_admin, true) {
            report.error_at("admin_layer", "stands there twice; what is set goes into one");
        }
        Some(Layer { name, source })
    })
}

fn source_of(report: &mut Report, layer: &api::RuntimeLayer) -> Option<LayerSource> {
    use api::runtime_layer::LayerSpecifier;
    match &layer.layer_specifier {
        Some(LayerSpecifier::StaticLayer(layer)) => {
            Some(LayerSource::Static(values(report, "static_layer", Some(layer))))
        }
        Some(LayerSpecifier::AdminLayer(_)) => Some(LayerSource::Admin),
        Some(LayerSpecifier::RtdsLayer(rtds)) => report.field("rtds_layer", |report| {
            let name = scalar::name(report, "name", &rtds.name);
            let Some(config) = &rtds.rtds_config else {
                report.error_at("rtds_config", "is missing; use `ads: {}`");
                return None;
            };
            let source = report.field("rtds_config", |report| source::config_source(report, config));
            Some(LayerSource::Rtds { name: name?, source: source? })
        }),
        // The coverage tables have refused it.
        Some(LayerSpecifier::DiskLayer(_)) => None,
        None => {
            report.error("is of no kind; set static_layer, admin_layer or rtds_layer");
            None
        }
    }
}

fn values(report: &mut Report, field: &'static str, layer: Option<&Struct>) -> Values {
    let mut values = Values::new();
    if let Some(layer) = layer {
        report.field(field, |report| collect(report, "", layer, &mut values));
        if values.len() > MAX_KEYS {
            report.error_at(field, format!("has {} keys; {MAX_KEYS} are allowed", values.len()));
        }
    }
    values
}

fn collect(report: &mut Report, prefix: &str, layer: &Struct, values: &mut Values) {
    for (key, value) in &layer.fields {
        report.key(key, |report| {
            let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
            if path.len() > MAX_KEY_BYTES {
                report.error(format!("is a key of more than {MAX_KEY_BYTES} bytes"));
                return;
            }
            let value = match &value.kind {
                Some(Kind::NumberValue(number)) => Value::Number(*number),
                Some(Kind::BoolValue(yes)) => Value::Bool(*yes),
                Some(Kind::StringValue(text)) => Value::Text(text.as_str().into()),
                Some(Kind::StructValue(inner)) if is_share(inner) => match share_of(report, inner) {
                    Some(share) => Value::Share(share),
                    None => return,
                },
                Some(Kind::StructValue(inner)) => return collect(report, &path, inner, values),
                Some(Kind::ListValue(_) | Kind::NullValue(_)) | None => {
                    report.error("is a list or null; a runtime key is a number, a text, a bool or a fraction");
                    return;
                }
            };
            values.insert(path.into(), value);
        });
    }
}

/// Envoy: an object with one of these is a `FractionalPercent` and not a level of keys.
fn is_share(object: &Struct) -> bool {
    object.fields.contains_key("numerator") || object.fields.contains_key("denominator")
}

fn share_of(report: &mut Report, object: &Struct) -> Option<u32> {
    use types::fractional_percent::DenominatorType;
    let mut fraction = types::FractionalPercent::default();
    for (key, value) in &object.fields {
        match (key.as_str(), &value.kind) {
            ("numerator", Some(Kind::NumberValue(number))) => {
                fraction.numerator = format!("{number}").parse().ok().or_else(|| {
                    report.error(format!("the numerator {number} is no whole number"));
                    None
                })?;
            }
            ("denominator", Some(Kind::StringValue(name))) => {
                fraction.denominator = DenominatorType::from_str_name(name).map(Into::into).or_else(|| {
                    report.error(format!("{:?} is none of HUNDRED, TEN_THOUSAND and MILLION", clip(name)));
                    None
                })?;
            }
            _ => {
                report.error(format!("{:?} is no numerator (a whole number) and no denominator (a name)", clip(key)));
                return None;
            }
        }
    }
    Some(scalar::fraction(report, "numerator", &fraction))
}

/// Of one layer.
const MAX_KEYS: usize = 100_000;
const MAX_KEY_BYTES: usize = 4096;
