//! A renewed certificate of either end, from files and by SDS: under steady load every tunnel is replaced by one that was
//! dialled with it, before the old one goes, and no request fails.

use std::path::Path;

use anyhow::{Context, ensure};
use culvert_tests::Result;
use culvert_tests::backend::Backend;
use culvert_tests::ca::Authority;
use culvert_tests::client::get;
use culvert_tests::gateway::{Gateway, cluster, http_listener};
use culvert_tests::load::Load;
use culvert_tests::tunnel::{connections, edge, joined, tunnel_listener};
use culvert_tests::wait::eventually;
use serde_json::{Value, json};
use tempfile::TempDir;

const TYPES: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3";

/// Where a daemon's TLS context has its certificate from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From {
    Files,
    Sds,
}

/// The certificates of both ends, and the authority that renews them.
struct Material {
    folder: TempDir,
    authority: Authority,
    from: From,
}

impl Material {
    fn new(from: From) -> Result<Self> {
        let (folder, authority) = (TempDir::with_prefix("culvert-")?, Authority::new("test")?);
        authority.write(folder.path())?;
        let material = Self { folder, authority, from };
        material.issue("server", &["127.0.0.1", "first.culvert.test"])?;
        material.issue("agent", &["spiffe://culvert.test/first"])?;
        Ok(material)
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    /// Issues, or renews, one end's certificate: files that daemons follow, and the same as a secret in one.
    fn issue(&self, name: &str, names: &[&str]) -> Result {
        let of_files = if self.from == From::Files { self.folder.path().to_owned() } else { self.path("aside") };
        std::fs::create_dir_all(&of_files)?;
        let leaf = self.authority.issue(&of_files, name, names)?;
        let text = |path: &Path| std::fs::read_to_string(path);
        let secret = json!({ "@type": format!("{TYPES}.Secret"), "name": name, "tls_certificate": {
            "certificate_chain": { "inline_string": text(&leaf.certificate)? },
            "private_key": { "inline_string": text(&leaf.key)? } } });
        let next = self.path("next.yaml");
        std::fs::write(&next, json!({ "version_info": names.join(" "), "resources": [secret] }).to_string())?;
        Ok(std::fs::rename(next, self.path(&format!("{name}.yaml")))?)
    }

    /// A transport socket, in flow style.
    fn socket(&self, name: &str, context: &str, more: &str) -> String {
        let at = |name: &str| self.path(name).display().to_string();
        let certificate = match self.from {
            From::Files => format!(
                "tls_certificates: [{{certificate_chain: {{filename: \"{}\"}}, private_key: {{filename: \"{}\"}}}}]",
                at(&format!("{name}.pem")),
                at(&format!("{name}-key.pem"))
            ),
            From::Sds => format!(
                "tls_certificate_sds_secret_configs: [{{name: {name}, sds_config: {{path_config_source: {{path: \"{}\"}}, resource_api_version: V3}}}}]",
                at(&format!("{name}.yaml"))
            ),
        };
        format!(
            "{{name: tls, typed_config: {{\"@type\": {TYPES}.{context}, {more} common_tls_context: {{{certificate}, validation_context: {{trusted_ca: {{filename: \"{}\"}}}}}}}}}}",
            at("ca.pem")
        )
    }
}

fn ids(connections: &[Value]) -> Vec<&str> {
    connections.iter().filter_map(|connection| connection["id"].as_str()).collect()
}

/// Waits until two other tunnels serve, of that identity.
async fn replaced(cloud: &Gateway, before: &[Value], identity: &str) -> Result<Vec<Value>> {
    eventually("both tunnels are others", async || {
        let seen = connections(cloud).await?;
        let other = seen.iter().all(|connection| !ids(before).contains(&connection["id"].as_str().unwrap_or_default()));
        ensure!(seen.len() == 2 && other, "saw {seen:#?}");
        ensure!(seen.iter().all(|connection| connection["identity"] == identity), "{identity}: saw {seen:#?}");
        Ok(seen)
    })
    .await
}

async fn renewals(from: From) -> Result {
    let material = Material::new(from)?;
    let backend = Backend::start("behind").await?;
    let tls = material.socket("server", "DownstreamTlsContext", "require_client_certificate: true,");
    let listeners = http_listener("in", "[{match: {prefix: /}, route: {cluster: edge}}]", "", "")
        + &tunnel_listener("tunnel", "reconnect_window: 0s")
        + &format!("      transport_socket: {tls}\n");
    let cloud = Gateway::start(&listeners, &cluster("edge", &[], "")).await?;
    let socket = material.socket("agent", "UpstreamTlsContext", "");
    let fields = format!("connection_num: 2, transport_socket: {socket}");
    let edge = edge(&[cloud.listener("tunnel")?], backend.address, &fields).await?;
    let first = joined(&cloud, 2).await.with_context(|| edge.daemon.output())?;
    let load = Load::new(cloud.listener("in")?, "/delay/5").start();
    load.more(50).await?;
    material.issue("agent", &["spiffe://culvert.test/second"])?;
    let second = replaced(&cloud, &first, "spiffe://culvert.test/second").await.context("the agent's certificate")?;
    load.more(50).await?;
    material.issue("server", &["127.0.0.1", "second.culvert.test"])?;
    eventually("the server presents the renewed certificate", async || {
        let text = get(cloud.admin, "/certs").await?.text();
        ensure!(text.contains("second.culvert.test"), "saw {text}");
        Ok(())
    })
    .await?;
    replaced(&cloud, &second, "spiffe://culvert.test/second").await.context("the server's certificate")?;
    load.more(50).await?;
    let counts = load.finish(150).await?;
    ensure!(backend.requests() == counts.ok(), "{} requests, the backend saw {}", counts.ok(), backend.requests());
    ensure!(edge.stat("tunnel_agent.agent.lost").await? == 0, "a tunnel was lost:\n{}", edge.daemon.output());
    edge.stop().await?;
    cloud.stop().await
}

#[tokio::test]
async fn certificates_renewed_in_files_replace_the_tunnels_and_fail_no_request() -> Result {
    renewals(From::Files).await
}

#[tokio::test]
async fn certificates_renewed_by_sds_replace_the_tunnels_and_fail_no_request() -> Result {
    renewals(From::Sds).await
}
