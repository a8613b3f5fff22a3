//! Which name a host is asked for under TLS (`auto_sni` and what stands beside it), and which certificates are taken: as
//! the real Envoy, seen by the host itself.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, ensure};
use culvert_tests::Result;
use culvert_tests::ca::Authority;
use culvert_tests::gateway::cluster;
use culvert_tests::peer::Peer;
use culvert_tests::process::ours;
use culvert_tests::wait::in_time;
use parking_lot::Mutex;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::{Side, listener_and_clusters};

/// Clusters: the route's prefix, options of HTTP, fields of the TLS context.
const CLUSTERS: &[(&str, &str, &str)] = &[
    ("auto", "auto_sni: true", TRUSTED),
    ("checked", "auto_sni: true, auto_san_validation: true", TRUSTED),
    ("header", "auto_sni: true, auto_san_validation: true, override_auto_sni_header: x-name", TRUSTED),
    ("authority", "auto_sni: true, auto_san_validation: true, override_auto_sni_header: \":authority\"", TRUSTED),
    (
        "fixed",
        "auto_sni: true, auto_san_validation: true",
        "sni: h.test, validation_context: {trusted_ca: {filename: ca.pem}}",
    ),
    ("plain", "", "sni: fixed.test, validation_context: {trusted_ca: {filename: ca.pem}}"),
    ("matched", "auto_sni: true, auto_san_validation: true", MATCHED),
];
const TRUSTED: &str = "validation_context: {trusted_ca: {filename: ca.pem}}";
const MATCHED: &str = "validation_context: {trusted_ca: {filename: ca.pem}, match_typed_subject_alt_names: [{san_type: DNS, matcher: {exact: nowhere.test}}]}";

/// `host` and `x-name`.
const REQUESTS: &[(&str, Option<&str>)] = &[
    ("h.test", None),
    ("h.test:8443", None),
    ("H.Test", None),
    ("h.test.", None),
    ("other.test", None),
    ("a.wild.test", None),
    ("a.b.wild.test", None),
    ("wild.test", None),
    ("127.0.0.1", None),
    ("127.0.0.1:80", None),
    ("127.0.0.9", None),
    ("[::1]", None),
    ("[::1]:80", None),
    ("[::2]:80", None),
    ("with_underscore.test", None),
    ("other.test", Some("h.test")),
    ("h.test", Some("other.test")),
    ("h.test", Some("")),
    ("h.test", Some("127.0.0.1")),
    ("other.test", Some("h.test:99")),
    ("other.test", Some("H.TEST")),
    ("other.test", Some("[::1]:80")),
];

/// What a host saw of its connections: the name that was asked for, before anything is judged.
type Names = Arc<Mutex<Vec<Option<String>>>>;

/// A TLS host that answers every request, and notes each hello.
async fn host(acceptor: TlsAcceptor) -> Result<(SocketAddr, Names)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let names = Names::default();
    let seen = Arc::clone(&names);
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let (acceptor, seen) = (acceptor.clone(), Arc::clone(&seen));
            tokio::spawn(async move {
                if let Err(error) = serve(socket, acceptor, seen).await {
                    eprintln!("host: {error:#}");
                }
            });
        }
    });
    Ok((address, names))
}

async fn serve(socket: TcpStream, acceptor: TlsAcceptor, names: Names) -> Result {
    let mut hello = vec![0; 4096];
    let length = loop {
        let read = in_time("a hello", socket.peek(&mut hello)).await??;
        ensure!(read > 0, "closed before a hello");
        if read >= 5 && read >= 5 + usize::from(u16::from_be_bytes([hello[3], hello[4]])) {
            break read;
        }
        tokio::task::yield_now().await;
    };
    let name = server_name(&hello[..length]).map(|name| String::from_utf8_lossy(name).into_owned());
    names.lock().push(name.clone());
    let mut stream = in_time("a handshake", acceptor.accept(socket)).await??;
    let mut buffer = Vec::new();
    while stream.read_buf(&mut buffer).await? > 0 {
        if buffer.ends_with(b"\r\n\r\n") {
            buffer.clear();
            let name = name.as_deref().unwrap_or("-");
            let answer = format!("HTTP/1.1 200 OK\r\nx-sni: {name}\r\ncontent-length: 0\r\n\r\n");
            stream.write_all(answer.as_bytes()).await?;
        }
    }
    Ok(())
}

/// The name in a ClientHello (RFC 8446, 4.1.2; RFC 6066, 3), raw: a library would leave out what it does not like.
fn server_name(record: &[u8]) -> Option<&[u8]> {
    fn skip<'a>(bytes: &mut &'a [u8], width: usize) -> Option<&'a [u8]> {
        let length = bytes.get(..width)?.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
        let content = bytes.get(width..width + length)?;
        *bytes = bytes.get(width + length..)?;
        Some(content)
    }
    // Record, handshake, version and random; then session, ciphers, compressions.
    let mut bytes = record.get(5 + 4 + 2 + 32..)?;
    skip(&mut bytes, 1)?;
    skip(&mut bytes, 2)?;
    skip(&mut bytes, 1)?;
    let mut extensions = skip(&mut bytes, 2)?;
    while let Some(kind) = extensions.get(..2) {
        extensions = extensions.get(2..)?;
        let content = skip(&mut extensions, 2)?;
        if kind == [0, 0] {
            return skip(&mut content.get(3..)?, 2);
        }
    }
    None
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Verdict {
    status: String,
    /// Which the connection was opened under: that of the answer, or that was refused.
    name: String,
}

