//! Paths in one spelling: what is routed, checked and forwarded is the same text. Envoy's `PathUtil`.

use culvert_model::http::{EscapedSlashes, HttpConnectionManager};

/// What normalisation says of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Go,
    /// The client is to ask again with the normalised path.
    Redirect,
    /// 400.
    Refuse,
}

/// Brings `path` (with its query) into the configured normal form.
pub(crate) fn normalize(path: &mut String, config: &HttpConnectionManager) -> Verdict {
    let wanted = config.normalize_path || config.merge_slashes || config.escaped_slashes != EscapedSlashes::Keep;
    if !wanted || !path.starts_with('/') || is_plain(path) {
        return Verdict::Go;
    }
    let query = path.find('?').map(|at| path.split_off(at));
    let verdict = normalize_path(path, config);
    if let Some(query) = query {
        path.push_str(&query);
    }
    verdict
}

/// Whether no rule has anything to do: no escapes, backslashes, double slashes or dot segments before the query.
fn is_plain(path: &str) -> bool {
    let mut before = 0;
    for byte in path.bytes() {
        match byte {
            b'?' => break,
            b'%' | b'\\' => return false,
            b'/' | b'.' if before == b'/' => return false,
            _ => before = byte,
        }
    }
    true
}

fn normalize_path(path: &mut String, config: &HttpConnectionManager) -> Verdict {
    let mut verdict = Verdict::Go;
    if config.escaped_slashes != EscapedSlashes::Keep
        && let Some(unescaped) = unescape_slashes(path)
    {
        verdict = match config.escaped_slashes {
            EscapedSlashes::Reject => return Verdict::Refuse,
            EscapedSlashes::UnescapeAndRedirect => Verdict::Redirect,
            EscapedSlashes::Keep | EscapedSlashes::UnescapeAndForward => Verdict::Go,
        };
        *path = unescaped;
    }
    if config.normalize_path {
        let Some(canonical) = canonical(path) else { return Verdict::Refuse };
        *path = canonical;
    }
    if config.merge_slashes {
        let mut before = '\0';
        path.retain(|character| {
            let keep = character != '/' || before != '/';
            before = character;
            keep
        });
    }
    verdict
}

/// `%2F` and `%5C` as the slashes that they stand for; `None` if there are none.
fn unescape_slashes(path: &str) -> Option<String> {
    let mut unescaped = String::with_capacity(path.len());
    let mut rest = path;
    let mut found = false;
    while let Some(at) = rest.find('%') {
        let (before, escape) = rest.split_at(at);
        unescaped.push_str(before);
        let slash = match escape.get(..3) {
            Some(hex) if hex.eq_ignore_ascii_case("%2f") => Some('/'),
            Some(hex) if hex.eq_ignore_ascii_case("%5c") => Some('\\'),
            _ => None,
        };
        unescaped.push(slash.unwrap_or('%'));
        found |= slash.is_some();
        rest = escape.get(if slash.is_some() { 3 } else { 1 }..).unwrap_or("");
    }
    unescaped.push_str(rest);
    found.then_some(unescaped)
}

/// RFC 3986 §6.2.2 and 5.2.4 with what browsers add: `\` is `/`, escaped unreserved characters are written plainly, dot
/// segments are resolved. `None`: an escape that is none, or `%00`.
fn canonical(path: &str) -> Option<String> {
    let mut plain = String::with_capacity(path.len());
    let mut characters = path.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => plain.push('/'),
            '%' => {
                let (high, low) = (characters.next()?, characters.next()?);
                let byte = high.to_digit(16)? * 16 + low.to_digit(16)?;
                let decoded = char::from_u32(byte)?;
                if decoded == '\0' {
                    return None;
                }
                if decoded.is_ascii_alphanumeric() || matches!(decoded, '-' | '.' | '_' | '~') {
                    plain.push(decoded);
                } else {
                    plain.extend(['%', high, low]);
                }
            }
            other => plain.push(other),
        }
    }
    Some(remove_dot_segments(&plain))
}

fn remove_dot_segments(path: &str) -> String {
    let mut segments: Vec<&str> = Vec::new();
    let mut ends_in_dots = false;
    for segment in path.split('/').skip(1) {
        ends_in_dots = matches!(segment, "." | "..");
        match segment {
            "." => {}
            ".." => {
                segments.pop();
            }
            segment => segments.push(segment),
        }
    }
    // `/a/.` is the folder `/a/`.
    if ends_in_dots {
        segments.push("");
    }
    let mut resolved = String::with_capacity(path.len());
    for segment in segments {
        resolved.push('/');
        resolved.push_str(segment);
    }
    if resolved.is_empty() { "/".to_owned() } else { resolved }
}
