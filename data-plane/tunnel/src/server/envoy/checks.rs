//! Everything that is checked of an initiator's request before anybody hears of it.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::SystemTime;

use culvert_model::access_log::Operator;
use culvert_model::tunnel::id_format::IdFormat;
use culvert_model::tunnel::reverse::{HandshakeMode, JwtValidator, ReverseTunnel};

use super::super::acceptor::Accepted;
use super::super::chronicle::Initiator;
use super::super::failure::Failure;
use super::super::identity::{Credential, Proof, Shown, Wish};
use super::super::standing::Standing;
use super::super::{HostRegistry, Peer, policy};
use super::EnvoyJoining;
use crate::envoy::jwt::{Claims, JwtError};
use crate::envoy::wire::{Answer, Identity, Request};
use crate::metrics::ServerMetric;
use crate::wire::Secret;

/// What the checks have let through.
pub(super) struct Admitted {
    pub(super) identity: Identity,
    pub(super) policy: Option<Arc<str>>,
    pub(super) upgrade: bool,
    pub(super) keeps_tls: bool,
    pub(super) standing: Option<Standing>,
    pub(super) initiator: Option<Box<Initiator>>,
}

impl<R: HostRegistry> Accepted<'_, R> {
    /// What a request is admitted as.
    pub(super) fn admit(&self, joining: &EnvoyJoining, request: &Request) -> Result<Admitted, Failure> {
        let acceptor = self.acceptor;
        let reverse = &acceptor.config.reverse;
        let upgrade = mode(reverse, request)?;
        let identity = request.identity(HEADER_PREFIX)?;
        if let Some(required) = &reverse.required_cluster {
            request.check_upstream_cluster(HEADER_PREFIX, required)?;
        }
        if acceptor.tunnels.reverse().tenant_isolation
            && [&identity.node, &identity.cluster, &identity.tenant].iter().any(|id| id.contains(':'))
        {
            return Err(Answer::IdColon.into());
        }
        let claims = match &reverse.jwt {
            Some(validator) => self.authenticate(validator, request)?,
            None => None,
        };
        validate(reverse, &identity, &joining.peer, claims.as_ref())?;
        let tokens = acceptor.tokens.load_full();
        let standing = self.stand_envoy(joining, request, &identity)?;
        let policy = match claims {
            _ if standing.is_some() => None,
            // The token has been checked, by its issuer's key.
            Some(_) => policy::allowed(&acceptor.config.allowed_clusters, &identity.cluster).map(|()| None)?,
            None => {
                let token = bearer(request, "authorization")?;
                policy::check_bearer(&acceptor.config, &tokens, &identity.cluster, token)?
            }
        };
        let keeps_tls = request.keeps_tls();
        if joining.io.is_tls() && !keeps_tls && !reverse.leaves_tls {
            return Err(Answer::TlsLeft.into());
        }
        let logged = acceptor.tunnels.journal().is_some();
        let initiator = logged.then(|| initiator(request)).flatten().map(Box::new);
        Ok(Admitted { identity, policy, upgrade, keeps_tls, standing, initiator })
    }

    /// What the listener's identity policy, if it has one, says of the initiator.
    fn stand_envoy(
        &self,
        joining: &EnvoyJoining,
        request: &Request,
        identity: &Identity,
    ) -> Result<Option<Standing>, Failure> {
        let token = bearer(request, "authorization")?.filter(|token| !token.is_empty());
        let credential = token.map(|token| Credential { way: None, shown: Shown::Secret(Secret(token.to_owned())) });
        let wish = Wish { cluster: &identity.cluster, host_name: &identity.node, weight: 1 };
        Ok(self.acceptor.standing(Proof::new(&joining.peer, joining.io.is_tls(), credential), wish)?)
    }

    /// What the initiator's token says; `None`: it has no good one, and only an audit asks for it.
    fn authenticate(&self, validator: &JwtValidator, request: &Request) -> Result<Option<Claims>, Failure> {
        let verified = match (bearer(request, &validator.token_header)?, &*self.acceptor.keys.load()) {
            (None | Some(""), _) => Err(JwtError::Missing),
            (Some(token), Some(keys)) => keys.verify(token, &validator.expected, SystemTime::now()),
            (Some(_), None) => Err(JwtError::Signature),
        };
        match verified {
            Ok(claims) => Ok(Some(claims)),
            Err(reason) => {
                let audited = validator.allow_missing_or_failed;
                if self.acceptor.refusals.allows() {
                    tracing::info!(%reason, audited, "an initiator's JWT is not good");
                }
                if !audited {
                    return Err(Answer::Unauthenticated.into());
                }
                self.metrics.inc(ServerMetric::JwtWouldDeny);
                Ok(None)
            }
        }
    }
}

/// Whether the answer is a 101.
fn mode(reverse: &ReverseTunnel, request: &Request) -> Result<bool, Answer> {
    if !request.method.eq_ignore_ascii_case(&reverse.method) || request.path != *reverse.path {
        return Err(Answer::NotFound);
    }
    match reverse.mode {
        HandshakeMode::Plain => Ok(false),
        HandshakeMode::Either => Ok(request.upgrade),
        HandshakeMode::Upgrade if request.upgrade => Ok(true),
        HandshakeMode::Upgrade => Err(Answer::UpgradeRequired),
    }
}

/// What Envoy 1.40 says of its own end, as far as it says it.
fn initiator(request: &Request) -> Option<Initiator> {
    let said = |what: &str| {
        let value = request.field(&format!("{HEADER_PREFIX}-reverse-tunnel-{what}")).ok().flatten();
        value.filter(|value| value.len() <= MOST_SAID).unwrap_or_default().to_owned()
    };
    let initiator = Initiator { worker: said("worker-id"), connection: said("connection-id") };
    (!initiator.worker.is_empty() || !initiator.connection.is_empty()).then_some(initiator)
}

/// A field's value without `Bearer `.
fn bearer<'r>(request: &'r Request, name: &str) -> Result<Option<&'r str>, Answer> {
    Ok(request.field(name)?.map(|value| value.strip_prefix("Bearer ").unwrap_or(value)))
}

/// `validation`: a format that yields nothing lets nobody in.
fn validate(reverse: &ReverseTunnel, identity: &Identity, peer: &Peer, claims: Option<&Claims>) -> Result<(), Answer> {
    let claims = claims.zip(reverse.jwt.as_ref());
    let value = |operator: &Operator| match operator {
        Operator::DownstreamPeerUriSan => peer.names.as_ref().map(|names| Cow::Owned(names.uris.join(","))),
        Operator::DownstreamPeerDnsSan => peer.names.as_ref().map(|names| Cow::Owned(names.dns.join(","))),
        Operator::DynamicMetadata { namespace, path } => claims
            .filter(|(_, validator)| validator.claims_namespace == *namespace)
            .and_then(|(claims, _)| claims.text(path))
            .map(Cow::Owned),
        _ => None,
    };
    let agrees = |format: &Option<IdFormat>, id: &str| {
        format.as_ref().is_none_or(|format| format.evaluate(value).is_some_and(|expected| expected == id))
    };
    let good = agrees(&reverse.node_format, &identity.node)
        && agrees(&reverse.cluster_format, &identity.cluster)
        && agrees(&reverse.tenant_format, &identity.tenant);
    if good { Ok(()) } else { Err(Answer::ValidationFailed) }
}

/// Envoy's default; its initiators follow their bootstrap's `header_prefix`.
const HEADER_PREFIX: &str = "x-envoy";
/// Of what an initiator says of its own end, in bytes.
const MOST_SAID: usize = 64;
