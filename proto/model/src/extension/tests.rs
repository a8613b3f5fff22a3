use std::collections::HashMap;

use serde_json::{Value, json};

use super::*;
use crate::listener::{Listener, parse};
use crate::report::Parsed;
use crate::resource::{Resource, parse_any};
use crate::testing::{good, message, refused};

const URL: &str = "type.googleapis.com/";
const TCP: &str = "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
const HCM: &str = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const ROUTER: &str = "envoy.extensions.filters.http.router.v3.Router";

fn typed(name: &str, fields: Value) -> Value {
    let mut config = fields;
    config["@type"] = format!("{URL}{name}").into();
    config
}

fn tcp(cluster: &str) -> Value {
    typed(TCP, json!({ "stat_prefix": "t", "cluster": cluster }))
}

fn asks(types: &[&str], more: Value) -> Value {
    let urls: Vec<String> = types.iter().map(|name| format!("{URL}{name}")).collect();
    let mut source = more;
    source["config_source"] = json!({ "ads": {} });
    source["type_urls"] = urls.into();
    source
}

fn with_filter(filter: &Value) -> Value {
    json!({
        "name": "l", "address": {"socket_address": {"address": "127.0.0.1", "port_value": 80}},
        "filter_chains": [{"filters": [filter]}],
    })
}

/// A listener with a discovered network filter.
fn network(types: &[&str], more: Value) -> Value {
    with_filter(&json!({ "name": "n", "config_discovery": asks(types, more) }))
}

/// A connection manager with a discovered router.
fn manager(more: Value) -> Value {
    typed(
        HCM,
        json!({
            "stat_prefix": "h", "route_config": {},
            "http_filters": [{ "name": "r", "config_discovery": asks(&[ROUTER], more) }],
        }),
    )
}

fn listener(json: &Value) -> Arc<Listener> {
    Arc::new(good(&parse(&message(json)), "the listener").clone())
}

fn parsed(name: &str, config: &Value) -> Parsed<Resource> {
    let message: api::TypedExtensionConfig = message(&json!({ "name": name, "typed_config": config }));
    parse_any(culvert_api::type_url::EXTENSION_CONFIG, &prost::Message::encode_to_vec(&message))
}

fn came(configs: &[(&str, Value)]) -> HashMap<Name, Arc<Extension>> {
    let extension = |(name, config): &(&str, Value)| match parsed(name, config).value {
        Ok(Resource::Extension(extension)) => (Arc::clone(&extension.name), extension),
        other => panic!("{name}: {other:?}"),
    };
    configs.iter().map(extension).collect()
}

fn cluster_of(listener: &Listener) -> String {
    match &listener.filter_chains[0].filter {
        NetworkFilter::Tcp(proxy) => format!("{:?}", proxy.clusters),
        other => panic!("expected a TCP proxy, got {other:?}"),
    }
}

fn suppresses(listener: &Listener) -> bool {
    match &listener.filter_chains[0].filter {
        NetworkFilter::Http(manager) => manager.router.suppress_envoy_headers,
        other => panic!("expected a connection manager, got {other:?}"),
    }
}

#[test]
fn a_filter_without_its_configuration_is_awaited_by_name_unless_a_default_holds() {
    let plain = listener(&network(&[TCP], json!({})));
    assert_eq!(plain.resolve(&came(&[]), Defaults::All), Err(Unresolved::Awaited(vec!["n".into()])));
    let resolved = plain.resolve(&came(&[("n", tcp("a"))]), Defaults::AtOnce).expect("it came");
    assert!(cluster_of(&resolved).contains("\"a\""), "{resolved:?}");

    let spare = listener(&network(&[TCP], json!({ "default_config": tcp("spare") })));
    assert!(spare.resolve(&came(&[]), Defaults::AtOnce).is_err(), "it may still come");
    let resolved = spare.resolve(&came(&[]), Defaults::All).expect("the default stands in");
    assert!(cluster_of(&resolved).contains("spare"), "{resolved:?}");

    let more = json!({ "default_config": tcp("spare"), "apply_default_config_without_warming": true });
    let at_once = listener(&network(&[TCP], more));
    let resolved = at_once.resolve(&came(&[]), Defaults::AtOnce).expect("the default holds from the beginning");
    assert!(cluster_of(&resolved).contains("spare"), "{resolved:?}");
    let resolved = at_once.resolve(&came(&[("n", tcp("a"))]), Defaults::AtOnce).expect("it came");
    assert!(cluster_of(&resolved).contains("\"a\""), "what came counts, not the default");
}

