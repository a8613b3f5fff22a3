//! Who an agent is and what it may do: policies from a file and over xDS, certificates, tokens, and where what comes
//! through a tunnel may go.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, ensure};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use culvert_tests::Result;
use culvert_tests::backend::Backend;
use culvert_tests::ca::Authority;
use culvert_tests::client::get;
use culvert_tests::gateway::{Gateway, HTTP2, cluster, http_listener};
use culvert_tests::load::Load;
use culvert_tests::plane::Plane;
use culvert_tests::tunnel::{agent, connections, hosting, joined, tcp_listener, tunnel_listener};
use culvert_tests::wait::{eventually, in_time};
use serde_json::json;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

const TO_EDGE: &str = "[{match: {prefix: /}, route: {cluster: edge}}]";
const TO_A: &str = "[{match: {prefix: /}, route: {cluster: a}}]";
const TYPES: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3";

/// A folder with a certificate for the server and one for each of `sites`, `spiffe://test/site/NAME`.
fn certificates(sites: &[&str]) -> Result<TempDir> {
    let folder = TempDir::with_prefix("culvert-")?;
    let authority = Authority::new("test")?;
    authority.write(folder.path())?;
    authority.issue(folder.path(), "server", &["127.0.0.1"])?;
    for site in sites {
        authority.issue(folder.path(), site, &[&format!("spiffe://test/site/{site}")])?;
    }
    Ok(folder)
}

fn common(folder: &Path, name: &str) -> String {
    let at = |name: &str| folder.join(name).display().to_string();
    format!(
        "common_tls_context: {{tls_certificates: [{{certificate_chain: {{filename: \"{}\"}}, private_key: {{filename: \"{}\"}}}}], validation_context: {{trusted_ca: {{filename: \"{}\"}}}}}}",
        at(&format!("{name}.pem")),
        at(&format!("{name}-key.pem")),
        at("ca.pem")
    )
}

/// A cloud whose tunnel listener is TLS and has the policy `who`, which comes from `policies` (the inside of
/// `TunnelPolicies`, in flow style).
async fn cloud(folder: &Path, policies: &str, client_certificate: bool) -> Result<Gateway> {
    cloud_with(folder, policies, client_certificate, "", "").await
}

/// The same with further clusters and top-level YAML.
async fn cloud_with(
    folder: &Path,
    policies: &str,
    client_certificate: bool,
    clusters: &str,
    more: &str,
) -> Result<Gateway> {
    let tls = format!(
        "      transport_socket: {{name: tls, typed_config: {{\"@type\": {TYPES}.DownstreamTlsContext, require_client_certificate: {client_certificate}, {}}}}}\n",
        common(folder, "server")
    );
    let listeners = http_listener("in", TO_EDGE, "", "")
        + &tcp_listener("tcp", "edge")
        + &tunnel_listener("tunnel", "policy: who, reconnect_window: 0s")
        + &tls;
    let extension = format!(
        "bootstrap_extensions:\n- name: culvert.tunnel_policies\n  typed_config: {{\"@type\": type.googleapis.com/culvert.tunnel.v1.TunnelPolicies, {policies}}}\n{more}"
    );
    let clusters = cluster("edge", &[], "") + clusters;
    Gateway::start_in(TempDir::with_prefix("culvert-")?, &listeners, &clusters, &extension, 2).await
}

/// An edge that shows the certificate of `site` (or only trusts the server's) and dials soon after it was refused.
async fn edge(
    cloud: &Gateway,
    folder: &Path,
    site: Option<&str>,
    backend: SocketAddr,
    fields: &str,
) -> Result<Gateway> {
    edge_of(cloud.listener("tunnel")?, folder, site, backend, fields).await
}

/// The same, of a server at that address.
async fn edge_of(
    server: SocketAddr,
    folder: &Path,
    site: Option<&str>,
    backend: SocketAddr,
    fields: &str,
) -> Result<Gateway> {
    let trust = format!(
        "common_tls_context: {{validation_context: {{trusted_ca: {{filename: \"{}\"}}}}}}",
        folder.join("ca.pem").display()
    );
    let context = site.map_or(trust, |site| common(folder, site));
    let fields = format!(
        "reconnect_max_interval: 0.2s, transport_socket: {{name: tls, typed_config: {{\"@type\": {TYPES}.UpstreamTlsContext, {context}}}}}, {fields}"
    );
    let hosted = hosting(&http_listener("hosted", TO_A, "", ""));
    let agent = agent(&[server], &fields);
    Gateway::start_in(TempDir::with_prefix("culvert-")?, &hosted, &cluster("a", &[backend], ""), &agent, 1).await
}

