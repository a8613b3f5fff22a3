//! Which nodes a file is for.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use culvert_api::document::node::{Entry, Value};
use culvert_api::document::{self, Limits, Node, Position, Syntax};
use culvert_xds::NodeIdentity;
use prost_types::value::Kind;

/// Conditions of which all must hold; without any: every node.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Selector {
    /// One of these ids; empty: any.
    node_ids: BTreeSet<String>,
    /// One of these clusters; empty: any.
    clusters: BTreeSet<String>,
    /// A certificate with one of these names, as the client proved; empty: any, or none.
    identities: BTreeSet<String>,
    /// Each of these fields of the node's metadata, with this value.
    metadata: BTreeMap<String, Wanted>,
}

/// A value in a node's metadata.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Wanted {
    Text(String),
    Bool(bool),
    /// As its shortest decimal form.
    Number(String),
    Fields(BTreeMap<String, Self>),
}

/// How specific a selector is. More specific is greater: a node id, then an identity, then metadata, then a cluster, then
/// none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    node_id: bool,
    identity: bool,
    metadata: bool,
    cluster: bool,
}

impl Selector {
    /// Reads `{node_id: .., cluster: .., identity: .., metadata: {..}}`; all but metadata are a string or a list of strings.
    pub(crate) fn parse(node: &Node) -> Result<Self, Vec<(Position, String)>> {
        let mut selector = Self::default();
        let mut problems = Vec::new();
        if !matches!(&node.value, Value::Mapping(entries) if !entries.is_empty()) {
            return Err(vec![(node.at, "expected a mapping with node_id, cluster, identity or metadata".to_owned())]);
        }
        for Entry { key, at, node } in node.entries() {
            let result = match key.as_str() {
                "node_id" => texts(node).map(|ids| selector.node_ids = ids),
                "cluster" => texts(node).map(|clusters| selector.clusters = clusters),
                "identity" => texts(node).map(|names| selector.identities = names),
                "metadata" => fields(node).map(|metadata| selector.metadata = metadata),
                _ => {
                    Err((*at, format!("unknown condition {key:?}; there are node_id, cluster, identity and metadata")))
                }
            };
            problems.extend(result.err());
        }
        if problems.is_empty() { Ok(selector) } else { Err(problems) }
    }

    /// Reads the same from a text: YAML or JSON.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn from_text(text: &str) -> Result<Self, String> {
        let documents = document::parse(text.as_bytes(), Syntax::Yaml, &Limits::default());
        let documents = documents.map_err(|problems| said(problems.iter()))?;
        let [node] = documents.as_slice() else { return Err("expected one mapping".to_owned()) };
        Self::parse(node).map_err(|mistakes| said(mistakes.iter().map(|(at, reason)| format!("{at}: {reason}"))))
    }

    /// Whether it is for every node.
    #[must_use]
    pub fn is_all(&self) -> bool {
        *self == Self::default()
    }

    #[must_use]
    pub fn matches(&self, node: &NodeIdentity) -> bool {
        (self.node_ids.is_empty() || self.node_ids.contains(&node.id))
            && (self.clusters.is_empty() || self.clusters.contains(&node.cluster))
            && (self.identities.is_empty() || node.certificate_names.iter().any(|name| self.identities.contains(name)))
            && (self.metadata.is_empty()
                || node.metadata.as_ref().is_some_and(|metadata| holds(&self.metadata, &metadata.fields)))
    }

    pub(crate) fn rank(&self) -> Rank {
        Rank {
            node_id: !self.node_ids.is_empty(),
            identity: !self.identities.is_empty(),
            metadata: !self.metadata.is_empty(),
            cluster: !self.clusters.is_empty(),
        }
    }

    /// Whether a node could match both.
    pub(crate) fn may_overlap(&self, other: &Self) -> bool {
        meet(&self.node_ids, &other.node_ids)
            && meet(&self.clusters, &other.clusters)
            && meet(&self.identities, &other.identities)
            && !contradict(&self.metadata, &other.metadata)
    }

    /// Whether both are equally specific and every node that matches one's metadata matches the other's: a tie that needs
    /// no node to be seen.
    pub(crate) fn ties(&self, other: &Self) -> bool {
        self.rank() == other.rank()
            && meet(&self.node_ids, &other.node_ids)
            && meet(&self.clusters, &other.clusters)
            && meet(&self.identities, &other.identities)
            && (contains(&self.metadata, &other.metadata) || contains(&other.metadata, &self.metadata))
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_all() {
            return f.write_str("all nodes");
        }
        let list = |values: &BTreeSet<String>| values.iter().cloned().collect::<Vec<_>>().join(" or ");
        let mut parts = Vec::new();
        if !self.node_ids.is_empty() {
            parts.push(format!("node_id {}", list(&self.node_ids)));
        }
        if !self.clusters.is_empty() {
            parts.push(format!("cluster {}", list(&self.clusters)));
        }
        if !self.identities.is_empty() {
            parts.push(format!("identity {}", list(&self.identities)));
        }
        if !self.metadata.is_empty() {
            parts.push(format!("metadata {}", self.metadata.keys().cloned().collect::<Vec<_>>().join(", ")));
        }
        f.write_str(&parts.join(", "))
    }
}

