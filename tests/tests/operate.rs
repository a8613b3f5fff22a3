//! What operators do with a control plane beside serving from it: a node's content as files that a proxy boots from
//! without any control plane, and the load that a real Envoy reports.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use culvert_tests::Result;
use culvert_tests::client::get;
use culvert_tests::load::Load;
use culvert_tests::peer::Peer;
use culvert_tests::process::{Daemon, ours, run};
use culvert_tests::site::{Port, Site};
use culvert_tests::wait::eventually;

const DEADLINE: Duration = Duration::from_secs(30);

/// Writes the files of the site's Envoy; where they are.
async fn export(site: &Site) -> Result<PathBuf> {
    let to = site.folder().join("export");
    let (config, shown) = (site.folder().join("control"), to.to_string_lossy().into_owned());
    let node = "{id: envoy-1, cluster: envoy}";
    let config = config.to_string_lossy();
    let args = ["--config", &config, "--mode", "export", "--export-node", node, "--export-to", &shown];
    let said = run(&ours("culvert-control")?, &args, "", DEADLINE).await?;
    ensure!(!said.contains("warning"), "expected all of it as files, saw {said}");
    Ok(to)
}

/// A proxy boots from the files, carries traffic, and follows the next export; no control plane runs.
async fn boots_from_files(program: &Path, flags: &[&str]) -> Result {
    let site = Site::lay_out()?;
    let _backends = (site.start_backend(1).await?, site.start_backend(2).await?);
    let bootstrap = export(&site).await?.join("bootstrap.json").to_string_lossy().into_owned();
    let proxy = Daemon::start("proxy", program, &[&["-c", &bootstrap], flags].concat(), site.folder())?;
    let follows = async {
        site.answered_by(Port::EnvoyGateway, "backend-1").await?;
        let load = Load::new(site.address(Port::EnvoyGateway), "/").start();
        site.edit("envoy/routes.yaml", |text| text.replace("cluster: blue", "cluster: green"))?;
        export(&site).await?;
        site.answered_by(Port::EnvoyGateway, "backend-2").await?;
        load.finish(10).await.map(drop)
    };
    follows.await.with_context(|| proxy.output())
}

#[tokio::test]
async fn the_real_envoy_boots_from_an_export_and_follows_the_next() -> Result {
    let Some(envoy) = Peer::Envoy.find()? else { return Ok(()) };
    boots_from_files(&envoy, &["--use-dynamic-base-id", "--concurrency", "1", "-l", "warning"]).await
}

#[tokio::test]
async fn culvert_proxy_boots_from_an_export_and_follows_the_next() -> Result {
    boots_from_files(&ours("culvert-proxy")?, &["--concurrency", "1"]).await
}

#[tokio::test]
async fn the_load_that_the_real_envoy_reports_is_added_up() -> Result {
    let Some(envoy) = Peer::Envoy.find()? else { return Ok(()) };
    let site = Site::lay_out()?;
    let bootstrap = site.folder().join("envoy.yaml");
    let reports = "cluster_manager: {load_stats_config: {api_type: GRPC, transport_api_version: V3, grpc_services: \
                   [{envoy_grpc: {cluster_name: control}}]}}\n";
    std::fs::write(&bootstrap, std::fs::read_to_string(&bootstrap)? + reports)?;
    let _backends = (site.start_backend(1).await?, site.start_backend(2).await?);
    let mut control = site.start_control_with(&["--load-report-interval", "1", "--load-report-endpoints"])?;
    site.ready(&mut control, Port::ControlAdmin).await?;
    let args = ["-c", "envoy.yaml", "--use-dynamic-base-id", "--concurrency", "1", "-l", "warning"];
    let envoy = Daemon::start("envoy", &envoy, &args, site.folder())?;
    site.answered_by(Port::EnvoyGateway, "backend-1").await.with_context(|| envoy.output())?;
    eventually("the requests are in /loads", async || {
        // What Envoy did before it was asked about a cluster it does not report.
        site.answered_by(Port::EnvoyGateway, "backend-1").await?;
        let loads = get(site.address(Port::ControlAdmin), "/loads").await?.json()?;
        let clusters = loads["clusters"].as_array().cloned().unwrap_or_default();
        let blue = clusters.iter().find(|one| one["cluster"] == "blue").context("no load of blue")?;
        let endpoint = &blue["endpoints"][site.address(Port::Backend1).to_string()];
        for requests in [&blue["requests"], endpoint] {
            ensure!(requests["successes"].as_u64() > Some(0), "expected requests and their endpoint, saw {loads}");
        }
        Ok(())
    })
    .await
    .with_context(|| envoy.output())?;
    control.terminate(Duration::from_secs(20)).await
}
