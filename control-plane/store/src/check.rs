//! A directory from its bytes to a [`Directory`], or to everything that is wrong with it.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use culvert_api::type_url;
use culvert_model::cluster::Discovery;
use culvert_model::resource::{Resource as ParsedResource, parse_any};
use culvert_xds::resource::TypeUrl;
use culvert_xds::{Name, Resource, Version};

use crate::directory::{Directory, Placed};
use crate::file::{self, Content, Draft, Nodes};
use crate::read::Text;
use crate::report::Finding;
use crate::selector::Selector;
use crate::{read, references};

mod grpc;

/// Errors, and warnings, that are listed: what has more is broken in one way many times.
const MAX_FINDINGS: usize = 1000;

/// How strict to be.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// A reference to nothing is an error.
    pub strict: bool,
    /// The server speaks TLS, or listens on loopback only: secrets may be served.
    pub may_serve_secrets: bool,
}

/// What came of reading a directory.
#[derive(Debug)]
pub struct Load {
    /// The new content, if nothing is wrong with it.
    pub directory: Option<Arc<Directory>>,
    /// In order of file and position. Not empty: there is no new content.
    pub errors: Vec<Finding>,
    pub warnings: Vec<Finding>,
    pub files: usize,
}

/// Reads a directory. Resources that `before` holds unchanged are shared with it.
///
/// Takes as long as reading, parsing and checking takes: not to be called on a thread that serves.
#[must_use]
pub fn load(root: &Path, options: Options, before: &Directory) -> Load {
    match read::read(root) {
        Ok(texts) => check(&texts, root, options, before),
        Err(errors) => refused(errors),
    }
}

/// As [`load`], but of files that somebody gives: paths relative to the directory, with their bytes.
#[must_use]
pub fn load_files(files: Vec<(PathBuf, Vec<u8>)>, options: Options, before: &Directory) -> Load {
    match read::given(files) {
        Ok(texts) => check(&texts, Path::new("."), options, before),
        Err(errors) => refused(errors),
    }
}

fn refused(errors: Vec<Finding>) -> Load {
    Load { directory: None, errors, warnings: Vec::new(), files: 0 }
}

fn check(texts: &[Text], root: &Path, options: Options, before: &Directory) -> Load {
    let mut checker = Checker { options, errors: Vec::new(), warnings: Vec::new() };
    let mut content = Content::default();
    for text in texts {
        file::parse(text, &mut content, &mut checker.errors);
    }
    checker.check(&content.drafts);
    if texts.is_empty() {
        checker
            .warnings
            .push(Finding::whole(&root.into(), "holds no .yaml, .yml or .json file: every node gets nothing"));
    }
    let (mut errors, mut warnings) = (checker.errors, checker.warnings);
    for findings in [&mut errors, &mut warnings] {
        findings.sort_by(|a, b| (&a.file, a.at, &a.path, &a.reason).cmp(&(&b.file, b.at, &b.path, &b.reason)));
        findings.dedup();
        let more = findings.len().saturating_sub(MAX_FINDINGS);
        if more > 0 {
            findings.truncate(MAX_FINDINGS);
            findings.push(Finding::whole(&root.into(), format!("and {more} more")));
        }
    }
    let directory = errors.is_empty().then(|| Arc::new(place(content, before)));
    Load { directory, errors, warnings, files: texts.len() }
}

struct Checker {
    options: Options,
    errors: Vec<Finding>,
    warnings: Vec<Finding>,
}

/// Where resources of one type and name are.
type ByName<'a> = HashMap<(&'a str, &'a str), Vec<&'a Draft>>;

impl Checker {
    fn check(&mut self, drafts: &[Draft]) {
        let mut by_name: ByName<'_> = HashMap::new();
        for draft in drafts {
            by_name.entry((&draft.type_url, &draft.name)).or_default().push(draft);
        }
        self.ties(&by_name);
        for draft in drafts {
            self.secret(draft);
            self.grpc(draft, &by_name);
            self.model(draft);
            self.references(draft, &by_name);
        }
    }

    /// Two files that give one node the same resource, where neither is more specific and no node is needed to see it.
    fn ties(&mut self, by_name: &ByName<'_>) {
        for same in by_name.values() {
            for (index, draft) in same.iter().enumerate() {
                let Some(first) = same.iter().take(index).find(|first| first.selector.ties(&draft.selector)) else {
                    continue;
                };
                let reason = format!(
                    "{} for {} stands in {}:{} as well; remove one or make one selector more specific",
                    draft.title(),
                    draft.selector,
                    first.file.display(),
                    first.tree.at
                );
                self.errors.push(draft.finding("", reason));
            }
        }
    }

    fn secret(&mut self, draft: &Draft) {
        if draft.type_url != type_url::SECRET {
            return;
        }
        if draft.selector.is_all() {
            let reason = format!("{} is for all nodes; a secret needs a selector that names its nodes", draft.title());
            self.errors.push(draft.finding("", reason));
        }
        if !self.options.may_serve_secrets {
            let reason = format!(
                "{} would be served in plaintext beyond this machine; use --tls-cert and --tls-key, or --listen on loopback",
                draft.title()
            );
            self.errors.push(draft.finding("", reason));
        }
    }

