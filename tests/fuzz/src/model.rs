//! Resources off the wire, and the small languages in them.

use culvert_api::envoy::config::cluster::v3::Cluster;
use culvert_api::envoy::config::listener::v3::Listener;
use culvert_api::envoy::config::route::v3::route_match::PathSpecifier;
use culvert_api::envoy::config::route::v3::{Route, RouteConfiguration, RouteMatch, VirtualHost};
use culvert_api::type_url;
use culvert_model::access_log::Format;
use culvert_model::matcher::SafeRegex;
use prost::Message;

pub(crate) const WORDS: &[&str] = &[
    "%REQ(",
    "%RESP(",
    "%START_TIME(",
    "%PROTOCOL%",
    ")%",
    "):5%",
    "?",
    ":",
    "%%",
    "%Y-%m-%d",
    "%3f",
    "%DURATION%",
    "(",
    ")",
    "[a-z]",
    "[^/]+",
    ".*",
    "(?:",
    "(?i)",
    "\\d",
    "\\pL",
    "{1,9}",
    "|",
    "^",
    "$",
    "\\1",
    "\\x{10ffff}",
    "(?P<a>",
    "/",
    "\0",
];

/// The first byte says of which type; determined by the bytes alone, and refused with reasons.
pub(crate) fn resources(data: &[u8]) {
    const TYPES: [&str; 8] = [
        type_url::CLUSTER,
        type_url::CLUSTER_LOAD_ASSIGNMENT,
        type_url::LISTENER,
        type_url::ROUTE_CONFIGURATION,
        type_url::SECRET,
        type_url::TUNNEL_AGENT,
        type_url::TUNNEL_POLICY,
        "type.googleapis.com/nobody.knows.It",
    ];
    let Some((&how, bytes)) = data.split_first() else { return };
    let of = TYPES[usize::from(how) % TYPES.len()];
    let first = culvert_model::parse_any(of, bytes);
    let second = culvert_model::parse_any(of, bytes);
    let reasons = |errors: &[culvert_model::report::Finding]| {
        assert!(!errors.is_empty(), "refused without a reason");
        errors.iter().map(|error| format!("{error:?}")).collect::<Vec<_>>()
    };
    match (&first.value, &second.value) {
        (Ok(first), Ok(second)) => assert_eq!(first, second, "the same bytes, the same value"),
        (Err(first), Err(second)) => assert_eq!(reasons(first), reasons(second), "the same bytes, the same reasons"),
        _ => panic!("the same bytes, taken and refused"),
    }
}

pub(crate) fn resource_seeds() -> Vec<Vec<u8>> {
    let message = |kind: u8, bytes: Vec<u8>| [&[kind][..], &bytes].concat();
    vec![
        message(0, Cluster { name: "a".into(), ..Cluster::default() }.encode_to_vec()),
        message(2, Listener { name: "l".into(), ..Listener::default() }.encode_to_vec()),
        message(3, table("/a", "a").encode_to_vec()),
        message(7, Vec::new()),
    ]
}

/// A format of access logs or headers: the first byte says whether empty values are left out.
pub(crate) fn formats(data: &[u8]) {
    let Some((&how, text)) = data.split_first() else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    match Format::parse(text, how & 1 != 0) {
        Ok(format) => {
            let again = Format::parse(text, how & 1 != 0);
            assert_eq!(again.as_ref(), Ok(&format), "the same text, the same format");
            assert!(text.contains('%') || format.literal() == Some(text), "a text without operators is itself");
        }
        Err(reason) => assert!(!reason.is_empty() && reason.len() < 10_000, "{} bytes of a reason", reason.len()),
    }
}

pub(crate) fn format_seeds() -> Vec<Vec<u8>> {
    let seeds: [&[u8]; 4] = [
        b"\0%START_TIME(%Y-%m-%dT%H:%M:%S.%3fZ)% %REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH):30% 100%%",
        b"\x01%RESPONSE_CODE% %RESPONSE_FLAGS% %DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %DYNAMIC_METADATA(a:b)%",
        b"\0plain",
        b"\0%NOBODY% %REQ(",
    ];
    seeds.map(<[u8]>::to_vec).to_vec()
}

fn table(prefix: &str, cluster: &str) -> RouteConfiguration {
    let route = Route {
        r#match: Some(RouteMatch {
            path_specifier: Some(PathSpecifier::Prefix(prefix.into())),
            ..RouteMatch::default()
        }),
        name: cluster.into(),
        ..Route::default()
    };
    let host =
        VirtualHost { name: "v".into(), domains: vec!["*".into()], routes: vec![route], ..VirtualHost::default() };
    RouteConfiguration { name: "r".into(), virtual_hosts: vec![host], ..RouteConfiguration::default() }
}

/// An expression, a zero byte, and what it is matched with: it matches the whole of a subject or nothing.
pub(crate) fn routes(data: &[u8]) {
    let at = data.iter().position(|byte| *byte == 0).unwrap_or(data.len());
    let (source, subject) = data.split_at(at);
    let Ok(source) = std::str::from_utf8(source) else { return };
    let subject = subject.get(1..).unwrap_or_default();
    let expression = match SafeRegex::new(source) {
        Ok(expression) => expression,
        Err(reason) => {
            return assert!(!reason.is_empty() && reason.len() < 10_000, "{} bytes of a reason", reason.len());
        }
    };
    if expression.matches(subject) {
        let found = expression.whole.find(subject);
        assert_eq!(found.map(|found| found.range()), Some(0..subject.len()), "a part is no match");
    }
}

pub(crate) fn route_seeds() -> Vec<Vec<u8>> {
    let seeds: [&[u8]; 4] = [b"/a/[^/]+/c\0/a/b/c", b"a|b\0ab", b"(?i)(?P<x>[a-z]{1,9})\\d*\0Abc1", b"a)(b\0ab"];
    seeds.map(<[u8]>::to_vec).to_vec()
}
