//! The tables as docs/xds.md prints them.

use std::fmt::Write as _;

use super::{Covered, TABLES, Verdict};

/// Everything behind this line of docs/xds.md is written by the test.
pub(super) const MARK: &str =
    "<!-- Written by the tests of culvert-model from proto/model/src/coverage; do not edit below. -->\n";

/// One section for each table, one heading for each message, one line for each group of fields.
pub(super) fn tables() -> String {
    const TITLES: [&str; 10] = [
        "Bootstrap",
        "Listeners",
        "HTTP connection manager and protocol options",
        "Route configurations",
        "Clusters and endpoints",
        "TLS and secrets",
        "Access logs",
        "Matchers",
        "What all resources share",
        "Tunnels",
    ];
    let mut text = String::new();
    for (title, table) in TITLES.iter().zip(TABLES) {
        let _ = write!(text, "\n### {title}\n");
        for message in *table {
            one(&mut text, message);
        }
    }
    text
}

fn one(text: &mut String, covered: &Covered) {
    let _ = write!(text, "\n**{}**\n\n", covered.message);
    if covered.groups.is_empty() {
        text.push_str("- no fields\n");
    }
    for group in covered.groups {
        let fields: Vec<String> = group.fields.iter().map(|field| format!("`{field}`")).collect();
        let fields = fields.join(", ");
        let _ = match group.verdict {
            Verdict::Honoured => writeln!(text, "- honoured: {fields}"),
            Verdict::Carried => writeln!(text, "- carried: {fields}"),
            Verdict::Warned("") => writeln!(text, "- warned about: {fields}"),
            Verdict::Warned(reason) => writeln!(text, "- warned about ({reason}): {fields}"),
            Verdict::Refused(reason) => writeln!(text, "- **refused** ({reason}): {fields}"),
        };
    }
}