/// Replaces a file in one step.
fn put(path: &Path, text: &str) -> Result {
    let next = path.with_extension("next");
    std::fs::write(&next, text)?;
    Ok(std::fs::rename(next, path)?)
}

/// A policy that lets these sites join `edge`, as a discovery response.
fn response(version: u32, sites: &[&str]) -> String {
    json!({"version_info": version.to_string(), "resources": [policy(sites)]}).to_string()
}

fn policy(sites: &[&str]) -> serde_json::Value {
    let principals: Vec<_> = sites.iter().map(|site| json!({"uri": format!("spiffe://test/site/{site}")})).collect();
    let rules = if sites.is_empty() {
        json!([])
    } else {
        json!([{"name": "sites", "principals": principals, "clusters": ["edge"]}])
    };
    json!({"@type": "type.googleapis.com/culvert.tunnel.v1.TunnelPolicy", "name": "who", "rules": rules})
}

/// Waits until `edge` was refused so often since.
async fn refused(cloud: &Gateway, since: u64) -> Result {
    cloud.stat_reaches("tunnel_server.t.refused_auth", since + 2).await
}

#[tokio::test]
async fn a_policy_over_xds_lets_in_by_certificate_and_is_judged_again_on_live_tunnels() -> Result {
    let (folder, backend) = (certificates(&["a", "b"])?, Backend::start("behind").await?);
    let file = folder.path().join("policies.yaml");
    put(&file, &response(1, &["a"]))?;
    let policies = format!("policies_config: {{path_config_source: {{path: \"{}\"}}}}", file.display());
    let cloud = cloud(folder.path(), &policies, true).await?;
    // What it calls itself does not count.
    let a = edge(&cloud, folder.path(), Some("a"), backend.address, "host_name: b").await?;
    let seen = joined(&cloud, 1).await?;
    let shown = (&seen[0]["identity"], &seen[0]["host_name"], &seen[0]["policy"]);
    ensure!(shown == (&json!("spiffe://test/site/a"), &json!("a"), &json!("sites")), "saw {seen:#?}");
    let b = edge(&cloud, folder.path(), Some("b"), backend.address, "").await?;
    refused(&cloud, 0).await?;
    ensure!(connections(&cloud).await?.len() == 1, "expected the other site to be refused");
    // The other one is let in as well, under load: nothing fails.
    let load = Load::new(cloud.listener("in")?, "/").start();
    put(&file, &response(2, &["a", "b"]))?;
    joined(&cloud, 2).await?;
    // And the first one withdrawn: what is in flight is answered.
    put(&file, &response(3, &["b"]))?;
    let seen = joined(&cloud, 1).await?;
    ensure!(seen[0]["identity"] == "spiffe://test/site/b", "saw {seen:#?}");
    load.finish(10).await?;
    ensure!(cloud.stat("tunnel_server.t.withdrawn").await? == 1, "expected one tunnel to have been withdrawn");
    // Nobody is named: nobody is let in.
    let before = cloud.stat("tunnel_server.t.refused_auth").await?;
    put(&file, &response(4, &[]))?;
    joined(&cloud, 0).await?;
    refused(&cloud, before).await?;
    let answer = get(cloud.listener("in")?, "/").await?;
    ensure!(answer.status == 503 || answer.status == 404, "saw {} {}", answer.status, answer.text());
    put(&file, &response(5, &["a", "b"]))?;
    joined(&cloud, 2).await?;
    a.stop().await?;
    b.stop().await?;
    cloud.stop().await
}