    /// What gRPC's clients and servers refuse: an error where the nodes are those, and said of what nobody else asks for.
    fn grpc(&mut self, draft: &Draft, by_name: &ByName<'_>) {
        let findings = match draft.nodes {
            Nodes::Grpc => &mut self.errors,
            Nodes::Any if grpc::is_for_grpc(draft) => &mut self.warnings,
            Nodes::Any | Nodes::CulvertProxies => return,
        };
        findings.extend(grpc::mistakes(draft).into_iter().map(|(path, reason)| draft.finding(&path, reason)));
        if !grpc::is_for_server(draft) {
            return;
        }
        for reference in references::of(draft) {
            let candidates = by_name.get(&(reference.type_url, reference.name.as_str()));
            let named =
                candidates.into_iter().flatten().filter(|found| found.type_url == type_url::ROUTE_CONFIGURATION);
            for routes in named.filter(|routes| routes.selector.may_overlap(&draft.selector)) {
                let mistakes = grpc::mistakes_of_served(routes).into_iter();
                findings.extend(mistakes.map(|(path, reason)| routes.finding(&path, reason)));
            }
        }
    }

    /// What culvert-proxy's own parser says.
    fn model(&mut self, draft: &Draft) {
        const TYPES: [&str; 7] = [
            type_url::LISTENER,
            type_url::ROUTE_CONFIGURATION,
            type_url::CLUSTER,
            type_url::CLUSTER_LOAD_ASSIGNMENT,
            type_url::SECRET,
            type_url::TUNNEL_AGENT,
            type_url::TUNNEL_POLICY,
        ];
        if !TYPES.contains(&draft.type_url.as_str()) || (draft.nodes == Nodes::Grpc && !is_our_own(draft)) {
            return;
        }
        let parsed = parse_any(&draft.type_url, &draft.value);
        for refusal in parsed.value.err().unwrap_or_default() {
            let reason = format!("culvert-proxy refuses this: {}", refusal.reason);
            self.for_culvert_proxy(draft, &refusal.path, reason);
        }
        for warning in parsed.warnings {
            let reason = format!("culvert-proxy does not honour this: {}", warning.reason);
            self.for_culvert_proxy(draft, &warning.path, reason);
        }
    }

    /// An error where the nodes are culvert-proxies; other nodes may know more.
    fn for_culvert_proxy(&mut self, draft: &Draft, path: &str, reason: String) {
        let severe = draft.nodes == Nodes::CulvertProxies || is_our_own(draft);
        let findings = if severe { &mut self.errors } else { &mut self.warnings };
        findings.push(draft.finding(path, reason));
    }

    fn references(&mut self, draft: &Draft, by_name: &ByName<'_>) {
        for reference in references::of(draft) {
            let candidates = by_name.get(&(reference.type_url, reference.name.as_str()));
            let mut found = candidates.into_iter().flatten();
            let reason = match found.find(|found| found.selector.may_overlap(&draft.selector)) {
                Some(found) if reference.is_registration && shares_agents(found) => format!(
                    "Cluster {:?} has agents that registered as another one, and none registers as it; name that one",
                    reference.name
                ),
                Some(_) => continue,
                None => {
                    let kind = type_url::short_name(reference.type_url);
                    let elsewhere = if candidates.is_some() { ", only for other nodes" } else { "" };
                    format!("there is no {kind} {:?} for {}{elsewhere}", reference.name, draft.selector)
                }
            };
            let findings = if self.options.strict { &mut self.errors } else { &mut self.warnings };
            findings.push(draft.finding(&reference.path, reason));
        }
    }
}

/// Whether it is of one of our own types, which are for nobody but culvert-proxy.
fn is_our_own(draft: &Draft) -> bool {
    [type_url::TUNNEL_AGENT, type_url::TUNNEL_POLICY].contains(&draft.type_url.as_str())
}

/// Whether the draft, of a cluster, is one whose agents register as others.
fn shares_agents(draft: &Draft) -> bool {
    let parsed = parse_any(&draft.type_url, &draft.value).value;
    matches!(parsed, Ok(ParsedResource::Cluster(cluster)) if matches!(cluster.discovery, Discovery::Tunnels(_)))
}

/// Packs the resources, sharing those that did not change.
fn place(content: Content, before: &Directory) -> Directory {
    let Content { drafts, grants, endpoint_files } = content;
    let known: HashMap<(&str, &str, Version), &Arc<Resource>> = before
        .resources()
        .map(|(resource, ..)| ((&**resource.type_url(), &**resource.name(), resource.version()), resource))
        .collect();
    let mut urls: BTreeMap<String, TypeUrl> = BTreeMap::new();
    let mut selectors: BTreeMap<Selector, usize> = BTreeMap::new();
    let mut placed = Vec::with_capacity(drafts.len());
    for draft in drafts {
        let next = selectors.len();
        let selector = *selectors.entry((*draft.selector).clone()).or_insert(next);
        let key = (draft.type_url.as_str(), &*draft.name, Version::of_all(&draft.value, &draft.extras));
        let resource = known.get(&key).map_or_else(
            || {
                let url = urls.entry(draft.type_url.clone()).or_insert_with(|| draft.type_url.as_str().into());
                Arc::new(Resource::with(url, Name::clone(&draft.name), &draft.value, draft.extras.clone()))
            },
            |known| Arc::clone(known),
        );
        let origin = format!("{}:{}", draft.file.display(), draft.tree.at);
        placed.push(Placed { resource, selector, origin });
    }
    let mut ordered: Vec<(usize, Selector)> =
        selectors.into_iter().map(|(selector, index)| (index, selector)).collect();
    ordered.sort_by_key(|(index, _)| *index);
    Directory::new(ordered.into_iter().map(|(_, selector)| selector).collect(), placed, grants, endpoint_files)
}

#[cfg(test)]
mod tests;
