//! gRPC's own xDS clients, in Python and in JavaScript, under culvert-control: calls go on while what they lead to is
//! replaced.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;

use anyhow::{Context, ensure};
use culvert_tests::Result;
use culvert_tests::client::get;
use culvert_tests::grpc::Named;
use culvert_tests::peer::{Peer, Running, find_program};
use culvert_tests::plane::{Plane, assignment, eds_cluster, envoy, listener, routes_to};
use culvert_tests::process::{ours, repository, run};
use culvert_tests::wait::{PATIENCE, eventually};
use serde_json::{Value, json};
use tokio::process::Command;

/// What a client prints.
#[derive(Debug, serde::Deserialize)]
struct Counts {
    answers: BTreeMap<String, u64>,
    failed: u64,
    failures: Vec<String>,
}

impl Counts {
    /// As printed last.
    fn of(client: &Running) -> Result<Self> {
        let log = client.log();
        // The last line may not be whole yet.
        let whole = log.rfind('\n').map_or("", |end| &log[..end]);
        let line = whole.lines().rev().find(|line| line.starts_with('{'));
        serde_json::from_str(line.with_context(|| format!("no counts: {log}"))?).with_context(|| log.clone())
    }

    fn by(&self, name: &str) -> u64 {
        self.answers.get(name).copied().unwrap_or_default()
    }
}

fn script(path: &str) -> PathBuf {
    repository().join("tests/peers").join(path)
}

/// `python`, a script of ours and its target.
fn python(python: PathBuf, target: &str) -> Command {
    let mut command = Command::new(python);
    command.arg(script("grpc_client.py")).arg(target);
    command
}

/// Where the client finds the control plane, and as which node: as the control plane itself writes it.
async fn bootstrap(plane: &Plane) -> Result<String> {
    let listen = plane.xds.to_string();
    let folder = plane.path("control").display().to_string();
    let args = ["--config", &folder, "--mode", "grpc-bootstrap", "--listen", &listen];
    let node = ["--export-node", "{id: proxy, cluster: grpc}"];
    run(&ours("culvert-control")?, &[&args[..], &node].concat(), "", PATIENCE).await
}

