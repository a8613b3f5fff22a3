//! Who may ask: not a web page of somebody else's, and where there is a token, who shows it.

use std::path::{Path, PathBuf};

use culvert_runtime::files;
use culvert_runtime::rebinding::is_this_machine;
use http::uri::Authority;
use http::{HeaderMap, Method, Request, StatusCode, header};
use subtle::ConstantTimeEq;

/// What whoever asks must show (RFC 6750, 2.1). Read anew each time, so that it can be rotated.
#[derive(Debug, Clone)]
pub(crate) struct Token(PathBuf);

/// Why a token cannot be demanded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TokenError {
    #[error("--admin-token-file {}: {source}", path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("--admin-token-file {}: is empty; write a random token into it", .0.display())]
    Empty(PathBuf),
}

impl Token {
    /// # Errors
    /// There is none now.
    pub(crate) fn new(path: &Path) -> Result<Self, TokenError> {
        let token = Self(path.to_owned());
        token.read()?;
        Ok(token)
    }

    /// A line feed at the end is not part of it.
    fn read(&self) -> Result<Vec<u8>, TokenError> {
        let bytes =
            files::read(&self.0, MAX_TOKEN).map_err(|source| TokenError::File { path: self.0.clone(), source })?;
        let token = bytes.trim_ascii_end();
        if token.is_empty() { Err(TokenError::Empty(self.0.clone())) } else { Ok(token.to_vec()) }
    }

    /// **Without a token that can be read nobody gets in.**
    fn is_shown(&self, headers: &HeaderMap) -> bool {
        let shown =
            headers.get(header::AUTHORIZATION).and_then(|value| value.as_bytes().split_at_checked(SCHEME.len()));
        let shown = shown.filter(|(scheme, _)| scheme.eq_ignore_ascii_case(SCHEME)).map(|(_, shown)| shown);
        match self.read() {
            Ok(token) => shown.is_some_and(|shown| token.ct_eq(shown).into()),
            Err(error) => {
                tracing::warn!(%error, "the admin interface refuses everybody");
                false
            }
        }
    }
}

/// Why a request is not answered, and what to do instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) text: &'static str,
}

impl Refusal {
    fn forbidden(text: &'static str) -> Self {
        Self { status: StatusCode::FORBIDDEN, text }
    }
}

/// Refuses who does not show the token, a request whose `host` is a name that others control (DNS rebinding), and a POST that
/// a page of another origin sent. Who asks whether the process is ready needs no token: load balancers do, and learn nothing else.
///
/// # Errors
/// What to do instead.
pub(super) fn check<B>(request: &Request<B>, token: Option<&Token>) -> Result<(), Refusal> {
    check_origin(request).map_err(Refusal::forbidden)?;
    let is_probe = request.method() == Method::GET && request.uri().path() == "/ready";
    if token.is_none_or(|token| is_probe || token.is_shown(request.headers())) {
        return Ok(());
    }
    let text = "show the token of --admin-token-file as `authorization: Bearer TOKEN`\n";
    Err(Refusal { status: StatusCode::UNAUTHORIZED, text })
}

fn check_origin<B>(request: &Request<B>) -> Result<(), &'static str> {
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

const SCHEME: &[u8] = b"Bearer ";
const MAX_TOKEN: u64 = 4096;

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
            let allowed = check(&request(method, host, origin), None).is_ok();
            assert_eq!(allowed, expected, "{method} with host {host:?} and origin {origin:?}");
        }
    }

    #[test]
    fn where_there_is_a_token_only_readiness_is_told_without_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let why = Token::new(file.path()).unwrap_err().to_string();
        assert!(why.ends_with("is empty; write a random token into it"), "{why}");
        std::fs::write(file.path(), "sesame\n").unwrap();
        let token = Token::new(file.path()).unwrap();
        let ask = |method: &str, path: &str, shown: Option<&str>| {
            let builder = Request::builder().method(method).uri(path).header("host", "localhost");
            let request = shown.iter().fold(builder, |builder, shown| builder.header("authorization", *shown)).body(());
            check(&request.unwrap(), Some(&token)).err().map(|refusal| refusal.status.as_u16())
        };
        for (method, path, shown, expected) in [
            ("GET", "/ready", None, None),
            ("POST", "/ready", None, Some(401)),
            ("GET", "/config_dump", None, Some(401)),
            ("GET", "/config_dump", Some("Bearer sesame"), None),
            ("GET", "/config_dump", Some("bearer sesame"), None),
            ("GET", "/config_dump", Some("Bearer sesame "), Some(401)),
            ("GET", "/config_dump", Some("Bearer sesam"), Some(401)),
            ("GET", "/config_dump", Some("Bearer "), Some(401)),
            ("GET", "/config_dump", Some("Basic sesame"), Some(401)),
            ("GET", "/config_dump", Some("sesame"), Some(401)),
            ("POST", "/quitquitquit", None, Some(401)),
            ("POST", "/quitquitquit", Some("Bearer sesame"), None),
        ] {
            assert_eq!(ask(method, path, shown), expected, "{method} {path} with {shown:?}");
        }
        std::fs::write(file.path(), "next").unwrap();
        assert_eq!(ask("GET", "/stats", Some("Bearer next")), None, "rotated");
        assert_eq!(ask("GET", "/stats", Some("Bearer sesame")), Some(401), "rotated away");
        std::fs::remove_file(file.path()).unwrap();
        assert_eq!(ask("GET", "/stats", Some("Bearer next")), Some(401), "without a file nobody is let in");
    }
}
