//! Formats that yield an id: access-log formats of few operators.

use std::borrow::Cow;

use crate::access_log::{Operator, Part, parts};
use crate::report::Report;

/// Literals and operators. **An operator without a value makes the whole format yield nothing** (Envoy writes `-`, which
/// somebody could be called).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdFormat {
    parts: Vec<Part>,
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
    pub fn evaluate<'v>(&self, value: impl Fn(&Operator) -> Option<Cow<'v, str>>) -> Option<String> {
        let mut id = String::new();
        for part in &self.parts {
            match part {
                Part::Literal(text) => id.push_str(text),
                Part::Operator { operator, max_length } => {
                    let value = value(operator).filter(|value| !value.is_empty())?;
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
    let parts = parts(text)?;
    for part in &parts {
        let Part::Operator { operator, .. } = part else { continue };
        let known = match (operator, place) {
            (Operator::RequestHeader { .. }, Place::Request)
            | (Operator::DownstreamPeerUriSan | Operator::DownstreamPeerDnsSan, Place::Handshake) => true,
            (Operator::DynamicMetadata { path, .. }, Place::Handshake) => !path.is_empty(),
            _ => false,
        };
        if !known {
            let known = match place {
                Place::Request => "%REQ(NAME)% and literal text are",
                Place::Handshake => {
                    "%DOWNSTREAM_PEER_URI_SAN%, %DOWNSTREAM_PEER_DNS_SAN%, %DYNAMIC_METADATA(NAMESPACE:KEY)% and literal text are"
                }
            };
            return Err(format!("%{}% is not there: {known}", operator.name()));
        }
    }
    Ok(IdFormat { parts })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, place: Place, expected: Result<Option<&str>, &str>) {
        let value = |operator: &Operator| match operator {
            Operator::RequestHeader { name, alternative } => match (&**name, alternative.as_deref()) {
                ("x-node", _) => Some(Cow::Borrowed("edge-7")),
                (_, Some("x-node")) => Some(Cow::Borrowed("other")),
                ("x-empty", _) => Some(Cow::Borrowed("")),
                _ => None,
            },
            Operator::DynamicMetadata { namespace, path } => {
                (&**namespace == "ns" && path.len() == 2).then(|| "claim".into())
            }
            Operator::DownstreamPeerUriSan => Some("spiffe://a/b".into()),
            _ => None,
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
            ("%REQ(x-node):x%", Err("is not closed")),
            ("%REQ()%", Err("is a header name")),
            ("%REQ%", Err("is a header name")),
            ("%REQ(x-node)", Err("is not closed")),
            ("%CEL(request.path)%", Err("`%CEL%` is not a known operator")),
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
            ("%DYNAMIC_METADATA(ns)%", Err("%DYNAMIC_METADATA% is not there")),
            ("%REQ(x-node)%", Err("is not there")),
        ] {
            check(text, Place::Handshake, expected);
        }
    }
}
