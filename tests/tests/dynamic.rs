//! One proxy under its control plane, as real processes: refusals, secrets, TLS between the two, and starts without it.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use anyhow::{Context, ensure};
use bytes::Bytes;
use culvert_tests::Result;
use culvert_tests::backend::Backend;
use culvert_tests::ca::Authority;
use culvert_tests::client::{get, whole};
use culvert_tests::plane::{Plane, Way, assignment, by_rds, eds_cluster, envoy, listener, routes_to};
use culvert_tests::wait::{eventually, in_time};
use http::Request;
use http_body_util::Full;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::time::Instant;

fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// As other processes hold addresses: alone, or sharing the port with whoever shares it too.
fn hold(shared: bool) -> Result<(socket2::Socket, SocketAddr)> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    socket.set_reuse_port(shared)?;
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())?;
    socket.listen(16)?;
    let address = socket.local_addr()?.as_socket().context("no address")?;
    Ok((socket, address))
}

async fn answers(plane: &Plane, address: SocketAddr, body: &str) -> Result {
    eventually(&format!("{address} answers {body}"), async || {
        let answer = get(address, "/").await?;
        ensure!(answer.text() == body, "saw {} {:?}", answer.status, answer.text());
        Ok(())
    })
    .await
    .with_context(|| plane.proxy_log())
}

async fn stands(plane: &Plane, name: &str, state: &str, error: &str) -> Result {
    eventually(&format!("the control plane knows {name} as {state}"), async || {
        let (seen, words) = plane.status("Listener", name).await?;
        ensure!(seen == state && words.contains(error), "saw {seen} {words:?}, expected {state} {error:?}");
        Ok(())
    })
    .await
    .with_context(|| plane.proxy_log())
}

#[tokio::test]
async fn an_address_in_use_is_refused_by_name_and_taken_once_it_is_free() -> Result {
    for (sotw, shared) in [(false, false), (true, true)] {
        let mut plane = Plane::start(&[]).await?;
        let (first, third) = (free_address()?, free_address()?);
        plane.put("listeners.json", &[listener("one", first, "before", json!({}))])?;
        plane.start_proxy(Way { sotw, ..Way::default() }).await?;
        answers(&plane, first, "before").await?;

        let (holder, held) = hold(shared)?;
        let [moved, added] = [("one", held, "after"), ("three", third, "three")]
            .map(|(name, address, body)| listener(name, address, body, json!({})));
        plane.put("listeners.json", &[moved, added])?;
        let words = format!("address.socket_address: address {held} is in use by another socket");
        stands(&plane, "one", "ERROR", &words).await?;
        let (_, words) = plane.status("Listener", "one").await?;
        ensure!(words.contains("choose another port"), "the remedy is missing in {words:?}");
        answers(&plane, third, "three").await.context("the good listener of a refused response applies")?;
        stands(&plane, "three", "SYNCED", "").await?;
        answers(&plane, first, "before").await.context("the refused one keeps serving as it was")?;
        for metric in ["listener_manager.lds.update_rejected", "listener_manager.listener_create_failure"] {
            let seen = plane.stat(metric).await?;
            ensure!(seen >= 1, "{metric} is {seen}");
        }
        let dump = plane.page("/config_dump?resource=dynamic_listeners&name_regex=one").await?;
        let details = dump["configs"][0]["error_state"]["details"].as_str().unwrap_or_default();
        ensure!(details.contains(&held.to_string()), "error_state in {dump}");

        drop(holder);
        answers(&plane, held, "after").await.context("it is tried again")?;
        eventually("the address before is let go", async || {
            ensure!(get(first, "/").await.is_err(), "{first} still answers");
            Ok(())
        })
        .await?;
        plane.stop_proxy().await?;
    }
    Ok(())
}

