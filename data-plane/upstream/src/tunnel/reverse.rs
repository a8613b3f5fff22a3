//! The names under which clusters of Envoy's `reverse_connection` type find a tunnel.
//!
//! **A name begins with its kind and a NUL**, which no header can hold: what a request says is never another kind of
//! name, nor another tenant's.

use std::sync::Arc;

use culvert_http::RequestHead;
use culvert_model::access_log::Operator;
use culvert_model::cluster::ReverseConnection;
use culvert_model::tunnel::id_format::IdFormat;

/// Who an agent in Envoy's dialect says it is, as clusters look for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReverseNames {
    pub(crate) nodes: Vec<Arc<str>>,
    /// Its cluster id: one of several agents that take turns.
    pub(crate) groups: Vec<Arc<str>>,
    /// Joins the cluster of any other type that its cluster id names, and those that share its agents.
    pub(crate) joins: bool,
}

impl ReverseNames {
    /// `isolated`: found within its tenant only, and by `reverse_connection` clusters only.
    #[must_use]
    pub fn new(node: &str, cluster: &str, tenant: &str, isolated: bool, joins: bool) -> Self {
        let names = |kind: &str, id: &str| {
            let mut names: Vec<Arc<str>> = vec![scoped(kind, tenant, id).into()];
            if !isolated {
                names.insert(0, plain(kind, id).into());
            }
            names
        };
        Self { nodes: names(NODE, node), groups: names(GROUP, cluster), joins: joins && !isolated }
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<str>> + Clone {
        self.nodes.iter().chain(&self.groups)
    }
}

/// What a request looks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Wish {
    pub(crate) group: String,
    pub(crate) node: String,
}

impl Wish {
    /// `None`: the request does not say.
    pub(crate) fn of(cluster: &ReverseConnection, request: Option<&RequestHead>) -> Option<Self> {
        let id = evaluate(&cluster.host_id, request)?;
        match &cluster.tenant_id {
            None => Some(Self { group: plain(GROUP, &id), node: plain(NODE, &id) }),
            Some(format) => {
                let tenant = evaluate(format, request)?;
                Some(Self { group: scoped(GROUP, &tenant, &id), node: scoped(NODE, &tenant, &id) })
            }
        }
    }
}

fn evaluate(format: &IdFormat, request: Option<&RequestHead>) -> Option<String> {
    format.evaluate(|operator| {
        let Operator::RequestHeader { name, alternative } = operator else { return None };
        let request = request?;
        let value = |name: &str| match name {
            ":authority" | "host" => Some(request.authority.as_str()),
            ":path" => Some(request.path.as_str()),
            ":scheme" => Some(request.scheme),
            name => request.fields.get(name.as_bytes()).and_then(|value| std::str::from_utf8(value).ok()),
        };
        value(name).or_else(|| alternative.as_deref().and_then(value)).map(Into::into)
    })
}

fn plain(kind: &str, id: &str) -> String {
    format!("{kind}\0{id}")
}

fn scoped(kind: &str, tenant: &str, id: &str) -> String {
    format!("{kind}\0{tenant}\0{id}")
}

const NODE: &str = "n";
const GROUP: &str = "c";

#[cfg(test)]
mod tests;
