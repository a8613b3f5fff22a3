//! A development CA: one root, and leaves for the two ends of a tunnel. For loopback only.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyIdMethod, KeyPair, RevokedCertParams, SanType, SerialNumber,
};

use crate::Result;

/// A root key and its certificate.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// What one end presents: files in PEM.
#[derive(Debug, Clone)]
pub struct Leaf {
    pub certificate: PathBuf,
    pub key: PathBuf,
    serial: u64,
}

impl Authority {
    /// A new root.
    pub fn new(name: &str) -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.distinguished_name.push(DnType::CommonName, name);
        let pem = params.self_signed(&key)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), pem })
    }

    /// Writes `folder/ca.pem`.
    pub fn write(&self, folder: &Path) -> Result<PathBuf> {
        let path = folder.join("ca.pem");
        std::fs::write(&path, &self.pem)?;
        Ok(path)
    }

    /// Issues `folder/NAME.pem` and `folder/NAME-key.pem` (readable by the owner only) for both roles, valid for the
    /// DNS names and URIs given (`spiffe://...`).
    pub fn issue(&self, folder: &Path, name: &str, names: &[&str]) -> Result<Leaf> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, name);
        let serial = NEXT_SERIAL.fetch_add(1, Ordering::Relaxed);
        params.serial_number = Some(SerialNumber::from(serial));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        for name in names {
            params.subject_alt_names.push(match (name.contains("://"), name.parse()) {
                (true, _) => SanType::URI((*name).try_into()?),
                (false, Ok(ip)) => SanType::IpAddress(ip),
                (false, Err(_)) => SanType::DnsName((*name).try_into()?),
            });
        }
        let (certificate, key_path) = (folder.join(format!("{name}.pem")), folder.join(format!("{name}-key.pem")));
        let leaf = Leaf { certificate, key: key_path, serial };
        std::fs::write(&leaf.certificate, params.signed_by(&key, &self.issuer)?.pem())?;
        write_private(&leaf.key, &key.serialize_pem())?;
        Ok(leaf)
    }

    /// A revocation list with these, in PEM.
    pub fn revoke(&self, leaves: &[&Leaf]) -> Result<String> {
        let day = |year| rcgen::date_time_ymd(year, 1, 1);
        let revoked = leaves.iter().map(|leaf| RevokedCertParams {
            serial_number: SerialNumber::from(leaf.serial),
            revocation_time: day(2025),
            reason_code: None,
            invalidity_date: None,
        });
        let list = CertificateRevocationListParams {
            this_update: day(2025),
            next_update: day(2090),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        Ok(list.signed_by(&self.issuer)?.pem()?)
    }
}

/// Of all authorities of the process.
static NEXT_SERIAL: AtomicU64 = AtomicU64::new(1);

fn write_private(path: &Path, text: &str) -> Result {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    Ok(())
}
