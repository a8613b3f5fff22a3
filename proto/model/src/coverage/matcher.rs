//! Verdicts over the messages of matchers.

use super::{Covered, carried, covered, honoured, refused};

pub(super) const TABLE: &[Covered] = &[
    covered(
        "envoy.type.matcher.v3.StringMatcher",
        &[
            honoured(&["exact", "prefix", "suffix", "safe_regex", "contains", "ignore_case"]),
            refused(&["custom"], "it decides what matches"),
        ],
    ),
    covered("envoy.type.matcher.v3.RegexMatcher", &[honoured(&["regex"]), carried(&["google_re2"])]),
    covered("envoy.type.matcher.v3.RegexMatchAndSubstitute", &[honoured(&["pattern", "substitution"])]),
    covered("envoy.type.v3.Int64Range", &[honoured(&["start", "end"])]),
];
