//! Rules on strings and bytes.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{LazyLock, Mutex, PoisonError};

use regex::bytes::Regex;

use crate::document::node::quote;
use crate::rules::string_rules::WellKnown;
use crate::rules::{BytesRules, KnownRegex, StringRules, bytes_rules};

/// What is wrong with a string.
pub(super) fn string(text: &str, rules: &StringRules) -> Vec<String> {
    if rules.ignore_empty() && text.is_empty() {
        return Vec::new();
    }
    let mut findings = Vec::new();
    let characters = text.chars().count() as u64;
    length(&mut findings, characters, rules.len, rules.min_len, rules.max_len, "characters");
    length(&mut findings, text.len() as u64, rules.len_bytes, rules.min_bytes, rules.max_bytes, "bytes");
    let mut need = |holds: bool, what: String| {
        if !holds {
            findings.push(format!("{} {what}", quote(text)));
        }
    };
    if let Some(wanted) = &rules.r#const {
        need(text == wanted, format!("must be {wanted:?}"));
    }
    if let Some(pattern) = &rules.pattern {
        need(matches(pattern, text.as_bytes()), format!("must match {pattern:?}"));
    }
    if let Some(prefix) = &rules.prefix {
        need(text.starts_with(prefix), format!("must begin with {prefix:?}"));
    }
    if let Some(suffix) = &rules.suffix {
        need(text.ends_with(suffix), format!("must end with {suffix:?}"));
    }
    if let Some(part) = &rules.contains {
        need(text.contains(part), format!("must contain {part:?}"));
    }
    if let Some(part) = &rules.not_contains {
        need(!text.contains(part), format!("must not contain {part:?}"));
    }
    if !rules.r#in.is_empty() {
        need(rules.r#in.iter().any(|one| one == text), format!("must be one of {:?}", rules.r#in));
    }
    need(!rules.not_in.iter().any(|one| one == text), "is not allowed here".to_owned());
    if let Some(form) = &rules.well_known {
        let (holds, what) = well_known(text, form, rules.strict());
        need(holds, format!("is no {what}"));
    }
    findings
}

