//! `/certs`: certificates in use, as `envoy.admin.v3.Certificates`.

use std::time::SystemTime;

use culvert_runtime::tls::CertificateDetails;
use serde_json::{Value, json};

use crate::overview::Overview;

pub(super) fn json(overview: &Overview, now: SystemTime) -> Value {
    let details = |list: &[CertificateDetails]| list.iter().map(|one| certificate(one, now)).collect::<Vec<_>>();
    let all = overview.certificates().into_iter();
    let all = all.map(|(_, view)| json!({ "ca_cert": details(&view.trusted), "cert_chain": details(&view.presented) }));
    json!({ "certificates": all.collect::<Vec<_>>() })
}

/// `/certs/usage`: the same by who uses them, with subjects and fingerprints.
pub(super) fn usage(overview: &Overview) -> Value {
    let details = |list: &[CertificateDetails]| {
        let one = |one: &CertificateDetails| {
            json!({
                "subject": one.subject,
                "sha256": one.sha256,
                "serial_number": one.serial,
                "not_after": timestamp(one.not_after),
            })
        };
        list.iter().map(one).collect::<Vec<_>>()
    };
    let all = overview.certificates().into_iter().map(|(owner, view)| {
        json!({ "used_by": owner, "trusts": details(&view.trusted), "presents": details(&view.presented) })
    });
    json!({ "certificates": all.collect::<Vec<_>>() })
}

fn certificate(details: &CertificateDetails, now: SystemTime) -> Value {
    let dns = details.dns_sans.iter().map(|name| json!({ "dns": name }));
    let uris = details.uri_sans.iter().map(|name| json!({ "uri": name }));
    let addresses = details.ip_sans.iter().map(|address| json!({ "ip_address": address.to_string() }));
    let names: Vec<Value> = dns.chain(uris).chain(addresses).collect();
    let days = details.not_after.duration_since(now).map_or(0, |left| left.as_secs() / (24 * 60 * 60));
    json!({
        "serial_number": details.serial,
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
