//! `culvert.tunnel.v1.TunnelPolicy`: who may open tunnels, and as what.

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use culvert_api::culvert::tunnel::v1 as api;

use super::jwks::{self, Jwks};
use super::{NamePattern, size};
use crate::Name;
use crate::listener::Cidr;
use crate::report::{Parsed, Report, clip};
use crate::scalar;
use crate::source::{self, DataSource};

/// What a tunnel listener demands of agents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelPolicy {
    pub name: Name,
    pub providers: Vec<JwtProvider>,
    pub tokens: Vec<StaticToken>,
    /// The first one that names the agent decides; an agent that none names is refused.
    pub rules: Vec<TunnelRule>,
    pub tokens_without_tls: bool,
    /// `None`: any number.
    pub max_connections_per_source: Option<NonZeroUsize>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JwtProvider {
    pub name: Name,
    pub expected: TokenRules,
    pub jwks: Jwks,
    pub subject_claim: Arc<str>,
    /// Each token counts for one handshake.
    pub one_time_tokens: bool,
}

/// What a JSON Web Token must say of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRules {
    pub issuer: Arc<str>,
    /// Empty: any.
    pub audiences: Vec<Arc<str>>,
    pub clock_skew: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaticToken {
    pub name: Name,
    /// Not empty.
    pub tokens: Vec<DataSource>,
    /// Who sends the token itself is refused.
    pub bound: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelRule {
    /// May be empty.
    pub name: Name,
    /// Not empty.
    pub principals: Vec<Principal>,
    /// Not empty.
    pub clusters: Arc<[NamePattern]>,
    /// Empty: the identity is the name.
    pub host_names: Vec<NamePattern>,
    /// Of one identity.
    pub max_connections: usize,
    /// Not in reverse order.
    pub weights: (u32, u32),
    /// Empty: any.
    pub sources: Vec<Cidr>,
    /// `None`: never.
    pub expires: Option<SystemTime>,
    pub duplicates: DuplicateAgents,
}

/// Who an agent is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Principal {
    Uri(NamePattern),
    Dns(NamePattern),
    Jwt { provider: Name, subject: NamePattern },
    StaticToken(Name),
}

/// What becomes of a second agent with the same identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DuplicateAgents {
    Replicas,
    Replace,
    Reject,
}

/// Where a policy stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Bootstrap,
    /// It is served, persisted and shown: no place for a secret.
    Xds,
}

/// Parses a `TunnelPolicy`, as it comes over xDS.
#[must_use]
pub fn parse(message: &api::TunnelPolicy) -> Parsed<TunnelPolicy> {
    let mut report = Report::default();
    report.check(message);
    let policy = policy(&mut report, message, Place::Xds);
    report.finish(policy)
}

/// Parses the `TunnelPolicy` at hand.
pub(crate) fn policy(report: &mut Report, message: &api::TunnelPolicy, place: Place) -> Option<TunnelPolicy> {
    let name = scalar::name(report, "name", &message.name);
    let providers = report.items("jwt_providers", &message.jwt_providers, provider);
    let tokens = report.items("static_tokens", &message.static_tokens, |report, message| token(report, message, place));
    // An agent names one of both kinds by `credential_policy`.
    let mut names = HashSet::new();
    for name in providers.iter().map(|provider| &provider.name).chain(tokens.iter().map(|token| &token.name)) {
        if !names.insert(name) {
            report.error(format!("{:?} names two ways to prove an identity; agents could not say which", clip(name)));
        }
    }
    let rules = report.items("rules", &message.rules, rule);
    for (index, rule) in rules.iter().enumerate() {
        for principal in &rule.principals {
            let known = match principal {
                Principal::Jwt { provider, .. } => providers.iter().any(|known| known.name == *provider),
                Principal::StaticToken(name) => tokens.iter().any(|known| known.name == *name),
                Principal::Uri(_) | Principal::Dns(_) => true,
            };
            if !known {
                report.item("rules", index, |report| {
                    report.error_at("principals", "names a provider or a token that the policy does not have");
                });
            }
        }
    }
    if message.rules.is_empty() {
        report.warn_at("rules", "is empty: every agent is refused");
    }
    let per_source = message.max_connections_per_source.map(size);
    Some(TunnelPolicy {
        name: name?,
        providers,
        tokens,
        rules,
        tokens_without_tls: message.allow_tokens_without_tls,
        max_connections_per_source: per_source.and_then(NonZeroUsize::new),
    })
}

fn provider(report: &mut Report, message: &api::JwtProvider) -> Option<JwtProvider> {
    let name = scalar::name(report, "name", &message.name);
    let issuer = scalar::name(report, "issuer", &message.issuer);
    let jwks = match (&message.local_jwks, &message.remote_jwks) {
        (Some(local), None) => {
            report.field("local_jwks", |report| source::data_source(report, local, None)).map(Jwks::Local)
        }
        (None, Some(remote)) => report.field("remote_jwks", |report| jwks::remote(report, remote)).map(Jwks::Remote),
        (Some(_), Some(_)) => {
            report.error_at("remote_jwks", "stands beside local_jwks; keep one of them");
            None
        }
        (None, None) => {
            report.error_at(
                "local_jwks",
                "is missing, and so is remote_jwks; a provider without keys would let nobody in",
            );
            None
        }
    };
    let skew = scalar::duration(report, "clock_skew", message.clock_skew.as_ref()).unwrap_or(CLOCK_SKEW);
    if skew > MOST_SKEW {
        report.error_at("clock_skew", "is more than 10 minutes; set the clocks");
    }
    let claim = if message.subject_claim.is_empty() { "sub" } else { &message.subject_claim };
    Some(JwtProvider {
        name: name?,
        expected: TokenRules {
            issuer: issuer?,
            audiences: message.audiences.iter().map(|audience| audience.as_str().into()).collect(),
            clock_skew: skew,
        },
        jwks: jwks?,
        subject_claim: claim.into(),
        one_time_tokens: message.one_time_tokens,
    })
}

