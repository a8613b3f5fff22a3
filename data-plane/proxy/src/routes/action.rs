//! What a matched route does, with everything resolved that can be resolved when a table is compiled.

use std::sync::Arc;

use bytes::Bytes;
use culvert_model::Name;
use culvert_model::route::{
    Action, AgentChoice, Body, ClusterChoice, ClusterRef, HeaderMutations, HostRewrite, PathRewrite, Redirect,
    RedirectPath, RetryPolicy, RouteAction,
};
use culvert_upstream::{ClusterSlot, Clusters};
use regex::bytes::Regex;

use super::CompileError;
use crate::source::read_source;

/// A route's action.
#[derive(Debug)]
pub(crate) enum CompiledAction {
    Forward(Box<Forward>),
    Redirect(Box<CompiledRedirect>),
    Direct {
        status: u16,
        body: Bytes,
    },
    /// `non_forwarding_action`: answered 404.
    NonForwarding,
}

/// Everything that sending a request to a cluster needs.
#[derive(Debug)]
pub(crate) struct Forward {
    pub(crate) config: Arc<RouteAction>,
    pub(crate) targets: Targets,
    pub(crate) path_rewrite: Option<CompiledPathRewrite>,
    pub(crate) host_path_regex: Option<Substitution>,
    /// The route's, else the virtual host's.
    pub(crate) retry: Option<Arc<RetryPolicy>>,
}

/// The clusters of a route. Slots, not names: a cluster that comes later fills its slot.
#[derive(Debug)]
pub(crate) enum Targets {
    One(Target),
    /// Each with the end of its share of `total`.
    Weighted {
        targets: Vec<(u64, WeightedTarget)>,
        total: u64,
    },
    /// The value of this request header names it.
    Header(Arc<str>),
}

#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) slot: Arc<ClusterSlot>,
    pub(crate) name: Name,
    pub(crate) agent: Option<AgentChoice>,
}

#[derive(Debug)]
pub(crate) struct WeightedTarget {
    pub(crate) target: Target,
    pub(crate) headers: Option<Arc<HeaderMutations>>,
    pub(crate) host_rewrite: Option<Arc<str>>,
}

#[derive(Debug)]
pub(crate) enum CompiledPathRewrite {
    Prefix(Arc<str>),
    Regex(Substitution),
}

/// A pattern and what takes the place of each of its matches.
#[derive(Debug)]
pub(crate) struct Substitution {
    pattern: Regex,
    replacement: Vec<u8>,
}

impl Substitution {
    /// `substitution` is RE2's: `\1` is the first group, `\0` the match, `\\` a backslash.
    fn compile(pattern: &str, substitution: &str) -> Result<Self, CompileError> {
        let pattern = Regex::new(pattern)
            .map_err(|error| CompileError::Regex { pattern: pattern.to_owned(), reason: error.to_string() })?;
        let mut replacement = Vec::with_capacity(substitution.len() + 8);
        let mut rest = substitution.bytes();
        while let Some(byte) = rest.next() {
            match (byte, if byte == b'\\' { rest.next() } else { None }) {
                (b'\\', Some(digit)) if digit.is_ascii_digit() => replacement.extend([b'$', b'{', digit, b'}']),
                (b'\\', Some(escaped)) => replacement.push(escaped),
                (b'$', _) => replacement.extend(*b"$$"),
                (byte, _) => replacement.push(byte),
            }
        }
        Ok(Self { pattern, replacement })
    }

    /// All matches replaced; `None` when the result is not text.
    pub(crate) fn apply(&self, subject: &str) -> Option<String> {
        let replaced = self.pattern.replace_all(subject.as_bytes(), self.replacement.as_slice());
        String::from_utf8(replaced.into_owned()).ok()
    }
}

#[derive(Debug)]
pub(crate) struct CompiledRedirect {
    pub(crate) config: Arc<Redirect>,
    pub(crate) regex: Option<Substitution>,
}

