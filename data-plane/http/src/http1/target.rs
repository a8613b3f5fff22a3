//! Request targets and authorities (RFC 9112, 3.2; RFC 3986, 3.2).

/// Host and optional port: a registered name, an IPv4 address or a bracketed IPv6 one; no user information.
pub(crate) fn is_authority(authority: &[u8], port_required: bool) -> bool {
    let (host, port) = if authority.starts_with(b"[") {
        let Some(end) = authority.iter().position(|&byte| byte == b']') else { return false };
        let (host, rest) = authority.split_at(end + 1);
        match rest {
            [] => (host, None),
            [b':', port @ ..] => (host, Some(port)),
            _ => return false,
        }
    } else {
        match memchr::memchr(b':', authority) {
            None => (authority, None),
            Some(at) => (&authority[..at], authority.get(at + 1..)),
        }
    };
    is_host(host)
        && match port {
            None => !port_required,
            Some(port) => is_port(port),
        }
}

fn is_port(port: &[u8]) -> bool {
    !port.is_empty()
        && port.len() <= 5
        && port.iter().all(u8::is_ascii_digit)
        && matches!(port.iter().fold(0u32, |sum, byte| sum * 10 + u32::from(byte - b'0')), 1..=65535)
}

fn is_host(host: &[u8]) -> bool {
    if let [b'[', inside @ .., b']'] = host {
        return std::str::from_utf8(inside).is_ok_and(|text| text.parse::<std::net::Ipv6Addr>().is_ok());
    }
    // Nearly always the end of it.
    if host.iter().fold(true, |plain, &byte| plain & PLAIN_HOST[byte as usize]) {
        return !host.is_empty();
    }
    let mut bytes = host.iter();
    while let Some(&byte) = bytes.next() {
        let valid = match byte {
            b'%' => bytes.next().is_some_and(u8::is_ascii_hexdigit) && bytes.next().is_some_and(u8::is_ascii_hexdigit),
            byte => PLAIN_HOST[byte as usize],
        };
        if !valid {
            return false;
        }
    }
    true
}

/// Bytes of a registered name that need no escape: unreserved ones and sub-delimiters.
static PLAIN_HOST: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0_u8;
    while byte < 128 {
        table[byte as usize] = byte.is_ascii_alphanumeric()
            || matches!(byte, b'-' | b'.' | b'_' | b'~' | b'!' | b'$' | b'&'..=b',' | b';' | b'=');
        byte += 1;
    }
    table
};

/// Path and query as they may stand in a request line or `:path`: visible ASCII without a fragment.
pub(crate) fn is_path(path: &[u8]) -> bool {
    // Without an early end, so that it is a few vector instructions.
    path.iter().fold(true, |valid, &byte| valid & matches!(byte, 0x21..=0x7e) & (byte != b'#'))
}

/// A request target taken apart.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Target<'a> {
    Origin(&'a str),
    /// Authority, and path and query, which may lack its slash.
    Absolute(&'a str, &'a str),
    Authority(&'a str),
    Asterisk,
}

/// Takes a target apart; `None` if it has none of the four forms.
pub(crate) fn parse(target: &str, connect: bool) -> Option<Target<'_>> {
    if !is_path(target.as_bytes()) {
        return None;
    }
    if connect {
        return is_authority(target.as_bytes(), true).then_some(Target::Authority(target));
    }
    if target.starts_with('/') {
        return Some(Target::Origin(target));
    }
    if target == "*" {
        return Some(Target::Asterisk);
    }
    let (scheme, rest) = target.split_once("://")?;
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return None;
    }
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    is_authority(authority.as_bytes(), false).then_some(Target::Absolute(authority, path))
}

#[cfg(test)]
mod tests {
    use super::{Target, is_authority, parse};

    #[test]
    fn authorities() {
        for (authority, valid) in [
            ("a", true),
            ("a.b:80", true),
            ("[::1]:65535", true),
            ("127.0.0.1", true),
            ("a%20b", true),
            ("a_b", true),
            ("", false),
            (":80", false),
            ("a:", false),
            ("a:0", false),
            ("a:65536", false),
            ("a:8a", false),
            ("a@b", false),
            ("a b", false),
            ("a/b", false),
            ("a%2", false),
            ("[::1", false),
            ("[::1]x", false),
            ("[g]", false),
            ("a:80:90", false),
            ("a,b", true),
        ] {
            assert_eq!(is_authority(authority.as_bytes(), false), valid, "{authority:?}");
        }
        assert!(!is_authority(b"a", true), "a CONNECT needs a port");
    }

    #[test]
    fn targets() {
        for (target, connect, expected) in [
            ("/a?b", false, Some(Target::Origin("/a?b"))),
            ("*", false, Some(Target::Asterisk)),
            ("http://h", false, Some(Target::Absolute("h", ""))),
            ("HTTPS://h:1?x", false, Some(Target::Absolute("h:1", "?x"))),
            ("http://h/p", false, Some(Target::Absolute("h", "/p"))),
            ("h:443", true, Some(Target::Authority("h:443"))),
            ("/", true, None),
            ("x", false, None),
            ("/a#b", false, None),
            ("/\u{e9}", false, None),
            ("http:///p", false, None),
            ("http://u@h/", false, None),
            ("ftp://h/", false, None),
        ] {
            assert_eq!(parse(target, connect), expected, "{target:?}");
        }
    }
}
