//! Bearer tokens that say who an initiator is: RFC 7519 (JWT) in RFC 7515's compact form, keys as RFC 7517 (JWKS).
//!
//! **The key decides the algorithm**: a token's `alg` must be that of a key of ours, so that neither `none` nor a secret
//! made of a public key verifies anything. `exp` is demanded.

use std::fmt;
use std::time::{Duration, SystemTime};

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents, UnparsedPublicKey,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use culvert_model::tunnel::policy::TokenRules;
use serde::Deserialize;
use serde_json::{Map, Value};

/// The keys of a JWKS that can be used. By default there is none, and no token is good.
#[derive(Debug, Default)]
pub struct KeySet {
    keys: Vec<Key>,
}

/// Why a JWKS cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JwksError {
    #[error("is no JSON Web Key Set: {0}")]
    Json(#[from] serde_json::Error),
    #[error("holds no key that can be used; RSA for RS256, EC on P-256 for ES256 and OKP on Ed25519 for EdDSA can")]
    NoKey,
}

/// Why a token is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JwtError {
    #[error("there is no token")]
    Missing,
    #[error("it is no compact JWT")]
    Malformed,
    #[error("its algorithm is not RS256, ES256 or EdDSA")]
    Algorithm,
    #[error("no key of ours has verified it")]
    Signature,
    #[error("another issuer")]
    Issuer,
    #[error("another audience")]
    Audience,
    #[error("it does not say when it expires")]
    NoExpiry,
    /// So many seconds ago.
    #[error("it has expired: clock skew {0} s")]
    Expired(u64),
    /// In so many seconds it will be.
    #[error("it is not valid yet: clock skew {0} s")]
    NotYet(u64),
}

/// What a verified token says.
#[derive(Debug, Clone, PartialEq)]
pub struct Claims(Map<String, Value>);

#[derive(Debug)]
struct Key {
    id: Option<String>,
    public: Public,
}

/// A public key; which one it is decides the algorithm.
enum Public {
    Rs256 {
        n: Vec<u8>,
        e: Vec<u8>,
    },
    /// Uncompressed point.
    Es256(Vec<u8>),
    EdDsa(Vec<u8>),
}

#[derive(Deserialize)]
struct Jwks {
    keys: Vec<Jwk>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    purpose: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    crit: Option<Value>,
}

impl KeySet {
    /// Takes the keys that can be used; others are left out with a log line.
    ///
    /// # Errors
    /// It is no JWKS, or no key of it can be used.
    pub fn parse(json: &[u8]) -> Result<Self, JwksError> {
        let jwks: Jwks = serde_json::from_slice(json)?;
        let mut keys = Vec::new();
        for jwk in jwks.keys {
            let id = jwk.kid.clone();
            match public(&jwk) {
                Some(public) => keys.push(Key { id, public }),
                None => tracing::warn!(kid = ?id, kty = %jwk.kty, "a key of a JWKS cannot be used and is left out"),
            }
        }
        if keys.is_empty() { Err(JwksError::NoKey) } else { Ok(Self { keys }) }
    }

    /// What the token says, if it is to be believed at `now`.
    ///
    /// # Errors
    /// Why it is not.
    pub fn verify(&self, token: &str, expected: &TokenRules, now: SystemTime) -> Result<Claims, JwtError> {
        let (signed, signature) =
            token.rsplit_once('.').filter(|_| token.len() <= MAX_TOKEN).ok_or(JwtError::Malformed)?;
        let (header, payload) = signed.split_once('.').ok_or(JwtError::Malformed)?;
        let header: Header = decode(header)?;
        // RFC 7515 §4.1.11: what it names must be understood, and nothing is.
        if header.crit.is_some() {
            return Err(JwtError::Malformed);
        }
        if !ALGORITHMS.contains(&&*header.alg) {
            return Err(JwtError::Algorithm);
        }
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| JwtError::Malformed)?;
        let fits = |key: &&Key| {
            let same_id = header.kid.is_none() || key.id.is_none() || header.kid == key.id;
            same_id && key.public.algorithm() == header.alg
        };
        let mut keys = self.keys.iter().filter(fits);
        if !keys.any(|key| key.public.verifies(signed.as_bytes(), &signature)) {
            return Err(JwtError::Signature);
        }
        let claims = Claims(decode(payload)?);
        claims.check(expected, now)?;
        Ok(claims)
    }
}

