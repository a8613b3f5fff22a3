//! Who may ask: not a web page of somebody else's.

use culvert_runtime::rebinding::is_this_machine;
use http::uri::Authority;
use http::{Method, Request, header};

/// Refuses a request whose `host` is a name that others control (DNS rebinding), and a POST that a page of another origin
/// sent.
///
/// # Errors
/// What to do instead.
pub(super) fn check<B>(request: &Request<B>) -> Result<(), &'static str> {
    // HTTP/2 says it in the request's target.
    let named = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    let host = named.or(request.uri().authority().map(Authority::as_str)).unwrap_or("");
    if !is_this_machine(host) {
        return Err("the host of this request is not this machine; ask for it by address or as localhost\n");
    }
    let origin = request.headers().get(header::ORIGIN).and_then(|origin| origin.to_str().ok());
    if request.method() == Method::POST
        && let Some(origin) = origin
        && origin.split_once("://").is_none_or(|(_, authority)| authority != host)
    {
        return Err("this request comes from a page of another origin\n");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: &str, host: &str, origin: Option<&str>) -> Request<()> {
        let builder = Request::builder().method(method).uri("/ready").header("host", host);
        origin.iter().fold(builder, |builder, origin| builder.header("origin", *origin)).body(()).unwrap()
    }

    #[test]
    fn foreign_names_and_foreign_pages_are_refused() {
        let cases = [
            ("GET", "127.0.0.1:9901", None, true),
            ("GET", "[::1]:9901", None, true),
            ("GET", "localhost:9901", None, true),
            ("GET", "LOCALHOST", None, true),
            ("GET", "", None, true),
            ("GET", "evil.example:9901", None, false),
            ("GET", "127.0.0.1.evil.example", None, false),
            ("GET", "notlocalhost", None, false),
            ("POST", "127.0.0.1:9901", None, true),
            ("POST", "127.0.0.1:9901", Some("http://127.0.0.1:9901"), true),
            ("POST", "127.0.0.1:9901", Some("http://evil.example"), false),
            ("POST", "127.0.0.1:9901", Some("null"), false),
        ];
        for (method, host, origin, expected) in cases {
            let allowed = check(&request(method, host, origin)).is_ok();
            assert_eq!(allowed, expected, "{method} with host {host:?} and origin {origin:?}");
        }
    }
}
