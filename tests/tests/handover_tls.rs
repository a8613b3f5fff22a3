//! A renewed certificate of either end, from files and by SDS: under steady load every tunnel is replaced by one that was
//! dialled with it, before the old one goes, and no request fails.

use std::path::Path;

use anyhow::{Context, ensure};
use culvert_tests::Result;
use culvert_tests::backend::Backend;
use culvert_tests::ca::Authority;
use culvert_tests::client::get;
use culvert_tests::gateway::{Gateway, cluster, http_listener};
use culvert_tests::load::{Load, Running};
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

/// Waits until each server has another tunnel, of the second identity.
async fn replaced(clouds: &[Gateway], before: &[Vec<Value>]) -> Result<Vec<Vec<Value>>> {
    let mut now = Vec::new();
    for (cloud, before) in clouds.iter().zip(before) {
        let seen = eventually("the tunnel is another one", async || {
            let seen = connections(cloud).await?;
            let other = seen.iter().all(|connection| connection["id"] != before[0]["id"]);
            ensure!(seen.len() == 1 && other, "saw {seen:#?}");
            ensure!(seen[0]["identity"] == "spiffe://culvert.test/second", "saw {seen:#?}");
            Ok(seen)
        })
        .await?;
        now.push(seen);
    }
    Ok(now)
}

/// One tunnel at each of two servers, of which none has requests wait for it.
async fn renewals(from: From, more_fields: &str) -> Result {
    let material = Material::new(from)?;
    let backend = Backend::start("behind").await?;
    let clouds = [cloud(&material).await?, cloud(&material).await?];
    let socket = material.socket("agent", "UpstreamTlsContext", "");
    let fields = format!("connection_num: 1, transport_socket: {socket}{more_fields}");
    let servers = [clouds[0].listener("tunnel")?, clouds[1].listener("tunnel")?];
    let edge = edge(&servers, backend.address, &fields).await?;
    let (mut first, mut loads) = (Vec::new(), Vec::new());
    for cloud in &clouds {
        first.push(joined(cloud, 1).await.with_context(|| edge.daemon.output())?);
        loads.push(Load::new(cloud.listener("in")?, "/delay/5").start());
    }
    more(&loads).await?;
    material.issue("agent", &["spiffe://culvert.test/second"])?;
    let second = replaced(&clouds, &first).await.context("the agent's certificate")?;
    more(&loads).await?;
    material.issue("server", &["127.0.0.1", "second.culvert.test"])?;
    for cloud in &clouds {
        eventually("the server presents the renewed certificate", async || {
            let text = get(cloud.admin, "/certs").await?.text();
            ensure!(text.contains("second.culvert.test"), "saw {text}");
            Ok(())
        })
        .await?;
    }
    replaced(&clouds, &second).await.context("the server's certificate")?;
    more(&loads).await?;
    let mut answered = 0;
    for load in loads {
        answered += load.finish(100).await?.ok();
    }
    ensure!(backend.requests() == answered, "{answered} requests, the backend saw {}", backend.requests());
    ensure!(edge.stat("tunnel_agent.agent.lost").await? == 0, "a tunnel was lost:\n{}", edge.daemon.output());
    edge.stop().await?;
    for cloud in clouds {
        cloud.stop().await?;
    }
    Ok(())
}

async fn cloud(material: &Material) -> Result<Gateway> {
    let tls = material.socket("server", "DownstreamTlsContext", "require_client_certificate: true,");
    let listeners = http_listener("in", "[{match: {prefix: /}, route: {cluster: edge}}]", "", "")
        + &tunnel_listener("tunnel", "reconnect_window: 0s")
        + &format!("      transport_socket: {tls}\n");
    Gateway::start(&listeners, &cluster("edge", &[], "")).await
}

async fn more(loads: &[Running]) -> Result {
    for load in loads {
        load.more(50).await?;
    }
    Ok(())
}

#[tokio::test]
async fn certificates_renewed_in_files_replace_the_tunnels_and_fail_no_request() -> Result {
    renewals(From::Files, "").await
}

#[tokio::test]
async fn certificates_renewed_by_sds_replace_the_tunnels_and_fail_no_request() -> Result {
    renewals(From::Sds, "").await
}

#[tokio::test]
async fn certificates_renewed_in_files_replace_the_tunnels_in_envoys_dialect_and_fail_no_request() -> Result {
    renewals(From::Files, ", envoy: {tenant_id: t}").await
}
