//! Where the keys come from that agents' tokens are verified with: a source on this machine, or a server that is asked for them.

use std::sync::Arc;
use std::time::Duration;

use culvert_api::envoy::config::core::v3 as core;
use culvert_api::envoy::extensions::filters::common::jwks::v3 as api;

use crate::Name;
use crate::report::{Report, clip};
use crate::scalar;
use crate::source::DataSource;

/// A JSON Web Key Set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Jwks {
    /// A file is followed.
    Local(DataSource),
    Remote(Arc<RemoteJwks>),
}

/// Keys that are fetched over HTTP.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RemoteJwks {
    /// Over whose hosts.
    pub cluster: Name,
    /// Of the URI, as the request says it.
    pub authority: Arc<str>,
    pub path: Arc<str>,
    /// Of one fetch. 1 ms to 60 s.
    pub timeout: Duration,
    /// How old keys may become before others are fetched: at least a second, default 10 minutes.
    pub lifetime: Duration,
    /// Further attempts of one fetch, with delays from .. to.
    pub retries: u32,
    pub retry_base: Duration,
    pub retry_max: Duration,
    /// How long to wait after a fetch that failed; longer with each. Default 1 s.
    pub refetch: Duration,
}

impl Jwks {
    /// `None`: it is no source on this machine.
    #[must_use]
    pub fn local(&self) -> Option<&DataSource> {
        match self {
            Self::Local(source) => Some(source),
            Self::Remote(_) => None,
        }
    }

    /// `None`: it is not fetched.
    #[must_use]
    pub fn remote(&self) -> Option<&Arc<RemoteJwks>> {
        match self {
            Self::Local(_) => None,
            Self::Remote(remote) => Some(remote),
        }
    }
}

/// Parses the `RemoteJwks` at hand.
pub(super) fn remote(report: &mut Report, message: &api::RemoteJwks) -> Option<Arc<RemoteJwks>> {
    let (cluster, (authority, path), timeout) = report.field("http_uri", |report| {
        let Some(uri) = &message.http_uri else {
            report.error("is missing");
            return None;
        };
        let core::http_uri::HttpUpstreamType::Cluster(cluster) = uri.http_upstream_type.as_ref()?;
        let timeout = scalar::duration(report, "timeout", uri.timeout.as_ref()).unwrap_or_default();
        // Envoy: zero is no limit. There always is one here.
        let timeout = if timeout.is_zero() { MOST_TIME } else { timeout.min(MOST_TIME) };
        Some((scalar::name(report, "cluster", cluster)?, target(report, &uri.uri)?, timeout))
    })?;
    let lifetime = scalar::positive(report, "cache_duration", message.cache_duration.as_ref(), LIFETIME);
    if lifetime < LEAST_LIFETIME {
        report.warn_at("cache_duration", "is less than a second, and keys are not fetched more often");
    }
    let refetch = message.async_fetch.as_ref().map_or(REFETCH, |fetch| {
        report.field("async_fetch", |report| {
            scalar::positive(report, "failed_refetch_duration", fetch.failed_refetch_duration.as_ref(), REFETCH)
        })
    });
    let (retries, retry_base, retry_max) = message.retry_policy.as_ref().map_or((0, RETRY, RETRY * 10), |policy| {
        report.field("retry_policy", |report| {
            // Envoy: one, if there is a policy that does not say.
            let retries = policy.num_retries.unwrap_or(1).min(MOST_RETRIES);
            let (base, max) = policy.retry_back_off.as_ref().map_or((RETRY, RETRY * 10), |backoff| {
                report.field("retry_back_off", |report| {
                    let base = scalar::positive(report, "base_interval", backoff.base_interval.as_ref(), RETRY);
                    let max = scalar::positive(report, "max_interval", backoff.max_interval.as_ref(), base * 10);
                    (base, max)
                })
            });
            (retries, base, max)
        })
    });
    let lifetime = lifetime.max(LEAST_LIFETIME);
    Some(Arc::new(RemoteJwks { cluster, authority, path, timeout, lifetime, retries, retry_base, retry_max, refetch }))
}

/// Authority and path. Whether it is TLS is the cluster's to say.
fn target(report: &mut Report, uri: &str) -> Option<(Arc<str>, Arc<str>)> {
    let rest = uri.strip_prefix("https://").or_else(|| uri.strip_prefix("http://"));
    let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
    let split = rest.filter(|rest| plain(rest)).map(|rest| rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len())));
    let Some((authority, path)) =
        split.filter(|(authority, _)| !authority.is_empty() && !authority.contains(['@', '#']))
    else {
        report.error_at("uri", format!("{:?} is not http(s)://HOST[:PORT]/PATH", clip(uri)));
        return None;
    };
    let path = path.split('#').next().unwrap_or_default();
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    Some((authority.into(), path.into()))
}

/// Envoy's defaults.
const LIFETIME: Duration = Duration::from_secs(600);
const REFETCH: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_secs(1);
/// What nobody needs more of.
const MOST_TIME: Duration = Duration::from_secs(60);
const MOST_RETRIES: u32 = 100;
const LEAST_LIFETIME: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_say_whom_to_ask_for_what() {
        for (uri, expected) in [
            ("https://idp.example:8443/keys?a=b#c", Some(("idp.example:8443", "/keys?a=b"))),
            ("http://idp", Some(("idp", "/"))),
            ("http://idp?x", Some(("idp", "/?x"))),
            ("ftp://idp/", None),
            ("https:///keys", None),
            ("https://user@idp/keys", None),
            ("https://idp/ke ys", None),
            ("https://idp/\r\nhost: other", None),
            ("", None),
        ] {
            let mut report = Report::default();
            let seen = target(&mut report, uri);
            let seen = seen.as_ref().map(|(authority, path)| (&**authority, &**path));
            assert_eq!(seen, expected, "{uri:?}");
        }
    }
}
