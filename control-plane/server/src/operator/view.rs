//! What is shown to operators: contents as JSON with secrets redacted.

use std::sync::Arc;
use std::time::SystemTime;

use culvert_api::culvert::control::v1 as api;
use culvert_api::json::{Secrets, any_to_json};
use culvert_api::type_url;
use culvert_store::{Finding, Selector, is_like};
use culvert_xds::Resource;
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Timestamp, Value};

use crate::history::Entry;
use crate::loads::{ClusterLoad, Key};

/// Which resources somebody wants to see.
#[derive(Debug, Default)]
pub(super) struct Filter {
    /// Type URLs, message names or short ones; empty: all.
    types: Vec<String>,
    /// Names with `*`; empty: all.
    names: Vec<String>,
}

impl Filter {
    pub(super) fn new(filter: Option<&api::ResourceFilter>) -> Self {
        filter.map_or_else(Self::default, |filter| Self { types: filter.types.clone(), names: filter.names.clone() })
    }

    pub(super) fn covers(&self, resource: &Resource) -> bool {
        let url = &**resource.type_url();
        let is_of = |of: &String| [url, type_url::message_name(url), type_url::short_name(url)].contains(&of.as_str());
        (self.types.is_empty() || self.types.iter().any(is_of))
            && (self.names.is_empty() || self.names.iter().any(|name| is_like(name, resource.name())))
    }
}

/// A resource and the nodes that it is for.
pub(super) fn placed(
    (resource, selector, origin): (&Arc<Resource>, &Selector, &str),
    without_contents: bool,
) -> api::ResourceView {
    api::ResourceView {
        nodes: selector.to_string(),
        origin: origin.to_owned(),
        ..self::resource(resource, without_contents)
    }
}

pub(super) fn resource(resource: &Resource, without_contents: bool) -> api::ResourceView {
    api::ResourceView {
        type_url: resource.type_url().to_string(),
        name: resource.name().to_string(),
        version: resource.version().to_string(),
        content: content(resource, without_contents),
        ..api::ResourceView::default()
    }
}

/// As JSON, without key material and passwords.
pub(super) fn content(resource: &Resource, without: bool) -> Option<Struct> {
    if without {
        return None;
    }
    match value(any_to_json(&resource.any(), Secrets::Redact)).kind {
        Some(Kind::StructValue(content)) => Some(content),
        _ => None,
    }
}

fn value(json: serde_json::Value) -> Value {
    let kind = match json {
        serde_json::Value::Null => Kind::NullValue(0),
        serde_json::Value::Bool(value) => Kind::BoolValue(value),
        serde_json::Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        serde_json::Value::String(text) => Kind::StringValue(text),
        serde_json::Value::Array(items) => {
            Kind::ListValue(ListValue { values: items.into_iter().map(value).collect() })
        }
        serde_json::Value::Object(fields) => {
            Kind::StructValue(Struct { fields: fields.into_iter().map(|(key, json)| (key, value(json))).collect() })
        }
    };
    Value { kind: Some(kind) }
}

pub(super) fn finding(finding: &Finding) -> api::Finding {
    api::Finding {
        file: finding.file.display().to_string(),
        line: finding.at.map_or(0, |at| count(at.line)),
        column: finding.at.map_or(0, |at| count(at.column)),
        path: finding.path.clone(),
        reason: finding.reason.clone(),
    }
}

pub(super) fn past(entry: Entry) -> api::Past {
    let changes = entry.changes.unwrap_or_default();
    let first = |names: Vec<String>| names.into_iter().take(100).collect();
    api::Past {
        generation: entry.past.generation,
        at: Some(timestamp(entry.past.at)),
        resources: count(entry.past.directory.len()),
        rolled_back_to: entry.past.again.unwrap_or_default(),
        taken_back: entry.past.taken_back.unwrap_or_default(),
        added: first(changes.added),
        changed: first(changes.changed),
        removed: first(changes.removed),
        reason: entry.past.reason.unwrap_or_default(),
    }
}

pub(super) fn load((key, load): (Key, ClusterLoad)) -> api::ClusterLoad {
    let localities = load.localities.into_iter().map(|(place, requests)| api::LocalityLoad {
        region: place.region,
        zone: place.zone,
        sub_zone: place.sub_zone,
        priority: place.priority,
        successes: requests.successes,
        errors: requests.errors,
        issued: requests.issued,
        in_progress: requests.in_progress,
    });
    let endpoints = load.endpoints.into_iter().map(|(address, requests)| api::EndpointLoad {
        address,
        successes: requests.successes,
        errors: requests.errors,
        issued: requests.issued,
        in_progress: requests.in_progress,
    });
    api::ClusterLoad {
        cluster: key.cluster,
        service: key.service,
        successes: load.requests.successes,
        errors: load.requests.errors,
        issued: load.requests.issued,
        dropped: load.dropped,
        dropped_by_category: load.dropped_by_category,
        in_progress: load.requests.in_progress,
        localities: localities.collect(),
        last_report: load.last_report.map(timestamp),
        endpoints: endpoints.collect(),
    }
}

fn timestamp(at: SystemTime) -> Timestamp {
    Timestamp::from(at)
}

pub(super) fn count(count: impl TryInto<u32>) -> u32 {
    count.try_into().unwrap_or(u32::MAX)
}
