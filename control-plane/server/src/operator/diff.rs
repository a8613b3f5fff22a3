//! What nodes have, beside what they should have.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use culvert_api::culvert::control::v1 as api;
use culvert_api::culvert::control::v1::resource_diff::Change;
use culvert_store::Catalog;
use culvert_xds::resource::TypeUrl;
use culvert_xds::server::ResourceState;
use culvert_xds::{Name, Resource, Snapshot};
use tonic::Status;

use super::view::{Filter, content};
use crate::control::Control;
use crate::nodes::{NodeKey, NodeSession, NodeStatus};

/// Nodes that one request may name.
const MAX_NODES: usize = 10_000;

/// A node to compare: one that is known, or one that somebody describes.
#[derive(Debug)]
pub(super) enum Compared {
    Known(Arc<NodeSession>),
    Polling(NodeKey),
    Described(api::NodeSelector),
}

fn is_by_id_alone(node: &api::NodeSelector) -> bool {
    node.cluster.is_empty() && node.metadata.is_none() && node.identities.is_empty()
}

/// A node that is named by id alone, and has, or had lately, a stream, or polls.
pub(super) fn status(control: &Control, node: &api::NodeSelector) -> Option<NodeStatus> {
    let polls = || control.polling.status_of(|key| is_by_id_alone(node) && key.id == node.id).pop();
    known(control, node).map(|session| session.status()).or_else(polls)
}

/// The session of a node that is named by id alone; of several the latest that is connected.
fn known(control: &Control, node: &api::NodeSelector) -> Option<Arc<NodeSession>> {
    if !is_by_id_alone(node) {
        return None;
    }
    let mut same: Vec<_> = control.nodes.all().into_iter().filter(|session| session.id() == node.id).collect();
    same.sort_by_key(|session| session.is_connected());
    same.pop()
}

/// The nodes that are meant; without any: every connected one.
pub(super) fn nodes(control: &Control, named: &[api::NodeSelector]) -> Result<Vec<Compared>, Status> {
    if named.len() > MAX_NODES {
        return Err(Status::invalid_argument(format!("{} nodes; at most {MAX_NODES}", named.len())));
    }
    let polling = control.polling.keys();
    if named.is_empty() {
        let connected = control.nodes.all().into_iter().filter(|session| session.is_connected());
        let polling = polling.into_iter().filter_map(|(key, connected)| connected.then_some(Compared::Polling(key)));
        return Ok(connected.map(Compared::Known).chain(polling).collect());
    }
    let polling: HashMap<&str, &NodeKey> = polling.iter().map(|(key, _)| (key.id.as_str(), key)).collect();
    let compared = named.iter().map(|node| {
        // What is described wrongly is said at once, not in the middle of a stream.
        super::identity(node)?;
        let polls = || polling.get(node.id.as_str()).filter(|_| is_by_id_alone(node));
        Ok(match known(control, node) {
            Some(session) => Compared::Known(session),
            None => {
                polls().map_or_else(|| Compared::Described(node.clone()), |key| Compared::Polling(NodeKey::clone(key)))
            }
        })
    });
    compared.collect()
}

/// Compares nodes with what is in force, or with a candidate.
pub(super) struct Diff {
    pub(super) control: Arc<Control>,
    pub(super) catalog: Option<Catalog>,
    pub(super) filter: Filter,
    pub(super) without_contents: bool,
}

type Resources = BTreeMap<(TypeUrl, Name), Arc<Resource>>;

impl Diff {
    pub(super) fn of(&mut self, node: &Compared) -> api::NodeDiff {
        match node {
            Compared::Known(session) => self.of_node(&session.status(), session.held()),
            Compared::Polling(key) => match self.control.polling.status_of(|one| one == key).pop() {
                Some(status) => self.of_node(&status, self.control.polling.held(key)),
                // It was forgotten in the meantime.
                None => api::NodeDiff { node_id: key.id.clone(), ..api::NodeDiff::default() },
            },
            Compared::Described(node) => {
                // It was looked at when the request came.
                let identity = super::identity(node).unwrap_or_default();
                let nothing = Snapshot::default();
                let wanted = match &mut self.catalog {
                    Some(catalog) => catalog.place(&identity, &nothing),
                    None => self.control.place(&identity, &nothing),
                };
                api::NodeDiff {
                    node_id: node.id.clone(),
                    node_cluster: node.cluster.clone(),
                    connected: false,
                    resources: self.resources(&Resources::new(), &wanted.snapshot, None),
                }
            }
        }
    }

