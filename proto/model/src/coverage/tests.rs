//! The tables against the descriptor set, and the documentation against the tables.

use std::collections::{BTreeMap, BTreeSet};

use prost_reflect::Kind;

use super::{Covered, TABLES, Verdict};

/// Messages that are values: read as a whole or not at all. (`config_discovery` is judged with `is_optional`.)
const VALUES: &[&str] = &["google.protobuf.", "envoy.config.core.v3.ExtensionConfigSource"];

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
