//! `/config_dump`: everything that the process was given, as `envoy.admin.v3.ConfigDump`, secrets redacted.

use culvert_api::json::{Secrets, any_to_json, to_json};
use culvert_api::{Any, type_url};
use http::StatusCode;
use serde_json::{Map, Value, json};

use super::Admin;
use super::certs::timestamp;
use super::pages::Page;
use super::query::Query;
use crate::inventory::{Entry, Given};

/// One kind of resource, in the words of `envoy.admin.v3`.
struct Section {
    dump: &'static str,
    type_url: &'static str,
    /// Field of the resource inside its entry.
    field: &'static str,
    fixed: &'static str,
    active: &'static str,
    warming: Option<&'static str>,
}

const SECTIONS: [Section; 5] = [
    Section {
        dump: "ClustersConfigDump",
        type_url: type_url::CLUSTER,
        field: "cluster",
        fixed: "static_clusters",
        active: "dynamic_active_clusters",
        warming: Some("dynamic_warming_clusters"),
    },
    Section {
        dump: "ListenersConfigDump",
        type_url: type_url::LISTENER,
        field: "listener",
        fixed: "static_listeners",
        active: "dynamic_listeners",
        warming: None,
    },
    Section {
        dump: "RoutesConfigDump",
        type_url: type_url::ROUTE_CONFIGURATION,
        field: "route_config",
        fixed: "static_route_configs",
        active: "dynamic_route_configs",
        warming: None,
    },
    Section {
        dump: "SecretsConfigDump",
        type_url: type_url::SECRET,
        field: "secret",
        fixed: "static_secrets",
        active: "dynamic_active_secrets",
        warming: Some("dynamic_warming_secrets"),
    },
    Section {
        dump: "EndpointsConfigDump",
        type_url: type_url::CLUSTER_LOAD_ASSIGNMENT,
        field: "endpoint_config",
        fixed: "static_endpoint_configs",
        active: "dynamic_endpoint_configs",
        warming: None,
    },
];

impl Admin {
    pub(super) fn config_dump(&self, query: &Query<'_>) -> Page {
        let names = match query.get("name_regex").map(|pattern| regex::Regex::new(&pattern)).transpose() {
            Ok(names) => names,
            Err(error) => return Page::text(StatusCode::BAD_REQUEST, format!("name_regex: {error}\n")),
        };
        let shown = |name: &str| names.as_ref().is_none_or(|names| names.is_match(name));
        let mut configs = vec![json!({
            "@type": "type.googleapis.com/envoy.admin.v3.BootstrapConfigDump",
            "bootstrap": to_json(&self.bootstrap, Secrets::Redact),
            "last_updated": timestamp(self.began),
        })];
        for section in &SECTIONS {
            if section.type_url != type_url::CLUSTER_LOAD_ASSIGNMENT || query.get("include_eds").is_some() {
                configs.push(self.section(section, &shown));
            }
        }
        configs.push(self.agents(&shown));
        let Some(resource) = query.get("resource") else { return Page::json(&json!({ "configs": configs })) };
        let wanted = configs.iter_mut().find_map(|config| config.get_mut(&resource).map(Value::take));
        match wanted {
            Some(entries) => Page::json(&json!({ "configs": entries })),
            None => Page::text(StatusCode::NOT_FOUND, format!("nothing is called {resource} in the dump\n")),
        }
    }

