//! What stands in a file: resources, and which nodes they are for.
//!
//! Each document of a file is a resource (a mapping with `@type`), a list of resources, or a mapping with `resources` (one or
//! a list) and, all optional, `selector` (which nodes; default: all) and `node`, what they are: `culvert-proxy` (what those do not
//! honour is an error) or `grpc` (what gRPC's clients and servers refuse is one).

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use culvert_api::document::node::{Entry, Value};
use culvert_api::document::{self, Limits, Node, Position};
use culvert_api::envoy::service::discovery::v3::Resource as Wrapper;
use culvert_api::{Any, pool, type_url};
use culvert_xds::resource::Extras;
use culvert_xds::{Name, xdstp};

use crate::access::Grant;
use crate::read::Text;
use crate::report::Finding;
use crate::selector::Selector;

/// Longest name of a resource in bytes: what clients and logs can bear.
const MAX_NAME: usize = 4096;

/// A client hears of a resource three times in its TTL.
const SHORTEST_TTL: std::time::Duration = std::time::Duration::from_secs(1);

/// A resource as it stands in a file.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) file: Arc<Path>,
    pub(crate) tree: Node,
    pub(crate) selector: Arc<Selector>,
    pub(crate) nodes: Nodes,
    pub(crate) type_url: String,
    pub(crate) name: Name,
    pub(crate) value: Bytes,
    pub(crate) extras: Extras,
}

/// What the nodes are that a file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Nodes {
    #[default]
    Any,
    CulvertProxies,
    /// Clients and servers of gRPC without a proxy.
    Grpc,
}

impl Draft {
    /// `Cluster "edge"`, for messages.
    pub(crate) fn title(&self) -> String {
        format!("{} {:?}", type_url::short_name(&self.type_url), self.name)
    }

    /// A finding about one of its fields.
    pub(crate) fn finding(&self, path: &str, reason: impl Into<String>) -> Finding {
        Finding {
            file: Arc::clone(&self.file),
            at: Some(self.tree.locate(path)),
            path: path.to_owned(),
            reason: reason.into(),
        }
    }
}

/// What stands in a directory.
#[derive(Debug, Default)]
pub(crate) struct Content {
    pub(crate) drafts: Vec<Draft>,
    pub(crate) grants: Vec<Grant>,
    /// Files that hold nothing else.
    pub(crate) endpoint_files: BTreeSet<Arc<Path>>,
}

/// Adds what stands in a file to `content`; mistakes go to `findings`.
pub(crate) fn parse(text: &Text, content: &mut Content, findings: &mut Vec<Finding>) {
    let (drafts, grants) = (content.drafts.len(), content.grants.len());
    let mut file = File { path: &text.path, findings, content };
    match document::parse(&text.bytes, text.syntax, &Limits::default()) {
        Ok(documents) => documents.into_iter().for_each(|document| file.document(document)),
        Err(problems) => file.findings.extend(problems.into_iter().map(|problem| Finding::of(&text.path, problem))),
    }
    let mut here = content.drafts.iter().skip(drafts).peekable();
    let holds_some = here.peek().is_some() && grants == content.grants.len();
    if holds_some && here.all(|draft| draft.type_url == type_url::CLUSTER_LOAD_ASSIGNMENT) {
        content.endpoint_files.insert(Arc::clone(&text.path));
    }
}

struct File<'a> {
    path: &'a Arc<Path>,
    findings: &'a mut Vec<Finding>,
    content: &'a mut Content,
}

/// What a file says about all of its resources.
#[derive(Default)]
struct Scope {
    selector: Arc<Selector>,
    nodes: Nodes,
}

