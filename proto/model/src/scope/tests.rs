use culvert_api::type_url;
use prost::Message;
use serde_json::{Value, json};

use super::*;
use crate::http::RouteSource;
use crate::report::Finding;
use crate::resource::{Resource, parse_any};
use crate::testing::message;

fn findings(found: &[Finding]) -> String {
    found.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

fn part(separator: &str, pick: Pick) -> KeyPart {
    KeyPart { header: "x".into(), separator: separator.into(), pick }
}

#[test]
fn a_part_of_a_key_is_envoys() {
    let keyed = || Pick::Keyed { key: "vip".into(), separator: "=".into() };
    for (part, value, expected) in [
        (part("", Pick::Index(0)), "a,b", Some("a,b")),
        (part(",", Pick::Index(0)), "a,b", Some("a")),
        (part(",", Pick::Index(1)), "a,b", Some("b")),
        (part(",", Pick::Index(2)), "a,b", None),
        (part(";", Pick::Index(0)), "", Some("")),
        (part(";", keyed()), "a=b;vip=c=d;vip=e", Some("c=d")),
        (part(";", keyed()), "vip", Some("")),
        (part(";", keyed()), " vip=c", None),
        (part("", keyed()), "vip=c;d", Some("c;d")),
    ] {
        assert_eq!(part.of(value), expected, "{part:?} of {value:?}");
    }
}

fn scope(more: &Value) -> Result<Arc<Scope>, String> {
    let mut text = json!({ "name": "s", "key": { "fragments": [{ "string_key": "k" }] } });
    text.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let message: api::ScopedRouteConfiguration = message(&text);
    match parse_any(type_url::SCOPED_ROUTE_CONFIGURATION, &message.encode_to_vec()).value {
        Ok(Resource::Scope(scope)) => Ok(scope),
        Ok(other) => panic!("expected a scope, got {other:?}"),
        Err(found) => Err(findings(&found)),
    }
}

#[test]
fn a_scope_names_its_routes_or_holds_them() {
    let named = scope(&json!({ "route_configuration_name": "r", "on_demand": true })).unwrap();
    assert_eq!((&named.routes, named.on_demand), (&ScopeRoutes::Named("r".into()), true));
    let inline = scope(&json!({ "route_configuration": { "name": "r" } })).unwrap();
    assert!(matches!(&inline.routes, ScopeRoutes::Inline(routes) if &*routes.name == "r"), "{inline:?}");
    for (more, expected) in [
        (json!({}), "route_configuration_name: is empty"),
        (json!({ "route_configuration_name": "r", "route_configuration": {} }), "stands beside route_configuration"),
        (json!({ "route_configuration_name": "r", "key": {} }), "key.fragments: is empty"),
        (json!({ "route_configuration_name": "r", "key": { "fragments": [{}] } }), "key.fragments[0]: is empty"),
        (json!({ "route_configuration": { "vhds": { "config_source": { "ads": {} } } } }), "route_configuration.vhds"),
    ] {
        let seen = scope(&more).unwrap_err();
        assert!(seen.contains(expected), "expected {expected:?} for {more}, saw {seen:?}");
    }
}

fn scoped(more: &Value) -> Result<Arc<ScopedRoutes>, String> {
    let mut routes = json!({ "name": "s", "scope_key_builder": { "fragments": [{ "header_value_extractor": {
        "name": "X-Scope", "element_separator": ";", "element": { "key": "vip", "separator": "=" } } }] } });
    routes.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let text = json!({ "stat_prefix": "h", "scoped_routes": routes, "http_filters": [{ "name": "router",
        "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" } }] });
    let message: manager::HttpConnectionManager = message(&text);
    let mut report = Report::default();
    report.check(&message);
    let parsed = crate::http::connection_manager(&mut report, &message);
    match report.finish(parsed).value.map(|manager| manager.routes) {
        Ok(RouteSource::Scoped(scoped)) => Ok(scoped),
        Ok(other) => panic!("expected scopes, got {other:?}"),
        Err(found) => Err(findings(&found)),
    }
}

#[test]
fn scopes_come_by_srds_or_stand_in_a_list() {
    let ads = json!({ "ads": {} });
    let discovered = json!({ "scoped_rds": { "scoped_rds_config_source": ads }, "rds_config_source": ads });
    let parsed = scoped(&discovered).unwrap();
    let pick = Pick::Keyed { key: "vip".into(), separator: "=".into() };
    assert_eq!(parsed.key, [KeyPart { header: "x-scope".into(), separator: ";".into(), pick }]);
    assert!(matches!(parsed.scopes, Scopes::Discovered { .. }), "{parsed:?}");
    let list = |scopes: Value| json!({ "scoped_route_configurations_list": { "scoped_route_configurations": scopes } });
    let one = |name: &str, key: &str| {
        json!({ "name": name, "key": { "fragments": [{ "string_key": key }] },
        "route_configuration": { "name": name } })
    };
    let parsed = scoped(&list(json!([one("a", "1"), one("b", "2")]))).unwrap();
    assert!(matches!(&parsed.scopes, Scopes::Listed(list) if list.len() == 2), "{parsed:?}");
    let mut named = one("a", "1");
    named["route_configuration_name"] = named["route_configuration"].take()["name"].take();
    let builder = |extractor: Value| json!({ "scope_key_builder": { "fragments": [extractor] } });
    for (more, expected) in [
        (json!({}), "names no scopes"),
        (json!({ "scoped_rds": { "scoped_rds_config_source": ads } }), "rds_config_source: is missing"),
        (json!({ "scoped_rds": {}, "rds_config_source": ads }), "scoped_rds.scoped_rds_config_source: is missing"),
        (list(json!([one("a", "1"), one("b", "1")])), "scoped_route_configurations[1].key: is that of scope \"a\""),
        (list(json!([named])), "route_configuration_name: stands in a list"),
        (builder(json!({})), "fragments[0]: says nothing of where it comes from"),
        (builder(json!({ "header_value_extractor": { "name": "x" } })), "says nothing of which element counts"),
        (builder(json!({ "header_value_extractor": { "name": "x", "index": 1 } })), "index: is not 0"),
    ] {
        let seen = scoped(&more).unwrap_err();
        assert!(seen.contains(expected), "expected {expected:?} for {more}, saw {seen:?}");
    }
}
