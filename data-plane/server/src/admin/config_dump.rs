//! `/config_dump`: everything that the process was given, as `envoy.admin.v3.ConfigDump`, secrets redacted.

use culvert_api::json::{Secrets, any_to_json, to_json};
use culvert_api::{Any, type_url};
use culvert_xds::client::Failure;
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
    /// Not of what is only ever asked for by name.
    fixed: Option<List>,
    active: List,
    warming: Option<List>,
    /// Whether an entry of a dynamic resource has a field for its name.
    named: bool,
    /// Whether the field of the resource is a list, here of one.
    listed: bool,
}

/// A field of a dump and the type of its items.
#[derive(Clone, Copy)]
struct List {
    field: &'static str,
    item: &'static str,
}

const fn list(field: &'static str, item: &'static str) -> List {
    List { field, item }
}

const SECTIONS: [Section; 7] = [
    Section {
        dump: "ClustersConfigDump",
        type_url: type_url::CLUSTER,
        field: "cluster",
        fixed: Some(list("static_clusters", "StaticCluster")),
        active: list("dynamic_active_clusters", "DynamicCluster"),
        warming: Some(list("dynamic_warming_clusters", "DynamicCluster")),
        named: false,
        listed: false,
    },
    Section {
        dump: "ListenersConfigDump",
        type_url: type_url::LISTENER,
        field: "listener",
        fixed: Some(list("static_listeners", "StaticListener")),
        active: list("dynamic_listeners", "DynamicListener"),
        warming: None,
        named: true,
        listed: false,
    },
    Section {
        dump: "RoutesConfigDump",
        type_url: type_url::ROUTE_CONFIGURATION,
        field: "route_config",
        fixed: Some(list("static_route_configs", "StaticRouteConfig")),
        active: list("dynamic_route_configs", "DynamicRouteConfig"),
        warming: None,
        named: false,
        listed: false,
    },
    // Envoy has an entry for each connection manager and shows the version of its last response; here scopes are in force, refused
    // and waiting one by one.
    Section {
        dump: "ScopedRoutesConfigDump",
        type_url: type_url::SCOPED_ROUTE_CONFIGURATION,
        field: "scoped_route_configs",
        fixed: Some(list("inline_scoped_route_configs", "InlineScopedRouteConfigs")),
        active: list("dynamic_scoped_route_configs", "DynamicScopedRouteConfigs"),
        warming: None,
        named: true,
        listed: true,
    },
    Section {
        dump: "SecretsConfigDump",
        type_url: type_url::SECRET,
        field: "secret",
        fixed: Some(list("static_secrets", "StaticSecret")),
        active: list("dynamic_active_secrets", "DynamicSecret"),
        warming: Some(list("dynamic_warming_secrets", "DynamicSecret")),
        named: true,
        listed: false,
    },
    Section {
        dump: "EndpointsConfigDump",
        type_url: type_url::CLUSTER_LOAD_ASSIGNMENT,
        field: "endpoint_config",
        fixed: Some(list("static_endpoint_configs", "StaticEndpointConfig")),
        active: list("dynamic_endpoint_configs", "DynamicEndpointConfig"),
        warming: None,
        named: false,
        listed: false,
    },
    Section {
        dump: "EcdsConfigDump",
        type_url: type_url::EXTENSION_CONFIG,
        field: "ecds_filter",
        fixed: None,
        active: list("ecds_filters", "EcdsFilterConfig"),
        warming: None,
        named: false,
        listed: false,
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
            "bootstrap": to_json(&*self.bootstrap, Secrets::Redact),
            "last_updated": timestamp(self.began),
        })];
        for section in &SECTIONS {
            if section.type_url != type_url::CLUSTER_LOAD_ASSIGNMENT || query.get("include_eds").is_some() {
                configs.push(self.section(section, &shown));
            }
        }
        let Some(resource) = query.get("resource") else { return Page::json(&json!({ "configs": configs })) };
        let lists = SECTIONS.iter().flat_map(|section| {
            let lists = [section.active].into_iter().chain(section.fixed).chain(section.warming);
            lists.map(|list| (list.field, format!("{TYPES}{}.{}", section.dump, list.item)))
        });
        let item_type = lists.into_iter().find(|(field, _)| *field == resource).map(|(_, item)| item);
        let entries = configs.iter_mut().find_map(|config| config.get_mut(&resource).map(Value::take));
        match (entries, item_type) {
            (Some(Value::Array(mut entries)), Some(item_type)) => {
                entries.iter_mut().for_each(|entry| entry["@type"] = item_type.as_str().into());
                Page::json(&json!({ "configs": entries }))
            }
            _ => Page::text(StatusCode::NOT_FOUND, format!("nothing is called {resource} in the dump\n")),
        }
    }

    fn section(&self, section: &Section, shown: &dyn Fn(&str) -> bool) -> Value {
        let mut dump = Map::new();
        dump.insert("@type".to_owned(), format!("{TYPES}{}", section.dump).into());
        let since = timestamp(self.began);
        let fixed = self.fixed(section.type_url).into_iter().filter(|(name, _)| shown(name));
        let fixed: Vec<Value> = fixed
            .map(|(_, any)| json!({ section.field: any_to_json(&any, Secrets::Redact), "last_updated": since }))
            .collect();
        if let Some(list) = section.fixed {
            dump.insert(list.field.to_owned(), fixed.into());
        }
        let (mut active, mut warming) = (Vec::new(), Vec::new());
        for (name, entry) in self.inventory.entries(section.type_url).into_iter().filter(|(name, _)| shown(name)) {
            if section.type_url == type_url::LISTENER {
                active.push(listener(&name, &entry));
                continue;
            }
            active.extend(active_state(section, &name, &entry));
            warming.extend(entry.warming.as_deref().map(|(given, _)| state(section, &name, given, "REQUESTED", None)));
        }
        dump.insert(section.active.field.to_owned(), active.into());
        if let Some(list) = section.warming {
            dump.insert(list.field.to_owned(), warming.into());
        }
        dump.into()
    }

    /// `/xds`: `envoy.service.status.v3.ClientConfig`, every type alike.
    pub(super) fn client_config(&self, contents: bool) -> Value {
        let mut resources = Vec::new();
        for type_url in TYPE_URLS {
            let since = timestamp(self.began);
            resources.extend(self.fixed(type_url).into_iter().map(|(name, any)| {
                json!({
                    "type_url": type_url,
                    "name": name,
                    "xds_config": any_to_json(&any, Secrets::Redact),
                    "last_updated": since,
                    "is_static_resource": true,
                })
            }));
            let entries = self.inventory.entries(type_url).into_iter();
            resources.extend(entries.flat_map(|(name, entry)| generic(type_url, &name, &entry)));
        }
        if !contents {
            for resource in &mut resources {
                resource["xds_config"] = Value::Null;
                if let Some(error) = resource.get_mut("error_state") {
                    error["failed_configuration"] = Value::Null;
                }
            }
        }
        let node = self.bootstrap.node.as_ref().map(|node| to_json(node, Secrets::Redact));
        json!({ "node": node, "generic_xds_configs": resources })
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
            // Static routes, scopes and assignments stand inside their listeners and clusters.
            _ => Vec::new(),
        }
    }
}