    fn of_node(&mut self, status: &NodeStatus, held: Vec<Arc<Resource>>) -> api::NodeDiff {
        let wanted = match &mut self.catalog {
            Some(catalog) => Arc::clone(&catalog.place(&status.identity, &status.snapshot).snapshot),
            None => Arc::clone(&self.control.place(&status.identity, &status.snapshot).snapshot),
        };
        api::NodeDiff {
            node_id: status.key.id.clone(),
            node_cluster: status.identity.cluster.clone(),
            connected: status.connected,
            resources: self.resources(&by_name(held), &wanted, Some(status)),
        }
    }

    fn resources(&self, held: &Resources, wanted: &Snapshot, node: Option<&NodeStatus>) -> Vec<api::ResourceDiff> {
        let get = |(of, name): &(TypeUrl, Name)| wanted.of_type(of).and_then(|set| set.get(name));
        let listed = wanted.types().flat_map(|(_, set)| set.resources());
        let listed = listed.map(|resource| (Arc::clone(resource.type_url()), Arc::clone(resource.name())));
        let keys: std::collections::BTreeSet<(TypeUrl, Name)> = listed.chain(held.keys().cloned()).collect();
        let mut differing = Vec::new();
        for key in keys {
            let (has, wants) = (held.get(&key), get(&key));
            if has.map(|has| has.version()) == wants.map(|wants| wants.version())
                || !has.or(wants).is_some_and(|resource| self.filter.covers(resource))
                || (has.is_none() && node.is_some_and(|node| never_asked(node, &key, wants)))
            {
                continue;
            }
            differing.push(self.entry(&key, has, wants, node));
        }
        differing
    }

    fn entry(
        &self,
        (type_url, name): &(TypeUrl, Name),
        has: Option<&Arc<Resource>>,
        wanted: Option<&Arc<Resource>>,
        node: Option<&NodeStatus>,
    ) -> api::ResourceDiff {
        let change = match (has, wanted) {
            (None, _) => Change::Added,
            (Some(_), Some(_)) => Change::Changed,
            (Some(_), None) => Change::Removed,
        };
        let version =
            |resource: Option<&Arc<Resource>>| resource.map(|one| one.version().to_string()).unwrap_or_default();
        let shown = |resource: Option<&Arc<Resource>>| content(resource?, self.without_contents);
        let refusal = node.and_then(|node| {
            let of_type = node.types.iter().filter(|of_type| of_type.type_url == *type_url);
            let mut same = of_type.flat_map(|of_type| &of_type.resources).filter(|one| one.name == *name);
            same.find(|one| one.version == wanted.map(|wanted| wanted.version()))?.error.clone()
        });
        api::ResourceDiff {
            type_url: type_url.to_string(),
            name: name.to_string(),
            change: change.into(),
            has_version: version(has),
            wanted_version: version(wanted),
            has: shown(has),
            wanted: shown(wanted),
            refusal: refusal.map(|refusal| refusal.to_string()).unwrap_or_default(),
        }
    }
}

/// Whether the node could have had it and did not ask.
fn never_asked(node: &NodeStatus, (type_url, name): &(TypeUrl, Name), wanted: Option<&Arc<Resource>>) -> bool {
    let of_type = node.types.iter().filter(|of_type| of_type.type_url == *type_url);
    let mut same = of_type.flat_map(|of_type| &of_type.resources).filter(|one| one.name == *name).peekable();
    same.peek().is_some()
        && same.all(|one| one.state == ResourceState::NotSent && one.version == wanted.map(|wanted| wanted.version()))
}

fn by_name(resources: Vec<Arc<Resource>>) -> Resources {
    let entry = |one: Arc<Resource>| ((Arc::clone(one.type_url()), Arc::clone(one.name())), one);
    resources.into_iter().map(entry).collect()
}
