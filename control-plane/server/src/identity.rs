//! Who is at the other end of a connection, and which nodes that may be.

use std::net::SocketAddr;
use std::sync::Arc;

use culvert_api::envoy::config::core::v3::Node;
use culvert_runtime::tls::CertificateDetails;
use culvert_xds::NodeIdentity;
use tonic::Status;

use crate::control::Control;

/// Who is at the other end, as the transport knows it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Peer {
    pub(crate) address: Arc<str>,
    /// It is on this machine.
    pub(crate) local: bool,
    /// The name of the client's token, else the first one of its certificate, else the certificate's subject.
    pub(crate) certificate: Option<Arc<str>>,
    /// The token's name, and URI and DNS names of the certificate.
    pub(crate) names: Arc<[String]>,
}

impl Peer {
    /// `certificate`: DER of the leaf that the client proved to have.
    pub(crate) fn new(address: SocketAddr, certificate: Option<&[u8]>) -> Self {
        let details = certificate.and_then(|der| {
            CertificateDetails::parse(der)
                .inspect_err(|error| tracing::warn!(%error, %address, "a client's certificate cannot be read"))
                .ok()
        });
        let local = address.ip().is_loopback();
        let address = address.to_string().into();
        let Some(details) = details else { return Self { address, local, ..Self::default() } };
        let names: Arc<[String]> = details.uri_sans.into_iter().chain(details.dns_sans).collect();
        let certificate = Some(names.first().unwrap_or(&details.subject).as_str().into());
        Self { address, local, certificate, names }
    }

    /// The same, with the name that its token proves; it comes first.
    pub(crate) fn with_name(&self, name: &Arc<str>) -> Self {
        let names = std::iter::once(name.to_string()).chain(self.names.iter().cloned()).collect();
        Self { certificate: Some(Arc::clone(name)), names, ..self.clone() }
    }

    /// The node that a first request claims to be, if the peer may be that.
    pub(crate) fn identify(&self, control: &Control, node: Option<Node>) -> Result<NodeIdentity, Status> {
        let identity = NodeIdentity::new(node).map_err(|refused| Status::invalid_argument(refused.to_string()))?;
        if !control.identities.allow(&self.names, &identity.id, &identity.cluster) {
            control.metrics.identities_refused.add();
            let NodeIdentity { id, cluster, .. } = &identity;
            let reason = format!(
                "the client's certificate or token, of {}, does not let it be node {id:?} of cluster {cluster:?}; see --client-identity",
                self.names.join(" and ")
            );
            return Err(Status::permission_denied(reason));
        }
        Ok(NodeIdentity { certificate_names: self.names.to_vec(), ..identity })
    }
}

/// The rules of `--client-identity`.
#[derive(Debug)]
pub(crate) struct Identities(Vec<Vec<Piece>>);

/// A part of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    /// `*`: anything without a slash or a dot, but not nothing.
    Any,
    /// `{id}`
    Id,
    /// `{cluster}`
    Cluster,
}

impl Identities {
    pub(crate) fn new(rules: &[String]) -> Self {
        Self(rules.iter().map(|rule| pieces(rule)).collect())
    }

    /// Whether a certificate with these names lets its holder be that node. Without rules any lets it be any.
    pub(crate) fn allow(&self, names: &[String], id: &str, cluster: &str) -> bool {
        self.0.is_empty() || names.iter().any(|name| self.0.iter().any(|rule| matches(rule, name, (id, cluster))))
    }
}

fn pieces(mut rule: &str) -> Vec<Piece> {
    let mut pieces = Vec::new();
    while !rule.is_empty() {
        let special = [("*", Piece::Any), ("{id}", Piece::Id), ("{cluster}", Piece::Cluster)];
        let next = special.into_iter().filter_map(|(text, piece)| Some((rule.find(text)?, text.len(), piece)));
        let Some((at, len, piece)) = next.min_by_key(|(at, ..)| *at) else {
            pieces.push(Piece::Text(rule.to_owned()));
            break;
        };
        if at > 0 {
            pieces.push(Piece::Text(rule.get(..at).unwrap_or_default().to_owned()));
        }
        pieces.push(piece);
        rule = rule.get(at + len..).unwrap_or_default();
    }
    pieces
}

fn matches(rule: &[Piece], name: &str, node: (&str, &str)) -> bool {
    let Some((piece, rest)) = rule.split_first() else { return name.is_empty() };
    let literal = |text: &str| {
        // An empty id would match a name without one.
        !text.is_empty() && name.strip_prefix(text).is_some_and(|name| matches(rest, name, node))
    };
    match piece {
        Piece::Text(text) => literal(text),
        Piece::Id => literal(node.0),
        Piece::Cluster => literal(node.1),
        Piece::Any => {
            let end = name.find(['/', '.']).unwrap_or(name.len());
            let ends = name.char_indices().map(|(at, one)| at + one.len_utf8()).take_while(|at| *at <= end);
            let tails: Vec<&str> = ends.filter_map(|at| name.get(at..)).collect();
            tails.into_iter().any(|tail| matches(rest, tail, node))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Identities;

    #[test]
    fn a_certificate_lets_its_holder_be_what_the_rules_say_and_nothing_else() {
        let rules = ["spiffe://culvert.test/{cluster}/{id}", "{id}.*.nodes.test", "spiffe://culvert.test/any"];
        let cases = [
            ("spiffe://culvert.test/edge/n1", "n1", "edge", true),
            ("spiffe://culvert.test/edge/n1", "n2", "edge", false),
            ("spiffe://culvert.test/edge/n1", "n1", "cloud", false),
            ("spiffe://culvert.test/edge/n1/x", "n1", "edge", false),
            ("spiffe://culvert.test/edge/", "", "edge", false),
            ("spiffe://culvert.test/edge/*", "n1", "edge", false),
            ("spiffe://culvert.test/edge/n1", "*", "edge", false),
            ("spiffe://culvert.test/any", "whatever", "", true),
            ("n1.zone.nodes.test", "n1", "", true),
            ("n1.a.b.nodes.test", "n1", "", false),
            ("n1..nodes.test", "n1", "", false),
            ("xn1.zone.nodes.test", "n1", "", false),
        ];
        let identities = Identities::new(&rules.map(str::to_owned));
        for (name, id, cluster, expected) in cases {
            let allowed = identities.allow(&[name.to_owned()], id, cluster);
            assert_eq!(allowed, expected, "{name} as node {id:?} of {cluster:?}");
        }
        assert!(!identities.allow(&[], "n1", "edge"), "no certificate is nobody");
        assert!(Identities::new(&[]).allow(&[], "n1", "edge"), "without rules there are none to break");
    }
}