#[test]
fn a_router_may_come_by_name_also_inside_of_a_connection_manager_that_did() {
    let inline = listener(&with_filter(&json!({ "name": "h", "typed_config": manager(json!({})) })));
    assert_eq!(inline.resolve(&came(&[]), Defaults::All), Err(Unresolved::Awaited(vec!["r".into()])));
    let router = |suppress| ("r", typed(ROUTER, json!({ "suppress_envoy_headers": suppress })));
    let resolved = inline.resolve(&came(&[router(true)]), Defaults::AtOnce).expect("the router came");
    assert!(suppresses(&resolved), "{resolved:?}");

    let nested = listener(&network(&[HCM, TCP], json!({})));
    let awaited = nested.resolve(&came(&[("n", manager(json!({})))]), Defaults::All);
    assert_eq!(awaited, Err(Unresolved::Awaited(vec!["r".into()])), "the manager came, its router did not");
    let both = came(&[("n", manager(json!({}))), router(true)]);
    assert!(suppresses(&nested.resolve(&both, Defaults::AtOnce).expect("both came")));
}

#[test]
fn what_comes_must_be_what_the_filter_allows() {
    let only_tcp = listener(&network(&[TCP], json!({})));
    let refusal = only_tcp.resolve(&came(&[("n", manager(json!({})))]), Defaults::All).expect_err("a manager came");
    assert!(refusal.to_string().contains(HCM) && refusal.to_string().contains(TCP), "{refusal}");
    // Named in type_urls, and no network filter all the same.
    let wrong_place = listener(&network(&[TCP, ROUTER], json!({})));
    let refusal = wrong_place.resolve(&came(&[("n", typed(ROUTER, json!({})))]), Defaults::All);
    assert!(matches!(refusal, Err(Unresolved::Type { .. })), "{refusal:?}");
    for (config, text) in [
        (typed("envoy.config.core.v3.Node", json!({})), "is not there"),
        (typed(ROUTER, json!({ "strict_check_headers": ["x-envoy-max-retries"] })), "strict_check_headers"),
        (typed(TCP, json!({ "stat_prefix": "t" })), "typed_config"),
    ] {
        let errors = parsed("n", &config).value.expect_err("it cannot be used");
        let words: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert!(words.iter().any(|word| word.contains(text)), "{config}: expected {text:?} in {words:?}");
    }
}

#[test]
fn questions_that_cannot_be_answered_are_refused() {
    let patch = |fields: Value| network(&[TCP], fields)["filter_chains"].clone();
    let inside = |field: &str| format!("filter_chains[0].filters[0].config_discovery.{field}");
    let chains = |fields: Value| json!({ "filter_chains": patch(fields) }).to_string();
    let raw = |source: Value| json!({"filter_chains": [{"filters": [{"name": "n", "config_discovery": source}]}]});
    let none = raw(json!({ "config_source": { "ads": {} } })).to_string();
    let unknown = raw(asks(&["a.B"], json!({}))).to_string();
    let sourceless = raw(json!({ "type_urls": [format!("{URL}{TCP}")] })).to_string();
    let foreign = chains(json!({ "default_config": manager(json!({})) }));
    let wanting = chains(json!({ "apply_default_config_without_warming": true }));
    let broken = chains(json!({ "default_config": typed(TCP, json!({ "stat_prefix": "t" })) }));
    refused(
        &network(&[TCP], json!({})),
        parse,
        &[
            (&none, &inside("type_urls"), "no filter that is there"),
            (&unknown, &inside("type_urls"), "no filter that is there"),
            (&sourceless, &inside("config_source"), "ads"),
            (&foreign, &inside("default_config"), "not among type_urls"),
            (&wanting, &inside("apply_default_config_without_warming"), "no default_config"),
            (&broken, &inside("default_config"), ""),
        ],
    );
}
