use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair,
};
use serde_json::json;

use super::*;

const NOW: u64 = 1_800_000_000;

pub(crate) struct Issuer {
    rsa: RsaKeyPair,
    ec: EcdsaKeyPair,
    ed: Ed25519KeyPair,
}

fn base64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

impl Issuer {
    pub(crate) fn new() -> Self {
        Self {
            rsa: RsaKeyPair::generate(KeySize::Rsa2048).unwrap(),
            ec: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap(),
            ed: Ed25519KeyPair::generate().unwrap(),
        }
    }

    pub(crate) fn jwks(&self) -> Value {
        let (point, rsa) = (self.ec.public_key().as_ref(), self.rsa.public_key().as_ref());
        // DER of 2048 bits: a sequence of the modulus, with a zero in front, and 65537.
        assert_eq!((rsa.len(), &rsa[4..9], &rsa[265..267]), (270, &b"\x02\x82\x01\x01\0"[..], &b"\x02\x03"[..]));
        let (n, e) = (&rsa[9..265], &rsa[267..]);
        json!({"keys": [
            {"kty": "RSA", "kid": "rsa", "alg": "RS256", "use": "sig", "n": base64(n), "e": base64(e)},
            {"kty": "EC", "kid": "ec", "crv": "P-256", "x": base64(&point[1..33]), "y": base64(&point[33..])},
            {"kty": "OKP", "kid": "ed", "crv": "Ed25519", "x": base64(self.ed.public_key())},
            {"kty": "oct", "k": "c2VjcmV0"},
        ]})
    }

    pub(crate) fn keys(&self) -> KeySet {
        KeySet::parse(self.jwks().to_string().as_bytes()).unwrap()
    }

    /// Signed by the key that `with` names, whatever the header says.
    pub(crate) fn token(&self, with: &str, header: &Value, claims: &Value) -> String {
        let signed = format!("{}.{}", base64(header.to_string()), base64(claims.to_string()));
        let (message, random) = (signed.as_bytes(), SystemRandom::new());
        let signature = match with {
            "RS256" => {
                let mut signature = vec![0; self.rsa.public_modulus_len()];
                self.rsa.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature).unwrap();
                signature
            }
            "ES256" => self.ec.sign(&random, message).unwrap().as_ref().to_vec(),
            _ => self.ed.sign(message).as_ref().to_vec(),
        };
        format!("{signed}.{}", base64(signature))
    }
}

pub(crate) fn validator() -> TokenRules {
    TokenRules {
        issuer: "https://issuer".into(),
        audiences: vec!["cloud".into(), "other".into()],
        clock_skew: Duration::from_secs(60),
    }
}

fn claims() -> Value {
    json!({"iss": "https://issuer", "aud": "cloud", "exp": NOW + 300, "sub": "edge-1", "a": {"b": 7}})
}

fn with(changes: &Value) -> Value {
    let mut claims = claims();
    for (name, value) in changes.as_object().unwrap() {
        if value.is_null() {
            claims.as_object_mut().unwrap().remove(name);
        } else {
            claims[name] = value.clone();
        }
    }
    claims
}

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(NOW)
}

#[test]
fn tokens_of_every_algorithm_are_believed() {
    let issuer = Issuer::new();
    let keys = issuer.keys();
    for (alg, kid) in [("RS256", "rsa"), ("ES256", "ec"), ("EdDSA", "ed")] {
        for header in [json!({"alg": alg}), json!({"alg": alg, "kid": kid, "typ": "JWT"})] {
            let verified = keys.verify(&issuer.token(alg, &header, &claims()), &validator(), now());
            let verified = verified.unwrap_or_else(|error| panic!("{header}: {error}"));
            assert_eq!(verified.text(&["sub"]).as_deref(), Some("edge-1"), "{header}");
            assert_eq!(verified.text(&["a", "b"]).as_deref(), Some("7"), "{header}");
            assert_eq!(verified.text(&["a"]), None, "an object is no id");
            assert_eq!(verified.text(&["sub", "b"]), None, "text has no parts");
        }
    }
}

#[test]
fn what_a_header_claims_is_not_believed() {
    let issuer = Issuer::new();
    let keys = issuer.keys();
    for (with, header, expected) in [
        ("RS256", json!({"alg": "none"}), JwtError::Algorithm),
        ("RS256", json!({"alg": "HS256"}), JwtError::Algorithm),
        ("RS256", json!({"alg": "rs256"}), JwtError::Algorithm),
        ("RS256", json!({"alg": "ES256"}), JwtError::Signature),
        ("ES256", json!({"alg": "RS256"}), JwtError::Signature),
        ("EdDSA", json!({"alg": "EdDSA", "kid": "ec"}), JwtError::Signature),
        ("EdDSA", json!({"alg": "EdDSA", "kid": "../../etc/passwd"}), JwtError::Signature),
        ("EdDSA", json!({"alg": "EdDSA", "crit": ["exp"]}), JwtError::Malformed),
        ("EdDSA", json!({"kid": "ed"}), JwtError::Malformed),
        ("EdDSA", json!([]), JwtError::Malformed),
    ] {
        let seen = keys.verify(&issuer.token(with, &header, &claims()), &validator(), now());
        assert_eq!(seen, Err(expected), "{header}");
    }
    let foreign = Issuer::new().token("EdDSA", &json!({"alg": "EdDSA"}), &claims());
    assert_eq!(keys.verify(&foreign, &validator(), now()), Err(JwtError::Signature), "somebody else's key");
}