/// The same from a control plane, over ADS: a change that allows a tunnel no more ends it, under load.
#[tokio::test]
async fn a_policy_over_ads_is_judged_again_on_live_tunnels_when_it_changes() -> Result {
    let (folder, backend) = (certificates(&["a", "b"])?, Backend::start("behind").await?);
    let plane = Plane::start(&[]).await?;
    let publish = |sites: &[&str]| {
        let file = json!({"selector": {"node_id": "test"}, "resources": [policy(sites)]});
        put(&plane.path("control").join("policy.json"), &file.to_string())
    };
    publish(&["a", "b"])?;
    let ads = "dynamic_resources: {ads_config: {api_type: DELTA_GRPC, transport_api_version: V3, grpc_services: [{envoy_grpc: {cluster_name: xds}}]}}";
    let by_ads = "policies_config: {ads: {}, resource_api_version: V3}";
    let cloud = cloud_with(folder.path(), by_ads, true, &cluster("xds", &[plane.xds], HTTP2), ads).await?;
    let mut edges = Vec::new();
    for site in ["a", "b"] {
        edges.push(edge(&cloud, folder.path(), Some(site), backend.address, "").await?);
    }
    let both = joined(&cloud, 2).await.with_context(|| plane.control_log())?;
    let load = Load::new(cloud.listener("in")?, "/").start();
    load.more(10).await?;
    publish(&["b"])?;
    let left = joined(&cloud, 1).await.with_context(|| format!("{both:#?}\n{}", plane.control_log()))?;
    ensure!(left[0]["identity"] == "spiffe://test/site/b", "saw {left:#?}");
    ensure!(both.iter().any(|tunnel| tunnel["id"] == left[0]["id"]), "expected the other one to stand: {left:#?}");
    let withdrawn = cloud.stat("tunnel_server.t.withdrawn").await?;
    ensure!(withdrawn == 1, "expected one tunnel to have been withdrawn, saw {withdrawn}");
    refused(&cloud, 0).await?;
    load.more(10).await?;
    load.finish(20).await?;
    publish(&["a", "b"])?;
    joined(&cloud, 2).await?;
    for edge in edges {
        edge.stop().await?;
    }
    cloud.stop().await
}

/// A plain tunnel that a TCP connection has taken whole is watched as any other: who is allowed no more has it for 5 s.
#[tokio::test]
async fn what_a_tcp_connection_has_taken_is_cut_when_its_agent_is_allowed_no_more() -> Result {
    let (folder, backend) = (certificates(&["a"])?, Backend::start("behind").await?);
    let file = folder.path().join("policies.yaml");
    put(&file, &response(1, &["a"]))?;
    let policies = format!("policies_config: {{path_config_source: {{path: \"{}\"}}}}", file.display());
    let cloud = cloud(folder.path(), &policies, true).await?;
    let edge = edge(&cloud, folder.path(), Some("a"), backend.address, "protocol: HTTP1").await?;
    joined(&cloud, 1).await?;
    let mut client = TcpStream::connect(cloud.listener("tcp")?).await?;
    let mut ask = async || -> Result<usize> {
        client.write_all(b"GET / HTTP/1.1\r\nhost: edge\r\n\r\n").await?;
        Ok(client.read(&mut [0; 1024]).await?)
    };
    ensure!(in_time("an answer", ask()).await?? > 0, "the edge answers over TCP");
    let seen = joined(&cloud, 1).await?;
    ensure!(seen[0]["active"] == 1, "it is in use, and still listed: {seen:#?}");
    let withdrawn = Instant::now();
    put(&file, &response(2, &[]))?;
    cloud.stat_reaches("tunnel_server.t.withdrawn", 1).await?;
    ensure!(in_time("another answer", ask()).await?? > 0, "what is in flight has its time");
    let end = in_time("the end of the connection", client.read(&mut [0; 1])).await?;
    ensure!(!matches!(end, Ok(1..)), "expected its end, saw {end:?}");
    ensure!(withdrawn.elapsed() >= Duration::from_secs(4), "cut after {:?}", withdrawn.elapsed());
    joined(&cloud, 0).await?;
    edge.stop().await?;
    cloud.stop().await
}

struct Signer(Ed25519KeyPair, String);

impl Signer {
    fn new(id: &str) -> Result<Self> {
        Ok(Self(Ed25519KeyPair::generate()?, id.to_owned()))
    }

    fn jwk(&self) -> serde_json::Value {
        let x = URL_SAFE_NO_PAD.encode(self.0.public_key().as_ref());
        json!({"kty": "OKP", "crv": "Ed25519", "kid": self.1, "alg": "EdDSA", "x": x})
    }

    fn token(&self, subject: &str, seconds: u64) -> Result<String> {
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
        let claims = json!({"iss": "https://issuer", "exp": now + seconds, "sub": subject});
        let header = json!({"alg": "EdDSA", "kid": self.1});
        let signed = format!("{}.{}", encode(header.to_string().as_bytes()), encode(claims.to_string().as_bytes()));
        let signature = encode(self.0.sign(signed.as_bytes()).as_ref());
        Ok(format!("{signed}.{signature}"))
    }
}

