use proptest::prelude::*;
use prost::Message as _;
use prost_reflect::{Kind, MapKey, MessageDescriptor, Value as Field};
use serde_json::{Value, json};

use super::*;
use crate::document::{Limits, Syntax, load_any, parse};
use crate::envoy::extensions::transport_sockets::tls::v3::Secret;

fn any(yaml: &str) -> Any {
    let tree = parse(yaml.as_bytes(), Syntax::Yaml, &Limits::default()).unwrap().remove(0);
    load_any(&tree).unwrap_or_else(|problems| panic!("{problems:#?} in\n{yaml}"))
}

fn problem(yaml: &str) -> String {
    let tree = parse(yaml.as_bytes(), Syntax::Yaml, &Limits::default()).unwrap().remove(0);
    match load_any(&tree) {
        Ok(any) => panic!("expected a problem, got {any:?} from\n{yaml}"),
        Err(problems) => problems[0].to_string(),
    }
}

fn round_trip(value: &Value) -> Value {
    let tree = parse(value.to_string().as_bytes(), Syntax::Json, &Limits::default()).unwrap().remove(0);
    let first = load_any(&tree).unwrap_or_else(|problems| panic!("{problems:#?} in\n{value:#}"));
    any_to_json(&first, Secrets::Show)
}

/// What the JSON mapping has, in messages of the API.
#[test]
fn every_form_survives_the_round_trip() {
    for value in [
        json!({
            "@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            "name": "c", "connect_timeout": "0.250s", "lb_policy": "LEAST_REQUEST", "per_connection_buffer_limit_bytes": 32768,
            "metadata": {"filter_metadata": {"a.b": {"null": null, "n": 1.5, "l": [true, "x", {"y": []}]}},
                "typed_filter_metadata": {"m": {"@type": "type.googleapis.com/google.protobuf.Duration", "value": "3s"}}},
            "typed_extension_protocol_options": {"unknown": {"@type": "type.example.com/not.Known", "value": "AAECAw=="}},
            "upstream_connection_options": {"tcp_keepalive": {"keepalive_probes": 3}},
        }),
        json!({
            "@type": "type.googleapis.com/envoy.config.listener.v3.Listener",
            "name": "l", "address": {"socket_address": {"address": "::1", "port_value": 443}},
            "filter_chains": [{
                "filter_chain_match": {"server_names": ["a"], "prefix_ranges": [{"address_prefix": "10.0.0.0", "prefix_len": 8}]},
                "filters": [{"name": "h", "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                    "stat_prefix": "s", "rds": {"route_config_name": "r", "config_source": {"ads": {}}},
                    "http_filters": [{"name": "router", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}],
                    "access_log": [{"name": "f", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog", "path": "/x"}}],
                }}],
                "transport_socket": {"name": "tls", "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                    "common_tls_context": {"alpn_protocols": ["h2"], "tls_certificates": [{"certificate_chain": {"inline_bytes": "AQI="}}]},
                    "require_client_certificate": true,
                }},
            }],
        }),
        json!({"@type": "type.googleapis.com/google.protobuf.Timestamp", "value": "2030-01-31T12:00:00.500Z"}),
        json!({"@type": "type.googleapis.com/google.protobuf.UInt64Value", "value": "18446744073709551615"}),
        json!({"@type": "type.googleapis.com/google.protobuf.BytesValue", "value": "/+8="}),
        json!({"@type": "type.googleapis.com/google.protobuf.DoubleValue", "value": "NaN"}),
        json!({"@type": "type.googleapis.com/google.protobuf.Struct", "value": {"a": {"b": null}}}),
        json!({"@type": "type.googleapis.com/google.protobuf.ListValue", "value": [1.0, null]}),
        json!({"@type": "type.googleapis.com/google.protobuf.Any",
            "value": {"@type": "type.googleapis.com/google.protobuf.Value", "value": null}}),
        json!({"@type": "type.googleapis.com/google.protobuf.Empty"}),
        json!({"@type": "example.com/nobody.Knows.This", "value": ""}),
        json!({"@type": "type.googleapis.com/culvert.tunnel.v1.TunnelAgent", "name": "a", "cluster": "c",
            "hosting_listener": "l", "servers": [{"address": "h:1"}], "connection_num": 2}),
        json!({"@type": "type.googleapis.com/envoy.service.runtime.v3.Runtime", "name": "rt", "layer": {"a": 1.0}}),
    ] {
        assert_eq!(round_trip(&value), value, "round trip of {value:#}");
    }
}

