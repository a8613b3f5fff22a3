//! Formats that yield an id: a subset of Envoy's access-log formats, with a source for each operator.

use std::borrow::Cow;
use std::sync::Arc;

use crate::report::{Report, clip};

/// Literals and operators. **An operator without a value makes the whole format yield nothing** (Envoy writes `-`, which
/// somebody could be called).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdFormat {
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Literal(Arc<str>),
    Operator { source: IdSource, max_length: Option<usize> },
}

/// Where an operator's value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdSource {
    /// `%REQ(NAME?ALTERNATIVE)%`; names in lower case.
    RequestHeader { name: Arc<str>, alternative: Option<Arc<str>> },
    /// `%DYNAMIC_METADATA(NAMESPACE:KEY:KEY)%`.
    Metadata { namespace: Arc<str>, path: Vec<Arc<str>> },
    /// `%DOWNSTREAM_PEER_URI_SAN%`.
    PeerUriSan,
    /// `%DOWNSTREAM_PEER_DNS_SAN%`.
    PeerDnsSan,
}

/// What a format may ask for, by where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// `host_id_format`: of a request.
    Request,
    /// `validation`: of a handshake.
    Handshake,
}

impl IdFormat {
    /// What the format yields; `None`: an operator has no value.
    pub fn evaluate<'v>(&self, value: impl Fn(&IdSource) -> Option<Cow<'v, str>>) -> Option<String> {
        let mut id = String::new();
        for part in &self.parts {
            match part {
                Part::Literal(text) => id.push_str(text),
                Part::Operator { source, max_length } => {
                    let value = value(source).filter(|value| !value.is_empty())?;
                    let end = max_length.map_or(value.len(), |most| value.floor_char_boundary(most));
                    id.push_str(value.get(..end)?);
                }
            }
        }
        Some(id).filter(|id| !id.is_empty())
    }

    /// Parses a format of a request.
    ///
    /// # Errors
    /// As [`Self::of_handshake`].
    pub fn of_request(text: &str) -> Result<Self, String> {
        parse(text, Place::Request)
    }

    /// Parses a format of a handshake.
    ///
    /// # Errors
    /// What is wrong: an operator that is not known here, or one that does not end.
    pub fn of_handshake(text: &str) -> Result<Self, String> {
        parse(text, Place::Handshake)
    }

    /// Parses the format at `field`; empty: `None`.
    pub(crate) fn report(report: &mut Report, field: &'static str, text: &str, place: Place) -> Option<Self> {
        if text.is_empty() {
            return None;
        }
        parse(text, place).map_err(|reason| report.error_at(field, reason)).ok()
    }
}

fn parse(text: &str, place: Place) -> Result<IdFormat, String> {
    let (mut parts, mut literal, mut rest) = (Vec::new(), String::new(), text);
    while let Some((before, after)) = rest.split_once('%') {
        literal.push_str(before);
        if let Some(after) = after.strip_prefix('%') {
            literal.push('%');
            rest = after;
            continue;
        }
        if !literal.is_empty() {
            parts.push(Part::Literal(std::mem::take(&mut literal).into()));
        }
        let (operator, after) = after
            .split_once('%')
            .ok_or_else(|| "a % begins an operator that does not end; %% is a percent sign".to_owned())?;
        parts.push(part(operator, place)?);
        rest = after;
    }
    literal.push_str(rest);
    if !literal.is_empty() {
        parts.push(Part::Literal(literal.into()));
    }
    Ok(IdFormat { parts })
}

