//! Keys of agents' tokens that are fetched over a cluster: what happens before they are there, while they are rotated, and when
//! they cannot be had; and tokens that count once.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context, ensure};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use culvert_tests::Result;
use culvert_tests::backend::Backend;
use culvert_tests::client::{get, read_head};
use culvert_tests::gateway::{Gateway, cluster, hosted_agent, http_listener};
use culvert_tests::reverse::{BY_NODE, agents, served};
use culvert_tests::tunnel::{self, tunnel_listener};
use culvert_tests::wait::{eventually, in_time};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A key of an issuer's.
struct Key {
    id: &'static str,
    pair: Ed25519KeyPair,
}

impl Key {
    fn new(id: &'static str) -> Result<Self> {
        Ok(Self { id, pair: Ed25519KeyPair::generate()? })
    }

    fn public(&self) -> Value {
        let x = URL_SAFE_NO_PAD.encode(self.pair.public_key().as_ref());
        json!({"kty": "OKP", "crv": "Ed25519", "kid": self.id, "alg": "EdDSA", "x": x})
    }

    /// A token for an hour.
    fn token(&self, subject: &str, more: &Value) -> Result<String> {
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
        let mut claims = json!({"iss": "https://issuer", "aud": "cloud", "sub": subject, "exp": now + 3600});
        for (name, value) in more.as_object().into_iter().flatten() {
            claims[name] = value.clone();
        }
        let header = json!({"alg": "EdDSA", "kid": self.id});
        let signed = format!("{}.{}", encode(header.to_string().as_bytes()), encode(claims.to_string().as_bytes()));
        Ok(format!("{signed}.{}", encode(self.pair.sign(signed.as_bytes()).as_ref())))
    }
}

fn set(keys: &[&Key]) -> String {
    json!({"keys": keys.iter().map(|key| key.public()).collect::<Vec<_>>()}).to_string()
}

/// An issuer's server: answers every request with whatever it is told to.
struct Issuer {
    address: SocketAddr,
    answer: Arc<Mutex<(u16, String)>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Issuer {
    async fn start(status: u16, body: &str) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let answer = Arc::new(Mutex::new((status, body.to_owned())));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (said, heard) = (Arc::clone(&answer), Arc::clone(&asked));
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let Ok(head) = read_head(&mut socket).await else { continue };
                heard.lock().push(head);
                let (status, body) = said.lock().clone();
                let response = format!("HTTP/1.1 {status} Any\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                if let Err(error) = socket.write_all(response.as_bytes()).await {
                    eprintln!("issuer: {error}");
                }
            }
        });
        Ok(Self { address, answer, asked })
    }

    fn say(&self, status: u16, body: &str) {
        *self.answer.lock() = (status, body.to_owned());
    }
}

const REMOTE: &str = "remote_jwks: {http_uri: {uri: \"https://issuer.example/keys?v=1\", cluster: issuer, timeout: 2s}, cache_duration: 1s, async_fetch: {failed_refetch_duration: 0.1s}}";

/// A cloud whose agents prove who they are by the issuer's tokens; `provider` are further fields of the JwtProvider.
async fn cloud(issuer: SocketAddr, provider: &str) -> Result<Gateway> {
    let listeners = http_listener("in", "[{match: {prefix: /}, route: {cluster: edge}}]", "", "")
        + &tunnel_listener("tunnel", "policy: agents");
    let clusters = cluster("edge", &[], "") + &cluster("issuer", &[issuer], "");
    let policies = format!(
        "bootstrap_extensions:\n- name: culvert.tunnel_policies\n  typed_config:\n    \"@type\": type.googleapis.com/culvert.tunnel.v1.TunnelPolicies\n    policies:\n    - name: agents\n      allow_tokens_without_tls: true\n      jwt_providers: [{{name: idp, issuer: \"https://issuer\", audiences: [cloud], {REMOTE}, {provider}}}]\n      rules: [{{principals: [{{jwt: {{provider: idp, subject: \"*\"}}}}], clusters: [edge]}}]\n"
    );
    Gateway::start_in(TempDir::with_prefix("culvert-")?, &listeners, &clusters, &policies, 2).await
}