/// What is wrong with bytes. They may be a secret: they are not shown.
pub(super) fn bytes(bytes: &[u8], rules: &BytesRules) -> Vec<String> {
    if rules.ignore_empty() && bytes.is_empty() {
        return Vec::new();
    }
    let mut findings = Vec::new();
    length(&mut findings, bytes.len() as u64, rules.len, rules.min_len, rules.max_len, "bytes");
    let mut need = |holds: bool, what: &str| {
        if !holds {
            findings.push(what.to_owned());
        }
    };
    let wanted =
        |wanted: &Option<bytes::Bytes>, holds: &dyn Fn(&[u8]) -> bool| wanted.as_ref().is_none_or(|it| holds(it));
    need(wanted(&rules.r#const, &|wanted| bytes == wanted), "must be the one value that is allowed here");
    need(wanted(&rules.prefix, &|prefix| bytes.starts_with(prefix)), "must begin with the prefix that the API demands");
    need(wanted(&rules.suffix, &|suffix| bytes.ends_with(suffix)), "must end with the suffix that the API demands");
    let contains = |part: &[u8]| part.is_empty() || bytes.windows(part.len()).any(|window| window == part);
    need(wanted(&rules.contains, &contains), "must contain what the API demands");
    if let Some(pattern) = &rules.pattern {
        need(matches(pattern, bytes), &format!("must match {pattern:?}"));
    }
    need(rules.r#in.is_empty() || rules.r#in.iter().any(|one| one == bytes), "is none of the values allowed here");
    need(!rules.not_in.iter().any(|one| one == bytes), "is not allowed here");
    let lengths: &[usize] = match rules.well_known {
        Some(bytes_rules::WellKnown::Ip(true)) => &[4, 16],
        Some(bytes_rules::WellKnown::Ipv4(true)) => &[4],
        Some(bytes_rules::WellKnown::Ipv6(true)) => &[16],
        _ => return findings,
    };
    need(lengths.contains(&bytes.len()), "is no IP address in network order");
    findings
}

fn length(findings: &mut Vec<String>, found: u64, exact: Option<u64>, min: Option<u64>, max: Option<u64>, unit: &str) {
    if let Some(exact) = exact.filter(|exact| found != *exact) {
        findings.push(format!("must have {exact} {unit}, has {found}"));
    }
    if let Some(min) = min.filter(|min| found < *min) {
        findings.push(if found == 0 && min == 1 {
            "must not be empty".to_owned()
        } else {
            format!("must have at least {min} {unit}, has {found}")
        });
    }
    if let Some(max) = max.filter(|max| found > *max) {
        findings.push(format!("must have at most {max} {unit}, has {found}"));
    }
}

/// Patterns come from the descriptor set, so the cache is bounded by it. One that this engine cannot compile checks nothing.
fn matches(pattern: &str, text: &[u8]) -> bool {
    static CACHE: LazyLock<Mutex<HashMap<String, Option<Regex>>>> = LazyLock::new(Mutex::default);
    let mut cache = CACHE.lock().unwrap_or_else(PoisonError::into_inner);
    let compiled = cache.entry(pattern.to_owned()).or_insert_with(|| Regex::new(pattern).ok());
    compiled.as_ref().is_none_or(|regex| regex.is_match(text))
}

fn well_known(text: &str, form: &WellKnown, strict: bool) -> (bool, &'static str) {
    match form {
        WellKnown::Email(true) => (is_email(text), "e-mail address"),
        WellKnown::Hostname(true) => (is_hostname(text), "host name"),
        WellKnown::Ip(true) => (is_ip(text), "IP address"),
        WellKnown::Ipv4(true) => (text.parse::<Ipv4Addr>().is_ok(), "IPv4 address"),
        WellKnown::Ipv6(true) => (text.parse::<Ipv6Addr>().is_ok(), "IPv6 address"),
        WellKnown::Uri(true) => (is_uri(text, false), "absolute URI"),
        WellKnown::UriRef(true) => (is_uri(text, true), "URI reference"),
        WellKnown::Address(true) => (is_ip(text) || is_hostname(text), "IP address or host name"),
        WellKnown::Uuid(true) => (is_uuid(text), "UUID"),
        WellKnown::WellKnownRegex(known) => match KnownRegex::try_from(*known) {
            Ok(KnownRegex::HttpHeaderName) => (is_header_name(text, strict), "header name"),
            Ok(KnownRegex::HttpHeaderValue) => (is_header_value(text, strict), "header value"),
            _ => (true, ""),
        },
        _ => (true, ""),
    }
}

fn is_ip(text: &str) -> bool {
    text.parse::<IpAddr>().is_ok()
}

/// RFC 1034 §3.5: labels of 1 to 63 letters, digits and inner hyphens, 253 in all.
fn is_hostname(text: &str) -> bool {
    let text = text.strip_suffix('.').unwrap_or(text);
    text.len() <= 253
        && text.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
}

fn is_email(text: &str) -> bool {
    text.len() <= 254
        && text.rsplit_once('@').is_some_and(|(local, domain)| {
            (1..=64).contains(&local.len()) && !local.contains(char::is_whitespace) && is_hostname(domain)
        })
}

/// RFC 3986 §2 and §3.1: its characters, and a scheme unless it may be relative.
fn is_uri(text: &str, relative: bool) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:/?#[]@!$&'()*+,;=%".contains(&byte);
    let scheme = text.split_once(':').is_some_and(|(scheme, _)| {
        scheme.starts_with(|first: char| first.is_ascii_alphabetic())
            && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
    });
    text.bytes().all(allowed) && (relative || scheme)
}

fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(index, byte)| match index {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

/// protoc-gen-validate's HTTP_HEADER_NAME: a token (RFC 9110 §5.6.2), or a pseudo-header; not strict: no NUL, CR, LF, and
/// an empty one is none that is wrong (`WeightedCluster.ClusterWeight.cluster_header` where `name` is set).
fn is_header_name(text: &str, strict: bool) -> bool {
    if !strict {
        return is_header_value(text, false);
    }
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_|~`,".contains(&byte);
    let name = text.strip_prefix(':').unwrap_or(text);
    !name.is_empty() && name.bytes().all(token)
}

/// protoc-gen-validate's HTTP_HEADER_VALUE: no control characters but tabs; not strict: no NUL, CR, LF.
fn is_header_value(text: &str, strict: bool) -> bool {
    text.bytes().all(|byte| match byte {
        0 | b'\n' | b'\r' => false,
        b'\t' => true,
        1..=0x1f | 0x7f => !strict,
        _ => true,
    })
}