/// What a target of gRPC's clients is.
fn target(name: &str, routes: &str) -> Value {
    json!({ "@type": envoy("config.listener.v3.Listener"), "name": name, "api_listener": { "api_listener": {
        "@type": envoy("extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": name,
        "rds": { "route_config_name": routes, "config_source": { "ads": {}, "resource_api_version": "V3" } },
        "http_filters": [{ "name": "router",
            "typed_config": { "@type": envoy("extensions.filters.http.router.v3.Router") } }],
    } } })
}

/// The assignment of a cluster as gRPC wants it: a locality has a name and a weight.
fn located(cluster: &str, server: &Named) -> Value {
    let mut assignment = assignment(cluster, &[server.address]);
    assignment["endpoints"][0]["locality"] = json!({ "region": "here" });
    assignment["endpoints"][0]["load_balancing_weight"] = json!(1);
    assignment
}

/// Six times, under load, the routes move to a cluster that is new and the one before is gone: no call fails. The client's
/// target is the listener of this name.
async fn swaps(mut client: Command, listener: &str) -> Result {
    let servers = [Named::start("one").await?, Named::start("two").await?];
    let plane = Plane::start(&[]).await?;
    let put = |number: usize| {
        let cluster = format!("c{number}");
        let server = &servers[number % 2];
        plane.put("swapped.json", &[eds_cluster(&cluster), located(&cluster, server), routes_to("r", &cluster)])
    };
    put(0)?;
    plane.put("target.json", &[target(listener, "r")])?;
    eventually("the target is served", async || {
        let config = get(plane.control_admin, "/config").await?.json()?;
        ensure!(config["resources"] == 4, "expected cluster, assignment, routes and target, saw {config}");
        Ok(())
    })
    .await?;
    let mut client = Running::start(client.env("GRPC_XDS_BOOTSTRAP_CONFIG", bootstrap(&plane).await?))?;
    for number in 0..=6 {
        if number > 0 {
            put(number)?;
        }
        let (name, cluster) = (["one", "two"][number % 2], format!("c{number}"));
        let before = Counts::of(&client).map_or(0, |counts| counts.by(name));
        eventually(&format!("swap {number} is over and calls go on"), async || {
            let counts = Counts::of(&client)?;
            ensure!(counts.by(name) >= before + 20, "expected more calls to {name}, saw {counts:?}");
            let push = get(plane.control_admin, "/push").await?.json()?;
            ensure!(push["pending"] == 0, "saw {push}");
            let (state, error) = plane.status("Cluster", &cluster).await?;
            ensure!(state == "SYNCED", "{cluster} is {state} {error}");
            Ok(())
        })
        .await
        .with_context(|| plane.control_log())?;
    }
    client.hang_up();
    client.says("ended", "").await?;
    let counts = Counts::of(&client)?;
    ensure!(counts.failed == 0, "expected no failed call, saw {counts:?}\n{}", plane.control_log());
    let calls: u64 = counts.answers.values().sum();
    ensure!(calls >= 140, "expected calls all the time, saw {counts:?}");
    eprintln!("{calls} calls, {} failed", counts.failed);
    Ok(())
}

#[tokio::test]
async fn six_swaps_of_cluster_and_routes_under_load_fail_no_call_of_grpcio() -> Result {
    let Some(program) = Peer::Grpcio.find()? else { return Ok(()) };
    // gRFC A47: by an authority of the bootstrap.
    let listener = "xdstp://names.test/envoy.config.listener.v3.Listener/names";
    swaps(python(program, "xds://names.test/names"), listener).await
}

#[tokio::test]
async fn six_swaps_of_cluster_and_routes_under_load_fail_no_call_of_grpc_js() -> Result {
    let Some(node) = find_program("node")? else { return Ok(()) };
    let Some(modules) = Peer::GrpcJs.find()? else { return Ok(()) };
    let mut command = Command::new(node);
    command.env("NODE_PATH", modules).arg(script("grpc-js/client.js")).arg("xds:///names");
    swaps(command, "names").await
}

/// Without the error its first call would wait for 15 s.
#[tokio::test]
async fn a_target_that_does_not_exist_fails_at_once_at_grpcio() -> Result {
    let Some(program) = Peer::Grpcio.find()? else { return Ok(()) };
    let plane = Plane::start(&[]).await?;
    let mut client = python(program, "xds:///nothing");
    client.env("GRPC_XDS_BOOTSTRAP_CONFIG", bootstrap(&plane).await?);
    let began = tokio::time::Instant::now();
    let client = Running::start(client.env("GRPC_EXPERIMENTAL_XDS_DATA_ERROR_HANDLING", "true"))?;
    let counts = eventually("a call fails", async || {
        let counts = Counts::of(&client)?;
        ensure!(counts.failed > 0, "saw {counts:?}");
        Ok(counts)
    })
    .await?;
    let after = began.elapsed();
    ensure!(after.as_secs() < 10, "expected the failure before gRPC's own 15 s, saw {counts:?} after {after:?}");
    ensure!(counts.failures[0].contains("nothing"), "expected the target's name, saw {counts:?}");
    Ok(())
}

/// What a gRPC server asks for by its address: routes that say "here".
fn inbound(address: SocketAddr) -> Value {
    let name = format!("grpc/server?xds.resource.listening_address={address}");
    let mut inbound = listener(&name, address, "", json!({}));
    let manager = &mut inbound["filter_chains"][0]["filters"][0]["typed_config"];
    manager["stat_prefix"] = "inbound".into();
    manager["route_config"]["virtual_hosts"][0]["routes"] =
        json!([{ "match": { "prefix": "/" }, "non_forwarding_action": {} }]);
    inbound
}

/// gRFC A36: it serves when its listener comes, and no longer when that is gone.
#[tokio::test]
async fn a_server_of_grpcio_serves_when_its_listener_comes_and_stops_when_it_goes() -> Result {
    let Some(program) = Peer::Grpcio.find()? else { return Ok(()) };
    let plane = Plane::start(&[]).await?;
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let name = format!("grpc/server?xds.resource.listening_address={address}");
    let mut command = Command::new(&program);
    command.arg(script("grpc_server.py")).args([&address.to_string(), "inbound"]);
    let server = Running::start(command.env("GRPC_XDS_BOOTSTRAP_CONFIG", bootstrap(&plane).await?))?;
    server.says("started", "").await?;
    eventually("it is told that there is no listener of its address", async || {
        let log = server.log();
        ensure!(log.contains(&name), "{log}");
        Ok(())
    })
    .await?;
    let client = Running::start(&mut python(program, &address.to_string()))?;
    eventually("no call is served yet", async || {
        let counts = Counts::of(&client)?;
        ensure!(counts.failed > 0 && counts.answers.is_empty(), "saw {counts:?}");
        Ok(())
    })
    .await?;
    for turn in 0..2 {
        plane.put("inbound.json", &[inbound(address)])?;
        let before = Counts::of(&client)?.by("inbound");
        eventually(&format!("calls are served, turn {turn}"), async || {
            let counts = Counts::of(&client)?;
            ensure!(counts.by("inbound") >= before + 20, "saw {counts:?}\n{}", server.log());
            let (state, error) = plane.status("Listener", &name).await?;
            ensure!(state == "SYNCED", "the listener is {state} {error}");
            Ok(())
        })
        .await
        .with_context(|| plane.control_log())?;
        plane.put("inbound.json", &[])?;
        let before = Counts::of(&client)?.failed;
        eventually(&format!("calls are no longer served, turn {turn}"), async || {
            let counts = Counts::of(&client)?;
            ensure!(counts.failed >= before + 4, "saw {counts:?}\n{}", server.log());
            Ok(())
        })
        .await?;
    }
    Ok(())
}
