//! Tokens that count for one handshake (RFC 7519 §4.1.7: `jti` prevents that a token is replayed): which of them have been used.
//!
//! **Bounded, and closed when it is full**: a token that cannot be remembered is not taken.

use std::collections::HashMap;
use std::time::SystemTime;

use aws_lc_rs::digest::{SHA256, digest};
use parking_lot::Mutex;

use super::identity::Denial;
use crate::envoy::jwt::Claims;

/// One token, as it is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OneTime {
    /// Of issuer and id: an agent chooses how long its id is, but not how much is kept.
    digest: [u8; 32],
    /// From then on it is not good anyway.
    until: SystemTime,
}

impl OneTime {
    /// `None`: the token has no id, or never expires.
    pub(super) fn of(issuer: &str, claims: &Claims, until: Option<SystemTime>) -> Option<Self> {
        let id = claims.text(&["jti"]).filter(|id| !id.is_empty())?;
        // An issuer has no NUL (its length would do as well).
        let digest = digest(&SHA256, format!("{issuer}\0{id}").as_bytes());
        Some(Self { digest: digest.as_ref().try_into().ok()?, until: until? })
    }
}

/// The tokens that have been used, over all listeners of the process.
#[derive(Debug, Default)]
pub(super) struct UsedTokens(Mutex<HashMap<[u8; 32], SystemTime>>);

impl UsedTokens {
    /// Takes the token, once.
    pub(super) fn take(&self, token: &OneTime, now: SystemTime) -> Result<(), Denial> {
        let mut used = self.0.lock();
        if used.contains_key(&token.digest) {
            return Err(Denial::TokenUsed);
        }
        if used.len() >= MOST {
            used.retain(|_, until| *until > now);
            if used.len() >= MOST {
                return Err(Denial::TokensFull);
            }
        }
        used.insert(token.digest, token.until);
        Ok(())
    }
}

/// Tokens that are remembered.
const MOST: usize = 65_536;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_token_is_taken_once_and_no_more_are_remembered_than_may_be() {
        let now = SystemTime::now();
        let token = |n: usize, lives: u64| {
            let mut digest = [0; 32];
            digest[..8].copy_from_slice(&n.to_be_bytes());
            OneTime { digest, until: now + Duration::from_secs(lives) }
        };
        let used = UsedTokens::default();
        assert_eq!(used.take(&token(0, 60), now), Ok(()), "the first time");
        assert_eq!(used.take(&token(0, 60), now), Err(Denial::TokenUsed), "the second time");
        for n in 1..MOST {
            assert_eq!(used.take(&token(n, if n < 10 { 60 } else { 120 }), now), Ok(()), "token {n}");
        }
        assert_eq!(used.take(&token(MOST, 60), now), Err(Denial::TokensFull), "one too many");
        let later = now + Duration::from_secs(90);
        assert_eq!(used.take(&token(MOST, 600), later), Ok(()), "what has expired makes room");
        assert_eq!(used.take(&token(20, 120), later), Err(Denial::TokenUsed), "what has not is remembered");
    }
}
