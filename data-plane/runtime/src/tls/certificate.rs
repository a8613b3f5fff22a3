//! What a certificate says of its holder.

use std::fmt::Write;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use rustls_pki_types::SubjectPublicKeyInfoDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate, X509Name};

use super::TlsError;

/// The parts of a certificate that others read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateDetails {
    /// RFC 2253: most specific first, `CN=edge-7,O=Example`.
    pub subject: String,
    pub issuer: String,
    /// Lower-case hex.
    pub serial: String,
    /// Lower-case hex.
    pub sha256: String,
    pub dns_sans: Vec<String>,
    pub uri_sans: Vec<String>,
    pub email_sans: Vec<String>,
    pub ip_sans: Vec<IpAddr>,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
}

impl CertificateDetails {
    /// Of a DER certificate: our own or a peer's (`peer_certificates().first()`).
    ///
    /// # Errors
    /// It is no X.509 certificate.
    pub fn parse(der: &[u8]) -> Result<Self, TlsError> {
        let (_, certificate) =
            X509Certificate::from_der(der).map_err(|error| TlsError::Certificate(error.to_string()))?;
        let mut details = Self {
            subject: rfc2253(certificate.subject()),
            issuer: rfc2253(certificate.issuer()),
            serial: hex(certificate.raw_serial()),
            sha256: hex(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, der).as_ref()),
            dns_sans: Vec::new(),
            uri_sans: Vec::new(),
            email_sans: Vec::new(),
            ip_sans: Vec::new(),
            not_before: time(certificate.validity().not_before.timestamp()),
            not_after: time(certificate.validity().not_after.timestamp()),
        };
        if let Ok(Some(names)) = certificate.subject_alternative_name() {
            for name in &names.value.general_names {
                details.add(name);
            }
        }
        Ok(details)
    }

    fn add(&mut self, name: &GeneralName<'_>) {
        match name {
            GeneralName::DNSName(name) => self.dns_sans.push((*name).to_owned()),
            GeneralName::URI(name) => self.uri_sans.push((*name).to_owned()),
            GeneralName::RFC822Name(name) => self.email_sans.push((*name).to_owned()),
            GeneralName::IPAddress(bytes) => {
                let v4 = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
                let v6 = <[u8; 16]>::try_from(*bytes).map(IpAddr::from);
                self.ip_sans.extend(v4.or(v6));
            }
            _ => {}
        }
    }
}

/// The public key of a DER certificate, as it stands there (`SubjectPublicKeyInfo`).
///
/// # Errors
/// It is no X.509 certificate.
pub(super) fn public_key(der: &[u8]) -> Result<SubjectPublicKeyInfoDer<'_>, TlsError> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|error| TlsError::Certificate(error.to_string()))?;
    Ok(SubjectPublicKeyInfoDer::from(certificate.tbs_certificate.subject_pki.raw))
}

fn time(seconds: i64) -> SystemTime {
    // Before 1970 is expired however long ago it was.
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.try_into().unwrap_or(0))
}

// RFC 2253 §2.1: the last relative name comes first.
fn rfc2253(name: &X509Name<'_>) -> String {
    let mut parts: Vec<String> = name
        .iter_rdn()
        .map(|rdn| {
            let attributes: Vec<String> = rdn
                .iter()
                .map(|attribute| {
                    let oid = attribute.attr_type();
                    let key = x509_parser::objects::oid2abbrev(oid, x509_parser::objects::oid_registry())
                        .map_or_else(|_| oid.to_id_string(), str::to_owned);
                    format!("{key}={}", escape(attribute.as_str().unwrap_or("?")))
                })
                .collect();
            attributes.join("+")
        })
        .collect();
    parts.reverse();
    parts.join(",")
}

// RFC 2253 §2.4
fn escape(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for (place, c) in value.char_indices() {
        let edge = place == 0 || place + c.len_utf8() == value.len();
        if matches!(c, ',' | '+' | '"' | '\\' | '<' | '>' | ';') || (edge && c == ' ') || (place == 0 && c == '#') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut out, byte| {
        // Writing to a String cannot fail.
        let _ = write!(out, "{byte:02x}");
        out
    })
}
