use serde_json::{Value as Json, json};

use super::*;
use crate::report::Parsed;
use crate::resource::{Resource, parse_any};

fn came(layer: &Json) -> Parsed<Resource> {
    let message: RuntimeMessage = crate::testing::message(&json!({ "name": "r", "layer": layer }));
    parse_any(culvert_api::type_url::RUNTIME, &prost::Message::encode_to_vec(&message))
}

fn values_of(layer: &Json) -> Values {
    match came(layer).value {
        Ok(Resource::Runtime(runtime)) => runtime.values.clone(),
        other => panic!("{layer}: {other:?}"),
    }
}

#[test]
fn keys_are_paths_and_values_are_shares_where_they_can_be() {
    let values = values_of(&json!({
        "plain": 25, "text": "7", "much": 900, "half": 12.5, "yes": true, "word": "x", "minus": -1,
        "a": { "b": { "c": 1 } }, "f": { "numerator": 5, "denominator": "MILLION" }, "g": { "numerator": 3 },
    }));
    let share = |key: &str| values.get(key).unwrap_or_else(|| panic!("{key} in {values:?}")).share();
    for (key, expected) in [
        ("plain", Some(250_000)),
        ("text", Some(70_000)),
        ("much", Some(MILLION)),
        ("a.b.c", Some(10_000)),
        ("f", Some(5)),
        ("g", Some(30_000)),
        ("half", None),
        ("yes", None),
        ("word", None),
        ("minus", None),
    ] {
        assert_eq!(share(key), expected, "{key}");
    }
}

#[test]
fn what_is_no_value_is_refused_by_its_path() {
    for (layer, path, text) in [
        (json!({ "a": { "b": [1] } }), r#"layer["a"]["b"]"#, "a list or null"),
        (json!({ "a": null }), r#"layer["a"]"#, "a list or null"),
        (json!({ "a": { "denominator": "THOUSAND" } }), r#"layer["a"]"#, "THOUSAND"),
        (json!({ "a": { "numerator": 1.5 } }), r#"layer["a"]"#, "no whole number"),
        (json!({ "a": { "numerator": 1, "more": 1 } }), r#"layer["a"]"#, "more"),
    ] {
        let errors = came(&layer).value.expect_err("it is refused");
        let found = errors.iter().any(|error| error.path == path && error.reason.contains(text));
        assert!(found, "{layer}: expected {path} .. {text}, got {errors:?}");
    }
}

fn layered(layers: &Json) -> Result<Vec<Layer>, String> {
    let mut report = Report::default();
    let message: api::LayeredRuntime = crate::testing::message(&json!({ "layers": layers }));
    let layers = super::layers(&mut report, Some(&message));
    match report.errors.first() {
        Some(error) => Err(error.to_string()),
        None => Ok(layers),
    }
}

#[test]
fn layers_have_names_of_their_own_and_one_is_for_the_admin_interface() {
    assert_eq!(layers(&mut Report::default(), None).len(), 1, "Envoy has an admin layer by default");
    let rtds = json!({ "name": "r", "rtds_layer": { "name": "dynamic", "rtds_config": { "ads": {} } } });
    let layers =
        layered(&json!([{ "name": "s", "static_layer": { "a": 1 } }, rtds, { "name": "x", "admin_layer": {} }]));
    let layers = layers.expect("these are good");
    let asked = |layer: &Layer| matches!(&layer.source, LayerSource::Rtds { name, .. } if &**name == "dynamic");
    assert!(asked(&layers[1]) && layers[2].source == LayerSource::Admin, "{layers:?}");
    for (layers, text) in [
        (json!([{ "name": "a", "admin_layer": {} }, { "name": "b", "admin_layer": {} }]), "layers[1].admin_layer"),
        (json!([{ "name": "a", "admin_layer": {} }, { "name": "a", "static_layer": {} }]), "layers[1].name"),
        (json!([{ "name": "a" }]), "of no kind"),
        (json!([{ "admin_layer": {} }]), "layers[0].name"),
        (json!([{ "name": "a", "rtds_layer": { "name": "x" } }]), "layers[0].rtds_layer.rtds_config"),
        (json!([{ "name": "a", "static_layer": { "k": [] } }]), "layers[0].static_layer"),
    ] {
        let refusal = layered(&layers).expect_err("it is refused");
        assert!(refusal.contains(text), "{layers}: expected {text:?} in {refusal:?}");
    }
}