impl File<'_> {
    fn document(&mut self, document: Node) {
        if document.get("@type").is_some() {
            self.resource(document, &Scope::default());
        } else if let Value::Sequence(items) = document.value {
            items.into_iter().for_each(|item| self.resource(item, &Scope::default()));
        } else if let Some(rules) = document.get("access") {
            self.access(rules);
            if document.entries().len() > 1 {
                self.report(document.at, "\"access\" stands in a document of its own");
            }
        } else if let Value::Mapping(entries) = document.value {
            self.scoped(document.at, entries);
        } else {
            let reason = "expected a resource with \"@type\", a list of them, or a mapping with \"resources\"";
            self.report(document.at, reason);
        }
    }

    /// `access: [{selector: .., types: .., secrets: ..}, ..]`.
    fn access(&mut self, rules: &Node) {
        let Value::Sequence(rules) = &rules.value else {
            return self.report(rules.at, "expected a list of rules with selector, types and secrets");
        };
        for rule in rules {
            match Grant::parse(rule) {
                Ok(grant) => self.content.grants.push(grant),
                Err(problems) => problems.into_iter().for_each(|(at, reason)| self.report(at, reason)),
            }
        }
    }

    /// `{selector: .., node: .., resources: ..}`.
    fn scoped(&mut self, at: Position, entries: Vec<Entry>) {
        let mut scope = Scope::default();
        let mut resources = None;
        for Entry { key, at, node } in entries {
            match (key.as_str(), &node.value) {
                ("resources", _) => resources = Some(node),
                ("selector", _) => match Selector::parse(&node) {
                    Ok(selector) => scope.selector = Arc::new(selector),
                    Err(problems) => problems.into_iter().for_each(|(at, reason)| self.report(at, reason)),
                },
                ("node", Value::String(kind)) if kind == "culvert-proxy" => scope.nodes = Nodes::CulvertProxies,
                ("node", Value::String(kind)) if kind == "grpc" => scope.nodes = Nodes::Grpc,
                ("node", _) => {
                    self.report(node.at, "expected culvert-proxy or grpc; leave it out for nodes of any kind")
                }
                _ => {
                    let reason = format!(
                        "unknown key {key:?}: a resource begins with \"@type\", and what holds resources has selector, node and resources"
                    );
                    self.report(at, reason);
                }
            }
        }
        match resources.map(|node| (node.at, node)) {
            Some((_, Node { value: Value::Sequence(items), .. })) => {
                items.into_iter().for_each(|item| self.resource(item, &scope));
            }
            Some((_, one @ Node { value: Value::Mapping(_), .. })) => self.resource(one, &scope),
            Some((at, _)) => self.report(at, "expected a resource or a list of resources"),
            None => self.report(at, "\"resources\" is missing"),
        }
    }

    fn resource(&mut self, tree: Node, scope: &Scope) {
        let any = match document::load_any(&tree) {
            Ok(any) => any,
            Err(problems) => {
                return self.findings.extend(problems.into_iter().map(|problem| Finding::of(self.path, problem)));
            }
        };
        let Named { any, name, extras } = match named(any) {
            Ok(named) => named,
            Err(reason) => return self.report(tree.at, reason),
        };
        self.content.drafts.push(Draft {
            file: Arc::clone(self.path),
            tree,
            selector: Arc::clone(&scope.selector),
            nodes: scope.nodes,
            type_url: any.type_url,
            name: name.into(),
            value: any.value,
            extras,
        });
    }

    fn report(&mut self, at: Position, reason: impl Into<String>) {
        self.findings.push(Finding::at(self.path, at, reason));
    }
}

/// A resource, its name and what is said beside it.
struct Named {
    any: Any,
    name: String,
    extras: Extras,
}

/// One whose type has no name of its own, or that has aliases or a TTL, stands in a `discovery.v3.Resource`.
fn named(any: Any) -> Result<Named, String> {
    let (any, name, extras) = if any.type_url == type_url::RESOURCE {
        let wrapper: Wrapper = any.unpack().map_err(|error| error.to_string())?;
        let extras = extras(&wrapper)?;
        let inner = wrapper.resource.ok_or("the field \"resource\" is missing")?;
        (inner, wrapper.name, extras)
    } else {
        let name = pool::resource_name(&any.type_url, &any.value).ok_or_else(|| {
            format!(
                "a {} has no name; put it into \"resource\" of a {} with a \"name\"",
                type_url::message_name(&any.type_url),
                type_url::message_name(type_url::RESOURCE),
            )
        })?;
        (any, name, Extras::default())
    };
    // xDS TP1: equal names are equal as text.
    let name = xdstp::canonical(&name).into_owned();
    if xdstp::is_glob(&name) {
        return Err(format!("the name {name:?} stands for a whole collection; a resource has one of its own"));
    }
    if name.is_empty() {
        return Err("the resource has no name".to_owned());
    }
    if name.len() > MAX_NAME {
        return Err(format!("the resource's name has {} bytes; at most {MAX_NAME} are allowed", name.len()));
    }
    // Clients compare type URLs as text.
    let url = type_url::of_name(type_url::message_name(&any.type_url));
    let known = pool::message(&url).is_some();
    Ok(Named { any: Any { type_url: if known { url } else { any.type_url }, value: any.value }, name, extras })
}

/// Aliases and TTL of a wrapper. The rest of what it may say is the server's to say.
fn extras(wrapper: &Wrapper) -> Result<Extras, String> {
    let Wrapper { version, cache_control, metadata, resource_name, .. } = wrapper;
    let ours = [
        ("version", !version.is_empty()),
        ("cache_control", cache_control.is_some()),
        ("metadata", metadata.is_some()),
        ("resource_name", resource_name.is_some()),
    ];
    if let Some((field, _)) = ours.into_iter().find(|(_, set)| *set) {
        return Err(format!("the field \"{field}\" is not honoured; leave it out"));
    }
    let ttl = wrapper.ttl.map(std::time::Duration::try_from).transpose();
    let ttl = ttl.map_err(|_| "the field \"ttl\" is negative".to_owned())?;
    if ttl.is_some_and(|ttl| ttl < SHORTEST_TTL) {
        return Err(format!("the field \"ttl\" is shorter than {SHORTEST_TTL:?}: too short to be kept alive in time"));
    }
    if let Some(long) = wrapper.aliases.iter().find(|alias| alias.is_empty() || alias.len() > MAX_NAME) {
        return Err(format!("an alias has {} bytes; at least 1 and at most {MAX_NAME} are allowed", long.len()));
    }
    Ok(Extras { aliases: wrapper.aliases.iter().map(|alias| Name::from(alias.as_str())).collect(), ttl })
}