/// What a listener needs to take its certificate from SDS.
fn by_sds(secret: &str) -> Value {
    json!({ "transport_socket": { "name": "tls", "typed_config": {
        "@type": envoy("extensions.transport_sockets.tls.v3.DownstreamTlsContext"),
        "common_tls_context": { "tls_certificate_sds_secret_configs": [
            { "name": secret, "sds_config": { "ads": {}, "resource_api_version": "V3" } },
        ]},
    }}})
}

/// A `Secret` with a fresh certificate.
fn secret(ca: &Authority, name: &str) -> Result<Value> {
    let folder = TempDir::with_prefix("culvert-")?;
    let leaf = ca.issue(folder.path(), name, &["edge.test"])?;
    let text = |path| std::fs::read_to_string(path);
    Ok(json!({
        "@type": envoy("extensions.transport_sockets.tls.v3.Secret"),
        "name": name,
        "tls_certificate": {
            "certificate_chain": { "inline_string": text(leaf.certificate)? },
            "private_key": { "inline_string": text(leaf.key)? },
        },
    }))
}

/// A connection over TLS, and the certificate that was presented on it.
async fn connect_tls(
    plane: &Plane,
    address: SocketAddr,
) -> Result<(SendRequest<Full<Bytes>>, CertificateDer<'static>)> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(plane.path("ca.pem"))?)?;
    let config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let name = ServerName::try_from("edge.test")?;
    let stream = in_time("a handshake", connector.connect(name, TcpStream::connect(address).await?)).await??;
    let presented = stream.get_ref().1.peer_certificates().and_then(<[_]>::first).context("no certificate")?;
    let presented = presented.clone().into_owned();
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok((sender, presented))
}

async fn ask(sender: &mut SendRequest<Full<Bytes>>) -> Result<String> {
    in_time("room for a request", sender.ready()).await??;
    let request = Request::get("/").header("host", "edge.test").body(Full::default())?;
    let answer = in_time("an answer", sender.send_request(request)).await??;
    Ok(whole(answer).await?.text())
}

#[tokio::test]
async fn a_listener_warms_until_its_secret_comes_and_a_new_secret_closes_no_connection() -> Result {
    for sotw in [false, true] {
        let ca = Authority::new("root")?;
        let folder = TempDir::with_prefix("culvert-")?;
        ca.write(folder.path())?;
        let mut plane = Plane::start_in(folder, &[]).await?;
        let (address, plain) = (free_address()?, free_address()?);
        plane.put(
            "listeners.json",
            &[listener("secure", address, "secure", by_sds("edge-cert")), listener("plain", plain, "plain", json!({}))],
        )?;
        plane.start_proxy(Way { sotw, ..Way::default() }).await?;
        answers(&plane, plain, "plain").await.context("a listener that lacks nothing does not wait for the other")?;
        eventually("the listener is shown as warming, with what it lacks", async || {
            let dump = plane.page("/config_dump?resource=dynamic_listeners&name_regex=secure").await?;
            let entry = &dump["configs"][0];
            ensure!(entry["warming_state"]["listener"]["name"] == "secure", "dump: {dump}");
            ensure!(entry["active_state"].is_null(), "it is not in force: {dump}");
            let waits = plane.page("/init_dump").await?.to_string();
            ensure!(waits.contains("Listener secure") && waits.contains("Secret edge-cert"), "/init_dump: {waits}");
            let log = plane.proxy_log();
            ensure!(log.contains("Listener/secure: warming, waits for Secret edge-cert"), "log: {log}");
            Ok(())
        })
        .await?;
        ensure!(TcpStream::connect(address).await.is_err(), "nobody can connect to a listener that warms");

        plane.put("secret.json", &[secret(&ca, "edge-cert")?])?;
        let (mut old, first) = eventually("the listener serves", async || connect_tls(&plane, address).await).await?;
        ensure!(ask(&mut old).await? == "secure", "over the first certificate");
        plane.put("secret.json", &[secret(&ca, "edge-cert")?])?;
        eventually("the new certificate is presented", async || {
            let (mut sender, now) = connect_tls(&plane, address).await?;
            ensure!(ask(&mut sender).await? == "secure", "an answer");
            ensure!(now != first, "still the first certificate");
            Ok(())
        })
        .await?;
        ensure!(ask(&mut old).await? == "secure", "the connection from before lives on");
        // As an Envoy 1.40 counts it, under its names.
        ensure!(plane.stat("sds.edge-cert.update_success").await? == 2, "two secrets came");
        let text = get(plane.admin, "/stats/prometheus").await?.text();
        let line = "envoy_sds_update_success{envoy_xds_resource_name=\"edge-cert\"} 2";
        ensure!(text.contains(line), "expected {line} in:\n{text}");
        let dump = plane.page("/config_dump").await?.to_string();
        ensure!(dump.contains("edge-cert") && !dump.contains("PRIVATE KEY"), "a private key in {dump}");
        plane.stop_proxy().await?;
    }
    Ok(())
}