async fn edge(cloud: &Gateway, backend: SocketAddr, token: &str) -> Result<Gateway> {
    let credential = format!("credential: {{policy: idp, credential: {{inline_string: \"{token}\"}}}}");
    tunnel::edge(&[cloud.listener("tunnel")?], backend, &format!("reconnect_max_interval: 0.2s, {credential}")).await
}

#[tokio::test]
async fn keys_are_fetched_rotated_and_kept() -> Result {
    let (old, new) = (Key::new("old")?, Key::new("new")?);
    let issuer = Issuer::start(500, "").await?;
    let backend = Backend::start("behind").await?;
    let cloud = cloud(issuer.address, "").await?;
    let context = || format!("cloud:\n{}", cloud.daemon.output());
    // Nobody gets in before there is a key.
    let first = edge(&cloud, backend.address, &old.token("edge-1", &json!({}))?).await?;
    cloud.stat_reaches("remote_jwks.fetch_failed", 2).await.with_context(context)?;
    cloud.stat_reaches("tunnel_server.t.refused_auth", 1).await.with_context(context)?;
    issuer.say(200, &set(&[&old]));
    tunnel::joined(&cloud, 1).await.with_context(context)?;
    let asked = issuer.asked.lock().first().cloned().context("no request")?;
    ensure!(asked.starts_with("GET /keys?v=1 HTTP/1.1\r\n"), "saw {asked}");
    ensure!(asked.to_ascii_lowercase().contains("host: issuer.example\r\n"), "saw {asked}");
    // Two keys at a time: both tokens are good, and the first tunnel stands.
    issuer.say(200, &set(&[&old, &new]));
    let second = edge(&cloud, backend.address, &new.token("edge-2", &json!({}))?).await?;
    tunnel::joined(&cloud, 2).await.with_context(context)?;
    ensure!(cloud.stat("tunnel_server.t.withdrawn").await? == 0, "nobody has lost anything: {}", context());
    // What is no set of keys, is too much, or does not come at all changes nothing.
    let fetched = cloud.stat("remote_jwks.fetch_success").await?;
    for (status, body) in [(200, "{}".to_owned()), (200, " ".repeat((1 << 20) + 1)), (404, set(&[&new]))] {
        let failed = cloud.stat("remote_jwks.fetch_failed").await?;
        issuer.say(status, &body);
        cloud.stat_reaches("remote_jwks.fetch_failed", failed + 1).await.with_context(context)?;
    }
    ensure!(tunnel::connections(&cloud).await?.len() == 2, "both stand: {}", context());
    // The old key goes, and with it what stands on it.
    issuer.say(200, &set(&[&new]));
    cloud.stat_reaches("remote_jwks.fetch_success", fetched + 1).await.with_context(context)?;
    cloud.stat_reaches("tunnel_server.t.withdrawn", 1).await.with_context(context)?;
    tunnel::joined(&cloud, 1).await.with_context(context)?;
    ensure!(get(cloud.listener("in")?, "/").await?.status == 200, "the other one serves");
    first.stop().await?;
    second.stop().await?;
    cloud.stop().await
}

