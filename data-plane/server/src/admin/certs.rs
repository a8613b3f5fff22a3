//! `/certs`: certificates in use, as `envoy.admin.v3.Certificates`.

use std::time::SystemTime;

use culvert_runtime::tls::CertificateDetails;
use serde_json::{Value, json};

use crate::overview::Overview;

pub(super) fn json(overview: &Overview, now: SystemTime) -> Value {
    let certificates = overview.certificates.lock();
    let all: Vec<Value> = certificates
        .iter()
        .map(|(owner, view)| {
            let details =
                |list: &[CertificateDetails]| list.iter().map(|one| certificate(one, now)).collect::<Vec<_>>();
            json!({ "used_by": owner, "ca_cert": details(&view.trusted), "cert_chain": details(&view.presented) })
        })
        .collect();
    json!({ "certificates": all })
}

fn certificate(details: &CertificateDetails, now: SystemTime) -> Value {
    let dns = details.dns_sans.iter().map(|name| json!({ "dns": name }));
    let uris = details.uri_sans.iter().map(|name| json!({ "uri": name }));
    let addresses = details.ip_sans.iter().map(|address| json!({ "ip_address": address.to_string() }));
    let names: Vec<Value> = dns.chain(uris).chain(addresses).collect();
    let days = details.not_after.duration_since(now).map_or(0, |left| left.as_secs() / (24 * 60 * 60));
    json!({
        "subject": details.subject,
        "serial_number": details.serial,
        "sha256": details.sha256,
        "subject_alt_names": names,
        "days_until_expiration": days.to_string(),
        "valid_from": timestamp(details.not_before),
        "expiration_time": timestamp(details.not_after),
    })
}

/// RFC 3339.
pub(super) fn timestamp(time: SystemTime) -> String {
    prost_types::Timestamp::from(time).to_string()
}