/// `transport_socket` of the control plane's cluster.
fn tls_to_control(own: Option<&str>) -> String {
    let own = own.map(|name| {
        json!([{ "certificate_chain": { "filename": format!("{name}.pem") },
            "private_key": { "filename": format!("{name}-key.pem") } }])
    });
    json!({ "name": "tls", "typed_config": {
        "@type": envoy("extensions.transport_sockets.tls.v3.UpstreamTlsContext"),
        "sni": "control.test",
        "common_tls_context": {
            "tls_certificates": own.unwrap_or_else(|| json!([])),
            "validation_context": { "trusted_ca": { "filename": "ca.pem" } },
        },
    }})
    .to_string()
}

#[tokio::test]
async fn the_way_to_the_control_plane_is_encrypted_and_both_ends_are_known() -> Result {
    let ca = Authority::new("root")?;
    let folder = || -> Result<TempDir> {
        let folder = TempDir::with_prefix("culvert-")?;
        ca.write(folder.path())?;
        ca.issue(folder.path(), "control", &["control.test"])?;
        ca.issue(folder.path(), "proxy", &["spiffe://test/proxy"])?;
        Authority::new("stranger")?.issue(folder.path(), "stranger", &["spiffe://test/proxy"])?;
        Ok(folder)
    };
    let server = ["--tls-cert", "control.pem", "--tls-key", "control-key.pem"];
    let mutual = [&server[..], &["--tls-client-ca", "ca.pem"]].concat();
    for (flags, own, sotw) in [(&server[..], None, false), (&mutual[..], Some("proxy"), true)] {
        let mut plane = Plane::start_in(folder()?, flags).await?;
        let address = free_address()?;
        plane.put("listeners.json", &[listener("one", address, "one", json!({}))])?;
        plane.start_proxy(Way { sotw, tls: Some(&tls_to_control(own)), ..Way::default() }).await?;
        answers(&plane, address, "one").await?;
        let nodes = get(plane.control_admin, "/nodes").await?.json()?;
        let expected = own.map_or(Value::Null, |_| "spiffe://test/proxy".into());
        ensure!(nodes[0]["certificate"] == expected, "expected {expected} in {nodes}");
        plane.stop_proxy().await?;
    }
    for (way, why) in [
        (None, "no stream"),
        (Some(tls_to_control(None)), "certificate"),
        (Some(tls_to_control(Some("stranger"))), "unknownca"),
    ] {
        let mut plane = Plane::start_in(folder()?, &mutual).await?;
        let address = free_address()?;
        plane.put("listeners.json", &[listener("one", address, "one", json!({}))])?;
        plane.start_proxy(Way { tls: way.as_deref(), flags: &["-l", "debug"], ..Way::default() }).await?;
        eventually("the proxy says why it has no stream", async || {
            let log = plane.proxy_log();
            // A reset may overtake the words of the one who refuses; one of the next attempts brings them.
            let mut lines = log.lines().filter(|line| line.contains("no stream"));
            ensure!(lines.any(|line| line.to_lowercase().contains(why)), "expected {why:?} in {log}");
            Ok(())
        })
        .await?;
        let connected = plane.stat("control_plane.connected_state").await?;
        ensure!(connected == 0 && get(address, "/").await.is_err(), "nothing is served to {way:?}");
        plane.stop_proxy().await?;
    }
    Ok(())
}