/// `NAME(ARGUMENT):LENGTH`.
fn part(operator: &str, place: Place) -> Result<Part, String> {
    let (call, length) = match operator.rsplit_once("):") {
        Some((call, length)) => (format!("{call})"), Some(length)),
        None => (operator.to_owned(), None),
    };
    let max_length = match length.map(str::parse::<usize>) {
        None => None,
        Some(Ok(length)) => Some(length),
        Some(Err(_)) => return Err(format!("%{}%: its length is no number", clip(operator))),
    };
    let (name, argument) = match call.split_once('(') {
        Some((name, rest)) => (name, rest.strip_suffix(')')),
        None => (call.as_str(), None),
    };
    let source = match (name, argument, place) {
        ("REQ", Some(names), Place::Request) => {
            let (name, alternative) = names.split_once('?').map_or((names, None), |(name, other)| (name, Some(other)));
            let lower = |name: &str| Arc::<str>::from(name.to_ascii_lowercase());
            IdSource::RequestHeader { name: lower(name), alternative: alternative.map(lower) }
        }
        ("DYNAMIC_METADATA", Some(path), Place::Handshake) => {
            let mut words = path.split(':').map(Arc::<str>::from);
            let namespace = words.next().unwrap_or_default();
            IdSource::Metadata { namespace, path: words.collect() }
        }
        ("DOWNSTREAM_PEER_URI_SAN", None, Place::Handshake) => IdSource::PeerUriSan,
        ("DOWNSTREAM_PEER_DNS_SAN", None, Place::Handshake) => IdSource::PeerDnsSan,
        _ => {
            let known = match place {
                Place::Request => "%REQ(NAME)% and literal text are",
                Place::Handshake => {
                    "%DOWNSTREAM_PEER_URI_SAN%, %DOWNSTREAM_PEER_DNS_SAN%, %DYNAMIC_METADATA(NAMESPACE:KEY)% and literal text are"
                }
            };
            return Err(format!("%{}% is not there: {known}", clip(operator)));
        }
    };
    if matches!(&source, IdSource::RequestHeader { name, .. } if name.is_empty())
        || matches!(&source, IdSource::Metadata { path, .. } if path.is_empty())
    {
        return Err(format!("%{}%: names nothing", clip(operator)));
    }
    Ok(Part::Operator { source, max_length })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, place: Place, expected: Result<Option<&str>, &str>) {
        let value = |source: &IdSource| match source {
            IdSource::RequestHeader { name, alternative } => match (&**name, alternative.as_deref()) {
                ("x-node", _) => Some(Cow::Borrowed("edge-7")),
                (_, Some("x-node")) => Some(Cow::Borrowed("other")),
                ("x-empty", _) => Some(Cow::Borrowed("")),
                _ => None,
            },
            IdSource::Metadata { namespace, path } => (&**namespace == "ns" && path.len() == 2).then(|| "claim".into()),
            IdSource::PeerUriSan => Some("spiffe://a/b".into()),
            IdSource::PeerDnsSan => None,
        };
        match (parse(text, place), expected) {
            (Ok(format), Ok(expected)) => assert_eq!(format.evaluate(value).as_deref(), expected, "{text:?}"),
            (Err(reason), Err(expected)) => assert!(reason.contains(expected), "{text:?}: {reason}"),
            (seen, expected) => panic!("{text:?}: expected {expected:?}, saw {seen:?}"),
        }
    }

    #[test]
    fn formats_of_requests() {
        for (text, expected) in [
            ("edge", Ok(Some("edge"))),
            ("100%%", Ok(Some("100%"))),
            ("%REQ(X-Node)%", Ok(Some("edge-7"))),
            ("a-%REQ(x-node)%-b", Ok(Some("a-edge-7-b"))),
            ("%REQ(x-none?x-node)%", Ok(Some("other"))),
            ("%REQ(x-node):4%", Ok(Some("edge"))),
            ("%REQ(x-none)%", Ok(None)),
            ("a%REQ(x-empty)%", Ok(None)),
            ("%REQ(x-node):x%", Err("its length is no number")),
            ("%REQ()%", Err("names nothing")),
            ("%REQ%", Err("%REQ% is not there")),
            ("%REQ(x-node)", Err("does not end")),
            ("%CEL(request.path)%", Err("%CEL(request.path)% is not there")),
            ("%DYNAMIC_METADATA(ns:a)%", Err("is not there")),
            ("%DOWNSTREAM_PEER_URI_SAN%", Err("is not there")),
        ] {
            check(text, Place::Request, expected);
        }
    }

    #[test]
    fn formats_of_handshakes() {
        for (text, expected) in [
            ("%DOWNSTREAM_PEER_URI_SAN%", Ok(Some("spiffe://a/b"))),
            ("%DOWNSTREAM_PEER_DNS_SAN%", Ok(None)),
            ("%DYNAMIC_METADATA(ns:a:b)%", Ok(Some("claim"))),
            ("%DYNAMIC_METADATA(ns:a)%", Ok(None)),
            ("%DYNAMIC_METADATA(ns)%", Err("names nothing")),
            ("%REQ(x-node)%", Err("is not there")),
        ] {
            check(text, Place::Handshake, expected);
        }
    }
}