fn said(mistakes: impl Iterator<Item = impl ToString>) -> String {
    mistakes.map(|mistake| mistake.to_string()).collect::<Vec<_>>().join("; ")
}

/// Whether two sets of alternatives have one in common; an empty set stands for any.
fn meet(a: &BTreeSet<String>, b: &BTreeSet<String>) -> bool {
    a.is_empty() || b.is_empty() || !a.is_disjoint(b)
}

fn contradict(a: &BTreeMap<String, Wanted>, b: &BTreeMap<String, Wanted>) -> bool {
    a.iter().any(|(key, wanted)| match (wanted, b.get(key)) {
        (_, None) => false,
        (Wanted::Fields(a), Some(Wanted::Fields(b))) => contradict(a, b),
        (a, Some(b)) => a != b,
    })
}

/// Whether all that `part` wants, `whole` wants too.
fn contains(whole: &BTreeMap<String, Wanted>, part: &BTreeMap<String, Wanted>) -> bool {
    part.iter().all(|(key, wanted)| match (wanted, whole.get(key)) {
        (Wanted::Fields(part), Some(Wanted::Fields(whole))) => contains(whole, part),
        (wanted, found) => found == Some(wanted),
    })
}

fn holds(wanted: &BTreeMap<String, Wanted>, found: &BTreeMap<String, prost_types::Value>) -> bool {
    wanted.iter().all(|(key, wanted)| match (wanted, found.get(key).and_then(|value| value.kind.as_ref())) {
        (Wanted::Text(wanted), Some(Kind::StringValue(found))) => wanted == found,
        (Wanted::Bool(wanted), Some(Kind::BoolValue(found))) => wanted == found,
        (Wanted::Number(wanted), Some(Kind::NumberValue(found))) => *wanted == found.to_string(),
        (Wanted::Fields(wanted), Some(Kind::StructValue(found))) => holds(wanted, &found.fields),
        _ => false,
    })
}

type Mistake = (Position, String);

fn texts(node: &Node) -> Result<BTreeSet<String>, Mistake> {
    let text = |node: &Node| match &node.value {
        Value::String(text) if !text.is_empty() => Ok(text.clone()),
        _ => Err((node.at, "expected a string that is not empty; put numbers in quotes".to_owned())),
    };
    match &node.value {
        Value::Sequence(items) if !items.is_empty() => items.iter().map(text).collect(),
        _ => text(node).map(|text| BTreeSet::from([text])),
    }
}

fn fields(node: &Node) -> Result<BTreeMap<String, Wanted>, Mistake> {
    if !matches!(&node.value, Value::Mapping(entries) if !entries.is_empty()) {
        return Err((node.at, "expected a mapping of metadata fields to values".to_owned()));
    }
    node.entries().iter().map(|entry| Ok((entry.key.clone(), wanted(&entry.node)?))).collect()
}

fn wanted(node: &Node) -> Result<Wanted, Mistake> {
    match &node.value {
        Value::String(text) => Ok(Wanted::Text(text.clone())),
        Value::Bool(value) => Ok(Wanted::Bool(*value)),
        Value::Number(text) => match text.parse::<f64>() {
            Ok(number) => Ok(Wanted::Number(number.to_string())),
            Err(_) => Err((node.at, format!("{text} is no number"))),
        },
        Value::Mapping(_) => fields(node).map(Wanted::Fields),
        Value::Null | Value::Sequence(_) => {
            Err((node.at, "expected a string, a number, a boolean or a mapping".to_owned()))
        }
    }
}
