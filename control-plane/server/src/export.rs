//! What one node would be sent, as files that `path_config_source` reads: a proxy boots from them without a control plane.

use std::path::Path;

use anyhow::Context;
use culvert_api::json::{Secrets, any_to_json};
use culvert_api::type_url;
use culvert_xds::{NodeIdentity, Resource, Snapshot};
use serde_json::{Map, Value, json};

/// A node's content as files.
#[derive(Debug)]
pub(crate) struct Export {
    /// Paths relative to the folder, with their texts; what is referred to stands before what refers to it.
    pub(crate) files: Vec<(String, String)>,
    /// Of the whole.
    pub(crate) version: String,
    /// What could not be expressed.
    pub(crate) warnings: Vec<String>,
}

/// Types of which each resource has a file of its own: who refers to one reads no other.
const NAMED: [(&str, &str); 3] = [
    (type_url::SECRET, "secrets"),
    (type_url::CLUSTER_LOAD_ASSIGNMENT, "endpoints"),
    (type_url::ROUTE_CONFIGURATION, "routes"),
];
const CLUSTERS: &str = "clusters.json";
const LISTENERS: &str = "listeners.json";

impl Export {
    /// `folder` is where the files will lie, as the proxy sees it. Without secrets what refers to one stays as it is.
    pub(crate) fn new(node: &NodeIdentity, snapshot: &Snapshot, folder: &str, with_secrets: bool) -> Self {
        let folder = folder.trim_end_matches('/');
        let mut writer = Writer { folder, with_secrets, files: Vec::new(), warnings: Vec::new() };
        let clusters = writer.all(snapshot, type_url::CLUSTER);
        let listeners = writer.all(snapshot, type_url::LISTENER);
        for (of, directory) in NAMED {
            let resources = snapshot.of_type(of).filter(|_| of != type_url::SECRET || with_secrets);
            for resource in resources.into_iter().flat_map(|set| set.resources()) {
                writer.response(&file_of(directory, resource.name()), of, &[writer.show(resource)]);
            }
        }
        writer.response(CLUSTERS, type_url::CLUSTER, &clusters);
        writer.response(LISTENERS, type_url::LISTENER, &listeners);
        writer.others(snapshot);
        writer.bootstrap(node);
        let Writer { files, warnings, .. } = writer;
        Self { files, version: snapshot.version().to_string(), warnings }
    }

    /// Writes the files, each by a rename: a proxy that reads them sees whole ones.
    pub(crate) fn write(&self, folder: &Path) -> anyhow::Result<()> {
        use std::io::Write;
        use std::os::unix::fs::OpenOptionsExt;
        for (name, text) in &self.files {
            let path = folder.join(name);
            let parent = path.parent().unwrap_or(folder);
            std::fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
            let new = path.with_extension("json.new");
            let mode = if name.starts_with("secrets/") { 0o600 } else { 0o644 };
            let written = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&new);
            written
                .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
                .and_then(|()| std::fs::rename(&new, &path))
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }
}

struct Writer<'a> {
    folder: &'a str,
    with_secrets: bool,
    files: Vec<(String, String)>,
    warnings: Vec<String>,
}

