use std::sync::Arc;

use culvert_model::matcher::StringMatcher;
use culvert_model::secret::{Secret, SecretKind};
use culvert_model::tls::{DownstreamTls, SanKind, SanMatcher, SecretRef};

use super::*;
use crate::testing::{certificate, common, inline, sds, tls_certificate, trusting};

fn secret(name: &str, kind: SecretKind) -> Arc<Secret> {
    Arc::new(Secret { name: name.into(), kind })
}

fn complete(context: &CommonTls, secrets: &Secrets) -> Material {
    match gather(context, secrets).unwrap() {
        Gathered::Complete(material) => material,
        Gathered::Awaiting(names) => panic!("expected everything to be there, waits for {names:?}"),
    }
}

#[test]
fn a_secret_of_sds_is_awaited_and_a_static_one_must_be_there() {
    let pair = certificate("edge.test");
    let mut secrets = Secrets::new(&[secret("fixed", SecretKind::Certificate(tls_certificate(&pair)))]);
    let mut context = common(vec![sds("moving")]);
    context.validation = Some(sds("roots"));
    let awaited = gather(&context, &secrets).unwrap();
    assert!(
        matches!(&awaited, Gathered::Awaiting(names) if **names == ["moving".into(), "roots".into()]),
        "{awaited:?}"
    );

    secrets.set(secret("moving", SecretKind::Certificate(tls_certificate(&pair))));
    secrets.set(secret("roots", SecretKind::Validation(trusting(&pair.0))));
    let material = complete(&context, &secrets);
    assert_eq!(material.certificates.len(), 1, "the certificate has come");
    let tls = DownstreamTls { common: context, require_client_certificate: true };
    assert!(material.server(&tls).is_ok(), "a configuration can be built");

    let fixed = |name: &str| common(vec![SecretRef::Sds { name: name.into(), config: None }]);
    assert_eq!(complete(&fixed("fixed"), &secrets).certificates.len(), 1, "a static secret");
    let error = gather(&fixed("moving"), &secrets).unwrap_err().to_string();
    assert!(error.contains("no static secret is named moving"), "static names are not those of SDS: {error}");
}

#[test]
fn a_secret_of_the_wrong_kind_is_named() {
    let secrets = Secrets::new(&[secret("roots", SecretKind::Validation(trusting("x")))]);
    let context = common(vec![SecretRef::Sds { name: "roots".into(), config: None }]);
    let error = gather(&context, &secrets).unwrap_err().to_string();
    assert_eq!(error, "secret roots is a validation context, expected a certificate");
}

#[test]
fn the_digest_follows_the_bytes() {
    let (one, two) = (certificate("one.test"), certificate("two.test"));
    let secrets = Secrets::default();
    let digest = |pair| complete(&common(vec![SecretRef::Inline(tls_certificate(pair))]), &secrets).digest();
    assert_eq!(digest(&one), digest(&one), "the same bytes");
    assert_ne!(digest(&one), digest(&two), "other bytes");
}

#[test]
fn a_file_is_read_each_time_and_named_when_it_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let pair = certificate("edge.test");
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("chain.pem"), &pair.0).unwrap();
    std::fs::write(path("key.pem"), &pair.1).unwrap();
    let source = |name: &str| DataSource::File { path: path(name), watched_directory: None };
    let of_files = TlsCertificate { chain: source("chain.pem"), key: source("key.pem") };
    let context = common(vec![SecretRef::Inline(of_files)]);
    let secrets = Secrets::default();
    assert_eq!(files(&context, &secrets), [path("chain.pem"), path("key.pem")], "files to watch");
    let before = complete(&context, &secrets).digest();
    let other = certificate("edge.test");
    std::fs::write(path("chain.pem"), &other.0).unwrap();
    assert_ne!(complete(&context, &secrets).digest(), before, "the chain was replaced");
    std::fs::remove_file(path("key.pem")).unwrap();
    let error = gather(&context, &secrets).unwrap_err().to_string();
    assert!(error.contains("private key") && error.contains("key.pem"), "what and where: {error}");
}

#[test]
fn what_sds_gives_is_merged_into_the_default() {
    let (ours, theirs) = (certificate("ours.test"), certificate("theirs.test"));
    let san = |value: &str| SanMatcher {
        kind: SanKind::Uri,
        matcher: StringMatcher::Exact { value: value.into(), ignore_case: false },
    };
    let mut default = trusting(&ours.0);
    default.san_matchers.push(san("a"));
    let mut given = trusting(&theirs.0);
    given.san_matchers.push(san("b"));
    let mut context = common(Vec::new());
    context.validation_default = Some(default);
    context.validation = Some(SecretRef::Inline(given));
    let validation = complete(&context, &Secrets::default()).validation.unwrap();
    assert_eq!(validation.trusted_ca.as_deref(), Some(theirs.0.as_bytes()), "the given root replaces the default's");
    assert_eq!(validation.sans, [san("a"), san("b")], "matchers are appended");
}

#[test]
fn a_secret_is_checked_before_it_counts() {
    let (one, two) = (certificate("one.test"), certificate("two.test"));
    let mismatch = TlsCertificate { chain: inline(&one.0), key: inline(&two.1) };
    let cases = [
        (SecretKind::Certificate(tls_certificate(&one)), None),
        (SecretKind::Certificate(mismatch), Some("does not belong")),
        (SecretKind::Validation(trusting(&one.0)), None),
        (SecretKind::Validation(trusting("garbage")), Some("no usable CERTIFICATE")),
        (
            SecretKind::Generic(DataSource::File { path: "/nonexistent".into(), watched_directory: None }),
            Some("/nonexistent"),
        ),
    ];
    for (kind, refusal) in cases {
        let checked = check_secret(&secret("s", kind)).map_err(|error| error.to_string());
        match (checked, refusal) {
            (Ok(()), None) => {}
            (Err(error), Some(refusal)) => assert!(error.contains(refusal), "expected '{refusal}', got '{error}'"),
            (checked, refusal) => panic!("expected {refusal:?}, got {checked:?}"),
        }
    }
}
