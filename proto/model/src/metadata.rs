//! `envoy.config.core.v3.Metadata`: what a route says about tunnel agents, and the rest as text.

use std::collections::BTreeMap;
use std::sync::Arc;

use culvert_api::envoy::config::core::v3 as api;
use prost_types::value::Kind;
use prost_types::{Struct, Value};

use crate::report::Report;
use crate::route::{AgentChoice, AgentSelector};
use crate::scalar;
use crate::tunnel::{self, NamePattern};

/// The key under which routes name one tunnel agent. Envoys carry it and do nothing with it.
pub const AGENT_KEY: &str = "culvert.tunnel";

/// The key by which Envoy picks a subset of a cluster's hosts.
const SUBSET_KEY: &str = "envoy.lb";

/// `filter_metadata`, as proto3 JSON.
pub(crate) fn as_json(metadata: Option<&api::Metadata>) -> BTreeMap<String, String> {
    let fields = metadata.into_iter().flat_map(|metadata| &metadata.filter_metadata);
    fields.map(|(key, value)| (key.clone(), serde_json::Value::Object(object(value)).to_string())).collect()
}

/// The agent that `metadata.filter_metadata["culvert.tunnel"]` selects, with exactly one of `agent_header` (the name
/// of a request header), `agent_host_label: true` and `agent` (a name), and perhaps `allowed_agents` (names and `*` suffix
/// patterns).
pub(crate) fn agent(report: &mut Report, field: &'static str, metadata: Option<&api::Metadata>) -> Option<AgentChoice> {
    let selector = metadata?.filter_metadata.get(AGENT_KEY)?;
    report.field(field, |report| report.entry("filter_metadata", AGENT_KEY, |report| selector_of(report, selector)))
}

/// `metadata_match`: the agent; Envoy's own criteria would pick a subset of the hosts, which is not done.
pub(crate) fn agent_of_match(report: &mut Report, metadata: Option<&api::Metadata>) -> Option<AgentChoice> {
    let metadata = metadata?;
    if metadata.filter_metadata.contains_key(SUBSET_KEY) {
        report.field("metadata_match", |report| {
            report.entry("filter_metadata", SUBSET_KEY, |report| {
                report
                    .error("decides which endpoints a request goes to, and subsets are not there; use a cluster each");
            });
        });
    }
    agent(report, "metadata_match", Some(metadata))
}

fn selector_of(report: &mut Report, selector: &Struct) -> Option<AgentChoice> {
    let (mut found, mut allowed) = (Vec::new(), Vec::new());
    for (key, value) in &selector.fields {
        match (key.as_str(), value.kind.as_ref()) {
            ("agent_header", Some(Kind::StringValue(name))) => {
                found.push(AgentSelector::Header(scalar::header_name(report, "agent_header", name)?));
            }
            ("agent_host_label", Some(Kind::BoolValue(true))) => found.push(AgentSelector::HostLabel),
            ("agent_host_label", Some(Kind::BoolValue(false))) => {}
            ("agent", Some(Kind::StringValue(name))) if !name.is_empty() => {
                found.push(AgentSelector::Fixed(Arc::from(name.as_str())));
            }
            ("allowed_agents", Some(Kind::ListValue(list))) => {
                if list.values.is_empty() {
                    report.error_at("allowed_agents", "is empty; leave it out to allow every agent");
                }
                allowed = report.items("allowed_agents", &list.values, pattern);
            }
            _ => report.key(key, |report| {
                report.error(
                    "is none of agent_header (text), agent_host_label (bool), agent (text) and allowed_agents (list)",
                );
            }),
        }
    }
    if found.len() > 1 {
        report.error("sets several of agent_header, agent_host_label and agent; set one");
    }
    if found.is_empty() && selector.fields.contains_key("allowed_agents") {
        report.error_at("allowed_agents", "names agents that requests may choose, and none of them can");
    }
    found.pop().map(|selector| AgentChoice { selector, allowed })
}

fn pattern(report: &mut Report, value: &Value) -> Option<NamePattern> {
    match &value.kind {
        Some(Kind::StringValue(text)) => tunnel::pattern(report, text),
        _ => {
            report.error("is no text");
            None
        }
    }
}

/// As proto3 JSON writes it: whole numbers without a fraction.
fn number(number: f64) -> serde_json::Value {
    #[expect(clippy::cast_possible_truncation, reason = "it is whole and fits")]
    let whole = (number.fract() == 0.0 && number.abs() <= MAX_WHOLE).then_some(number as i64);
    whole.map_or_else(|| number.into(), serde_json::Value::from)
}

pub(crate) fn object(message: &Struct) -> serde_json::Map<String, serde_json::Value> {
    message.fields.iter().map(|(key, field)| (key.clone(), value(field))).collect()
}

fn value(message: &Value) -> serde_json::Value {
    match &message.kind {
        Some(Kind::StringValue(text)) => serde_json::Value::String(text.clone()),
        Some(Kind::NumberValue(number)) => self::number(*number),
        Some(Kind::BoolValue(value)) => serde_json::Value::Bool(*value),
        Some(Kind::StructValue(inner)) => serde_json::Value::Object(object(inner)),
        Some(Kind::ListValue(list)) => serde_json::Value::Array(list.values.iter().map(value).collect()),
        Some(Kind::NullValue(_)) | None => serde_json::Value::Null,
    }
}

/// 2^53: up to here every whole number is itself.
const MAX_WHOLE: f64 = 9_007_199_254_740_992.0;
