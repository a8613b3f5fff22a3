//! `/tunnels`: where every agent is.

use bytes::Bytes;
use culvert_api::culvert::tunnel::v1::ListTunnelsRequest;
use http::{Response, StatusCode};
use http_body_util::Full;

use super::{page, text};
use crate::control::Control;
use crate::inventory;

/// The page for `cluster=..&agent=..&server=..&page_size=..&page_token=..`, each of which may be missing.
pub(super) fn shown(control: &Control, query: Option<&str>) -> Response<Full<Bytes>> {
    let shown = request(query.unwrap_or_default()).and_then(|request| {
        inventory::json(&control.inventory, &request).map_err(|refused| refused.message().to_owned())
    });
    match shown {
        Ok(tunnels) => page(&tunnels),
        Err(mistake) => text(StatusCode::BAD_REQUEST, format!("{mistake}\n")),
    }
}

fn request(query: &str) -> Result<ListTunnelsRequest, String> {
    let mut request = ListTunnelsRequest::default();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = decoded(value).ok_or_else(|| format!("{name}: not percent-encoded UTF-8"))?;
        match name {
            "cluster" => request.cluster = value,
            "agent" => request.agent = value,
            "server" => request.server = value,
            "page_token" => request.page_token = value,
            "page_size" => {
                request.page_size = value.parse().map_err(|_| format!("page_size: {value:?} is no number"))?;
            }
            _ => return Err(format!("{name}: there are cluster, agent, server, page_size and page_token")),
        }
    }
    Ok(request)
}

fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
                let (high, low) = (digit(rest.next())?, digit(rest.next())?);
                u8::try_from(high * 16 + low).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::{ListTunnelsRequest, request};

    #[test]
    fn a_query_is_read_or_refused_with_its_mistake() {
        let good = request("agent=edge%2D7&cluster=a+b&page_size=5&page_token=%5B%22a%22%5D");
        let expected = ListTunnelsRequest {
            agent: "edge-7".into(),
            cluster: "a b".into(),
            page_size: 5,
            page_token: "[\"a\"]".into(),
            ..ListTunnelsRequest::default()
        };
        assert_eq!(good, Ok(expected));
        assert_eq!(request(""), Ok(ListTunnelsRequest::default()), "nothing is asked");
        for (query, part) in [("page_size=x", "no number"), ("agent=%zz", "percent"), ("agnet=a", "there are cluster")]
        {
            let mistake = request(query).expect_err(query);
            assert!(mistake.contains(part), "{query}: expected {part:?} in {mistake:?}");
        }
    }
}