/// The same in Envoy's own filter.
#[tokio::test]
async fn envoys_filter_fetches_keys() -> Result {
    let key = Key::new("k")?;
    let issuer = Issuer::start(200, &set(&[&key])).await?;
    let backend = Backend::start("behind").await?;
    let filter = format!(
        "jwt_validator: {{issuer: \"https://issuer\", audiences: [cloud], {REMOTE}}}, validation: {{node_id_format: \"%DYNAMIC_METADATA(envoy.filters.network.reverse_tunnel.jwt:sub)%\"}}"
    );
    let listeners = http_listener("in", "[{match: {prefix: /}, route: {cluster: agents}}]", "", "")
        + &culvert_tests::reverse::tunnel_listener(&filter, "");
    let clusters = agents("agents", BY_NODE) + &cluster("issuer", &[issuer.address], "");
    let folder = TempDir::with_prefix("culvert-")?;
    let cloud = Gateway::start_in(folder, &listeners, &clusters, "", 1).await?;
    let agent = |token: &str| {
        format!(
            "envoy: {{tenant_id: a}}, reconnect_max_interval: 0.2s, credential: {{policy: jwt, credential: {{inline_string: \"{token}\"}}}}"
        )
    };
    let tunnel = cloud.listener("tunnel")?;
    let edge = hosted_agent(tunnel, backend.address, &agent(&key.token("edge-1", &json!({}))?)).await?;
    served(cloud.listener("in")?, "edge-1", "behind").await.with_context(|| cloud.daemon.output())?;
    edge.stop().await?;
    let refused = cloud.stat("tunnel_server.reverse_tunnel.refused_auth").await?;
    let other = hosted_agent(tunnel, backend.address, &agent(&Key::new("k")?.token("edge-1", &json!({}))?)).await?;
    cloud.stat_reaches("tunnel_server.reverse_tunnel.refused_auth", refused + 1).await?;
    ensure!(other.stat("tunnel_agent.agent.established").await? == 0, "another key's token was taken");
    other.stop().await?;
    cloud.stop().await
}

/// The status that an agent gets who presents a token.
async fn status(cloud: SocketAddr, token: &str) -> Result<String> {
    let json =
        json!({"cluster_name": "edge", "weight": 1, "host_name": "", "credential_policy": "idp", "credential": token});
    let json = json.to_string();
    let length = u16::try_from(json.len())?.to_be_bytes();
    let mut socket = TcpStream::connect(cloud).await?;
    socket.write_all(&[b"\x20\x88\x01\x01\x01\x00".as_slice(), &length, json.as_bytes()].concat()).await?;
    let mut head = [0; 8];
    in_time("a reply", socket.read_exact(&mut head)).await??;
    let mut body = vec![0; usize::from(u16::from_be_bytes([head[6], head[7]]))];
    in_time("a reply", socket.read_exact(&mut body)).await??;
    Ok(String::from_utf8(body)?)
}

/// Whoever listened, where there is no TLS, cannot use a token again; nor can anybody one that has no id.
#[tokio::test]
async fn a_token_counts_for_one_handshake() -> Result {
    let key = Key::new("k")?;
    let issuer = Issuer::start(200, &set(&[&key])).await?;
    let cloud = cloud(issuer.address, "one_time_tokens: true").await?;
    let address = cloud.listener("tunnel")?;
    cloud.stat_reaches("remote_jwks.fetch_success", 1).await?;
    let token = key.token("edge-1", &json!({"jti": "one"}))?;
    eventually("the first time", async || {
        // Of its own each time, until the keys are in force.
        let probe = key.token("edge-1", &json!({"jti": format!("{:?}", tokio::time::Instant::now())}))?;
        let seen = status(address, &probe).await?;
        ensure!(seen == "{\"status\":1}", "saw {seen}");
        Ok(())
    })
    .await?;
    let other = key.token("edge-2", &json!({"jti": "two"}))?;
    let nameless = key.token("edge-3", &json!({}))?;
    for (what, token, expected) in [
        ("the first time", &token, 1),
        ("again", &token, 2),
        ("another one", &other, 1),
        ("that again", &other, 2),
        ("no id", &nameless, 2),
    ] {
        let seen = status(address, token).await?;
        ensure!(seen == format!("{{\"status\":{expected}}}"), "{what}: expected status {expected}, saw {seen}");
    }
    cloud.stop().await
}