#[tokio::test]
async fn another_authority_of_the_control_plane_ends_no_stream_and_the_next_one_waits_until_it_is_trusted() -> Result {
    let folder = TempDir::with_prefix("culvert-")?;
    let (old, new) = (Authority::new("old")?, Authority::new("new")?);
    old.write(folder.path())?;
    old.issue(folder.path(), "control", &["control.test"])?;
    let mut plane = Plane::start_in(folder, &["--tls-cert", "control.pem", "--tls-key", "control-key.pem"]).await?;
    let address = free_address()?;
    let serve = |plane: &Plane, body: &str| plane.put("listeners.json", &[listener("one", address, body, json!({}))]);
    serve(&plane, "one")?;
    plane.start_proxy(Way { tls: Some(&tls_to_control(None)), flags: &["-l", "debug"], ..Way::default() }).await?;
    answers(&plane, address, "one").await?;
    new.issue(plane.folder(), "control", &["control.test"])?;
    serve(&plane, "two")?;
    answers(&plane, address, "two").await.context("over the stream from before")?;
    ensure!(plane.proxy_log().matches("a stream is open").count() == 1, "one stream: {}", plane.proxy_log());
    plane.kill_control().await?;
    plane.start_control().await?;
    serve(&plane, "three")?;
    eventually("the proxy says why it has no stream", async || {
        let log = plane.proxy_log().to_lowercase();
        ensure!(log.lines().any(|line| line.contains("no stream") && line.contains("unknownissuer")), "{log}");
        Ok(())
    })
    .await?;
    ensure!(get(address, "/").await?.text() == "two", "what was in force stays");
    new.write(plane.folder())?;
    answers(&plane, address, "three").await.context("once the new authority is trusted")?;
    plane.stop_proxy().await
}

#[tokio::test]
async fn without_a_state_directory_a_warning_says_what_that_means() -> Result {
    let mut plane = Plane::start(&[]).await?;
    plane.start_proxy(Way::default()).await?;
    let expected = "no --state-dir and no $STATE_DIRECTORY: accepted configuration does not survive this process";
    eventually("the warning", async || {
        let log = plane.proxy_log();
        ensure!(log.contains("WARN") && log.contains(expected), "expected {expected:?} in {log}");
        Ok(())
    })
    .await?;
    plane.stop_proxy().await
}

