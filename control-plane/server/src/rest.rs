//! Discovery by polling: `POST /v3/discovery:TYPE`, proto3 JSON both ways.

use bytes::Bytes;
use culvert_api::document::{self, Syntax};
use culvert_api::envoy::service::discovery::v3::DiscoveryRequest;
use culvert_api::json::{Secrets, to_json};
use culvert_api::type_url;
use http::StatusCode;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use tonic::{Code, Status};

use crate::admin::{response, text};
use crate::control::Control;
use crate::discovery::fetched;
use crate::identity::Peer;

pub(crate) const PREFIX: &str = "/v3/discovery:";

/// Largest request.
const MAX_REQUEST: usize = 16 << 20;

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

/// Answers as a fetch does; 304 to who has that version already.
pub(crate) async fn discovery(
    control: &Control,
    peer: &Peer,
    request: http::Request<Incoming>,
) -> http::Response<Full<Bytes>> {
    let Some(of) = type_of(request.uri().path()) else {
        return text(StatusCode::NOT_FOUND, format!("there is no {}\n", request.uri().path()));
    };
    let Ok(body) = Limited::new(request.into_body(), MAX_REQUEST).collect().await else {
        return text(StatusCode::PAYLOAD_TOO_LARGE, format!("a request has at most {MAX_REQUEST} bytes\n"));
    };
    let message = match document::load::<DiscoveryRequest>(&body.to_bytes(), Syntax::Json) {
        Ok(loaded) => loaded.message,
        Err(problems) => {
            let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
            return text(StatusCode::BAD_REQUEST, format!("{}\n", problems.join("\n")));
        }
    };
    let had = message.version_info.clone();
    match fetched(control, peer, of, message) {
        // Envoy: 304 keeps what it has.
        Ok(answer) if !had.is_empty() && answer.version_info == had => text(StatusCode::NOT_MODIFIED, String::new()),
        Ok(answer) => {
            let body = to_json(&answer, Secrets::Show).to_string();
            response(StatusCode::OK, "application/json", body)
        }
        Err(status) => refused(&status),
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