#[tokio::test]
async fn keys_and_tokens_are_rotated_under_load_and_no_request_fails() -> Result {
    let (folder, backend) = (certificates(&[])?, Backend::start("behind").await?);
    let (first, second) = (Signer::new("1")?, Signer::new("2")?);
    let (jwks, token) = (folder.path().join("jwks.json"), folder.path().join("token"));
    let keys = |keys: &[&Signer]| json!({"keys": keys.iter().map(|key| key.jwk()).collect::<Vec<_>>()}).to_string();
    put(&jwks, &keys(&[&first]))?;
    let policies = format!(
        "policies: [{{name: who, jwt_providers: [{{name: idp, issuer: \"https://issuer\", clock_skew: 0s, local_jwks: {{filename: \"{}\"}}}}], rules: [{{principals: [{{jwt: {{provider: idp, subject: \"edge-*\"}}}}], clusters: [edge]}}]}}]",
        jwks.display()
    );
    let cloud = cloud(folder.path(), &policies, false).await?;
    let fields = format!("credential: {{policy: idp, credential: {{filename: \"{}\"}}}}", token.display());
    // A token that is renewed while it is in use; it lives for the start of an agent on a busy machine.
    put(&token, &first.token("edge-1", 10)?)?;
    let edge = edge(&cloud, folder.path(), None, backend.address, &fields).await?;
    let seen = joined(&cloud, 1).await?;
    ensure!(seen[0]["identity"] == "jwt:idp/edge-1" && seen[0]["host_name"] == "edge-1", "saw {seen:#?}");
    let load = Load::new(cloud.listener("in")?, "/delay/5").start();
    // Another key beside the first one, and a token that it signed; the agent is asked to dial anew before the
    // first token expires.
    put(&jwks, &keys(&[&first, &second]))?;
    put(&token, &second.token("edge-1", 3600)?)?;
    eventually("the tunnel is replaced before its token expires", async || {
        let replaced = edge.stat("tunnel_agent.agent.replaced").await?;
        ensure!(replaced >= 1, "{replaced} were");
        Ok(())
    })
    .await?;
    joined(&cloud, 1).await?;
    load.finish(50).await?;
    ensure!(cloud.stat("tunnel_server.t.withdrawn").await? == 0, "expected no tunnel to be withdrawn");
    // A key that leaves while a tunnel stands on it takes it along, and its token lets in no more.
    put(&jwks, &keys(&[&first]))?;
    cloud.stat_reaches("tunnel_server.t.withdrawn", 1).await?;
    refused(&cloud, 0).await?;
    joined(&cloud, 0).await?;
    put(&jwks, &keys(&[&second]))?;
    joined(&cloud, 1).await?;
    edge.stop().await?;
    cloud.stop().await
}

/// What a tunnel brings goes to the addresses that the agent allows, and nobody dials the others.
#[tokio::test]
async fn what_a_tunnel_brings_goes_where_the_agent_allows() -> Result {
    let backend = Backend::start("behind").await?;
    let routes =
        "[{match: {prefix: /metadata}, route: {cluster: metadata}}, {match: {prefix: /}, route: {cluster: a}}]";
    let metadata: SocketAddr = "169.254.169.254:80".parse()?;
    for (fields, path, status) in [
        ("", "/", 200),
        ("", "/metadata", 403),
        ("destinations: {allowed: [{address_prefix: 127.0.0.0, prefix_len: 8}]}", "/", 200),
        ("destinations: {allowed: [{address_prefix: 10.0.0.0, prefix_len: 8}]}", "/", 403),
        ("destinations: {allowed: [{address_prefix: 0.0.0.0, prefix_len: 0}]}", "/metadata", 403),
    ] {
        let cloud = culvert_tests::tunnel::cloud("", 1).await?;
        let hosted = hosting(&http_listener("hosted", routes, "", "")) + &http_listener("local", routes, "", "");
        let clusters = cluster("a", &[backend.address], "") + &cluster("metadata", &[metadata], "");
        let agent = agent(&[cloud.listener("tunnel")?], fields);
        let edge = Gateway::start_in(TempDir::with_prefix("culvert-")?, &hosted, &clusters, &agent, 1).await?;
        joined(&cloud, 1).await?;
        let answer = get(cloud.listener("in")?, path).await?;
        ensure!(
            answer.status == status,
            "{fields:?} {path}: expected {status}, saw {} {}",
            answer.status,
            answer.text()
        );
        if status == 403 {
            ensure!(answer.text() == "tunnel destination denied", "saw {:?}", answer.text());
            let cluster = if path == "/" { "a" } else { "metadata" };
            for (metric, expected) in [("tunnel.destination_denied", 1), ("upstream_cx_total", 0)] {
                let seen = edge.stat(&format!("cluster.{cluster}.{metric}")).await?;
                ensure!(seen == expected, "expected {metric} of {cluster} to be {expected}, saw {seen}");
            }
            // Who comes from the edge itself is not the tunnel's.
            if path == "/" {
                ensure!(get(edge.listener("local")?, path).await?.status == 200, "expected local traffic to pass");
            }
        }
        edge.stop().await?;
        cloud.stop().await?;
    }
    Ok(())
}

