//! A tunnel outlives its handshake by weeks; the trust that its certificate was accepted by need not. Whoever is trusted no more
//! has to go, whether it listens or not.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, ensure};
use culvert_tests::Result;
use culvert_tests::backend::Backend;
use culvert_tests::ca::{Authority, Leaf};
use culvert_tests::gateway::{Gateway, cluster, http_listener};
use culvert_tests::load::Load;
use culvert_tests::tunnel::{connections, edge, joined, tunnel_listener};
use culvert_tests::wait::{eventually, in_time};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

const TYPES: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3";

fn at(folder: &Path, name: &str) -> String {
    folder.join(name).display().to_string()
}

fn socket(folder: &Path, name: &str, context: &str, validation: &str) -> String {
    format!(
        "{{name: tls, typed_config: {{\"@type\": {TYPES}.{context}, common_tls_context: {{tls_certificates: [{{certificate_chain: {{filename: \"{}\"}}, private_key: {{filename: \"{}\"}}}}], validation_context: {{{validation}}}}}}}}}",
        at(folder, &format!("{name}.pem")),
        at(folder, &format!("{name}-key.pem"))
    )
}

/// A cloud without an identity policy: whoever its trust lets in is an agent.
async fn cloud(folder: &Path) -> Result<Gateway> {
    let validation = format!(
        "trusted_ca: {{filename: \"{}\"}}, crl: {{filename: \"{}\"}}",
        at(folder, "trusted.pem"),
        at(folder, "crl.pem")
    );
    let tls = socket(folder, "server", "DownstreamTlsContext", &validation);
    let tls = tls.replacen("common_tls", "require_client_certificate: true, common_tls", 1);
    let listeners = http_listener("in", "[{match: {prefix: /}, route: {cluster: edge}}]", "", "")
        + &tunnel_listener("tunnel", "reconnect_window: 5s")
        + &format!("      transport_socket: {tls}\n");
    Gateway::start(&listeners, &cluster("edge", &[], "")).await
}

/// An agent that knows nothing of notices, and would stay for ever.
async fn stock_agent(cloud: &Gateway, folder: &Path, leaf: &Leaf) -> Result<TlsStream<TcpStream>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(folder.join("ca.pem"))?)?;
    let chain = vec![CertificateDer::from_pem_file(&leaf.certificate)?];
    let config = rustls::ClientConfig::builder()
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(&leaf.key)?)?;
    let socket = TcpStream::connect(cloud.listener("tunnel")?).await?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let mut stream = connector.connect(ServerName::try_from("127.0.0.1")?, socket).await?;
    let json = r#"{"cluster_name":"edge","weight":1,"host_name":"stock"}"#;
    let length = u16::try_from(json.len())?.to_be_bytes();
    stream.write_all(&[b"\x20\x88\x01\x01\x01\x00".as_slice(), &length, json.as_bytes()].concat()).await?;
    let mut reply = [0; 20];
    stream.read_exact(&mut reply).await?;
    ensure!(reply.ends_with(b"{\"status\":1}"), "answered {:?}", String::from_utf8_lossy(&reply));
    Ok(stream)
}

fn put(path: &Path, text: &str) -> Result {
    let next = path.with_extension("next");
    std::fs::write(&next, text)?;
    Ok(std::fs::rename(next, path)?)
}

/// Waits until exactly these have tunnels, each said by its certificate's name.
async fn left(cloud: &Gateway, expected: &[&str]) -> Result {
    eventually(&format!("only {expected:?} has tunnels"), async || {
        let seen = connections(cloud).await?;
        let mut names: Vec<&str> = seen.iter().filter_map(|connection| connection["identity"].as_str()).collect();
        names.sort_unstable();
        names.dedup();
        ensure!(names == expected, "saw {names:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_tunnel_whose_certificate_is_revoked_or_whose_authority_leaves_is_closed_and_no_other() -> Result {
    let (folder, authority) = (TempDir::with_prefix("culvert-")?, Authority::new("test")?);
    let path = folder.path();
    std::fs::copy(authority.write(path)?, path.join("trusted.pem"))?;
    authority.issue(path, "server", &["127.0.0.1"])?;
    let issue = |name: &str| authority.issue(path, name, &[&format!("spiffe://test/{name}")]);
    let (_good, bad, stock) = (issue("good")?, issue("bad")?, issue("stock")?);
    put(&path.join("crl.pem"), &authority.revoke(&[])?)?;
    let (backend, cloud) = (Backend::start("behind").await?, cloud(path).await?);
    let trust = format!("trusted_ca: {{filename: \"{}\"}}", at(path, "ca.pem"));
    let fields = |name| {
        let socket = socket(path, name, "UpstreamTlsContext", &trust);
        format!("host_name: {name}, reconnect_max_interval: 0.2s, transport_socket: {socket}")
    };
    let servers = [cloud.listener("tunnel")?];
    let good = edge(&servers, backend.address, &fields("good")).await?;
    joined(&cloud, 1).await?;
    let load = Load::new(cloud.listener("in")?, "/").start();
    load.more(20).await?;
    let bad_edge = edge(&servers, backend.address, &fields("bad")).await?;
    joined(&cloud, 2).await?;
    load.more(20).await?;
    load.finish(40).await?;
    let mut held = stock_agent(&cloud, path, &stock).await?;
    left(&cloud, &["spiffe://test/bad", "spiffe://test/good", "spiffe://test/stock"]).await?;

    put(&path.join("crl.pem"), &authority.revoke(&[&bad, &stock])?)?;
    left(&cloud, &["spiffe://test/good"]).await.with_context(|| cloud.daemon.output())?;
    in_time("the stock agent's end", held.read_to_end(&mut Vec::new())).await?.ok();
    let load = Load::new(cloud.listener("in")?, "/").start();
    load.more(50).await?;
    load.finish(50).await?;
    ensure!(cloud.stat("tunnel_server.t.withdrawn").await? == 2, "withdrawn: {}", cloud.daemon.output());
    let ended = ended(&cloud).await?;
    for name in ["spiffe://test/bad", "spiffe://test/stock"] {
        let of = ended.iter().filter(|tunnel| tunnel["identity"] == name);
        let reasons: Vec<&str> = of.filter_map(|tunnel| tunnel["reason"].as_str()).collect();
        ensure!(reasons == ["its agent's certificate is trusted no more"], "{name} ended for {reasons:?}");
    }

    put(&path.join("trusted.pem"), &std::fs::read_to_string(Authority::new("other")?.write(path)?)?)?;
    left(&cloud, &[]).await?;
    bad_edge.stop().await?;
    good.stop().await?;
    cloud.stop().await
}

async fn ended(cloud: &Gateway) -> Result<Vec<Value>> {
    let json = culvert_tests::client::get(cloud.admin, "/tunnels").await?.json()?;
    json["ended"].as_array().cloned().context("no list of ended tunnels")
}
