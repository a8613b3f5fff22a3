//! Discovery by polling: `POST /v3/discovery:TYPE`, proto3 JSON both ways.

use std::time::Duration;

use bytes::Bytes;
use culvert_api::document;
use culvert_api::envoy::service::discovery::v3::DiscoveryRequest;
use culvert_api::json::{Secrets, to_json};
use culvert_api::type_url;
use http::StatusCode;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use tokio::time::timeout;
use tonic::{Code, Status};

use crate::admin::{response, text};
use crate::control::Control;
use crate::discovery::polled;
use crate::identity::Peer;

pub(crate) const PREFIX: &str = "/v3/discovery:";

/// Largest request.
const MAX_REQUEST: usize = 16 << 20;
/// For its body.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// The paths that Envoy polls.
fn type_of(path: &str) -> Option<&'static str> {
    Some(match path.strip_prefix(PREFIX)? {
        "clusters" => type_url::CLUSTER,
        "endpoints" => type_url::CLUSTER_LOAD_ASSIGNMENT,
        "listeners" => type_url::LISTENER,
        "routes" => type_url::ROUTE_CONFIGURATION,
        "scoped-routes" => type_url::SCOPED_ROUTE_CONFIGURATION,
        "secrets" => type_url::SECRET,
        "runtime" => type_url::RUNTIME,
        "extension_configs" => type_url::EXTENSION_CONFIG,
        _ => return None,
    })
}

/// Answers on a socket of its own.
pub(crate) async fn answer(
    control: &Control,
    peer: &Peer,
    request: http::Request<Incoming>,
) -> http::Response<Full<Bytes>> {
    control.metrics.rest_requests.add();
    let path = request.uri().path();
    if !path.starts_with(PREFIX) {
        return text(StatusCode::NOT_FOUND, format!("there is no {path}; there is POST {PREFIX}TYPE\n"));
    }
    if request.method() != http::Method::POST {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only POST\n".to_owned());
    }
    match control.access.authenticate(peer, request.headers()) {
        Ok((peer, _)) => discovery(control, &peer, request).await,
        Err(status) => refused(&status),
    }
}

/// Answers as a fetch does, but on the way to a change with its step; 304 to who has that version already.
pub(crate) async fn discovery(
    control: &Control,
    peer: &Peer,
    request: http::Request<Incoming>,
) -> http::Response<Full<Bytes>> {
    let Some(of) = type_of(request.uri().path()) else {
        return text(StatusCode::NOT_FOUND, format!("there is no {}\n", request.uri().path()));
    };
    let body = match read(request.into_body()).await {
        Ok(body) => body,
        Err((status, reason)) => return text(status, reason),
    };
    let message = match document::load_of_peer::<DiscoveryRequest>(&body) {
        Ok(message) => message,
        Err(problems) => {
            let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
            return text(StatusCode::BAD_REQUEST, format!("{}\n", problems.join("\n")));
        }
    };
    let had = message.version_info.clone();
    match polled(control, peer, of, message) {
        // Envoy: 304 keeps what it has.
        Ok(answer) if !had.is_empty() && answer.version_info == had => text(StatusCode::NOT_MODIFIED, String::new()),
        Ok(answer) => {
            let body = to_json(&answer, Secrets::Show).to_string();
            response(StatusCode::OK, "application/json", body)
        }
        Err(status) => refused(&status),
    }
}

/// The body of a request, within [`MAX_REQUEST`] and [`BODY_TIMEOUT`]; else the answer to it.
async fn read<B>(body: B) -> Result<Bytes, (StatusCode, String)>
where
    B: hyper::body::Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    match timeout(BODY_TIMEOUT, Limited::new(body, MAX_REQUEST).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            Err((StatusCode::PAYLOAD_TOO_LARGE, format!("a request has at most {MAX_REQUEST} bytes\n")))
        }
        Ok(Err(error)) => Err((StatusCode::BAD_REQUEST, format!("the request broke off: {error}\n"))),
        Err(_) => {
            let limit = BODY_TIMEOUT.as_secs();
            Err((StatusCode::REQUEST_TIMEOUT, format!("the request did not arrive within {limit} s\n")))
        }
    }
}

fn refused(status: &Status) -> http::Response<Full<Bytes>> {
    let code = match status.code() {
        Code::InvalidArgument => StatusCode::BAD_REQUEST,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    text(code, format!("{}\n", status.message()))
}

#[cfg(test)]
mod tests {
    use std::io;

    use futures_util::{StreamExt, stream};
    use http_body_util::StreamBody;
    use hyper::body::Frame;

    use super::*;

    /// What is made of a body of these pieces, which goes on for ever behind them or not.
    async fn read_pieces(pieces: Vec<io::Result<Bytes>>, ends: bool) -> Result<usize, u16> {
        let frames = stream::iter(pieces).map(|piece| piece.map(Frame::data));
        let rest = if ends { stream::pending().take(0).boxed() } else { stream::pending().boxed() };
        let read = read(StreamBody::new(frames.chain(rest))).await;
        read.map(|body| body.len()).map_err(|(status, _)| status.as_u16())
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_is_read_whole_in_time_or_refused() {
        let piece = || Ok(Bytes::from_static(b"{\"node\": {}}"));
        assert_eq!(read_pieces(vec![piece(), piece()], true).await, Ok(24), "all of it");
        let large = || Ok(Bytes::from(vec![b' '; MAX_REQUEST / 2 + 1]));
        assert_eq!(read_pieces(vec![large(), large()], true).await, Err(413), "more than is taken");
        let broken = Err(io::ErrorKind::ConnectionReset.into());
        assert_eq!(read_pieces(vec![piece(), broken], true).await, Err(400), "broken off");
        assert_eq!(read_pieces(vec![piece()], false).await, Err(408), "a sender that sends no more");
    }
}
