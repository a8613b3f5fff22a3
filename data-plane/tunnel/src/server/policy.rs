//! Who may join which cluster: the server's to demand. **A listener with policies admits nobody who names none.**

use std::sync::Arc;

use culvert_model::tunnel::{NamePattern, TunnelServer};
use subtle::{Choice, ConstantTimeEq};

use super::identity::Shown;
use crate::wire::{Init, Status};

/// The credentials of each policy, in the order of [`TunnelServer::policies`]: what its data sources held. One line
/// break at an end is taken off (files end in one), and an empty credential admits nobody.
pub type Tokens = Vec<Vec<Arc<[u8]>>>;

/// Why an agent is not admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum PolicyError {
    #[error("names no credential policy where one is demanded")]
    CredentialMissing,
    #[error("names a credential policy that the listener does not have")]
    PolicyUnknown,
    #[error("its credential is wrong")]
    CredentialWrong,
    #[error("sends its credential, of which a proof is demanded (bind_to_tls)")]
    CredentialSent,
    #[error("may not join that cluster")]
    ClusterNotAllowed,
    #[error("its host name is longer than {MAX_HOST_NAME} bytes or holds control characters")]
    HostNameInvalid,
}

impl PolicyError {
    pub(super) fn status(self) -> Status {
        match self {
            Self::CredentialMissing | Self::CredentialWrong | Self::CredentialSent | Self::ClusterNotAllowed => {
                Status::AuthFailed
            }
            Self::PolicyUnknown => Status::PolicyNotFound,
            Self::HostNameInvalid => Status::Unknown,
        }
    }
}

/// Checks an agent's claim; the name of the policy that admitted it, if the listener has any.
pub(super) fn check(
    config: &TunnelServer,
    tokens: &Tokens,
    init: &Init,
    shown: &Shown,
) -> Result<Option<Arc<str>>, PolicyError> {
    // It is shown to operators and compared with request headers.
    if init.host_name.len() > MAX_HOST_NAME || init.host_name.chars().any(char::is_control) {
        return Err(PolicyError::HostNameInvalid);
    }
    let named = &init.credential_policy;
    if named.is_empty() {
        if !config.policies.is_empty() {
            return Err(PolicyError::CredentialMissing);
        }
        return allowed(&config.allowed_clusters, &init.cluster_name).map(|()| None);
    }
    let mut policies = config.policies.iter().enumerate();
    let Some((index, policy)) = policies.find(|(_, policy)| *policy.name == **named) else {
        return Err(PolicyError::PolicyUnknown);
    };
    let accepted = tokens.get(index).map(Vec::as_slice).unwrap_or_default();
    if !shown.is_of(accepted) {
        return Err(PolicyError::CredentialWrong);
    }
    if policy.bound && !shown.is_bound() {
        return Err(PolicyError::CredentialSent);
    }
    let clusters = if policy.clusters.is_empty() { &config.allowed_clusters } else { &policy.clusters };
    allowed(clusters, &init.cluster_name).map(|()| Some(Arc::from(&**named)))
}

/// As [`check`], for an agent that presents a bearer token and names no policy: the first that has the token.
pub(super) fn check_bearer(
    config: &TunnelServer,
    tokens: &Tokens,
    cluster: &str,
    token: Option<&str>,
) -> Result<Option<Arc<str>>, PolicyError> {
    if config.policies.is_empty() {
        return allowed(&config.allowed_clusters, cluster).map(|()| None);
    }
    let offered = token.ok_or(PolicyError::CredentialMissing)?.as_bytes();
    let admitting = config.policies.iter().zip(tokens).fold(None, |found, (policy, accepted)| {
        if any_matches(accepted, |token| token.ct_eq(offered)) { Some(policy) } else { found }
    });
    let policy = admitting.ok_or(PolicyError::CredentialWrong)?;
    if policy.bound {
        return Err(PolicyError::CredentialSent);
    }
    let clusters = if policy.clusters.is_empty() { &config.allowed_clusters } else { &policy.clusters };
    allowed(clusters, cluster).map(|()| Some(Arc::clone(&policy.name)))
}

/// The clusters that an agent may serve which a policy (`None`: none was asked for) has let in. `None`: any.
pub(super) fn may_serve(config: &TunnelServer, policy: Option<&str>) -> Option<Arc<[NamePattern]>> {
    let named = |policy_name: &str| config.policies.iter().find(|policy| *policy.name == *policy_name);
    let own = policy.and_then(named).map(|policy| &policy.clusters).filter(|clusters| !clusters.is_empty());
    Some(own.unwrap_or(&config.allowed_clusters)).filter(|clusters| !clusters.is_empty()).cloned()
}

pub(super) fn allowed(clusters: &[NamePattern], cluster: &str) -> Result<(), PolicyError> {
    if clusters.is_empty() || clusters.iter().any(|pattern| pattern.matches(cluster)) {
        Ok(())
    } else {
        Err(PolicyError::ClusterNotAllowed)
    }
}

/// Looks at every token whatever the others said, so that time tells neither which one matched nor how much of it.
pub(super) fn any_matches(accepted: &[Arc<[u8]>], is: impl Fn(&[u8]) -> Choice) -> bool {
    let matched = accepted.iter().fold(Choice::from(0), |matched, token| {
        let token = without_line_break(token);
        matched | (is(token) & Choice::from(u8::from(!token.is_empty())))
    });
    matched.into()
}

fn without_line_break(token: &[u8]) -> &[u8] {
    let token = token.strip_suffix(b"\n").unwrap_or(token);
    token.strip_suffix(b"\r").unwrap_or(token)
}

/// As long as a DNS name.
pub(super) const MAX_HOST_NAME: usize = 253;