impl Claims {
    /// A claim as text, by the names on the way to it.
    #[must_use]
    pub fn text(&self, path: &[impl AsRef<str>]) -> Option<String> {
        let (last, above) = path.split_last()?;
        let mut object = &self.0;
        for name in above {
            object = object.get(name.as_ref())?.as_object()?;
        }
        match object.get(last.as_ref())? {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            Value::Bool(truth) => Some(truth.to_string()),
            Value::Null | Value::Array(_) | Value::Object(_) => None,
        }
    }

    /// When it expires, without any allowance for clocks. A time that cannot be written down is far enough.
    #[must_use]
    pub fn expires(&self) -> Option<SystemTime> {
        let seconds = self.0.get("exp").and_then(Value::as_f64)?;
        SystemTime::UNIX_EPOCH.checked_add(Duration::try_from_secs_f64(seconds).ok()?)
    }

    fn check(&self, expected: &TokenRules, now: SystemTime) -> Result<(), JwtError> {
        let text = |name: &str| self.0.get(name).and_then(Value::as_str);
        if text("iss") != Some(&*expected.issuer) {
            return Err(JwtError::Issuer);
        }
        let accepted = |audience: &str| expected.audiences.iter().any(|known| **known == *audience);
        let audience = match self.0.get("aud") {
            Some(Value::String(one)) => accepted(one),
            Some(Value::Array(several)) => several.iter().filter_map(Value::as_str).any(accepted),
            _ => false,
        };
        if !expected.audiences.is_empty() && !audience {
            return Err(JwtError::Audience);
        }
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs_f64();
        let skew = expected.clock_skew.as_secs_f64();
        // RFC 7519 §2: NumericDate may have a fraction.
        let expires = self.0.get("exp").and_then(Value::as_f64).ok_or(JwtError::NoExpiry)?;
        if now >= expires + skew {
            return Err(JwtError::Expired(whole_seconds(now - expires)));
        }
        match self.0.get("nbf").map(Value::as_f64) {
            Some(Some(from)) if now + skew < from => Err(JwtError::NotYet(whole_seconds(from - now))),
            Some(None) => Err(JwtError::Malformed),
            _ => Ok(()),
        }
    }
}

/// Not more than a clock can be wrong by; what a token says is any number.
fn whole_seconds(seconds: f64) -> u64 {
    Duration::try_from_secs_f64(seconds).map_or(u64::MAX, |time| time.as_secs())
}

impl Public {
    fn algorithm(&self) -> &'static str {
        match self {
            Self::Rs256 { .. } => "RS256",
            Self::Es256(_) => "ES256",
            Self::EdDsa(_) => "EdDSA",
        }
    }

    fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        match self {
            Self::Rs256 { n, e } => {
                RsaPublicKeyComponents { n, e }.verify(&RSA_PKCS1_2048_8192_SHA256, message, signature).is_ok()
            }
            // RFC 7518 §3.4: the two numbers one behind the other, not DER.
            Self::Es256(point) => {
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(message, signature).is_ok()
            }
            Self::EdDsa(key) => UnparsedPublicKey::new(&ED25519, key).verify(message, signature).is_ok(),
        }
    }
}

impl fmt::Debug for Public {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.algorithm())
    }
}

fn public(jwk: &Jwk) -> Option<Public> {
    let bytes = |text: &Option<String>| URL_SAFE_NO_PAD.decode(text.as_deref()?).ok();
    let coordinate = |text: &Option<String>| bytes(text).filter(|bytes| bytes.len() == 32);
    let public = match (&*jwk.kty, jwk.crv.as_deref()) {
        ("RSA", _) => Public::Rs256 { n: bytes(&jwk.n)?, e: bytes(&jwk.e)? },
        ("EC", Some("P-256")) => Public::Es256([vec![4], coordinate(&jwk.x)?, coordinate(&jwk.y)?].concat()),
        ("OKP", Some("Ed25519")) => Public::EdDsa(coordinate(&jwk.x)?),
        _ => return None,
    };
    let says = |said: &Option<String>, expected: &str| said.as_deref().is_none_or(|said| said == expected);
    (says(&jwk.alg, public.algorithm()) && says(&jwk.purpose, "sig")).then_some(public)
}

fn decode<T: for<'de> Deserialize<'de>>(part: &str) -> Result<T, JwtError> {
    let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| JwtError::Malformed)?;
    serde_json::from_slice(&bytes).map_err(|_| JwtError::Malformed)
}

const ALGORITHMS: &[&str] = &["RS256", "ES256", "EdDSA"];
/// Of a token, in bytes.
const MAX_TOKEN: usize = 16 * 1024;

#[cfg(test)]
pub(crate) mod tests;
