use culvert_http::RequestHead;
use culvert_model::http::{
    ClientCertDetails, EscapedSlashes, ForwardClientCert, HttpConnectionManager, StripPort, UnderscoreAction,
};
use culvert_model::listener::Cidr;
use culvert_runtime::tls::CertificateDetails;

use super::path::{Verdict, normalize};
use super::{prepare, underscores, uuid4};
use crate::listener::{Downstream, TlsDetails};
use crate::testing::{downstream, manager};

fn head(fields: &[(&str, &str)]) -> RequestHead {
    let mut head = RequestHead { authority: "a.example".to_owned(), path: "/".to_owned(), ..RequestHead::default() };
    for (name, value) in fields {
        assert!(head.fields.push(name.as_bytes(), value.as_bytes()), "{name} is a field");
    }
    head
}

fn get<'a>(head: &'a RequestHead, name: &str) -> Option<&'a str> {
    head.fields.get(name.as_bytes()).map(|value| std::str::from_utf8(value).unwrap())
}

fn edge() -> HttpConnectionManager {
    HttpConnectionManager { use_remote_address: true, ..manager() }
}

#[test]
fn an_edge_request_gets_the_addresses_that_are_true() {
    let mut head = head(&[
        ("x-forwarded-for", "203.0.113.9"),
        ("x-forwarded-proto", "https"),
        ("x-envoy-internal", "true"),
        ("x-envoy-max-retries", "9"),
        ("x-envoy-original-path", "/admin"),
        ("x-envoy-upstream-stream-duration-ms", "1"),
        ("x-request-id", "chosen-by-client"),
    ]);
    let client = prepare(&mut head, &edge(), &downstream());
    assert_eq!(client.address, downstream().remote, "the socket's peer is the client");
    for (name, expected) in [
        ("x-forwarded-for", Some("203.0.113.9,192.0.2.1")),
        ("x-forwarded-proto", Some("http")),
        ("x-envoy-external-address", Some("192.0.2.1")),
        ("x-envoy-internal", None),
        ("x-envoy-max-retries", None),
        ("x-envoy-original-path", None),
        ("x-envoy-upstream-stream-duration-ms", None),
    ] {
        assert_eq!(get(&head, name), expected, "{name}");
    }
    assert_ne!(get(&head, "x-request-id"), Some("chosen-by-client"), "an external request id is replaced");
}

#[test]
fn trusted_hops_name_the_client() {
    for (hops, use_remote, xff, expected) in [
        (0, false, "10.1.1.1, 10.2.2.2, 10.3.3.3", "10.3.3.3:0"),
        (1, false, "10.1.1.1, 10.2.2.2, 10.3.3.3", "10.2.2.2:0"),
        (1, true, "10.1.1.1, 10.2.2.2", "10.2.2.2:0"),
        (2, true, "10.1.1.1, 10.2.2.2", "10.1.1.1:0"),
        (9, true, "10.1.1.1", "192.0.2.1:4711"),
        (0, false, "garbage", "192.0.2.1:4711"),
    ] {
        let config = HttpConnectionManager { use_remote_address: use_remote, xff_num_trusted_hops: hops, ..manager() };
        let mut head = head(&[("x-forwarded-for", xff), ("x-forwarded-proto", "https")]);
        let client = prepare(&mut head, &config, &downstream());
        assert_eq!(client.address.to_string(), expected, "{hops} trusted hops, {xff}");
        let proto = get(&head, "x-forwarded-proto");
        assert_eq!(
            proto,
            Some(if use_remote && hops == 0 { "http" } else { "https" }),
            "a trusted hop's scheme is kept"
        );
    }
}

