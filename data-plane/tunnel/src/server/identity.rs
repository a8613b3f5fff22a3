//! Who an agent is, by what it has proved, and what the listener's policy grants it. **A pure judgement**: the same proof
//! is judged again when the policy changes or something expires.

#[cfg(test)]
mod tests;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use culvert_http::Io;
use culvert_model::Name;
use culvert_model::tunnel::NamePattern;
use culvert_model::tunnel::policy::{DuplicateAgents, Principal, TunnelPolicy, TunnelRule};

use subtle::ConstantTimeEq;

use super::one_time::OneTime;
use super::policy::{MAX_HOST_NAME, any_matches};
use super::{Peer, PeerNames};
use crate::binding::Binding;
use crate::envoy::jwt::{JwtError, KeySet};
use crate::wire::{Proof as TokenProof, Secret, Status};

/// A policy with what its data sources held.
#[derive(Debug)]
pub struct Policy {
    config: Arc<TunnelPolicy>,
    material: PolicyMaterial,
}

/// What the data sources of a policy held.
#[derive(Debug, Default)]
pub struct PolicyMaterial {
    /// Of each provider, in their order.
    pub keys: Vec<Arc<KeySet>>,
    /// Of each static token, in their order.
    pub tokens: Vec<Vec<Arc<[u8]>>>,
}

/// What an agent has shown.
#[derive(Debug, Clone)]
pub(super) struct Proof {
    pub(super) names: Option<Arc<PeerNames>>,
    pub(super) source: Option<IpAddr>,
    pub(super) tls: bool,
    pub(super) credential: Option<Credential>,
}

/// What an agent has said to prove who it is.
#[derive(Debug, Clone)]
pub(super) struct Credential {
    /// Which way of the policy it is for; `None`: a bearer token of Envoy's dialect, which names none.
    pub(super) way: Option<Arc<str>>,
    pub(super) shown: Shown,
}

/// How an agent shows that it has a token.
#[derive(Debug, Clone)]
pub(super) enum Shown {
    /// It says the token.
    Secret(Secret),
    /// Only a static token can be shown so: who checks the proof must know the token.
    Proof(Bound),
}

/// A proof, and the connection that it came on. (Boxed: it is kept as long as the tunnel.)
#[derive(Debug, Clone)]
pub(super) struct Bound(Box<(Binding, TokenProof)>);

impl Bound {
    /// `None`: the connection is none that anything can be bound to.
    pub(super) fn new(io: &Io, proof: &TokenProof) -> Option<Self> {
        Some(Self::on(Binding::of(io)?, proof.clone()))
    }

    pub(super) fn on(binding: Binding, proof: TokenProof) -> Self {
        Self(Box::new((binding, proof)))
    }
}

impl Shown {
    /// Whether it shows one of the tokens. Takes the same time whichever it is.
    pub(super) fn is_of(&self, accepted: &[Arc<[u8]>]) -> bool {
        match self {
            Self::Secret(secret) => any_matches(accepted, |token| token.ct_eq(secret.0.as_bytes())),
            Self::Proof(Bound(bound)) => any_matches(accepted, |token| bound.0.prove(token).ct_eq(&bound.1)),
        }
    }

    pub(super) fn is_bound(&self) -> bool {
        matches!(self, Self::Proof(_))
    }
}

/// What an agent wants.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wish<'a> {
    pub(super) cluster: &'a str,
    pub(super) host_name: &'a str,
    /// 1 to 128.
    pub(super) weight: u32,
}

/// What an agent gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    pub identity: Identity,
    /// Of the rule.
    pub rule: Name,
    pub host_name: Arc<str>,
    pub weight: u32,
    pub weights: (u32, u32),
    /// That it may serve.
    pub clusters: Arc<[NamePattern]>,
    /// Of its identity.
    pub max_connections: usize,
    /// Of its source; `None`: any number.
    pub max_connections_per_source: Option<usize>,
    pub duplicates: DuplicateAgents,
    /// Until when it holds if nothing changes.
    pub until: Option<SystemTime>,
    /// The token that it stands on, if that counts for one handshake only.
    pub(super) token: Option<OneTime>,
}

/// Who an agent is. Two ways to prove the same text are two identities.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Identity {
    Uri(Arc<str>),
    Dns(Arc<str>),
    Jwt { provider: Name, subject: Arc<str> },
    StaticToken(Name),
}