#[test]
fn spellings_are_the_same_bytes() {
    let head = "\"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster\nname: c\n";
    let canonical = any(&format!(
        "{head}lb_policy: RANDOM\nconnect_timeout: 1s\nmetadata: {{filter_metadata: {{a: {{x: 1}}, b: {{}}}}}}\n"
    ));
    for other in [
        "lbPolicy: 3\nconnectTimeout: 1.0s\nmetadata: {filterMetadata: {b: {}, a: {x: 1}}}\n",
        "metadata: {filter_metadata: {a: {x: 1e0}, b: {}}}\nconnect_timeout: 1.000s\nlb_policy: \"RANDOM\"\ntype: null\n",
        // As for Envoy.
        "lb_policy: random\nconnect_timeout: 1s\nmetadata: {filter_metadata: {a: {x: 1}, b: {}}}\n",
    ] {
        assert_eq!(any(&format!("{head}{other}")), canonical, "bytes of {other}");
    }
}

/// What other control planes make of authorization and of Envoy filters.
#[test]
fn messages_that_the_package_lacks_are_known() {
    for value in [
        json!({"@type": "type.googleapis.com/xds.type.matcher.v3.CelMatcher",
            "expr_match": {"cel_expr_string": "request.method == 'GET'"}, "description": "d"}),
        json!({"@type": "type.googleapis.com/xds.type.matcher.v3.HttpAttributesCelMatchInput"}),
        json!({"@type": "type.googleapis.com/xds.type.matcher.v3.IPMatcher", "range_matchers": [
            {"ranges": [{"address_prefix": "10.0.0.0", "prefix_len": 8}], "exclusive": true}]}),
        json!({"@type": "type.googleapis.com/udpa.type.v1.TypedStruct",
            "type_url": "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm", "value": {"config": {"n": 1.0}}}),
        json!({"@type": "type.googleapis.com/xds.type.v3.TypedStruct", "type_url": "x", "value": {}}),
    ] {
        assert_eq!(round_trip(&value), value);
    }
}

#[test]
fn mistakes_are_named() {
    let cluster = "\"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster\nname: c\n";
    for (yaml, expected) in [
        ("name: x\n".to_owned(), "1:1: \"@type\" is missing"),
        (
            "\"@type\": envoy.config.cluster.v3.Cluster\n".to_owned(),
            "1:10: \"envoy.config.cluster.v3.Cluster\" is no type URL",
        ),
        (
            "\"@type\": t/envoy.config.cluster.v3.Clutser\n".to_owned(),
            "1:10: type \"t/envoy.config.cluster.v3.Clutser\" is not known; did you mean \"envoy.config.cluster.v3.Cluster\"?",
        ),
        (
            "\"@type\": t/envoy.api.v2.RouteConfiguration\n".to_owned(),
            "1:10: type \"t/envoy.api.v2.RouteConfiguration\" is not known; did you mean \"envoy.config.route.v3.RouteConfiguration\"?",
        ),
        (
            "\"@type\": t/no.such.ThingAtAll\nx: 1\n".to_owned(),
            "1:10: type \"t/no.such.ThingAtAll\" is not known; a type that is not known takes only",
        ),
        ("\"@type\": t/no.such.ThingAtAll\nvalue: '*'\n".to_owned(), "1:10: type"),
        (
            format!("{cluster}type: EDS\ncluster_type: {{name: x}}\n"),
            "4:1: cluster_type: \"type\" and \"cluster_type\" exclude each other",
        ),
        (
            format!("{cluster}connect_timeout: 1e3s\n"),
            "3:18: connect_timeout: expected a duration such as 1.5s, found the string \"1e3s\"",
        ),
        (
            format!("{cluster}connect_timeout: 400000000000s\n"),
            "3:18: connect_timeout: the string \"400000000000s\" is out of range",
        ),
        (
            format!("{cluster}per_connection_buffer_limit_bytes: -1\n"),
            "3:36: per_connection_buffer_limit_bytes: -1 is out of range (0 to 4294967295)",
        ),
        (
            format!("{cluster}per_connection_buffer_limit_bytes: 1.5\n"),
            "3:36: per_connection_buffer_limit_bytes: expected a whole number",
        ),
        (
            format!("{cluster}per_connection_buffer_limit_bytes: 0644\n"),
            "3:36: per_connection_buffer_limit_bytes: 0644 begins with a zero",
        ),
        (
            format!("{cluster}ignore_health_on_host_removal: yes\n"),
            "3:32: ignore_health_on_host_removal: expected a boolean, found \"yes\"; YAML 1.2 writes true or false",
        ),
        (
            format!("{cluster}alt_stat_name: true\n"),
            "3:16: alt_stat_name: expected a string, found the boolean true; put it in quotes",
        ),
        (format!("{cluster}filters: {{name: x}}\n"), "3:10: filters: expected a list, found a mapping"),
        (format!("{cluster}filters: [null]\n"), "3:11: filters[0]: null stands where a value is needed"),
        (
            format!("{cluster}load_assignment: x\n"),
            "3:18: load_assignment: expected a mapping with the fields of envoy.config.endpoint.v3.ClusterLoadAssignment",
        ),
        (
            "\"@type\": t/google.protobuf.Duration\nseconds: 3\n".to_owned(),
            "2:1: google.protobuf.Duration stands in the field \"value\" here",
        ),
    ] {
        let found = problem(&yaml);
        assert!(found.starts_with(expected), "expected {expected:?}\n   found {found:?} in\n{yaml}");
    }
}