impl Writer<'_> {
    /// All resources of a type, referring to files.
    fn all(&mut self, snapshot: &Snapshot, of: &str) -> Vec<Value> {
        let resources = snapshot.of_type(of).into_iter().flat_map(|set| set.resources().cloned());
        let resources: Vec<_> = resources.collect();
        let shown = resources.iter().map(|resource| {
            let mut json = self.show(resource);
            let title = format!("{} {:?}", type_url::short_name(of), resource.name());
            if let Value::Object(fields) = &mut json {
                self.assignment(snapshot, fields);
            }
            self.refer(&mut json, snapshot, &title);
            if !self.with_secrets && json.to_string().contains("\"[redacted]\"") {
                self.warnings.push(format!("{title} holds secrets of its own, which are left out"));
            }
            json
        });
        shown.collect()
    }

    /// With key material, which only files of secrets have unless it stands in the resource itself.
    fn show(&self, resource: &Resource) -> Value {
        any_to_json(&resource.any(), if self.with_secrets { Secrets::Show } else { Secrets::Redact })
    }

    /// A cluster of type EDS takes its service's name or its own.
    fn assignment(&mut self, snapshot: &Snapshot, cluster: &mut Map<String, Value>) {
        let own = cluster.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
        let Some(Value::Object(eds)) = cluster.get_mut("eds_cluster_config") else { return };
        let service = eds.get("service_name").and_then(Value::as_str).filter(|name| !name.is_empty());
        let name = service.unwrap_or(&own).to_owned();
        let Some(source) = eds.get_mut("eds_config").filter(|source| is_ours(source)) else { return };
        let file = file_of("endpoints", &name);
        *source = self.source(&file);
        let set = snapshot.of_type(type_url::CLUSTER_LOAD_ASSIGNMENT);
        // The empty assignment of a cluster that has none is no listed resource.
        if let Some(stand_in) = set.filter(|set| set.get_listed(&name).is_none()).and_then(|set| set.get(&name)) {
            self.response(&file, type_url::CLUSTER_LOAD_ASSIGNMENT, &[self.show(stand_in)]);
        }
    }

    /// Has what refers to routes and secrets over xDS refer to their files, at any depth.
    fn refer(&mut self, json: &mut Value, snapshot: &Snapshot, title: &str) {
        match json {
            Value::Object(fields) => {
                for (source, name, of, directory) in [
                    ("config_source", "route_config_name", type_url::ROUTE_CONFIGURATION, "routes"),
                    ("sds_config", "name", type_url::SECRET, "secrets"),
                ] {
                    let name = fields.get(name).and_then(Value::as_str).map(str::to_owned);
                    let (Some(name), Some(source)) = (name, fields.get_mut(source)) else { continue };
                    let kept = of == type_url::SECRET && !self.with_secrets;
                    let exists = snapshot.of_type(of).is_some_and(|set| set.get_listed(&name).is_some());
                    if is_ours(source) && exists && !kept {
                        *source = self.source(&file_of(directory, &name));
                    }
                }
                if is_ours(&Value::Object(fields.clone())) && fields.keys().all(|key| SOURCE.contains(&key.as_str())) {
                    self.warnings.push(format!("{title} refers to a control plane still"));
                }
                fields.values_mut().for_each(|value| self.refer(value, snapshot, title));
            }
            Value::Array(items) => items.iter_mut().for_each(|item| self.refer(item, snapshot, title)),
            _ => {}
        }
    }

    fn source(&self, file: &str) -> Value {
        json!({ "path_config_source": { "path": format!("{}/{file}", self.folder) }, "resource_api_version": "V3" })
    }

    fn response(&mut self, file: &str, of: &str, resources: &[Value]) {
        let response = json!({ "type_url": of, "resources": resources });
        self.files.push((file.to_owned(), format!("{response:#}\n")));
    }

    /// What no file of a bootstrap leads to.
    fn others(&mut self, snapshot: &Snapshot) {
        let known = |of: &str| {
            matches!(of, type_url::CLUSTER | type_url::LISTENER) || NAMED.iter().any(|(named, _)| *named == of)
        };
        for (of, set) in snapshot.types().filter(|(of, set)| !known(of) && !set.is_empty()) {
            self.warnings.push(format!("{} resources of {of} have no file", set.len()));
        }
        let secrets = snapshot.of_type(type_url::SECRET).map_or(0, |set| set.len());
        if secrets > 0 && !self.with_secrets {
            self.warnings.push(format!("{secrets} secrets are left out"));
        }
    }

    fn bootstrap(&mut self, node: &NodeIdentity) {
        let bootstrap = json!({
            "node": described(node),
            "dynamic_resources": {
                "cds_config": self.source(CLUSTERS),
                "lds_config": self.source(LISTENERS),
            },
        });
        self.files.push(("bootstrap.json".to_owned(), format!("{bootstrap:#}\n")));
    }
}

/// A node as bootstraps have it.
pub(crate) fn described(node: &NodeIdentity) -> Value {
    let mut described = json!({ "id": node.id, "cluster": node.cluster });
    if let Some(metadata) = &node.metadata {
        described["metadata"] = culvert_api::json::to_json(
            &culvert_api::envoy::config::core::v3::Node { metadata: Some(metadata.clone()), ..Default::default() },
            Secrets::Show,
        )["metadata"]
            .take();
    }
    described
}

/// The fields of a `ConfigSource` that comes from a server.
const SOURCE: [&str; 5] = ["ads", "self", "api_config_source", "resource_api_version", "initial_fetch_timeout"];

/// Whether a `ConfigSource` is one of a control plane.
fn is_ours(source: &Value) -> bool {
    ["ads", "self", "api_config_source"].iter().any(|kind| source.get(kind).is_some())
}

/// A name that is a file's in any folder.
fn file_of(directory: &str, name: &str) -> String {
    // Most bytes of a file's name, less the extension.
    const LONGEST: usize = 240;
    let mut file = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => file.push(char::from(byte)),
            b'.' if !file.is_empty() => file.push('.'),
            _ => file.push_str(&format!("%{byte:02X}")),
        }
    }
    if file.len() > LONGEST {
        file = format!("%{}", culvert_xds::Version::of(name.as_bytes()));
    }
    format!("{directory}/{file}.json")
}

#[cfg(test)]
mod tests {
    use super::file_of;

    #[test]
    fn a_name_leads_out_of_no_folder() {
        for (name, expected) in [
            ("plain-1.a_b", "routes/plain-1.a_b.json"),
            ("../../etc/passwd", "routes/%2E.%2F..%2Fetc%2Fpasswd.json"),
            ("..", "routes/%2E..json"),
            ("", "routes/.json"),
            ("a%2E", "routes/a%252E.json"),
        ] {
            assert_eq!(file_of("routes", name), expected, "{name:?}");
        }
        let long = file_of("routes", &"x".repeat(4096));
        assert!(long.len() < 60, "{long}");
    }
}