/// Why an agent gets nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Denial {
    #[error("the listener's policy is not there")]
    PolicyAbsent,
    #[error("names a way to prove its identity that the policy does not have")]
    WayUnknown,
    #[error("presents a token without TLS, which the policy does not allow")]
    TokenWithoutTls,
    #[error("its token is not good: {0}")]
    Token(#[from] JwtError),
    #[error("its token does not say who it is")]
    Nobody,
    #[error("its token has no id (jti), by which it would count once")]
    NoTokenId,
    #[error("its token has been used")]
    TokenUsed,
    #[error("as many tokens are remembered as may be")]
    TokensFull,
    #[error("its static token is wrong")]
    StaticToken,
    #[error("sends its token, of which a proof is demanded (bind_to_tls)")]
    TokenSent,
    #[error("presents a proof on a connection without TLS 1.3")]
    ProofWithoutTls,
    #[error("its certificate has expired")]
    CertificateExpired,
    #[error("no rule of the policy names it")]
    NoRule,
    #[error("may not come from that address")]
    Source,
    #[error("may not join that cluster")]
    Cluster,
    #[error("may not have that host name")]
    HostName,
}

impl Denial {
    pub(super) fn status(self) -> Status {
        match self {
            // It may come: the agent is to try again.
            Self::PolicyAbsent | Self::TokensFull => Status::Unknown,
            Self::WayUnknown => Status::PolicyNotFound,
            _ => Status::AuthFailed,
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uri(name) => f.write_str(name),
            Self::Dns(name) => write!(f, "dns:{name}"),
            Self::Jwt { provider, subject } => write!(f, "jwt:{provider}/{subject}"),
            Self::StaticToken(name) => write!(f, "token:{name}"),
        }
    }
}

impl Identity {
    /// By which routes pick it where the policy gives it no other name.
    fn own_name(&self) -> &str {
        match self {
            Self::Uri(uri) => uri.trim_end_matches('/').rsplit('/').next().unwrap_or(uri),
            Self::Dns(name) | Self::StaticToken(name) | Self::Jwt { subject: name, .. } => name,
        }
    }
}

/// What a credential has proved.
struct Proved {
    identity: Identity,
    until: Option<SystemTime>,
    token: Option<OneTime>,
}

impl Policy {
    #[must_use]
    pub fn new(config: Arc<TunnelPolicy>, material: PolicyMaterial) -> Self {
        Self { config, material }
    }

    /// **The identity overrides every claim**: what the first rule that names it does not grant is refused.
    pub(super) fn judge(&self, proof: &Proof, wish: Wish<'_>, now: SystemTime) -> Result<Grant, Denial> {
        let proved = match &proof.credential {
            Some(credential) => Some(self.prove(credential, proof.tls, now)?),
            None => None,
        };
        let expires = proof.names.as_ref().and_then(|names| names.expires);
        if expires.is_some_and(|expires| expires <= now) {
            return Err(Denial::CertificateExpired);
        }
        let names = proof.names.as_deref();
        let proved_identity = proved.as_ref().map(|proved| &proved.identity);
        let (rule, identity) = self.rule(names, proved_identity, now).ok_or(Denial::NoRule)?;
        let from = |address| rule.sources.iter().any(|range| range.contains(address));
        if !rule.sources.is_empty() && !proof.source.is_some_and(from) {
            return Err(Denial::Source);
        }
        if !rule.clusters.iter().any(|pattern| pattern.matches(wish.cluster)) {
            return Err(Denial::Cluster);
        }
        let (token_until, token) = proved.map_or((None, None), |proved| (proved.until, proved.token));
        Ok(Grant {
            host_name: host_name(rule, &identity, wish.host_name)?.into(),
            rule: Arc::clone(&rule.name),
            weight: wish.weight.clamp(rule.weights.0, rule.weights.1),
            weights: rule.weights,
            clusters: Arc::clone(&rule.clusters),
            max_connections: rule.max_connections,
            max_connections_per_source: self.config.max_connections_per_source.map(usize::from),
            duplicates: rule.duplicates,
            until: [expires, token_until, rule.expires].into_iter().flatten().min(),
            token,
            identity,
        })
    }