#[test]
fn structs_too_deep_for_decoders_are_refused() {
    let deep = |levels: usize| {
        let value = format!("{}1{}", "{a: ".repeat(levels), "}".repeat(levels));
        format!("\"@type\": t/google.protobuf.Struct\nvalue: {value}\n")
    };
    let fits = any(&deep(30));
    assert!(<prost_types::Struct as prost::Message>::decode(fits.value).is_ok(), "30 levels are fine");
    assert!(problem(&deep(60)).contains("nested deeper than 100 levels"), "60 levels are 180 messages");
}

#[test]
fn secrets_are_redacted() {
    let yaml = "\"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret
name: s
tls_certificate:
  certificate_chain: {inline_string: public}
  private_key: {inline_string: PRIVATE}
  password: {inline_bytes: UFJJVkFURQ==}
";
    let shown = any_to_json(&any(yaml), Secrets::Redact);
    let expected = json!({"@type": crate::type_url::SECRET, "name": "s", "tls_certificate": {
        "certificate_chain": {"inline_string": "public"},
        "private_key": {"inline_string": "[redacted]"}, "password": {"inline_bytes": "W3JlZGFjdGVkXQ=="}}});
    assert_eq!(shown, expected);
    for yaml in [
        "{session_ticket_keys: {keys: [{inline_string: PRIVATE}, {filename: /k}]}}",
        "{generic_secret: {secret: {inline_string: PRIVATE}}}",
    ] {
        let loaded = crate::document::load::<Secret>(yaml.as_bytes(), Syntax::Yaml).unwrap();
        let shown = to_json(&loaded.message, Secrets::Redact).to_string();
        assert!(!shown.contains("PRIVATE") && shown.contains("[redacted]"), "{shown}");
        assert_eq!(yaml.contains("/k"), shown.contains("/k"), "names of files are shown: {shown}");
        assert!(to_json(&loaded.message, Secrets::Show).to_string().contains("PRIVATE"));
    }
    let server = "\"@type\": type.googleapis.com/culvert.tunnel.v1.TunnelServer
credential_policies: [{name: p, tokens: [{inline_string: PRIVATE}]}]\n";
    let shown = any_to_json(&any(server), Secrets::Redact).to_string();
    assert!(!shown.contains("PRIVATE") && shown.contains("\"p\""), "{shown}");
    let agent = "{'@type': t/culvert.tunnel.v1.TunnelAgent, name: a, cluster: c, hosting_listener: l,
  servers: [{address: 'h:1'}], credential: {policy: p, credential: {inline_string: PRIVATE}}}";
    let shown = any_to_json(&any(agent), Secrets::Redact).to_string();
    assert!(!shown.contains("PRIVATE") && shown.contains("\"p\""), "{shown}");
}