impl CompiledAction {
    pub(crate) fn compile(
        action: &Action,
        fallback_retry: Option<&Arc<RetryPolicy>>,
        clusters: &Clusters,
        max_body: u32,
    ) -> Result<Self, CompileError> {
        Ok(match action {
            Action::Forward(action) => Self::Forward(Box::new(Forward::compile(action, fallback_retry, clusters)?)),
            Action::Redirect(redirect) => {
                let regex = match &redirect.path {
                    RedirectPath::Regex { pattern, substitution } => {
                        Some(Substitution::compile(&pattern.source, substitution)?)
                    }
                    RedirectPath::Keep | RedirectPath::Full(_) | RedirectPath::Prefix(_) => None,
                };
                Self::Redirect(Box::new(CompiledRedirect { config: Arc::clone(redirect), regex }))
            }
            Action::Direct(direct) => {
                let body = match &direct.body {
                    Body::Empty => Bytes::new(),
                    Body::Source(source) => read_source(source, max_body as usize)?,
                };
                Self::Direct { status: direct.status, body }
            }
            Action::NonForwarding => Self::NonForwarding,
        })
    }
}

impl Forward {
    fn compile(
        action: &Arc<RouteAction>,
        fallback_retry: Option<&Arc<RetryPolicy>>,
        clusters: &Clusters,
    ) -> Result<Self, CompileError> {
        let path_rewrite = match &action.path_rewrite {
            None => None,
            Some(PathRewrite::Prefix(prefix)) => Some(CompiledPathRewrite::Prefix(Arc::clone(prefix))),
            Some(PathRewrite::Regex { pattern, substitution }) => {
                Some(CompiledPathRewrite::Regex(Substitution::compile(&pattern.source, substitution)?))
            }
        };
        let host_path_regex = match &action.host_rewrite {
            Some(HostRewrite::PathRegex { pattern, substitution }) => {
                Some(Substitution::compile(&pattern.source, substitution)?)
            }
            Some(HostRewrite::Literal(_) | HostRewrite::Auto | HostRewrite::Header(_)) | None => None,
        };
        Ok(Self {
            targets: Targets::compile(&action.clusters, clusters),
            path_rewrite,
            host_path_regex,
            retry: action.retry.as_ref().or(fallback_retry).cloned(),
            config: Arc::clone(action),
        })
    }
}

impl Targets {
    pub(crate) fn compile(choice: &ClusterChoice, clusters: &Clusters) -> Self {
        match choice {
            ClusterChoice::One(cluster) => Self::One(Target::compile(cluster, clusters)),
            ClusterChoice::Header(name) => Self::Header(Arc::clone(name)),
            ClusterChoice::Weighted { clusters: weighted, .. } => {
                let mut end = 0;
                let targets = weighted
                    .iter()
                    .map(|cluster| {
                        end += u64::from(cluster.weight);
                        let target = WeightedTarget {
                            target: Target::compile(&cluster.target, clusters),
                            headers: mutations(&cluster.headers),
                            host_rewrite: cluster.host_rewrite.clone(),
                        };
                        (end, target)
                    })
                    .collect();
                Self::Weighted { targets, total: end }
            }
        }
    }
}

impl Target {
    fn compile(cluster: &ClusterRef, clusters: &Clusters) -> Self {
        Self { slot: clusters.slot(&cluster.cluster), name: Arc::clone(&cluster.cluster), agent: cluster.agent.clone() }
    }
}

/// `None` when there is nothing to do.
pub(crate) fn mutations(headers: &HeaderMutations) -> Option<Arc<HeaderMutations>> {
    (*headers != HeaderMutations::default()).then(|| Arc::new(headers.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn substitutions_are_re2s() {
        for (pattern, substitution, subject, expected) in [
            ("^/service/([^/]+)(/.*)$", r"\2/instance/\1", "/service/foo/v1/api", "/v1/api/instance/foo"),
            ("one", "two", "/xxx/one/yyy/one/zzz", "/xxx/two/yyy/two/zzz"),
            ("^(.*?)one(.*)$", r"\1two\2", "/xxx/one/yyy/one/zzz", "/xxx/two/yyy/one/zzz"),
            ("(?i)/xxx/", "/yyy/", "/aaa/XxX/bbb", "/aaa/yyy/bbb"),
            ("a", "$1", "/a", "/$1"),
            ("a", r"\\", "/a", "/\\"),
        ] {
            let compiled = Substitution::compile(pattern, substitution).unwrap();
            assert_eq!(
                compiled.apply(subject).as_deref(),
                Some(expected),
                "{subject} with {pattern} replaced by {substitution}"
            );
        }
    }
}