#[test]
fn internal_requests_are_those_of_the_ranges_that_nobody_forwarded() {
    let ranges = [Cidr { address: "192.0.2.0".parse().unwrap(), length: 24 }];
    for (use_remote, xff, range, expected) in [
        (true, None, true, true),
        (true, None, false, false),
        (true, Some("192.0.2.9"), true, false),
        (false, Some("192.0.2.9"), true, true),
        (false, Some("198.51.100.1"), true, false),
        (false, Some("192.0.2.9, 192.0.2.9"), true, false),
        (false, Some("garbage, 192.0.2.9"), true, false),
        (false, Some("garbage"), true, false),
        (false, None, true, false),
    ] {
        let internal_addresses = if range { ranges.to_vec() } else { Vec::new() };
        let config = HttpConnectionManager { use_remote_address: use_remote, internal_addresses, ..manager() };
        let mut head =
            head(&[("x-envoy-internal", "true"), ("x-envoy-max-retries", "9"), ("x-envoy-original-path", "/a")]);
        if let Some(xff) = xff {
            assert!(head.fields.push(b"x-forwarded-for", xff.as_bytes()), "a field");
        }
        prepare(&mut head, &config, &downstream());
        let case = format!("use_remote_address {use_remote}, x-forwarded-for {xff:?}, range {range}");
        assert_eq!(get(&head, "x-envoy-internal"), expected.then_some("true"), "{case}");
        assert_eq!(get(&head, "x-envoy-max-retries"), None, "{case}: nobody sets retries");
        let edge = use_remote && !expected;
        assert_eq!(get(&head, "x-envoy-original-path").is_none(), edge, "{case}: what only an edge removes");
        assert_eq!(get(&head, "x-envoy-external-address").is_some(), edge, "{case}: the address of an external client");
    }
}

#[test]
fn request_ids_are_made_where_there_is_none() {
    let config = manager();
    let mut without = head(&[]);
    prepare(&mut without, &config, &downstream());
    let id = get(&without, "x-request-id").unwrap();
    assert_eq!(id.len(), 36, "a UUID's text: {id}");
    let mut with = head(&[("x-request-id", "kept")]);
    prepare(&mut with, &config, &downstream());
    assert_eq!(get(&with, "x-request-id"), Some("kept"), "an inner proxy keeps the id");
}

#[test]
fn uuids_are_version_4() {
    let text = String::from_utf8(uuid4().to_vec()).unwrap();
    let dashes: Vec<usize> = text.match_indices('-').map(|(at, _)| at).collect();
    assert_eq!(dashes, [8, 13, 18, 23], "dashes of {text}");
    assert_eq!(text.as_bytes()[14], b'4', "version of {text}");
    assert!(b"89ab".contains(&text.as_bytes()[19]), "variant of {text}");
    assert_ne!(uuid4(), uuid4(), "two are different");
}

#[test]
fn client_certificates_are_forwarded_as_configured() {
    let peer = CertificateDetails {
        subject: "CN=edge-7".to_owned(),
        issuer: String::new(),
        serial: String::new(),
        sha256: "ab12".to_owned(),
        dns_sans: Vec::new(),
        uri_sans: vec!["spiffe://x/edge".to_owned()],
        email_sans: Vec::new(),
        ip_sans: Vec::new(),
        not_before: std::time::UNIX_EPOCH,
        not_after: std::time::UNIX_EPOCH,
    };
    let tls = TlsDetails {
        version: "TLSv1.3",
        cipher: String::new(),
        alpn: None,
        peer: Some(Box::new(peer)),
        chain: [vec![0xfb, 0xff].into()].into(),
        local_uri: Some("spiffe://x/gw".into()),
    };
    let mutual = Downstream { tls: Some(Box::new(tls)), ..downstream() };
    let plain = downstream();
    let own = "By=spiffe://x/gw;Hash=ab12;Subject=\"CN=edge-7\";URI=spiffe://x/edge";
    let both = format!("sent,{own}");
    for (mode, connection, expected) in [
        (ForwardClientCert::Sanitize, &mutual, None),
        (ForwardClientCert::ForwardOnly, &mutual, Some("sent")),
        (ForwardClientCert::ForwardOnly, &plain, None),
        (ForwardClientCert::AppendForward, &mutual, Some(&*both)),
        (ForwardClientCert::SanitizeSet, &mutual, Some(own)),
        (ForwardClientCert::AlwaysForwardOnly, &plain, Some("sent")),
    ] {
        let client_cert_details = ClientCertDetails { subject: true, uri: true, ..ClientCertDetails::default() };
        let config = HttpConnectionManager { forward_client_cert: mode, client_cert_details, ..manager() };
        let mut head = head(&[("x-forwarded-client-cert", "sent")]);
        prepare(&mut head, &config, connection);
        assert_eq!(get(&head, "x-forwarded-client-cert"), expected, "{mode:?}");
    }
}