fn token(report: &mut Report, message: &api::StaticToken, place: Place) -> Option<StaticToken> {
    let name = scalar::name(report, "name", &message.name);
    let tokens = report.items("tokens", &message.tokens, |report, token| source::data_source(report, token, None));
    if message.tokens.is_empty() {
        report.error_at("tokens", "is empty; nobody could present one");
    }
    for (index, token) in tokens.iter().enumerate() {
        let reason = match token {
            DataSource::Inline(bytes) if bytes.is_empty() => "is empty; anybody could present it",
            DataSource::Inline(_) if place == Place::Xds => {
                "stands inline in a resource, which is served and kept as plain text; use filename"
            }
            _ => continue,
        };
        report.item("tokens", index, |report| report.error(reason));
    }
    Some(StaticToken { name: name?, tokens, bound: message.require_tls_binding })
}

fn rule(report: &mut Report, message: &api::TunnelRule) -> Option<TunnelRule> {
    let principals = report.items("principals", &message.principals, principal);
    if message.principals.is_empty() {
        report.error_at("principals", "is empty; the rule would be about nobody");
    }
    let clusters = report.items("clusters", &message.clusters, |report, text| pattern(report, text));
    if message.clusters.is_empty() {
        report.error_at("clusters", "is empty; name the clusters that the agents may join, or `*`");
    }
    let host_names = report.items("host_names", &message.host_names, |report, text| pattern(report, text));
    let max_connections = scalar::at_least(report, "max_connections", message.max_connections, 1, CONNECTIONS);
    let least = scalar::within(report, "min_weight", message.min_weight, 1, 128, 1);
    let most = scalar::within(report, "max_weight", message.max_weight, 1, 128, 128);
    if most < least {
        report.error_at("max_weight", "is less than min_weight");
    }
    let ranges = &message.source_ranges;
    let sources = report.items("source_ranges", ranges, crate::listener::cidr);
    let expires = match &message.expires_at {
        Some(time) => Some(instant(report, "expires_at", time)?),
        None => None,
    };
    let duplicates = match scalar::enumeration(report, "duplicates", message.duplicates)? {
        api::DuplicateAgents::Replicas => DuplicateAgents::Replicas,
        api::DuplicateAgents::Replace => DuplicateAgents::Replace,
        api::DuplicateAgents::Reject => DuplicateAgents::Reject,
    };
    Some(TunnelRule {
        name: message.name.as_str().into(),
        principals,
        clusters: clusters.into(),
        host_names,
        max_connections: size(max_connections),
        weights: (least, most),
        sources,
        expires,
        duplicates,
    })
}

fn principal(report: &mut Report, message: &api::TunnelPrincipal) -> Option<Principal> {
    use api::tunnel_principal::Principal as Kind;
    match &message.principal {
        Some(Kind::Uri(text)) => report.field("uri", |report| pattern(report, text)).map(Principal::Uri),
        Some(Kind::Dns(text)) => {
            // RFC 4343: names are the same whatever their case.
            let text = text.to_ascii_lowercase();
            report.field("dns", |report| pattern(report, &text)).map(Principal::Dns)
        }
        Some(Kind::Jwt(jwt)) => report.field("jwt", |report| {
            let provider = scalar::name(report, "provider", &jwt.provider);
            let subject = report.field("subject", |report| pattern(report, &jwt.subject));
            Some(Principal::Jwt { provider: provider?, subject: subject? })
        }),
        Some(Kind::StaticToken(name)) => scalar::name(report, "static_token", name).map(Principal::StaticToken),
        None => {
            report.error("names nobody; set uri, dns, jwt or static_token");
            None
        }
    }
}

/// A name, or a pattern with one `*` at an end.
pub(crate) fn pattern(report: &mut Report, text: &str) -> Option<NamePattern> {
    match text.strip_prefix('*') {
        Some(suffix) if !suffix.is_empty() && !suffix.contains('*') => Some(NamePattern::Suffix(suffix.into())),
        _ => super::pattern(report, text),
    }
}

fn instant(report: &mut Report, field: &'static str, time: &prost_types::Timestamp) -> Option<SystemTime> {
    let since = u64::try_from(time.seconds).ok().zip(u32::try_from(time.nanos).ok());
    let since = since.filter(|(seconds, nanos)| *seconds <= LAST_SECOND && *nanos < 1_000_000_000);
    let Some((seconds, nanos)) = since else {
        report.error_at(field, "is no time between 1970 and 9999");
        return None;
    };
    Some(SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos))
}

const CLOCK_SKEW: Duration = Duration::from_secs(60);
const MOST_SKEW: Duration = Duration::from_secs(600);
const CONNECTIONS: u32 = 16;
/// 9999-12-31T23:59:59Z, with which RFC 3339 ends.
const LAST_SECOND: u64 = 253_402_300_799;
