use culvert_api::envoy::config::endpoint::v3::ClusterLoadAssignment;

use super::*;

fn reasons<T: std::fmt::Debug>(parsed: &Parsed<T>) -> Vec<String> {
    match &parsed.value {
        Ok(value) => panic!("expected a refusal, got {value:?}"),
        Err(errors) => errors.iter().map(ToString::to_string).collect(),
    }
}

#[test]
fn bytes_that_do_not_decode_are_a_refusal() {
    let cases: &[(&str, &[u8])] = &[
        (type_url::CLUSTER, &[0xff]),
        (type_url::LISTENER, &[0x0a, 0x05, b'a']),
        (type_url::SECRET, &[0x0a, 0x01, 0xff]),
        (type_url::CLUSTER_LOAD_ASSIGNMENT, &[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
    ];
    for (url, bytes) in cases {
        let reasons = reasons(&parse_any(url, bytes));
        assert!(reasons.iter().any(|reason| reason.contains("does not decode as")), "{url}: {reasons:?}");
    }
}

#[test]
fn deep_nesting_is_a_refusal() {
    // Listener.access_log (22), its filter (2), and from there and_filter (6) within filters (1) without end.
    let mut inner: Vec<u8> = Vec::new();
    for _ in 0..10_000 {
        let mut filters = Vec::new();
        prost::encoding::bytes::encode(1, &inner, &mut filters);
        inner.clear();
        prost::encoding::bytes::encode(6, &filters, &mut inner);
    }
    let mut log = Vec::new();
    prost::encoding::bytes::encode(2, &inner, &mut log);
    let mut listener = Vec::new();
    prost::encoding::bytes::encode(22, &log, &mut listener);
    let reasons = reasons(&parse_any(type_url::LISTENER, &listener));
    assert!(reasons.iter().any(|reason| reason.contains("recursion")), "{reasons:?}");
}

#[test]
fn a_type_that_is_not_served_is_a_refusal() {
    for url in ["", "type.googleapis.com/envoy.config.core.v3.Node", "x"] {
        let reasons = reasons(&parse_any(url, &[]));
        assert!(reasons.iter().any(|reason| reason.contains("not served")), "{url}: {reasons:?}");
    }
}

#[test]
fn fields_of_a_newer_api_are_warned_about_once_each() {
    let mut bytes = ClusterLoadAssignment { cluster_name: "c".into(), ..Default::default() }.encode_to_vec();
    for _ in 0..3 {
        prost::encoding::uint32::encode(4242, &7, &mut bytes);
    }
    let parsed = parse_any(type_url::CLUSTER_LOAD_ASSIGNMENT, &bytes);
    assert!(matches!(parsed.value, Ok(Resource::Endpoints(_))), "{parsed:?}");
    let [warning] = parsed.warnings.as_slice() else { panic!("expected one warning, got {:?}", parsed.warnings) };
    assert!(warning.reason.contains("field 4242"), "{warning}");
}

#[test]
fn ten_megabytes_of_unknown_fields_are_one_warning() {
    let mut bytes = ClusterLoadAssignment { cluster_name: "c".into(), ..Default::default() }.encode_to_vec();
    let filler = vec![0_u8; 10 * 1024 * 1024];
    prost::encoding::bytes::encode(4242, &filler, &mut bytes);
    assert_eq!(parse_any(type_url::CLUSTER_LOAD_ASSIGNMENT, &bytes).warnings.len(), 1);
}

#[test]
fn findings_are_bounded() {
    use culvert_api::envoy::config::route::v3::{Decorator, Route, RouteConfiguration, VirtualHost};
    let route = Route { decorator: Some(Decorator::default()), ..Default::default() };
    let host =
        VirtualHost { name: "v".into(), domains: vec!["*".into()], routes: vec![route; 5000], ..Default::default() };
    let message = RouteConfiguration { name: "r".into(), virtual_hosts: vec![host], ..Default::default() };
    let parsed = parse_any(type_url::ROUTE_CONFIGURATION, &message.encode_to_vec());
    assert_eq!((parsed.warnings.len(), reasons(&parsed).len()), (1001, 1001), "1000 findings and a last word");
}
