//! `x-forwarded-client-cert`: what is forwarded of the client's certificate.

use std::borrow::Cow;

use base64::Engine;
use culvert_http::RequestHead;
use culvert_model::http::{ForwardClientCert, HttpConnectionManager};
use rustls::pki_types::CertificateDer;

use super::append;
use crate::listener::Downstream;

const FIELD: &[u8] = b"x-forwarded-client-cert";

/// Applies `forward_client_cert_details`; `present` says that the client sent the field.
pub(super) fn forward(head: &mut RequestHead, config: &HttpConnectionManager, connection: &Downstream, present: bool) {
    let certificate = connection.tls.as_ref().and_then(|tls| Some((tls, tls.peer.as_deref()?)));
    let mode = config.forward_client_cert;
    // Without mutual TLS nobody vouches for the field (Envoy removes it too).
    let keep = match mode {
        ForwardClientCert::AlwaysForwardOnly => true,
        ForwardClientCert::ForwardOnly | ForwardClientCert::AppendForward => certificate.is_some(),
        ForwardClientCert::Sanitize | ForwardClientCert::SanitizeSet => false,
    };
    if present && !keep {
        head.fields.remove(FIELD);
    }
    if !matches!(mode, ForwardClientCert::AppendForward | ForwardClientCert::SanitizeSet) {
        return;
    }
    let Some((tls, peer)) = certificate else { return };
    let mut element = String::new();
    let mut part = |key: &str, value: &str| {
        if !element.is_empty() {
            element.push(';');
        }
        element.push_str(key);
        element.push('=');
        element.push_str(value);
    };
    if let Some(own) = &tls.local_uri {
        part("By", &safe(own));
    }
    part("Hash", &peer.sha256);
    let details = &config.client_cert_details;
    if let Some(leaf) = tls.chain.first().filter(|_| details.cert) {
        part("Cert", &quoted_pem(std::slice::from_ref(leaf)));
    }
    if details.chain {
        part("Chain", &quoted_pem(&tls.chain));
    }
    if details.subject {
        part("Subject", &quoted(&peer.subject));
    }
    for uri in peer.uri_sans.iter().filter(|_| details.uri) {
        part("URI", &safe(uri));
    }
    for name in peer.dns_sans.iter().filter(|_| details.dns) {
        part("DNS", &safe(name));
    }
    append(&mut head.fields, FIELD, element.as_bytes());
}

/// A value that ends neither its element nor its field: a certificate's names are what its holder wrote into a request.
fn safe(value: &str) -> Cow<'_, str> {
    let plain = |character: char| !character.is_control() && !matches!(character, ',' | ';' | '=' | '"' | '\\' | ' ');
    if value.chars().all(plain) { Cow::Borrowed(value) } else { Cow::Owned(quoted(value)) }
}

/// In quotes, with what would end them escaped, and without control characters: no field can carry those.
fn quoted(value: &str) -> String {
    let mut text = String::from("\"");
    for character in value.chars().filter(|character| !character.is_control()) {
        if matches!(character, '"' | '\\') {
            text.push('\\');
        }
        text.push(character);
    }
    text.push('"');
    text
}

/// Certificates as PEM, in URL encoding, in quotes.
pub(super) fn quoted_pem(chain: &[CertificateDer<'static>]) -> String {
    let mut encoded = String::from("\"");
    for certificate in chain {
        let base64 = base64::engine::general_purpose::STANDARD.encode(certificate);
        encoded.push_str("-----BEGIN%20CERTIFICATE-----%0A");
        for character in base64.chars().zip(0_usize..) {
            if character.1 > 0 && character.1 % 64 == 0 {
                encoded.push_str("%0A");
            }
            match character.0 {
                '+' => encoded.push_str("%2B"),
                '/' => encoded.push_str("%2F"),
                '=' => encoded.push_str("%3D"),
                plain => encoded.push(plain),
            }
        }
        encoded.push_str("%0A-----END%20CERTIFICATE-----%0A");
    }
    encoded.push('"');
    encoded
}

#[cfg(test)]
mod tests {
    use super::{quoted, safe};

    #[test]
    fn names_of_a_certificate_cannot_begin_another_element() {
        for (name, expected) in [
            ("spiffe://cluster.local/ns/a/sa/b", "spiffe://cluster.local/ns/a/sa/b"),
            ("spiffe://a,By=spiffe://b;URI=spiffe://admin", r#""spiffe://a,By=spiffe://b;URI=spiffe://admin""#),
            (r#"spiffe://a";URI="x"#, r#""spiffe://a\";URI=\"x""#),
            ("a\r\nx-forwarded-client-cert: b", r#""ax-forwarded-client-cert: b""#),
        ] {
            assert_eq!(safe(name), expected, "{name:?}");
        }
        assert_eq!(quoted("O=a\nb\\,CN=\"c\""), r#""O=ab\\,CN=\"c\"""#, "a subject");
    }
}