#[test]
fn claims_are_checked() {
    let issuer = Issuer::new();
    let keys = issuer.keys();
    let cases = [
        (json!({}), Ok(())),
        (json!({"aud": ["x", "other"]}), Ok(())),
        (json!({"exp": NOW - 59}), Ok(())),
        (json!({"nbf": NOW + 60}), Ok(())),
        (json!({"exp": 1_800_000_300.5}), Ok(())),
        (json!({"iss": "https://issuer/"}), Err(JwtError::Issuer)),
        (json!({"iss": null}), Err(JwtError::Issuer)),
        (json!({"aud": "x"}), Err(JwtError::Audience)),
        (json!({"aud": null}), Err(JwtError::Audience)),
        (json!({"aud": {"cloud": 1}}), Err(JwtError::Audience)),
        (json!({"exp": null}), Err(JwtError::NoExpiry)),
        (json!({"exp": "1800000300"}), Err(JwtError::NoExpiry)),
        (json!({"exp": NOW - 60}), Err(JwtError::Expired(60))),
        (json!({"exp": NOW - 600}), Err(JwtError::Expired(600))),
        (json!({"exp": -1e300}), Err(JwtError::Expired(u64::MAX))),
        (json!({"nbf": NOW + 61}), Err(JwtError::NotYet(61))),
        (json!({"nbf": NOW + 600}), Err(JwtError::NotYet(600))),
        (json!({"nbf": 1e300}), Err(JwtError::NotYet(u64::MAX))),
        (json!({"nbf": "soon"}), Err(JwtError::Malformed)),
    ];
    for (changes, expected) in cases {
        let token = issuer.token("EdDSA", &json!({"alg": "EdDSA"}), &with(&changes));
        assert_eq!(keys.verify(&token, &validator(), now()).map(drop), expected, "{changes}");
    }
    // What the log says of it, at either end of ten minutes.
    for (error, said) in [
        (JwtError::Expired(600), "it has expired: clock skew 600 s"),
        (JwtError::NotYet(600), "it is not valid yet: clock skew 600 s"),
    ] {
        assert_eq!(error.to_string(), said);
    }
    let anybody = TokenRules { audiences: Vec::new(), ..validator() };
    let token = issuer.token("EdDSA", &json!({"alg": "EdDSA"}), &with(&json!({"aud": null})));
    assert!(keys.verify(&token, &anybody, now()).is_ok(), "no audience is demanded");
}

#[test]
fn what_is_no_token_is_refused() {
    let issuer = Issuer::new();
    let keys = issuer.keys();
    let good = issuer.token("ES256", &json!({"alg": "ES256"}), &claims());
    assert!(keys.verify(&good, &validator(), now()).is_ok());
    for place in 0..good.len() {
        // The last character of a part has bits that say nothing.
        let mut bytes = good.clone().into_bytes();
        bytes[place] = if bytes[place] == b'A' { b'Q' } else { b'A' };
        let changed = String::from_utf8(bytes).unwrap();
        assert!(keys.verify(&changed, &validator(), now()).is_err(), "byte {place} changed");
        assert!(keys.verify(&good[..place], &validator(), now()).is_err(), "cut after {place} bytes");
    }
    for token in ["", ".", "..", "a.b.c", &format!("{good}."), &format!("{good}="), &"a".repeat(20_000)] {
        assert!(keys.verify(token, &validator(), now()).is_err(), "{token:?}");
    }
}

#[test]
fn key_sets_that_cannot_be_used() {
    for json in [
        "",
        "[]",
        "{}",
        r#"{"keys": []}"#,
        r#"{"keys": [{"kty": "oct", "k": "AA"}]}"#,
        r#"{"keys": [{"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}]}"#,
        r#"{"keys": [{"kty": "RSA", "n": "?", "e": "AQAB"}]}"#,
        r#"{"keys": [{"kty": "RSA", "n": "AQAB", "e": "AQAB", "alg": "RS512"}]}"#,
        r#"{"keys": [{"kty": "RSA", "n": "AQAB", "e": "AQAB", "use": "enc"}]}"#,
    ] {
        assert!(KeySet::parse(json.as_bytes()).is_err(), "{json}");
    }
}
