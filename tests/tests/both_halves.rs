//! What our control plane says beyond configuration itself, taken in by our data plane, in both variants of the protocol.

use std::net::TcpListener;
use std::time::Duration;

use anyhow::{Context, ensure};
use culvert_tests::Result;
use culvert_tests::client::get;
use culvert_tests::plane::{Plane, Way, by_rds, envoy};
use culvert_tests::wait::eventually;
use serde_json::json;
use tempfile::TempDir;
use tokio::time::Instant;

async fn responses(plane: &Plane) -> Result<u64> {
    let text = get(plane.control_admin, "/metrics").await?.text();
    let value = text.lines().find_map(|line| line.strip_prefix("culvert_control_responses_total "));
    value.context("no such metric")?.trim().parse().context("no number")
}

/// A listener that would wait for its routes for ever answers 404 as soon as it is said that there are none.
#[tokio::test]
async fn routes_that_do_not_exist_are_not_waited_for() -> Result {
    for sotw in [false, true] {
        let mut plane = Plane::start(&[]).await?;
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let mut listener = by_rds("in", address, "nowhere");
        let manager = &mut listener["filter_chains"][0]["filters"][0]["typed_config"];
        manager["rds"]["config_source"]["initial_fetch_timeout"] = json!("0s");
        plane.put("listener.json", &[listener])?;
        plane.start_proxy(Way { sotw, ..Way::default() }).await?;
        eventually("it answers without routes", async || {
            let answer = get(address, "/").await?;
            ensure!(answer.status == 404, "saw {}", answer.status);
            Ok(())
        })
        .await
        .with_context(|| format!("state of the world: {sotw}\n{}", plane.proxy_log()))?;
        plane.stop_proxy().await?;
    }
    Ok(())
}

async fn has_brief(plane: &Plane, wanted: bool) -> Result {
    let dump = plane.page("/config_dump").await?.to_string();
    ensure!(dump.contains("\"brief\"") == wanted, "expected brief: {wanted}, saw {dump}");
    Ok(())
}

/// Heartbeats keep a cluster alive for longer than its TTL, without a control plane it goes, and with that it comes back.
#[tokio::test]
async fn what_has_a_ttl_lives_as_long_as_its_control_plane() -> Result {
    for sotw in [false, true] {
        let mut plane = Plane::start(&[]).await?;
        let cluster = json!({ "@type": envoy("config.cluster.v3.Cluster"), "name": "brief", "type": "STATIC" });
        let brief = json!({ "@type": envoy("service.discovery.v3.Resource"), "name": "brief", "resource": cluster,
            "ttl": "2s" });
        plane.put("brief.json", &[brief])?;
        plane.start_proxy(Way { sotw, ..Way::default() }).await?;
        eventually("the cluster is there", async || has_brief(&plane, true).await)
            .await
            .with_context(|| plane.proxy_log())?;
        let (before, begun) = (responses(&plane).await?, Instant::now());
        eventually("it is said again, for twice its TTL", async || {
            has_brief(&plane, true).await?;
            let said = responses(&plane).await? - before;
            ensure!(said >= 6 && begun.elapsed() >= Duration::from_secs(4), "{said} times in {:?}", begun.elapsed());
            Ok(())
        })
        .await
        .with_context(|| plane.proxy_log())?;
        plane.kill_control().await?;
        eventually("its TTL is over", async || has_brief(&plane, false).await)
            .await
            .with_context(|| plane.proxy_log())?;
        plane.start_control().await?;
        eventually("it is there again, as it was", async || has_brief(&plane, true).await)
            .await
            .with_context(|| plane.proxy_log())?;
        plane.stop_proxy().await?;
    }
    Ok(())
}

/// A process that starts without its control plane begins with what it had, and not with what it had for some time only.
#[tokio::test]
async fn what_has_a_ttl_is_not_there_after_a_cold_start() -> Result {
    let mut plane = Plane::start(&[]).await?;
    let state = TempDir::with_prefix("culvert-")?;
    let flags = ["--state-dir", state.path().to_str().context("a path")?];
    let way = || Way { flags: &flags, ..Way::default() };
    let cluster = |name: &str| json!({ "@type": envoy("config.cluster.v3.Cluster"), "name": name, "type": "STATIC" });
    let brief = json!({ "@type": envoy("service.discovery.v3.Resource"), "name": "brief",
        "resource": cluster("brief"), "ttl": "300s" });
    plane.put("clusters.json", &[brief, cluster("lasting")])?;
    plane.start_proxy(way()).await?;
    eventually("both are there", async || has_brief(&plane, true).await).await.with_context(|| plane.proxy_log())?;
    plane.stop_proxy().await?;
    plane.kill_control().await?;
    plane.start_proxy(way()).await?;
    eventually("what lasts is there", async || {
        let dump = plane.page("/config_dump").await?.to_string();
        ensure!(dump.contains("\"lasting\""), "saw {dump}");
        Ok(())
    })
    .await
    .with_context(|| plane.proxy_log())?;
    has_brief(&plane, false).await?;
    plane.stop_proxy().await
}