/// The init frame of who dials `listener` next, over TLS with the server's certificate.
async fn init_frame(listener: &TcpListener, folder: &Path) -> Result<Vec<u8>> {
    let (socket, _) = in_time("a dial", listener.accept()).await??;
    let mut stream = culvert_tests::tls::server(folder, "server")?.accept(socket).await?;
    let mut frame = vec![0; 8];
    stream.read_exact(&mut frame).await?;
    let length = usize::from(u16::from_be_bytes([frame[6], frame[7]]));
    frame.resize(8 + length, 0);
    stream.read_exact(&mut frame[8..]).await?;
    Ok(frame)
}

/// What the cloud answers to those bytes, on a TLS connection of its own.
async fn answer_to(frame: &[u8], cloud: &Gateway, folder: &Path) -> Result<String> {
    let client = culvert_tests::tls::client(folder)?;
    let mut stream = culvert_tests::tls::connect(&client, cloud.listener("tunnel")?).await?;
    stream.write_all(frame).await?;
    let mut header = [0; 8];
    in_time("an answer", stream.read_exact(&mut header)).await??;
    let mut payload = vec![0; usize::from(u16::from_be_bytes([header[6], header[7]]))];
    stream.read_exact(&mut payload).await?;
    Ok(String::from_utf8(payload)?)
}

/// A server that an agent is led to, and whose certificate it believes, gains nothing by what the agent says: the token is
/// not in it, and the proof is good on that connection alone. The agent's own server takes it.
#[tokio::test]
async fn a_handshake_that_is_replayed_or_relayed_is_refused() -> Result {
    let (folder, backend) = (certificates(&[])?, Backend::start("behind").await?);
    let token = folder.path().join("token");
    put(&token, "0f8d2c7b5e9a41d6b3c0\n")?;
    let policies = format!(
        "policies: [{{name: who, static_tokens: [{{name: site, require_tls_binding: true, tokens: [{{filename: \"{}\"}}]}}], rules: [{{principals: [{{static_token: site}}], clusters: [edge]}}]}}]",
        token.display()
    );
    let cloud = cloud(folder.path(), &policies, false).await?;
    let credential = |bound: bool| {
        format!("credential: {{policy: site, credential: {{filename: \"{}\"}}, bind_to_tls: {bound}}}", token.display())
    };
    // Who believes another server.
    let other = TcpListener::bind("127.0.0.1:0").await?;
    let misled = edge_of(other.local_addr()?, folder.path(), None, backend.address, &credential(true)).await?;
    let frame = init_frame(&other, folder.path()).await?;
    let text = String::from_utf8_lossy(&frame[8..]).into_owned();
    ensure!(text.contains("\"credential\":\"\"") && text.contains("\"proof\":\""), "saw {text}");
    ensure!(!text.contains("0f8d2c7b"), "the token was expected to stay where it is: {text}");
    for times in 1..3 {
        let answer = answer_to(&frame, &cloud, folder.path()).await?;
        ensure!(answer.starts_with("{\"status\":2"), "relayed {times} times: expected status 2, saw {answer}");
    }
    misled.stop().await?;
    // Who shows the token itself where a proof is demanded: it may have shown it to others.
    let open = edge(&cloud, folder.path(), None, backend.address, &credential(false)).await?;
    refused(&cloud, cloud.stat("tunnel_server.t.refused_auth").await?).await?;
    ensure!(connections(&cloud).await?.is_empty(), "expected the token itself to be refused");
    open.stop().await?;
    // Who has the token, and is with its own server.
    let bound = edge(&cloud, folder.path(), None, backend.address, &credential(true)).await?;
    let seen = joined(&cloud, 1).await?;
    ensure!(seen[0]["identity"] == "token:site", "saw {seen:#?}");
    let answer = get(cloud.listener("in")?, "/").await?;
    ensure!(answer.status == 200, "saw {} {}", answer.status, answer.text());
    // The tunnel stands on the token still: with another one it is not.
    put(&token, "another-token-of-the-same-length\n")?;
    cloud.stat_reaches("tunnel_server.t.withdrawn", 1).await?;
    joined(&cloud, 1).await.context("the agent reads the token anew")?;
    bound.stop().await?;
    cloud.stop().await
}