    /// What the credential says, if it is good. One that is not refuses the agent whatever else it has shown.
    fn prove(&self, credential: &Credential, tls: bool, now: SystemTime) -> Result<Proved, Denial> {
        if !tls && !self.config.tokens_without_tls {
            return Err(Denial::TokenWithoutTls);
        }
        let named = |name: &Name| credential.way.as_ref().is_none_or(|way| way == name);
        let mut failure = Denial::WayUnknown;
        let keys = self.material.keys.iter();
        for (provider, keys) in self.config.providers.iter().zip(keys).filter(|(provider, _)| named(&provider.name)) {
            let Shown::Secret(secret) = &credential.shown else {
                failure = JwtError::Missing.into();
                continue;
            };
            match keys.verify(&secret.0, &provider.expected, now) {
                Ok(claims) => {
                    let subject = claims.text(&[&provider.subject_claim]).filter(|subject| !subject.is_empty());
                    let subject = subject.ok_or(Denial::Nobody)?.into();
                    let skew = provider.expected.clock_skew;
                    let until = claims.expires().and_then(|expires| expires.checked_add(skew));
                    let token = match provider.one_time_tokens {
                        true => Some(OneTime::of(&provider.expected.issuer, &claims, until).ok_or(Denial::NoTokenId)?),
                        false => None,
                    };
                    let identity = Identity::Jwt { provider: Arc::clone(&provider.name), subject };
                    return Ok(Proved { identity, until, token });
                }
                Err(error) => failure = error.into(),
            }
        }
        let accepted = self.material.tokens.iter();
        for (token, accepted) in self.config.tokens.iter().zip(accepted).filter(|(token, _)| named(&token.name)) {
            if credential.shown.is_of(accepted) {
                if token.bound && !credential.shown.is_bound() {
                    return Err(Denial::TokenSent);
                }
                let identity = Identity::StaticToken(Arc::clone(&token.name));
                return Ok(Proved { identity, until: None, token: None });
            }
            failure = Denial::StaticToken;
        }
        Err(failure)
    }

    /// The first rule that names the agent, and as whom.
    fn rule(
        &self,
        names: Option<&PeerNames>,
        proved: Option<&Identity>,
        now: SystemTime,
    ) -> Option<(&TunnelRule, Identity)> {
        let rules = self.config.rules.iter().filter(|rule| rule.expires.is_none_or(|expires| now < expires));
        rules.into_iter().find_map(|rule| {
            let identity = rule.principals.iter().find_map(|principal| named_by(principal, names, proved))?;
            Some((rule, identity))
        })
    }
}

fn named_by(principal: &Principal, names: Option<&PeerNames>, proved: Option<&Identity>) -> Option<Identity> {
    match (principal, proved) {
        (Principal::Uri(pattern), _) => {
            let found = names?.uris.iter().find(|uri| pattern.matches(uri))?;
            Some(Identity::Uri(found.as_str().into()))
        }
        (Principal::Dns(pattern), _) => {
            let lower = names?.dns.iter().map(|name| name.to_ascii_lowercase());
            // RFC 6125, 7.2: a wildcard in a certificate names nobody in particular.
            let found = lower.filter(|name| !name.contains('*')).find(|name| pattern.matches(name))?;
            Some(Identity::Dns(found.into()))
        }
        (
            Principal::Jwt { provider: wanted, subject: pattern },
            Some(identity @ Identity::Jwt { provider, subject }),
        ) => (wanted == provider && pattern.matches(subject)).then(|| identity.clone()),
        (Principal::StaticToken(wanted), Some(identity @ Identity::StaticToken(name))) => {
            (wanted == name).then(|| identity.clone())
        }
        _ => None,
    }
}

fn host_name<'n>(rule: &TunnelRule, identity: &'n Identity, claimed: &'n str) -> Result<&'n str, Denial> {
    let name = if rule.host_names.is_empty() || claimed.is_empty() { identity.own_name() } else { claimed };
    // It is shown to operators and compared with request headers.
    let sound = !name.is_empty() && name.len() <= MAX_HOST_NAME && !name.chars().any(char::is_control);
    let allowed = |pattern: &NamePattern| pattern.matches(name);
    if sound && (rule.host_names.is_empty() || rule.host_names.iter().any(allowed)) {
        Ok(name)
    } else {
        Err(Denial::HostName)
    }
}

impl Proof {
    pub(super) fn new(peer: &Peer, tls: bool, credential: Option<Credential>) -> Self {
        Self { names: peer.names.clone(), source: peer.address.map(|address| address.ip()), tls, credential }
    }
}