#[test]
fn a_certificate_is_forwarded_as_encoded_pem() {
    let chain = [vec![0xfb, 0xff].into()];
    let expected = "\"-----BEGIN%20CERTIFICATE-----%0A%2B%2F8%3D%0A-----END%20CERTIFICATE-----%0A\"";
    assert_eq!(super::client_certificate::quoted_pem(&chain), expected, "URL-encoded PEM");
}

#[test]
fn hosts_lose_what_is_configured_to_be_stripped() {
    for (strip_port, dot, authority, expected) in [
        (StripPort::Keep, false, "a.example:80", "a.example:80"),
        (StripPort::Matching, false, "a.example:80", "a.example"),
        (StripPort::Matching, false, "a.example:81", "a.example:81"),
        (StripPort::Any, false, "a.example:81", "a.example"),
        (StripPort::Any, false, "[::1]:81", "[::1]"),
        (StripPort::Keep, true, "a.example.:81", "a.example:81"),
        (StripPort::Any, true, "a.example.:81", "a.example"),
    ] {
        let config = HttpConnectionManager { strip_port, strip_trailing_host_dot: dot, ..manager() };
        let mut head = RequestHead { authority: authority.to_owned(), ..head(&[]) };
        prepare(&mut head, &config, &downstream());
        assert_eq!(head.authority, expected, "{authority} with {strip_port:?}, dot {dot}");
    }
}

#[test]
fn underscores_are_let_through_refused_or_dropped() {
    for (action, refused, left) in [
        (UnderscoreAction::Allow, false, true),
        (UnderscoreAction::Reject, true, true),
        (UnderscoreAction::Drop, false, false),
    ] {
        let mut head = head(&[("x_y", "1")]);
        assert_eq!(underscores(&mut head, action), refused, "{action:?}");
        assert_eq!(head.fields.get(b"x_y").is_some(), left, "{action:?} and the field");
    }
}

#[test]
fn paths_come_into_one_spelling() {
    use EscapedSlashes::{Keep, Reject, UnescapeAndForward, UnescapeAndRedirect};
    for (normal, merge, slashes, path, expected, verdict) in [
        (false, false, Keep, "/a/../b//c%2Fd", "/a/../b//c%2Fd", Verdict::Go),
        (true, false, Keep, "/a/../b", "/b", Verdict::Go),
        (true, false, Keep, "/a/%2e%2E/b?x=/../y", "/b?x=/../y", Verdict::Go),
        (true, false, Keep, "/../../x", "/x", Verdict::Go),
        (true, false, Keep, "/a/b/..", "/a/", Verdict::Go),
        (true, false, Keep, "/a/.", "/a/", Verdict::Go),
        (true, false, Keep, r"\x", r"\x", Verdict::Go),
        (true, false, Keep, r"/a\..\b", "/b", Verdict::Go),
        (true, false, Keep, "/%41%2D%2f", "/A-%2f", Verdict::Go),
        (true, false, Keep, "/%00", "/%00", Verdict::Refuse),
        (true, false, Keep, "/%zz", "/%zz", Verdict::Refuse),
        (false, true, Keep, "//a///b?c//d", "/a/b?c//d", Verdict::Go),
        (true, true, Keep, "/a/%2e%2e//b", "/b", Verdict::Go),
        (false, false, Reject, "/a%2Fb", "/a%2Fb", Verdict::Refuse),
        (false, false, Reject, "/a?%2Fb", "/a?%2Fb", Verdict::Go),
        (false, false, UnescapeAndRedirect, "/a%5Cb", r"/a\b", Verdict::Redirect),
        (true, false, UnescapeAndForward, "/a%2f..%2Fb", "/b", Verdict::Go),
        (true, true, Keep, "/plain/path.html", "/plain/path.html", Verdict::Go),
    ] {
        let config = HttpConnectionManager {
            normalize_path: normal,
            merge_slashes: merge,
            escaped_slashes: slashes,
            ..manager()
        };
        let mut seen = path.to_owned();
        assert_eq!(normalize(&mut seen, &config), verdict, "{path}");
        assert_eq!(seen, expected, "{path} normalised");
    }
}