#[test]
fn names_of_resources() {
    use crate::pool::resource_name;
    for (yaml, name) in [
        ("{'@type': t/envoy.config.cluster.v3.Cluster, name: c, connect_timeout: 1s}", Some("c")),
        ("{'@type': t/envoy.config.endpoint.v3.ClusterLoadAssignment, cluster_name: e}", Some("e")),
        ("{'@type': t/envoy.service.runtime.v3.Runtime, name: r}", Some("r")),
        ("{'@type': t/envoy.config.route.v3.RouteConfiguration}", Some("")),
        ("{'@type': t/google.protobuf.Struct, value: {}}", None),
        ("{'@type': t/un.known, value: ''}", None),
    ] {
        let any = any(yaml);
        assert_eq!(resource_name(&any.type_url, &any.value).as_deref(), name, "name of {yaml}");
    }
    assert_eq!(resource_name(crate::type_url::CLUSTER, b"\x0a\xff"), None, "bytes that do not decode have no name");
}

/// A message with about every field set, by a descriptor: nested as deep as `depth` says, and where a oneof has a choice,
/// by `seed`.
fn filled(descriptor: &MessageDescriptor, depth: usize, seed: u64) -> DynamicMessage {
    let mut message = DynamicMessage::new(descriptor.clone());
    if descriptor.full_name() == "google.protobuf.Any" {
        message.set_field_by_number(1, Field::String("example.com/un.Known".into()));
        message.set_field_by_number(2, Field::Bytes(seed.to_be_bytes().to_vec().into()));
        return message;
    }
    for field in descriptor.fields() {
        let alternatives = field.containing_oneof().map_or(1, |oneof| oneof.fields().len() as u64);
        let chosen = field
            .containing_oneof()
            .is_none_or(|oneof| oneof.fields().position(|one| one == field) == Some((seed % alternatives) as usize));
        let nested = matches!(field.kind(), Kind::Message(_));
        if !chosen || (nested && depth == 0 && field.containing_oneof().is_none()) {
            continue;
        }
        let seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(u64::from(field.number()));
        if field.is_map() {
            let kind = field.kind();
            let entry = kind.as_message().unwrap();
            let key = match sample(&entry.map_entry_key_field().kind(), depth, seed) {
                Field::String(key) => MapKey::String(key),
                Field::U32(key) => MapKey::U32(key),
                Field::I32(key) => MapKey::I32(key),
                Field::U64(key) => MapKey::U64(key),
                Field::I64(key) => MapKey::I64(key),
                Field::Bool(key) => MapKey::Bool(key),
                other => panic!("{other:?} is no key of a map"),
            };
            let value = sample(&entry.map_entry_value_field().kind(), depth, seed);
            message.set_field(&field, Field::Map([(key, value)].into()));
        } else if field.is_list() {
            message.set_field(&field, Field::List(vec![sample(&field.kind(), depth, seed)]));
        } else {
            message.set_field(&field, sample(&field.kind(), depth, seed));
        }
    }
    message
}

