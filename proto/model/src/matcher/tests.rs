use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use super::*;

fn exact(value: &str, ignore_case: bool) -> StringMatcher {
    StringMatcher::Exact { value: value.into(), ignore_case }
}

#[test]
fn strings_match() {
    let prefix = |value: &str, ignore_case| StringMatcher::Prefix { value: value.into(), ignore_case };
    let suffix = |value: &str, ignore_case| StringMatcher::Suffix { value: value.into(), ignore_case };
    let contains = |value: &str, ignore_case| StringMatcher::Contains { value: value.into(), ignore_case };
    let regex = |source: &str| StringMatcher::Regex(SafeRegex::new(source).unwrap());
    let cases = [
        (exact("abc", false), "abc", true),
        (exact("abc", false), "ABC", false),
        (exact("abc", true), "aBC", true),
        (exact("abc", true), "abcd", false),
        (exact("", false), "", true),
        (prefix("ab", false), "abc", true),
        (prefix("ab", false), "a", false),
        (prefix("ab", true), "ABc", true),
        (suffix("bc", false), "abc", true),
        (suffix("bc", false), "c", false),
        (suffix("bc", true), "aBC", true),
        (contains("b", false), "abc", true),
        (contains("b", true), "aBc", true),
        (contains("bb", false), "abcb", false),
        (regex("a+"), "aaa", true),
        (regex("a+"), "aab", false),
        (regex("a|b"), "ab", false),
        (regex("a|b"), "b", true),
        (regex("(?m)^a$"), "b\na", false),
    ];
    for (matcher, subject, expected) in cases {
        assert_eq!(matcher.matches(subject.as_bytes()), expected, "{matcher:?} on {subject:?}");
    }
}

#[test]
fn regular_expressions_are_bounded_and_whole() {
    let long = "a".repeat(MAX_SOURCE + 1);
    let folded = format!("(?i){}", r"\p{any}".repeat(580));
    let nested = format!("(?i){}{}", "[a".repeat(25), "]".repeat(25).replacen(']', r"\D]", 1));
    let deep = format!("{}a{}", "(".repeat(1000), ")".repeat(1000));
    let cases = [
        ("", "empty"),
        ("(", "not a regular expression"),
        ("a)(b", "not a regular expression"),
        ("a)|(?:b", "not a regular expression"),
        ("(?=a)", "look-around"),
        (r"(a)\1", "backreferences"),
        (long.as_str(), "more than"),
        (deep.as_str(), "not a regular expression"),
        ("((a{100}){100}){100}", "compiles to more than"),
        (r"(\pL{1000}){1000}", "compiles to more than"),
        (folded.as_str(), "ignores the case of too many"),
        (nested.as_str(), "ignores the case of too many"),
        (r"(?i)[^a[^b[^c[^d]]]]", "ignores the case of too many"),
        (r"\p{nobody}", "property not found"),
    ];
    for (source, expected) in cases {
        let started = SystemTime::now();
        let error = SafeRegex::new(source).expect_err(source);
        assert!(error.contains(expected), "{source}: expected {expected:?} in {error:?}");
        // Far above what it takes, far below what a bomb would.
        let elapsed = started.elapsed().unwrap();
        assert!(elapsed < Duration::from_secs(2), "{source}: took {elapsed:?}");
    }
}

#[test]
fn ignoring_case_is_cheap_where_little_is_folded() {
    for (source, subject) in [
        (r"(?i)^[\w.-]+@[\w.-]+\.[a-z]+$", "\u{c9}va.B@Example.COM"),
        (r"(?i)/\pL+/[^/]+", "/\u{e9}T\u{c9}/x"),
        ("(?i)[\u{430}-\u{44f}]{3,}", "\u{410}\u{431}\u{412}"),
        (r"(?-i)\pL\pN\PL\pS?\w+[\pL\pN]+", "a1/bcd"),
    ] {
        let regex = SafeRegex::new(source).unwrap_or_else(|error| panic!("{source}: {error}"));
        assert!(regex.matches(subject.as_bytes()), "{source} on {subject}");
    }
}

