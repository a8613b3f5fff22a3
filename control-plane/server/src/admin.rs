//! Pages for operators, over HTTP on loopback. Requests for a foreign host name are refused, so that no web page reads them
//! by having its name resolve to loopback; so are POSTs that a web page made.

mod push;
mod tunnels;

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use culvert_api::json::{Secrets, any_to_json};
use culvert_runtime::rebinding::is_this_machine;
use culvert_store::{Conflict, Finding};
use culvert_xds::Variant;
use culvert_xds::server::{ResourceState, TypeStatus};
use http::{Method, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::control::Control;
use crate::identity::Peer;
use crate::loads::Requests;
use crate::nodes::NodeStatus;
use crate::rest;

/// Connections at once; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 128;
/// For the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// For a connection to take up new requests.
const LIFE: Duration = Duration::from_secs(60);
/// For the answer that is under way then: as long as a page may wait, and half a minute to read it.
const LAST_ANSWER: Duration = push::MAX_WAIT.saturating_add(Duration::from_secs(30));

const PAGES: &str = "/ready /metrics /config /config_dump /nodes /tunnels /push /history /loads; POST /rollback?to=GENERATION, /v3/discovery:TYPE\n";

/// Serves the pages until the process ends.
pub(crate) async fn serve(listener: TcpListener, control: Arc<Control>) {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let control = Arc::clone(&control);
                tokio::spawn(async move {
                    connection(stream, control).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection to the admin pages");
                // Out of descriptors, most likely: not to be tried in a tight loop.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, control: Arc<Control>) {
    let service = service_fn(move |request: http::Request<Incoming>| {
        let control = Arc::clone(&control);
        async move { Ok::<_, Infallible>(answer(&control, request).await) }
    });
    let mut served = pin!(
        hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service)
    );
    let ended = match timeout(LIFE, served.as_mut()).await {
        Ok(ended) => ended,
        Err(_) => {
            served.as_mut().graceful_shutdown();
            match timeout(LAST_ANSWER, served).await {
                Ok(ended) => ended,
                Err(_) => return tracing::info!("an admin connection is closed: its answer is read too slowly"),
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection to the admin pages broke");
    }
}

async fn answer(control: &Control, request: http::Request<Incoming>) -> http::Response<Full<Bytes>> {
    control.metrics.admin_requests.add();
    let path = request.uri().path();
    let by_page = request.headers().contains_key(header::ORIGIN);
    // Browsers say where a POST comes from, under whatever name; who polls says the name of its cluster (Envoy).
    let polls = *request.method() == Method::POST && path.starts_with(rest::PREFIX) && !by_page;
    let host = request.headers().get(header::HOST).map_or("", |host| host.to_str().unwrap_or("?"));
    if !polls && !is_this_machine(host) {
        let refusal = "the host of this request is not this machine; ask for it by address or as localhost\n";
        return text(StatusCode::FORBIDDEN, refusal.to_owned());
    }
    match *request.method() {
        Method::GET | Method::HEAD if path == "/push" => page(&push::settled(control, request.uri().query()).await),
        Method::GET | Method::HEAD if path == "/tunnels" => tunnels::shown(control, request.uri().query()),
        Method::GET | Method::HEAD => shown(control, path),
        Method::POST if by_page => text(StatusCode::FORBIDDEN, "a web page made this request\n".to_owned()),
        Method::POST if path == "/rollback" => push::rollback(control, request.uri().query()),
        Method::POST if polls => polled(control, request).await,
        Method::POST => text(StatusCode::NOT_FOUND, format!("there is no such page; there are {PAGES}")),
        _ => text(StatusCode::METHOD_NOT_ALLOWED, "only GET, HEAD and POST\n".to_owned()),
    }
}

/// Discovery by polling, for whoever is on this machine: without a certificate or token it is nobody.
async fn polled(control: &Control, request: http::Request<Incoming>) -> http::Response<Full<Bytes>> {
    if control.secured && request.uri().path().ends_with(":secrets") {
        return text(StatusCode::FORBIDDEN, "secrets are served over TLS alone here; see --rest\n".to_owned());
    }
    let peer = Peer::new(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), None);
    match control.access.authenticate(&peer, request.headers()) {
        Ok((peer, _)) => rest::discovery(control, &peer, request).await,
        Err(status) => text(StatusCode::UNAUTHORIZED, format!("{}\n", status.message())),
    }
}

fn shown(control: &Control, path: &str) -> http::Response<Full<Bytes>> {
    match path {
        "/ready" if control.is_ready() => text(StatusCode::OK, "ready\n".to_owned()),
        "/ready" => text(StatusCode::SERVICE_UNAVAILABLE, "draining\n".to_owned()),
        "/metrics" => text(StatusCode::OK, metrics(control)),
        "/config" => page(&config(control)),
        "/config_dump" => page(&config_dump(control)),
        "/nodes" => page(&Value::Array(control.node_status().iter().map(node).collect())),
        "/loads" => page(&loads(control)),
        "/history" => page(&push::history(control)),
        "/" => text(StatusCode::OK, PAGES.to_owned()),
        _ => text(StatusCode::NOT_FOUND, format!("there is no such page; there are {PAGES}")),
    }
}

pub(crate) fn text(status: StatusCode, body: String) -> http::Response<Full<Bytes>> {
    response(status, "text/plain; charset=utf-8", body)
}

fn page(value: &Value) -> http::Response<Full<Bytes>> {
    response(StatusCode::OK, "application/json", format!("{value:#}\n"))
}

pub(crate) fn response(status: StatusCode, content_type: &'static str, body: String) -> http::Response<Full<Bytes>> {
    let mut response = http::Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-cache"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, header::HeaderValue::from_static("nosniff"));
    response
}

fn metrics(control: &Control) -> String {
    let (connected, known) = control.nodes.count();
    let (reporting, tunnels) = control.inventory.count();
    let latest = control.latest();
    let mut text = control.metrics.prometheus(&[
        ("tunnel_servers", "Tunnel servers that report.", reporting as u64),
        ("tunnels", "Tunnels that they have reported.", tunnels as u64),
        ("nodes_connected", "Nodes with at least one stream.", connected as u64),
        (
            "nodes_polling_held",
            "Nodes that poll on and do not take what a step gave them.",
            control.polling.waiting() as u64,
        ),
        ("nodes_known", "Nodes that are connected or remembered.", known as u64),
        ("snapshots", "Sets of resources that differ, of the nodes placed.", control.snapshots() as u64),
        ("config_generation", "Times that a directory was put in force.", control.generation()),
        ("config_in_force_timestamp_seconds", "When what is in force was read.", seconds(latest.in_force_since)),
        ("config_read_timestamp_seconds", "When the directory was read last.", seconds(latest.at)),
        ("panics_total", "Panics of the process.", culvert_runtime::process::panics()),
        ("load_reporters", "Streams of load reports.", control.loads.reporters()),
        ("load_reports_dropped", "Load reports on clusters beyond the limits.", control.loads.dropped()),
    ]);
    control.loads.prometheus(&mut text);
    text
}

/// The latest reading of the directory, and since when what is in force is.
fn config(control: &Control) -> Value {
    let latest = control.latest();
    let findings = |findings: &[Finding]| findings.iter().map(finding).collect::<Vec<_>>();
    json!({
        "directory": control.folder.display().to_string(),
        "generation": control.generation(),
        "rolled_back_to": latest.rolled_back_to,
        "canary": control.canary_nodes(),
        "in_force_since": seconds(latest.in_force_since),
        "resources": control.directory().len(),
        "last_read": {
            "at": seconds(latest.at),
            "accepted": latest.accepted,
            "files": latest.files,
            "errors": findings(&latest.errors),
            "warnings": findings(&latest.warnings),
        },
    })
}

fn finding(finding: &Finding) -> Value {
    json!({
        "file": finding.file.display().to_string(),
        "line": finding.at.map(|at| at.line),
        "column": finding.at.map(|at| at.column),
        "path": finding.path,
        "reason": finding.reason,
        "text": finding.to_string(),
    })
}

/// What nodes reported of their load.
fn loads(control: &Control) -> Value {
    let requests = |of: &Requests| json!({ "successes": of.successes, "errors": of.errors, "issued": of.issued, "in_progress": of.in_progress });
    let clusters = control.loads.clusters(|_| true);
    let clusters = clusters.iter().map(|(key, load)| {
        let localities = load.localities.iter().map(|(place, of)| {
            json!({
                "region": place.region,
                "zone": place.zone,
                "sub_zone": place.sub_zone,
                "priority": place.priority,
                "requests": requests(of),
            })
        });
        let endpoints = load.endpoints.iter().map(|(address, of)| (address.clone(), requests(of)));
        json!({
            "cluster": key.cluster,
            "service": key.service,
            "requests": requests(&load.requests),
            "dropped": load.dropped,
            "dropped_by_category": load.dropped_by_category,
            "localities": localities.collect::<Vec<_>>(),
            "endpoints": endpoints.collect::<serde_json::Map<_, _>>(),
            "last_report": load.last_report.map(seconds),
        })
    });
    json!({ "nodes": control.loads.reporters(), "clusters": clusters.collect::<Vec<_>>() })
}

/// Everything in force, secrets redacted.
fn config_dump(control: &Control) -> Value {
    let directory = control.directory();
    let resources = directory.resources().map(|(resource, selector, origin)| {
        json!({
            "type_url": &**resource.type_url(),
            "name": &**resource.name(),
            "version": resource.version().to_string(),
            "nodes": selector.to_string(),
            "origin": origin,
            "resource": any_to_json(&resource.any(), Secrets::Redact),
        })
    });
    json!({ "generation": control.generation(), "resources": resources.collect::<Vec<_>>() })
}

fn node(node: &NodeStatus) -> Value {
    json!({
        "id": node.key.id,
        "cluster": node.identity.cluster,
        "certificate": node.key.certificate.as_deref(),
        "user_agent": node.identity.user_agent,
        "peer": &*node.peer,
        "connected": node.connected,
        "generation": node.generation,
        "progress": push::progress(&node.progress),
        "snapshot": node.version.to_string(),
        "conflicts": node.conflicts.iter().map(conflict).collect::<Vec<_>>(),
        "types": node.types.iter().map(|of| of_type(of, node.begun)).collect::<Vec<_>>(),
    })
}

fn conflict(conflict: &Conflict) -> Value {
    json!({
        "type_url": &*conflict.type_url,
        "name": &*conflict.name,
        "origins": conflict.origins,
        "kept": conflict.kept,
    })
}

fn of_type(status: &TypeStatus, begun: SystemTime) -> Value {
    let resources = status.resources.iter().map(|one| {
        json!({
            "name": &*one.name,
            "state": state(one.state),
            "version": one.version.map(|version| version.to_string()),
            "accepted": one.accepted.map(|version| version.to_string()),
            "error": one.error.as_deref(),
            "at": one.at.map(|at| seconds(begun + at)),
        })
    });
    json!({
        "type_url": &*status.type_url,
        "protocol": status.variant.map(|variant| match variant {
            Variant::Sotw => "state of the world",
            Variant::Delta => "delta",
        }),
        "wildcard": status.wildcard,
        "names": status.names,
        "sent": status.sent,
        "acked": status.acked,
        "nacked": status.nacked,
        "outstanding": status.outstanding,
        "accepted_version": status.accepted_version.map(|version| version.to_string()),
        "error": status.error.as_deref(),
        "resources": resources.collect::<Vec<_>>(),
    })
}

/// CSDS's words.
fn state(state: ResourceState) -> &'static str {
    match state {
        ResourceState::Synced => "SYNCED",
        ResourceState::Stale => "STALE",
        ResourceState::Error => "ERROR",
        ResourceState::NotSent => "NOT_SENT",
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