#[tokio::test]
async fn a_cold_start_serves_what_was_accepted_last_until_the_control_plane_is_back() -> Result {
    for sotw in [false, true] {
        let ca = Authority::new("root")?;
        let folder = TempDir::with_prefix("culvert-")?;
        ca.write(folder.path())?;
        let mut plane = Plane::start_in(folder, &[]).await?;
        let (kept, refused, secure) = (free_address()?, free_address()?, free_address()?);
        let good = [listener("kept", kept, "kept", json!({})), listener("secure", secure, "s", by_sds("edge-cert"))];
        plane.put("listeners.json", &good)?;
        plane.put("secret.json", &[secret(&ca, "edge-cert")?])?;
        let way = Way { sotw, flags: &["--state-dir", "state"], ..Way::default() };
        plane.start_proxy(way).await?;
        answers(&plane, kept, "kept").await?;
        eventually("the secret has come", async || connect_tls(&plane, secure).await.map(drop)).await?;
        // What cannot be applied is not what the next start begins with.
        let (holder, held) = hold(false)?;
        plane.put("listeners.json", &[good[1].clone(), listener("kept", held, "new", json!({}))])?;
        stands(&plane, "kept", "ERROR", "in use").await?;
        plane.kill_control().await?;
        plane.stop_proxy().await?;
        for file in std::fs::read_dir(plane.path("state"))? {
            let bytes = std::fs::read(file?.path())?;
            let holds = |text: &[u8]| bytes.windows(text.len()).any(|window| window == text);
            ensure!(!holds(b"PRIVATE KEY"), "a private key was written to disk");
        }

        let began = Instant::now();
        plane.start_proxy(way).await?;
        answers(&plane, kept, "kept").await.context("from the state directory")?;
        eprintln!("what was kept serves {:?} after the start of the process", began.elapsed());
        plane.ready().await?;
        let metrics = get(plane.admin, "/stats/prometheus").await?.text();
        for (metric, least) in [
            ("envoy_control_plane_config_source_resources{config_source=\"cache\"} ", 1),
            ("envoy_control_plane_cache_age_seconds{} ", 0),
        ] {
            let value = metrics.lines().find_map(|line| line.strip_prefix(metric)?.parse::<u64>().ok());
            ensure!(value.is_some_and(|value| value >= least), "{metric}: expected {least} or more, saw {value:?}");
        }
        ensure!(TcpStream::connect(secure).await.is_err(), "a listener without its secret does not serve");
        let waits = plane.page("/init_dump").await?.to_string();
        ensure!(waits.contains("Listener secure") && waits.contains("Secret edge-cert"), "it is named: {waits}");
        drop(holder);

        plane.put("listeners.json", &[good[1].clone(), listener("fresh", refused, "fresh", json!({}))])?;
        plane.start_control().await?;
        answers(&plane, refused, "fresh").await.context("live configuration takes the place of what was kept")?;
        eventually("nothing of the cache is in use", async || {
            let kept = plane.stat("control_plane.config_source.cache.resources").await?;
            let live = plane.stat("control_plane.config_source.live.resources").await?;
            ensure!(kept == 0 && live > 0, "{kept} of the cache, {live} live");
            Ok(())
        })
        .await?;
        eventually("what the control plane no longer has is gone, and the secret has come", async || {
            ensure!(get(kept, "/").await.is_err(), "{kept} still answers");
            connect_tls(&plane, secure).await.map(drop)
        })
        .await
        .with_context(|| plane.proxy_log())?;
        plane.stop_proxy().await?;
    }
    Ok(())
}

#[tokio::test]
async fn an_empty_assignment_leaves_no_host_and_updates_are_counted_one_by_one() -> Result {
    for sotw in [false, true] {
        let backend = Backend::start("backend").await?;
        let mut plane = Plane::start(&[]).await?;
        let address = free_address()?;
        plane.put("clusters.json", &[eds_cluster("c")])?;
        plane.put("listeners.json", &[by_rds("in", address, "r"), routes_to("r", "c")])?;
        plane.put("hosts.json", &[assignment("c", &[backend.address])])?;
        plane.start_proxy(Way { sotw, ..Way::default() }).await?;
        answers(&plane, address, "backend\n").await?;
        for (scope, name) in [("cluster.c", "an assignment"), ("http.in.rds.r", "routes")] {
            let count = async |what: &str| plane.stat(&format!("{scope}.{what}")).await;
            let counts =
                (count("update_attempt").await?, count("update_success").await?, count("update_rejected").await?);
            ensure!(
                counts == (2, 1, 0),
                "{name}: asked for once and received once, expected (2, 1, 0), saw {counts:?}"
            );
        }
        plane.put("hosts.json", &[assignment("c", &[])])?;
        eventually("an empty assignment leaves no host", async || {
            let answer = get(address, "/").await?;
            ensure!(answer.status == 503, "saw {}", answer.status);
            Ok(())
        })
        .await?;
        plane.put("hosts.json", &[assignment("c", &[backend.address])])?;
        answers(&plane, address, "backend\n").await?;
        plane.stop_proxy().await?;
    }
    Ok(())
}