fn sample(kind: &Kind, depth: usize, seed: u64) -> Field {
    let small = u32::try_from(seed >> 40).unwrap();
    match kind {
        Kind::Bool => Field::Bool(true),
        Kind::Double => Field::F64(f64::from(small) / 7.0),
        #[expect(clippy::cast_precision_loss, reason = "any float will do")]
        Kind::Float => Field::F32(small as f32 / 7.0),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Field::I32(-i32::try_from(small).unwrap()),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Field::I64(i64::MIN + i64::from(small)),
        Kind::Uint32 | Kind::Fixed32 => Field::U32(small),
        Kind::Uint64 | Kind::Fixed64 => Field::U64(seed),
        Kind::String => Field::String(format!("s \"\u{e4}\n{small}")),
        Kind::Bytes => Field::Bytes(seed.to_le_bytes().to_vec().into()),
        Kind::Enum(descriptor) => {
            let values: Vec<i32> = descriptor.values().map(|value| value.number()).collect();
            Field::EnumNumber(values[small as usize % values.len()])
        }
        Kind::Message(descriptor) => match descriptor.full_name() {
            "google.protobuf.Duration" | "google.protobuf.Timestamp" => {
                let mut time = DynamicMessage::new(descriptor.clone());
                time.set_field_by_number(1, Field::I64(i64::from(small)));
                time.set_field_by_number(2, Field::I32(1_000_000 * i32::try_from(small % 1000).unwrap()));
                Field::Message(time)
            }
            // A JSON value of its own is tested below.
            "google.protobuf.Struct" | "google.protobuf.Value" | "google.protobuf.ListValue" => {
                let text = if descriptor.full_name().ends_with("ListValue") { "[1, null, {}]" } else { "{a: [x]}" };
                let tree = parse(text.as_bytes(), Syntax::Yaml, &Limits::default()).unwrap().remove(0);
                let bytes = read::unchecked(&tree, descriptor).unwrap();
                Field::Message(DynamicMessage::decode(descriptor.clone(), bytes.as_slice()).unwrap())
            }
            _ => Field::Message(if depth == 0 {
                DynamicMessage::new(descriptor.clone())
            } else {
                filled(descriptor, depth - 1, seed)
            }),
        },
    }
}

/// Message to JSON to message, by all descriptors that there are: Envoy's whole API and ours.
#[test]
fn every_message_of_the_api_survives_the_round_trip() {
    let mut count = 0;
    for descriptor in pool::pool().all_messages().filter(|message| !message.is_map_entry()) {
        let name = descriptor.full_name().to_owned();
        // What describes the API is proto2 and stands in no resource.
        let special = ["google.protobuf.", "validate.", "envoy.annotations.", "google.api.", "udpa.annotations."];
        if special.iter().any(|prefix| name.starts_with(prefix)) {
            continue;
        }
        for seed in 0..6 {
            // Once encoded, so that zeros that were set by hand are as unset as they are.
            let bytes = filled(&descriptor, 1, seed).encode_to_vec();
            let message = DynamicMessage::decode(descriptor.clone(), bytes.as_slice()).unwrap();
            let value = dynamic_to_json(&message, Secrets::Show);
            let tree = parse(value.to_string().as_bytes(), Syntax::Json, &Limits::default()).unwrap().remove(0);
            let bytes = read::unchecked(&tree, &descriptor)
                .unwrap_or_else(|problems| panic!("{name}: {problems:?} in {value:#}"));
            let back = DynamicMessage::decode(descriptor.clone(), bytes.as_slice()).unwrap();
            assert!(back == message, "{name} with seed {seed} came back different by way of {value:#}");
        }
        count += 1;
    }
    assert!(count > 1400, "expected the whole API, saw {count} messages");
}

/// Trees of JSON values for a `google.protobuf.Struct`.
fn json_tree() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any_bool(),
        (-1e15..1e15f64).prop_map(|number| json!(number)),
        "\\PC{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("\\PC{0,6}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn any_bool() -> impl Strategy<Value = Value> {
    proptest::bool::ANY.prop_map(Value::from)
}

proptest! {
    #[test]
    fn json_to_bytes_to_json(tree in json_tree(), name in "[a-z]{1,9}", timeout in 1u32..1_000_000, weight in 1u32..u32::MAX, flag: bool) {
        let value = json!({
            "@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{
                "endpoint": {"address": {"socket_address": {"address": name, "port_value": timeout % 65536}}},
                "metadata": {"filter_metadata": {"m": {"tree": tree}}},
                "load_balancing_weight": weight,
                "health_status": if flag { "HEALTHY" } else { "DRAINING" },
            }]}],
            "policy": {"endpoint_stale_after": format!("{timeout}s")},
        });
        let mut expected = value.clone();
        if timeout % 65536 == 0 {
            // `port_specifier` is a oneof: its zero is kept.
            expected["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"]["socket_address"]["port_value"] = json!(0);
        }
        prop_assert_eq!(round_trip(&value), expected);
    }
}