/// It takes as long to refuse one as to take one.
#[test]
fn regular_expressions_that_are_refused_count_too() {
    let bomb = api::RegexMatcher { regex: "((a{100}){100}){100}".to_owned(), ..Default::default() };
    let mut report = Report::default();
    assert!(report.admit_regex(510 << 20), "512 MiB are there");
    for _ in 0..10 {
        assert!(regex(&mut report, &bomb).is_none(), "a bomb is refused");
    }
    let of = |text: &str| report.errors.iter().filter(|error| error.reason.contains(text)).count();
    assert_eq!((of("compiles to more than"), of("together")), (3, 8), "the rest was not compiled");
}

#[test]
fn the_regular_expressions_of_a_resource_are_bounded_together() {
    let large = api::RegexMatcher { regex: "a{4000}".to_owned(), ..Default::default() };
    let small = api::RegexMatcher { regex: "/a/[^/]+".to_owned(), ..Default::default() };
    let mut report = Report::default();
    assert!(report.admit_regex(510 << 20), "512 MiB are there");
    let admitted = (0..100).take_while(|_| regex(&mut report, &small).is_some()).count();
    assert_eq!(admitted, 100, "small ones count 8 KiB each: {:?}", report.errors);
    let admitted = (0..100).take_while(|_| regex(&mut report, &large).is_some()).count();
    assert_eq!(admitted, 1, "large ones count 1 MiB each: {:?}", report.errors);
    assert!(report.errors[0].reason.contains("together"), "{:?}", report.errors);
}

fn header_matcher(value: HeaderValueMatcher, invert: bool, treat_missing_as_empty: bool) -> HeaderMatcher {
    HeaderMatcher { name: "x".into(), value, invert, treat_missing_as_empty }
}

#[test]
fn headers_match_as_envoy_documents() {
    use HeaderValueMatcher::{Present, Range, String};
    let empty = || String(StringMatcher::Regex(SafeRegex::new("^$").unwrap()));
    let range = || Range { start: 0, end: 10 };
    let cases = [
        (header_matcher(Present(true), false, false), Some("v"), true),
        (header_matcher(Present(true), false, false), None, false),
        (header_matcher(Present(true), true, false), None, true),
        (header_matcher(Present(false), false, false), None, true),
        (header_matcher(Present(false), true, false), None, false),
        (header_matcher(String(exact("v", false)), false, false), Some("v"), true),
        (header_matcher(String(exact("v", false)), true, false), Some("v"), false),
        (header_matcher(String(exact("v", false)), true, false), Some("w"), true),
        // A missing header: the rule is ignored, inverted or not.
        (header_matcher(String(exact("v", false)), true, false), None, false),
        (header_matcher(range(), true, true), None, true),
        (header_matcher(range(), true, false), None, false),
        (header_matcher(empty(), false, true), None, true),
        (header_matcher(empty(), false, false), None, false),
        (header_matcher(range(), false, false), Some("0"), true),
        (header_matcher(range(), false, false), Some("10"), false),
        (header_matcher(range(), false, false), Some("1x"), false),
        (header_matcher(range(), false, false), Some("99999999999999999999"), false),
    ];
    for (matcher, value, expected) in cases {
        let matched = matcher.matches(|name| {
            assert_eq!(name, "x", "the matcher asks for its own header");
            value.map(|value: &str| Cow::Borrowed(value.as_bytes()))
        });
        assert_eq!(matched, expected, "{matcher:?} on {value:?}");
    }
}

#[test]
fn queries_match_on_the_first_parameter_as_it_was_sent() {
    let matcher = |value| QueryMatcher { name: "a".into(), value };
    let equals = |value: &str| QueryValueMatcher::String(exact(value, false));
    let cases = [
        (matcher(QueryValueMatcher::Present(true)), "a=1", true),
        (matcher(QueryValueMatcher::Present(true)), "a", true),
        (matcher(QueryValueMatcher::Present(true)), "b=1", false),
        (matcher(QueryValueMatcher::Present(false)), "", true),
        (matcher(QueryValueMatcher::Present(false)), "a=", false),
        (matcher(equals("1")), "b=2&a=1", true),
        (matcher(equals("1")), "a=2&a=1", false),
        (matcher(equals("1=2")), "a=1=2", true),
        (matcher(equals("%31")), "a=%31", true),
        (matcher(equals("")), "a", true),
        (matcher(equals("")), "aa=1", false),
    ];
    for (matcher, query, expected) in cases {
        assert_eq!(matcher.matches(query.as_bytes()), expected, "{matcher:?} on {query:?}");
    }
}
