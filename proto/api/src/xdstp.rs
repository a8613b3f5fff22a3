//! Names of the form `xdstp://AUTHORITY/TYPE/ID?PARAMETERS` (xDS TP1): one spelling for each.

use std::borrow::Cow;

/// What such a name begins with.
pub const SCHEME: &str = "xdstp:";

/// The name with its context parameters in order (TP1: "the context parameters ... ordered by key") and with as few escapes as
/// may be (RFC 3986, 6.2.2), so that equal names are equal as text. What is no such name is as it is.
#[must_use]
pub fn canonical(name: &str) -> Cow<'_, str> {
    if !name.starts_with(SCHEME) {
        return Cow::Borrowed(name);
    }
    if name.contains('%') {
        return Cow::Owned(in_order(&escaped(name)).into_owned());
    }
    in_order(name)
}

/// With the parameters sorted.
fn in_order(name: &str) -> Cow<'_, str> {
    let (rest, directive) = name.find('#').map_or((name, ""), |at| name.split_at(at));
    let Some((resource, parameters)) = rest.split_once('?') else { return Cow::Borrowed(name) };
    let mut pairs: Vec<&str> = parameters.split('&').collect();
    if pairs.is_sorted() {
        return Cow::Borrowed(name);
    }
    pairs.sort_unstable();
    Cow::Owned(format!("{resource}?{}{directive}", pairs.join("&")))
}

/// RFC 3986, 6.2.2.1 and 6.2.2.2: unreserved characters stand for themselves, other escapes have upper-case digits, and a `%`
/// that begins none is escaped.
fn escaped(name: &str) -> String {
    let mut parts = name.split('%');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let escape =
            part.split_at_checked(2).filter(|(digits, _)| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
        let (digits, rest) = escape.unwrap_or(("25", part));
        match u8::from_str_radix(digits, 16) {
            Ok(byte) if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) => text.push(char::from(byte)),
            _ => text.extend(["%", &digits.to_ascii_uppercase()]),
        }
        text.push_str(rest);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_have_one_order() {
        for (name, expected) in [
            ("plain?b=1&a=2", "plain?b=1&a=2"),
            ("xdstp://a/t/x", "xdstp://a/t/x"),
            ("xdstp://a/t/x?a=1&b=2", "xdstp://a/t/x?a=1&b=2"),
            ("xdstp://a/t/x?b=2&a=1", "xdstp://a/t/x?a=1&b=2"),
            ("xdstp:///t/x/*?z=&b=2&a=1#e", "xdstp:///t/x/*?a=1&b=2&z=#e"),
            ("xdstp:///t/x#e?b=2&a=1", "xdstp:///t/x#e?b=2&a=1"),
        ] {
            assert_eq!(canonical(name), expected, "{name}");
        }
    }

    #[test]
    fn escapes_have_one_spelling() {
        for (name, expected) in [
            ("plain%2d", "plain%2d"),
            ("xdstp://a/t/x%2dy%41", "xdstp://a/t/x-yA"),
            ("xdstp://a/t/x%2fy", "xdstp://a/t/x%2Fy"),
            ("xdstp://a/t/x%2Fy", "xdstp://a/t/x%2Fy"),
            ("xdstp://a/t/x%25%32%35", "xdstp://a/t/x%2525"),
            ("xdstp://a/t/x?%62=2&a=1%26", "xdstp://a/t/x?a=1%26&b=2"),
            ("xdstp://a/t/%", "xdstp://a/t/%25"),
            ("xdstp://a/t/%%341", "xdstp://a/t/%2541"),
            ("xdstp://a/t/%+4%é1", "xdstp://a/t/%25+4%25é1"),
        ] {
            assert_eq!(canonical(name), expected, "{name}");
            assert_eq!(canonical(expected), expected, "of what has its one spelling: {name}");
        }
    }
}
