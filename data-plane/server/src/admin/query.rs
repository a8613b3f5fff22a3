//! The parameters of a request.

/// The parameters behind the `?`.
#[derive(Debug)]
pub(super) struct Query<'a>(&'a str);

impl<'a> Query<'a> {
    pub(super) fn new(query: &'a str) -> Self {
        Self(query)
    }

    /// The decoded value of the first parameter of that name; empty if it has none.
    pub(super) fn get(&self, name: &str) -> Option<String> {
        self.pairs().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    pub(super) fn pairs(&self) -> impl Iterator<Item = (String, String)> + use<'a> {
        self.0.split('&').filter(|part| !part.is_empty()).map(|part| {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            (decode(key), decode(value))
        })
    }

    pub(super) fn is_json(&self) -> bool {
        self.get("format").is_some_and(|format| format == "json")
    }
}

/// Percent-decoding; what is not valid stays as it is.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let escaped = match (first, after) {
            (b'%', [high, low, after @ ..]) => hex(*high).zip(hex(*low)).map(|(high, low)| (high << 4 | low, after)),
            _ => None,
        };
        let (byte, after) = escaped.unwrap_or((*first, after));
        bytes.push(byte);
        rest = after;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_decoded() {
        let query = Query::new("filter=%5Ecluster%5C.&usedonly&bad=%zz%4&&format=json");
        assert_eq!(query.get("filter").as_deref(), Some("^cluster\\."), "percent-encoding");
        assert_eq!(query.get("usedonly").as_deref(), Some(""), "a parameter without a value");
        assert_eq!(query.get("bad").as_deref(), Some("%zz%4"), "what is not valid stays");
        assert!(query.is_json() && query.get("absent").is_none(), "json is asked for");
    }
}