/// What is in force, or what was refused where nothing is.
fn active_state(section: &Section, name: &str, entry: &Entry) -> Option<Value> {
    let error = entry.refused.as_deref().map(|(given, reason)| error_state(given, reason));
    match (&entry.active, entry.refused.as_deref()) {
        (Some(given), _) => {
            Some(state(section, name, given, if error.is_some() { "NACKED" } else { "ACKED" }, error.as_ref()))
        }
        (None, Some((given, _))) => Some(state(section, name, given, "NACKED", error.as_ref())),
        (None, None) => None,
    }
}

fn state(section: &Section, name: &str, given: &Given, status: &str, error: Option<&Value>) -> Value {
    let resource = any_to_json(&given.resource, Secrets::Redact);
    let mut entry = json!({
        "version_info": &*given.version,
        section.field: if section.listed { json!([resource]) } else { resource },
        "last_updated": timestamp(given.at),
        "client_status": status,
    });
    if section.named {
        entry["name"] = name.into();
    }
    if let Some(error) = error {
        entry["error_state"] = error.clone();
    }
    entry
}

/// `ClientConfig.GenericXdsConfig`: one of what is in force or was refused, and one of what was accepted and waits.
fn generic(type_url: &str, name: &str, entry: &Entry) -> Vec<Value> {
    let warming = entry.warming.as_deref().map(|(given, on)| {
        let mut config = json!({ "type_url": type_url, "name": name, "client_status": "REQUESTED" });
        show_given(&mut config, given);
        config["error_state"] = json!({ "details": format!("accepted; it waits for {}", on.join(", ")) });
        config
    });
    let says_more = entry.active.is_some() || entry.refused.is_some() || entry.failed.is_some() || warming.is_none();
    says_more.then(|| settled(type_url, name, entry)).into_iter().chain(warming).collect()
}

fn show_given(config: &mut Value, given: &Given) {
    config["version_info"] = (*given.version).into();
    config["xds_config"] = any_to_json(&given.resource, Secrets::Redact);
    config["last_updated"] = timestamp(given.at).into();
}

fn settled(type_url: &str, name: &str, entry: &Entry) -> Value {
    let status = match (&entry.refused, &entry.failed, &entry.active) {
        (Some(_), _, _) => "NACKED",
        (None, Some((Failure::NOT_FOUND, _)), _) => "DOES_NOT_EXIST",
        (None, Some(_), _) => "RECEIVED_ERROR",
        (None, None, Some(_)) => "ACKED",
        (None, None, None) => "REQUESTED",
    };
    let mut config = json!({ "type_url": type_url, "name": name, "client_status": status });
    if let Some(given) = &entry.active {
        show_given(&mut config, given);
    }
    if let Some((given, reason)) = entry.refused.as_deref() {
        config["error_state"] = error_state(given, reason);
    } else if let Some((code, message)) = &entry.failed {
        config["error_state"] = json!({ "details": format!("the control plane says: {message} (code {code})") });
    }
    config
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
    let status = match (&entry.refused, &entry.active) {
        (Some(_), _) => "NACKED",
        (None, Some(_)) => "ACKED",
        (None, None) => "REQUESTED",
    };
    let mut listener = json!({ "name": name, "client_status": status });
    if let Some(active) = &entry.active {
        listener["active_state"] = given(active);
    }
    if let Some((warming, _)) = entry.warming.as_deref() {
        listener["warming_state"] = given(warming);
    }
    if let Some((refused, reason)) = entry.refused.as_deref() {
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

const TYPES: &str = "type.googleapis.com/envoy.admin.v3.";

/// What may come over xDS, in push order.
const TYPE_URLS: [&str; 11] = [
    type_url::SECRET,
    type_url::CLUSTER,
    type_url::CLUSTER_LOAD_ASSIGNMENT,
    type_url::ROUTE_CONFIGURATION,
    type_url::LISTENER,
    type_url::TUNNEL_AGENT,
    type_url::TUNNEL_POLICY,
    type_url::EXTENSION_CONFIG,
    type_url::RUNTIME,
    type_url::SCOPED_ROUTE_CONFIGURATION,
    type_url::VIRTUAL_HOST,
];
