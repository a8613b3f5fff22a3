//! Runs the site of configs/ on loopback and shows what it does: see scripts/quickstart.
#![expect(clippy::print_stdout, reason = "it narrates to a person")]

use std::io::Write;

use anyhow::{Context, ensure};
use clap::Parser;
use culvert_tests::Result;
use culvert_tests::client::get;
use culvert_tests::load::Load;
use culvert_tests::site::{Port, Running};
use culvert_tests::wait::{PATIENCE, eventually};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

/// Runs a control plane, a cloud and an edge on loopback and verifies what they promise.
#[derive(Debug, Parser)]
struct Options {
    /// Exit after the checks: 0 when all of them held, 1 otherwise.
    #[arg(long)]
    once: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::process::ExitCode {
    match run(&Options::parse()).await {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            println!(" FAILED\n{error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

async fn run(options: &Options) -> Result {
    let began = Instant::now();
    step("Starting two backends, the control plane, the cloud and the edge");
    let mut site = Running::start().await?;
    done(&began);
    println!("    a request through the cloud's gateway came back from backend-1, which nobody can dial");
    let checks = async {
        move_traffic(&site).await?;
        lose_control_plane(&mut site).await?;
        restart_edge(&mut site).await
    };
    if let Err(error) = checks.await {
        return Err(error.context(site.logs()));
    }
    println!("\nAll checks held ({:.1} s).", began.elapsed().as_secs_f32());
    if !options.once {
        invite(&site);
        asked_to_end().await?;
        println!("\nStopping.");
    }
    site.stop().await
}

/// By Ctrl-C, or by SIGTERM: what it runs is not left behind.
async fn asked_to_end() -> Result {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        asked = tokio::signal::ctrl_c() => asked?,
        _ = terminate.recv() => {}
    }
    Ok(())
}

/// Edits the route file under load.
async fn move_traffic(running: &Running) -> Result {
    let began = Instant::now();
    step("Editing a route file under load: backend-1 -> backend-2");
    let load = Load::new(running.site.address(Port::Gateway), "/").start();
    eventually("the load reaches backend-1", async || {
        ensure!(load.by("backend-1") > 100, "{:?}", load.counts());
        Ok(())
    })
    .await?;
    running.site.route_to("backend-2")?;
    eventually("the load reaches backend-2", async || {
        ensure!(load.by("backend-2") > 100, "{:?}", load.counts());
        Ok(())
    })
    .await?;
    let counts = load.finish(200).await?;
    done(&began);
    println!("    {} requests, 0 failed: {:?}", counts.ok(), counts.answers);
    Ok(())
}

/// Kills the control plane under load, and starts it again.
async fn lose_control_plane(running: &mut Running) -> Result {
    let began = Instant::now();
    step("Killing the control plane under load");
    let load = Load::new(running.site.address(Port::Gateway), "/").start();
    running.control.kill().await?;
    let before = load.counts().ok();
    eventually("traffic goes on", async || {
        ensure!(load.counts().ok() > before + 300, "{:?}", load.counts());
        Ok(())
    })
    .await?;
    let counts = load.finish(300).await?;
    running.control = running.site.start_control()?;
    running.site.ready(&mut running.control, Port::ControlAdmin).await?;
    done(&began);
    println!("    {} requests, 0 failed; the control plane is up again", counts.ok());
    Ok(())
}

/// Stops the edge and starts it again.
async fn restart_edge(running: &mut Running) -> Result {
    let began = Instant::now();
    step("Restarting the edge");
    running.edge.terminate(PATIENCE).await?;
    let gone = get(running.site.address(Port::Gateway), "/").await?;
    ensure!(gone.status == 503, "without an edge 503 was expected, saw {}: {}", gone.status, gone.text());
    running.edge = running.site.start_proxy("edge")?;
    running.site.answered_by(Port::Gateway, "backend-2").await.context("the edge did not reconnect")?;
    done(&began);
    println!("    503 while it was away; it dialled out again and backend-2 answers");
    Ok(())
}

fn invite(running: &Running) {
    let site = &running.site;
    println!(
        "\nIt stays up until Ctrl-C. Try:\n\
         \x20 curl -i http://{gateway}/\n\
         \x20 sed -i s/backend-2/backend-1/ {folder}/control/edge/routes.yaml   # then curl again\n\
         \x20 curl -s http://{cloud}/tunnels\n\
         \x20 curl -s http://{edge}/stats | grep tunnel\n\
         \x20 curl -s http://{admin}/nodes\n\
         \x20 grpcurl -plaintext {control} list\n\
         \x20 grpcurl -plaintext -d '{{}}' {control} envoy.service.status.v3.ClientStatusDiscoveryService/FetchClientStatus\n\
         \x20 grpcurl -plaintext -d '{{\"node\":{{\"id\":\"cloud-1\",\"cluster\":\"cloud\"}}}}' {control} \
         envoy.service.cluster.v3.ClusterDiscoveryService/FetchClusters\n\
         Files and logs: {folder}",
        gateway = site.address(Port::Gateway),
        cloud = site.address(Port::CloudAdmin),
        edge = site.address(Port::EdgeAdmin),
        admin = site.address(Port::ControlAdmin),
        control = site.address(Port::Control),
        folder = site.folder().display(),
    );
}

fn step(what: &str) {
    print!("==> {what} ...");
    // A terminal that is gone is no reason to stop.
    drop(std::io::stdout().flush());
}

fn done(began: &Instant) {
    println!(" ok ({:.1} s)", began.elapsed().as_secs_f32());
}