impl Verdict {
    /// What ours is to be beside Envoy's (docs/xds.md).
    fn meant(mut self, path: &str, host: &str) -> Self {
        // Envoy shares connections whose names differ in case, and sends the first one as it is.
        self.name.make_ascii_lowercase();
        // RFC 6066, 3: without a dot at its end. Then the certificate may be for it, whatever else is asked of it.
        if host == "h.test." && path != "plain" {
            let status = if path == "matched" { "503" } else { "200" };
            return Self { status: status.into(), name: "h.test".into() };
        }
        // The one name of a handshake is also what the certificate is checked for, and an address is never sent.
        if path == "fixed" && host.trim_start_matches('[').starts_with(['1', ':']) {
            self.name = "-".into();
        }
        // Without a check of its own a certificate has to be for the name that was asked for.
        let certified = matches!(&*self.name, "h.test" | "a.wild.test" | "-");
        if ["auto", "plain"].contains(&path) && !certified {
            self.status = "503".into();
        }
        self
    }
}

async fn ask(side: &Side, names: &Names, path: &str, host: &str, name: Option<&str>) -> Result<Verdict> {
    let before = names.lock().len();
    let mut socket = TcpStream::connect(side.address).await?;
    let name = name.map(|name| format!("x-name: {name}\r\n")).unwrap_or_default();
    let request = format!("GET /{path} HTTP/1.1\r\nhost: {host}\r\n{name}connection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    in_time("an answer", socket.read_to_string(&mut answer)).await??;
    let status = answer.get(9..12).context("no status")?.to_owned();
    let name = match answer.lines().find_map(|line| line.strip_prefix("x-sni: ")) {
        Some(name) => name.to_owned(),
        None => {
            let asked = names.lock()[before..].first().cloned().context("nobody was asked")?;
            asked.unwrap_or_else(|| "-".into())
        }
    };
    Ok(Verdict { status, name })
}

fn bootstrap(host: SocketAddr, folder: &std::path::Path) -> String {
    let routes: Vec<String> = CLUSTERS
        .iter()
        .map(|(name, ..)| format!("{{match: {{prefix: /{name}}}, route: {{cluster: {name}}}}}"))
        .collect();
    let clusters: String = CLUSTERS
        .iter()
        .map(|(name, options, tls)| {
            let options = format!(
                "typed_extension_protocol_options: {{envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {{\"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: {{http_protocol_options: {{}}}}, upstream_http_protocol_options: {{{options}}}}}}}"
            );
            let (before, after) = tls.split_once("validation_context").unwrap_or((tls, ""));
            let tls = format!("{before}common_tls_context: {{validation_context{after}}}");
            let tls = tls.replace("ca.pem", &folder.join("ca.pem").display().to_string());
            let socket = format!(
                "transport_socket: {{name: tls, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, {tls}}}}}"
            );
            cluster(name, &[host], &format!("{options}\n{socket}"))
        })
        .collect();
    listener_and_clusters(&format!("[{}]", routes.join(", ")), "", &clusters)
}

#[tokio::test]
async fn names_and_verdicts_under_tls_are_envoys() -> Result {
    let Some(envoy) = Peer::Envoy.find()? else { return Ok(()) };
    let folder = TempDir::with_prefix("culvert-")?;
    let authority = Authority::new("test")?;
    authority.write(folder.path())?;
    let leaf = authority.issue(folder.path(), "host", &["h.test", "*.wild.test", "127.0.0.1", "::1"])?;
    let config = rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(
        vec![CertificateDer::from_pem_file(&leaf.certificate)?],
        PrivateKeyDer::from_pem_file(&leaf.key)?,
    )?;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let ((first, for_theirs), (second, for_ours)) = (host(acceptor.clone()).await?, host(acceptor).await?);
    let theirs = Side::start("envoy", &envoy, &bootstrap(first, folder.path()), &["--use-dynamic-base-id"]).await?;
    let ours = Side::start("culvert-proxy", &ours("culvert-proxy")?, &bootstrap(second, folder.path()), &[]).await?;
    let mut differences = Vec::new();
    for (path, ..) in CLUSTERS {
        for (host, name) in REQUESTS {
            let case = || format!("{path} {host} {name:?}");
            let expected = ask(&theirs, &for_theirs, path, host, *name).await.with_context(case)?.meant(path, host);
            let seen = ask(&ours, &for_ours, path, host, *name).await.with_context(case)?;
            if expected != seen {
                differences.push(format!("{}:\n  expected {expected:?}\n  seen     {seen:?}", case()));
            }
        }
    }
    ensure!(differences.is_empty(), "{} differ\n{}", differences.len(), differences.join("\n"));
    Ok(())
}
