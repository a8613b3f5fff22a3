//! The initiator's request.

use super::{Answer, TLS_KEPT, UPGRADE};

/// What an initiator sends.
#[derive(Debug, Clone, Copy)]
pub struct RequestHead<'a> {
    pub path: &'a str,
    /// The server's address.
    pub host: &'a str,
    pub upgrade: bool,
    /// `x-envoy`, or the bootstrap's `header_prefix`.
    pub prefix: &'a str,
    pub node: &'a str,
    pub cluster: &'a str,
    pub tenant: &'a str,
    /// What the initiator calls the server's cluster.
    pub upstream_cluster: &'a str,
    /// Milliseconds since 1970.
    pub time: u128,
    pub worker: usize,
    pub connection: u32,
    /// Names and values that stand behind; the caller has checked them.
    pub additional: &'a [(String, String)],
    /// Announces [`TLS_KEPT`].
    pub tls_kept: bool,
}

impl RequestHead<'_> {
    /// The request's bytes, in the order in which Envoy 1.40 sends them.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let Self { path, host, prefix, node, cluster, tenant, upstream_cluster, time, worker, connection, .. } = self;
        let upgrade =
            if self.upgrade { format!("connection: upgrade\r\nupgrade: {UPGRADE}\r\n") } else { String::new() };
        let mut head = format!(
            "GET {path} HTTP/1.1\r\nhost: {host}\r\n{upgrade}\
             {prefix}-reverse-tunnel-node-id: {node}\r\n\
             {prefix}-reverse-tunnel-cluster-id: {cluster}\r\n\
             {prefix}-reverse-tunnel-tenant-id: {tenant}\r\n\
             {prefix}-reverse-tunnel-upstream-cluster-name: {upstream_cluster}\r\n\
             {prefix}-reverse-tunnel-initiation-time: {time}\r\n\
             {prefix}-reverse-tunnel-worker-id: worker_{worker}\r\n\
             {prefix}-reverse-tunnel-connection-id: {connection}\r\n"
        );
        for (name, value) in self.additional {
            head.push_str(name);
            head.push_str(": ");
            head.push_str(value);
            head.push_str("\r\n");
        }
        if self.tls_kept {
            head.push_str(TLS_KEPT);
            head.push_str(": kept\r\n");
        }
        head.push_str("content-length: 0\r\n\r\n");
        head.into_bytes()
    }
}

/// A request as a responder read it; nothing of it has been believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub method: String,
    pub path: String,
    /// `connection` has `upgrade`, and `upgrade` is `reverse-tunnel`.
    pub upgrade: bool,
    pub(super) fields: Vec<(String, Vec<u8>)>,
}

/// Who an initiator says it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub node: String,
    pub cluster: String,
    pub tenant: String,
}

impl Request {
    /// The one value of a field (name in lower case), without white space around it.
    ///
    /// # Errors
    /// It stands there twice, or is no UTF-8 text.
    pub fn field(&self, name: &str) -> Result<Option<&str>, Answer> {
        let mut values = self.fields.iter().filter(|(known, _)| known == name).map(|(_, value)| value.as_slice());
        let value = values.next();
        if values.next().is_some() {
            return Err(Answer::IdInvalid);
        }
        let value = value.map(|value| std::str::from_utf8(value).map_err(|_| Answer::IdInvalid)).transpose()?;
        Ok(value.map(|value| value.trim_matches([' ', '\t'])))
    }

    /// Whether the initiator keeps its TLS session.
    #[must_use]
    pub fn keeps_tls(&self) -> bool {
        self.fields.iter().any(|(name, _)| name == TLS_KEPT)
    }

    /// The three ids.
    ///
    /// # Errors
    /// Which answer is due when they are not all there, or not usable.
    pub fn identity(&self, prefix: &str) -> Result<Identity, Answer> {
        let id = |name: &str| self.field(&format!("{prefix}-reverse-tunnel-{name}-id"));
        let (Some(node), Some(cluster), Some(tenant)) = (id("node")?, id("cluster")?, id("tenant")?) else {
            return Err(Answer::HeadersMissing);
        };
        for (value, empty) in
            [(tenant, Answer::TenantEmpty), (node, Answer::NodeEmpty), (cluster, Answer::ClusterEmpty)]
        {
            if value.is_empty() {
                return Err(empty);
            }
            if value.len() > MAX_ID || value.chars().any(char::is_control) {
                return Err(Answer::IdInvalid);
            }
        }
        Ok(Identity { node: node.to_owned(), cluster: cluster.to_owned(), tenant: tenant.to_owned() })
    }

    /// Checks the name that the initiator gives the server's cluster.
    ///
    /// # Errors
    /// Which answer is due when it is not `required`.
    pub fn check_upstream_cluster(&self, prefix: &str, required: &str) -> Result<(), Answer> {
        match self.field(&format!("{prefix}-reverse-tunnel-upstream-cluster-name"))? {
            None | Some("") => Err(Answer::UpstreamClusterMissing),
            Some(name) if name == required => Ok(()),
            Some(_) => Err(Answer::UpstreamClusterWrong),
        }
    }
}

/// Of one id, in bytes: Envoy takes such.
const MAX_ID: usize = 8 * 1024;
