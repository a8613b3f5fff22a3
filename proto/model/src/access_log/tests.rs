use serde_json::{Value, json};

use super::*;
use crate::report::Parsed;
use crate::testing::{good, message, refused, warned};

/// A logger by itself, as the fields that hold loggers parse it.
fn parse(message: &api::AccessLog) -> Parsed<AccessLog> {
    let mut report = Report::default();
    report.check(message);
    let log = access_log(&mut report, message, Subject::Request);
    report.finish(log)
}

const FILE: &str = "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog";
const STDOUT: &str = "type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog";

fn base() -> Value {
    json!({"name": "f", "typed_config": {"@type": FILE, "path": "/tmp/access.log"}})
}

fn config(fields: &str) -> String {
    format!(r#"{{"typed_config": {{"@type": "{FILE}", {fields}}}}}"#)
}

#[test]
fn logs_that_cannot_be_used() {
    let formatted = |format: &str| config(&format!(r#""log_format": {{{format}}}"#));
    refused(
        &base(),
        parse,
        &[
            (r#"{"typed_config": null}"#, "typed_config", "is missing"),
            (&config(r#""path": """#), "typed_config.path", "not the path"),
            (&config(r#""format": "%NOPE%""#), "typed_config.format", "not a known operator"),
            (&formatted(""), "typed_config.log_format", "names no format"),
            (
                &formatted(r#""text_format_source": {"filename": "/x"}"#),
                "typed_config.log_format.text_format_source",
                "inline_string",
            ),
            (
                &formatted(r#""json_format": {"a": {"b": ["%NOPE%"]}}"#),
                r#"typed_config.log_format.json_format["a"]["b"][0]"#,
                "not a known operator",
            ),
            (
                &formatted(r#""json_format": {"a": null}"#).replace(r#""a": null"#, r#""a": [null]"#),
                r#"typed_config.log_format.json_format["a"][0]"#,
                "neither text",
            ),
            (r#"{"filter": {}}"#, "filter", "names no filter"),
            (r#"{"filter": {"status_code_filter": {}}}"#, "filter.status_code_filter.comparison", "is missing"),
        ],
    );
    warned(
        &base(),
        parse,
        &[(r#"{"filter": {"traceable_filter": {}}}"#, "filter.traceable_filter", "every request passes")],
    );
}

#[test]
fn sinks_and_formats() {
    let log = |json: &Value| good(&parse(&message(json)), "the log").clone();
    let default = log(&base());
    assert_eq!(default.sink, Sink::File("/tmp/access.log".into()));
    assert_eq!(default.format, LogFormat::Text(Format::default_line()));
    assert_eq!(log(&json!({"typed_config": {"@type": FILE, "path": "/dev/stdout"}})).sink, Sink::Stdout);

    let json = json!({"filter": {"status_code_filter": {"comparison": {"op": "GE", "value": {"default_value": 400}}}},
        "typed_config": {"@type": STDOUT, "log_format": {"json_format":
            {"z": "%DURATION%", "a": {"n": 1, "t": true}, "l": ["x"]}}}});
    let log = log(&json);
    assert_eq!(log.filter, Some(Filter::StatusCode { op: Comparison::GreaterOrEqual, value: 400 }));
    let LogFormat::Json(fields) = log.format else { panic!("expected JSON, got {:?}", log.format) };
    let keys: Vec<&str> = fields.iter().map(|(key, _)| &**key).collect();
    assert_eq!(keys, ["a", "l", "z"], "keys are sorted");
    let inner = vec![("n".into(), JsonValue::Number(1.0)), ("t".into(), JsonValue::Bool(true))];
    assert_eq!(fields[0].1, JsonValue::Object(inner));
}
