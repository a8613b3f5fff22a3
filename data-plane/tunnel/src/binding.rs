//! A proof that an agent has a token, good on one TLS connection and no other.
//!
//! Keyed by the token, over RFC 9266's `tls-exporter` of the connection: HMAC-SHA256 (RFC 2104). The token itself is not sent.
//! **Whoever is given the proof can use it nowhere**: on another connection the exporter is another. What it can do is try
//! tokens until one yields the proof, so tokens must be random.

use aws_lc_rs::hmac;
use culvert_http::Io;
use subtle::ConstantTimeEq;

/// What two connections never have in common: both ends of one know it, and nobody else.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Binding([u8; LENGTH]);

/// That its sender has a token.
#[derive(Clone, PartialEq, Eq)]
pub struct Proof([u8; LENGTH]);

impl Binding {
    /// `None`: there is no TLS, or an older one than 1.3.
    pub(crate) fn of(io: &Io) -> Option<Self> {
        io.tls()?.exporter().map(Self)
    }

    /// As the agent does.
    pub(crate) fn prove(&self, token: &[u8]) -> Proof {
        let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, token));
        context.update(PURPOSE);
        context.update(&self.0);
        let mut proof = [0; LENGTH];
        proof.copy_from_slice(context.sign().as_ref());
        Proof(proof)
    }

    #[cfg(test)]
    pub(crate) fn from_bytes(bytes: [u8; LENGTH]) -> Self {
        Self(bytes)
    }
}

impl Proof {
    /// 64 hexadecimal digits; anything else is as good as nothing.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; LENGTH];
        let digits = text.len() == 2 * LENGTH && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2).filter(|_| digits)) {
            *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        }
        digits.then_some(Self(bytes))
    }

    pub(crate) fn to_text(&self) -> String {
        self.0
            .iter()
            .flat_map(|byte| [byte >> 4, byte & 15])
            .filter_map(|digit| char::from_digit(digit.into(), 16))
            .collect()
    }
}

impl ConstantTimeEq for Proof {
    fn ct_eq(&self, other: &Self) -> subtle::Choice {
        self.0.ct_eq(&other.0)
    }
}

impl std::fmt::Debug for Binding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Binding")
    }
}

impl std::fmt::Debug for Proof {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Proof")
    }
}

/// Of a SHA-256, and of the exporter (RFC 9266 §2).
const LENGTH: usize = 32;
/// What is proved, so that no other use of token and exporter yields the same.
const PURPOSE: &[u8] = b"culvert/1 credential\0";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_belongs_to_one_token_and_one_connection() {
        let (here, there) = (Binding([1; LENGTH]), Binding([2; LENGTH]));
        let proof = here.prove(b"sesame");
        // Computed with another implementation (Python's hmac).
        assert_eq!(
            proof.to_text(),
            "471503717dc15ebc2e44cb3f32a41969ad256f97248975477875aed8da663ab5",
            "HMAC-SHA256(sesame, ..)"
        );
        assert_eq!(Proof::parse(&proof.to_text()), Some(proof.clone()), "as it is sent");
        assert_eq!(Proof::parse(&proof.to_text().to_uppercase()), Some(proof.clone()), "in capitals");
        assert_ne!(proof, there.prove(b"sesame"), "of another connection");
        assert_ne!(proof, here.prove(b"sesam"), "of another token");
        for text in ["", "00", &"g".repeat(64), &"0".repeat(63), &"0".repeat(65), &"é".repeat(32)] {
            assert_eq!(Proof::parse(text), None, "{text:?}");
        }
        assert!(!format!("{here:?} {proof:?}").contains('1'), "neither is shown");
    }
}
