//! The tables against the descriptor set, and the documentation against the tables.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message as _;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, Value};

use super::{Covered, TABLES, Verdict, documentation, walk};
use crate::report::Report;

/// Messages that are values: read as a whole or not at all.
const VALUES: &[&str] = &["google.protobuf."];

fn tables() -> impl Iterator<Item = &'static Covered> {
    TABLES.iter().copied().flatten()
}

#[test]
fn every_field_of_every_covered_message_has_exactly_one_verdict() {
    let mut problems = Vec::new();
    for table in tables() {
        let Some(message) = culvert_api::pool::pool().get_message_by_name(table.message) else {
            problems.push(format!("{}: no such message", table.message));
            continue;
        };
        let declared: BTreeSet<String> = message.fields().map(|field| field.name().to_owned()).collect();
        let mut judged: BTreeMap<&str, usize> = BTreeMap::new();
        for name in table.groups.iter().flat_map(|group| group.fields) {
            *judged.entry(name).or_default() += 1;
        }
        for (name, count) in &judged {
            if !declared.contains(*name) {
                problems.push(format!("{}.{name}: no such field", table.message));
            } else if *count > 1 {
                problems.push(format!("{}.{name}: {count} verdicts", table.message));
            }
        }
        let missing = declared.iter().filter(|name| !judged.contains_key(name.as_str()));
        problems.extend(missing.map(|name| format!("{}.{name}: no verdict", table.message)));
    }
    assert!(problems.is_empty(), "the tables and the API differ:\n{}", problems.join("\n"));
}

#[test]
fn every_message_in_an_honoured_field_is_covered() {
    let covered: BTreeSet<&str> = tables().map(|table| table.message).collect();
    let mut problems = Vec::new();
    for table in tables() {
        let Some(message) = culvert_api::pool::pool().get_message_by_name(table.message) else { continue };
        for group in table.groups.iter().filter(|group| group.verdict == Verdict::Honoured) {
            for field in group.fields.iter().filter_map(|name| message.get_field_by_name(name)) {
                let kind = match field.kind() {
                    Kind::Message(entry) if field.is_map() => entry.map_entry_value_field().kind(),
                    kind => kind,
                };
                let Kind::Message(inner) = kind else { continue };
                let value = VALUES.iter().any(|prefix| inner.full_name().starts_with(prefix));
                if !value && !covered.contains(inner.full_name()) {
                    problems.push(format!("{}.{}: {} has no table", table.message, field.name(), inner.full_name()));
                }
            }
        }
    }
    assert!(problems.is_empty(), "honoured fields lead into messages without verdicts:\n{}", problems.join("\n"));
}

/// The least that sets a field.
fn set(field: &FieldDescriptor) -> Value {
    if field.is_map() {
        let Kind::Message(entry) = field.kind() else { panic!("a map is a message") };
        let value = value(&entry.map_entry_value_field().kind());
        return Value::Map([(MapKey::String("k".to_owned()), value)].into());
    }
    let value = value(&field.kind());
    if field.is_list() { Value::List(vec![value]) } else { value }
}

fn value(kind: &Kind) -> Value {
    match kind {
        Kind::Double => Value::F64(1.0),
        Kind::Float => Value::F32(1.0),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(1),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(1),
        Kind::Uint32 | Kind::Fixed32 => Value::U32(1),
        Kind::Uint64 | Kind::Fixed64 => Value::U64(1),
        Kind::Bool => Value::Bool(true),
        Kind::String => Value::String("x".to_owned()),
        Kind::Bytes => Value::Bytes(b"x".as_slice().into()),
        Kind::Enum(_) => Value::EnumNumber(1),
        Kind::Message(message) => {
            let mut inner = DynamicMessage::new(message.clone());
            if message.full_name() == "google.protobuf.BoolValue" {
                inner.set_field_by_name("value", Value::Bool(true));
            }
            Value::Message(inner)
        }
    }
}

#[test]
fn every_field_that_is_set_is_treated_as_its_verdict_says() {
    for table in tables() {
        let message = culvert_api::pool::pool().get_message_by_name(table.message).expect(table.message);
        for group in table.groups {
            for name in group.fields {
                let field = message.get_field_by_name(name).expect(name);
                let mut dynamic = DynamicMessage::new(message.clone());
                dynamic.set_field(&field, set(&field));
                let mut report = Report::default();
                walk(&mut report, table.message, &dynamic.encode_to_vec());
                let paths = |findings: &[crate::report::Finding]| -> Vec<String> {
                    findings.iter().map(|finding| finding.path.clone()).collect()
                };
                let found = (paths(&report.errors), paths(&report.warnings));
                let here = vec![(*name).to_owned()];
                let expected = match group.verdict {
                    Verdict::Honoured | Verdict::Carried => (vec![], vec![]),
                    Verdict::Warned(_) => (vec![], here),
                    Verdict::Refused(_) => (here, vec![]),
                };
                assert_eq!(found, expected, "errors and warnings for {}.{name}", table.message);
            }
        }
    }
}

#[test]
fn what_is_false_or_empty_is_not_set() {
    let message = culvert_api::envoy::config::listener::v3::Listener {
        use_original_dst: Some(false),
        transparent: Some(false),
        ..Default::default()
    };
    let mut bytes = message.encode_to_vec();
    // A sender that writes defaults out: stat_prefix (28) "", enable_mptcp (30) false.
    prost::encoding::string::encode(28, &String::new(), &mut bytes);
    prost::encoding::bool::encode(30, &false, &mut bytes);
    let mut report = Report::default();
    walk(&mut report, "envoy.config.listener.v3.Listener", &bytes);
    assert!(report.errors.is_empty() && report.warnings.is_empty(), "{report:?}");
}

/// docs/xds.md holds the tables as they are; `UPDATE_DOCS=1` writes them there.
#[test]
fn the_documentation_is_up_to_date() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/xds.md");
    let text = std::fs::read_to_string(path).expect("docs/xds.md can be read");
    let (written, _) = text.split_once(documentation::MARK).expect("docs/xds.md holds the mark");
    let expected = format!("{written}{}{}", documentation::MARK, documentation::tables());
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(path, expected).expect("docs/xds.md can be written");
    } else {
        assert!(text == expected, "docs/xds.md is stale: run the tests of culvert-model with UPDATE_DOCS=1");
    }
}