    fn section(&self, section: &Section, shown: &dyn Fn(&str) -> bool) -> Value {
        let mut dump = Map::new();
        dump.insert("@type".to_owned(), format!("type.googleapis.com/envoy.admin.v3.{}", section.dump).into());
        let since = timestamp(self.began);
        let fixed = self.fixed(section.type_url).into_iter().filter(|(name, _)| shown(name));
        let fixed: Vec<Value> = fixed
            .map(|(_, any)| json!({ section.field: any_to_json(&any, Secrets::Redact), "last_updated": since }))
            .collect();
        dump.insert(section.fixed.to_owned(), fixed.into());
        let (mut active, mut warming) = (Vec::new(), Vec::new());
        for (name, entry) in self.inventory.entries(section.type_url).into_iter().filter(|(name, _)| shown(name)) {
            if section.type_url == type_url::LISTENER {
                active.push(listener(&name, &entry));
                continue;
            }
            active.extend(active_state(section.field, &name, &entry));
            warming
                .extend(entry.warming.iter().map(|(given, _)| state(section.field, &name, given, "REQUESTED", None)));
        }
        dump.insert(section.active.to_owned(), active.into());
        if let Some(field) = section.warming {
            dump.insert(field.to_owned(), warming.into());
        }
        dump.into()
    }

    /// Agents: ours, so the words are ours.
    fn agents(&self, shown: &dyn Fn(&str) -> bool) -> Value {
        let entries = self.inventory.entries(type_url::TUNNEL_AGENT).into_iter().filter(|(name, _)| shown(name));
        let agents: Vec<Value> = entries.filter_map(|(name, entry)| active_state("agent", &name, &entry)).collect();
        json!({ "@type": "type.googleapis.com/culvert.admin.v1.TunnelAgentsConfigDump", "dynamic_agents": agents })
    }

    /// The bootstrap's resources of a type.
    fn fixed(&self, type_url: &str) -> Vec<(String, Any)> {
        let Some(resources) = &self.bootstrap.static_resources else { return Vec::new() };
        match type_url {
            type_url::CLUSTER => {
                resources.clusters.iter().map(|cluster| (cluster.name.clone(), Any::pack(cluster))).collect()
            }
            type_url::LISTENER => {
                resources.listeners.iter().map(|listener| (listener.name.clone(), Any::pack(listener))).collect()
            }
            type_url::SECRET => {
                resources.secrets.iter().map(|secret| (secret.name.clone(), Any::pack(secret))).collect()
            }
            // Static routes and assignments stand inside their listeners and clusters.
            _ => Vec::new(),
        }
    }
}

/// What is in force, or what was refused where nothing is.
fn active_state(field: &str, name: &str, entry: &Entry) -> Option<Value> {
    let error = entry.refused.as_ref().map(|(given, reason)| error_state(given, reason));
    match (&entry.active, &entry.refused) {
        (Some(given), _) => Some(state(field, name, given, "ACKED", error.as_ref())),
        (None, Some((given, _))) => Some(state(field, name, given, "NACKED", error.as_ref())),
        (None, None) => None,
    }
}

fn state(field: &str, name: &str, given: &Given, status: &str, error: Option<&Value>) -> Value {
    let mut entry = json!({
        "name": name,
        "version_info": &*given.version,
        field: any_to_json(&given.resource, Secrets::Redact),
        "last_updated": timestamp(given.at),
        "client_status": status,
    });
    if let Some(error) = error {
        entry["error_state"] = error.clone();
    }
    entry
}

/// `ListenersConfigDump.DynamicListener`.
fn listener(name: &str, entry: &Entry) -> Value {
    let given = |given: &Given| {
        json!({
            "version_info": &*given.version,
            "listener": any_to_json(&given.resource, Secrets::Redact),
            "last_updated": timestamp(given.at),
        })
    };
    let mut listener = json!({ "name": name });
    if let Some(active) = &entry.active {
        listener["active_state"] = given(active);
    }
    if let Some((warming, _)) = &entry.warming {
        listener["warming_state"] = given(warming);
    }
    if let Some((refused, reason)) = &entry.refused {
        listener["error_state"] = error_state(refused, reason);
    }
    listener
}

/// `UpdateFailureState`.
fn error_state(given: &Given, reason: &str) -> Value {
    json!({
        "failed_configuration": any_to_json(&given.resource, Secrets::Redact),
        "last_update_attempt": timestamp(given.at),
        "details": reason,
        "version_info": &*given.version,
    })
}
