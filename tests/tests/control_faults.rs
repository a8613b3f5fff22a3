//! Control planes that are slow, large, gone, half there or of two minds, over culvert-proxy with traffic on it: not one
//! request fails.

use std::net::{SocketAddr, TcpListener};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use culvert_api::envoy::config::core::v3::ControlPlane;
use culvert_api::envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource};
use culvert_api::type_url::{CLUSTER, LISTENER, ROUTE_CONFIGURATION};
use culvert_tests::Result;
use culvert_tests::backend::Backend;
use culvert_tests::client::get;
use culvert_tests::load::{Load, Running};
use culvert_tests::namespace::{self, Cable};
use culvert_tests::plane::{Plane, Way, by_rds, envoy, routes_to};
use culvert_tests::scale::size;
use culvert_tests::scripted::{Scripted, Talk, resource};
use culvert_tests::wait::{eventually, in_time, within};
use serde_json::{Value, json};
use tokio::time::Instant;

/// A cluster of one host.
fn cluster(name: &str, host: SocketAddr, connect_timeout: u64) -> Value {
    json!({ "@type": envoy("config.cluster.v3.Cluster"), "name": name, "type": "STATIC",
        "connect_timeout": format!("{connect_timeout}s"),
        "load_assignment": { "cluster_name": name, "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": {
            "socket_address": { "address": host.ip().to_string(), "port_value": host.port() } } } }] }] } })
}

/// A proxy under a control plane that says what it is told, with a backend behind it and a load on it.
struct World {
    control: Scripted,
    plane: Plane,
    backend: Backend,
    address: SocketAddr,
}

impl World {
    async fn start(ip: &str, way: Way<'_>) -> Result<(Self, Talk)> {
        let mut control = Scripted::start(ip).await?;
        let backend = Backend::start("backend").await?;
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let mut plane = Plane::under(control.address)?;
        plane.start_proxy(way).await?;
        let talk = control.stream().await?;
        let mut world = Self { control, plane, backend, address };
        let talk = world.tell_all(talk, "1").await?;
        Ok((world, talk))
    }

    /// Says everything on a new stream, as of a version.
    async fn tell_all(&mut self, mut talk: Talk, version: &str) -> Result<Talk> {
        let nonce = |of: &str| format!("{of}-{version}");
        talk.asked(CLUSTER).await?;
        talk.say(CLUSTER, &nonce("c"), &[("b", cluster("b", self.backend.address, 1))], &[]).await?;
        talk.say(LISTENER, &nonce("l"), &[("in", by_rds("in", self.address, "r"))], &[]).await?;
        talk.asked(ROUTE_CONFIGURATION).await?;
        talk.say(ROUTE_CONFIGURATION, &nonce("r"), &[("r", routes_to("r", "b"))], &[]).await?;
        for of in ["c", "l", "r"] {
            let refusal = talk.answer(&nonce(of)).await?;
            ensure!(refusal.is_empty(), "{of} was refused: {refusal}");
        }
        self.serves().await?;
        Ok(talk)
    }

    async fn serves(&self) -> Result {
        eventually("the backend answers", async || {
            let answer = get(self.address, "/").await?;
            ensure!(answer.text() == "backend\n", "saw {} {:?}", answer.status, answer.text());
            Ok(())
        })
        .await
        .with_context(|| self.plane.proxy_log())
    }

    fn load(&self) -> Running {
        Load::new(self.address, "/").start()
    }

    async fn connected(&self, expected: u64, deadline: Duration) -> Result {
        within(deadline, &format!("control_plane.connected_state is {expected}"), async || {
            let state = self.plane.stat("control_plane.connected_state").await?;
            ensure!(state == expected, "it is {state}");
            Ok(())
        })
        .await
        .with_context(|| self.plane.proxy_log())
    }
}

/// A message, as the field of another one.
fn nested(field: u32, message: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    prost::encoding::bytes::encode(field, &message.concat(), &mut bytes);
    bytes
}

/// So many MB of clusters at once.
#[tokio::test]
async fn a_very_large_response_is_taken_while_traffic_goes_on() -> Result {
    let megabytes = size("CULVERT_RESPONSE_MB", 20)?;
    let count = 50 * megabytes;
    let (world, mut talk) = World::start("127.0.0.1", Way::default()).await?;
    // Metadata that nobody reads.
    let filler = "x".repeat(20 << 10);
    let value = nested(2, &[&nested(3, &[filler.as_bytes()])]);
    let fields = nested(1, &[&nested(1, &[b"text"]), &value]);
    let metadata = nested(25, &[&nested(1, &[&nested(1, &[b"filler"]), &nested(2, &[&fields])])]);
    let large = |number: usize| -> Result<Resource> {
        let name = format!("large-{number}");
        let mut one = resource(&name, "2", &cluster(&name, world.backend.address, 1))?;
        let any = one.resource.as_mut().context("no body")?;
        any.value = [&any.value[..], &metadata].concat().into();
        Ok(one)
    };
    let resources = (0..count).map(large).collect::<Result<_>>()?;
    let response = DeltaDiscoveryResponse {
        type_url: CLUSTER.to_owned(),
        nonce: "large".to_owned(),
        resources,
        ..DeltaDiscoveryResponse::default()
    };
    let load = world.load();
    load.more(50).await?;
    let began = Instant::now();
    talk.send(&response).await?;
    let patience = Duration::from_secs(60) + Duration::from_secs(2) * u32::try_from(megabytes)?;
    let refusal = tokio::time::timeout(patience, talk.answer("large")).await??;
    ensure!(refusal.is_empty(), "it was refused: {}", refusal.chars().take(200).collect::<String>());
    eprintln!("{megabytes} MB of {count} clusters were accepted after {:?}", began.elapsed());
    within(patience, "all are there", async || {
        let active = world.plane.stat("cluster_manager.active_clusters").await?;
        ensure!(active >= u64::try_from(count)?, "{active} clusters");
        Ok(())
    })
    .await?;
    let counts = load.finish(100).await.with_context(|| world.plane.proxy_log())?;
    eprintln!("{} requests meanwhile, the slowest took {:?}", counts.ok(), counts.slowest);
    ensure!(counts.slowest < Duration::from_secs(2), "a request waited for {:?}", counts.slowest);
    Ok(())
}

/// A gzip stream of so many MB of zeros.
async fn bomb(megabytes: usize) -> Result<Bytes> {
    let command = format!("head -c {megabytes}M /dev/zero | gzip -9");
    let mut gzip = tokio::process::Command::new("sh");
    let output = gzip.args(["-c", &command]).stdin(Stdio::null()).output();
    let output = in_time("gzip", output).await??;
    ensure!(output.status.success() && output.stdout.len() < 4 << 20, "{}", String::from_utf8_lossy(&output.stderr));
    Ok(output.stdout.into())
}

#[tokio::test]
async fn a_response_that_is_compressed_or_too_long_ends_its_stream_and_takes_no_memory() -> Result {
    let way = Way { flags: &["-l", "debug"], ..Way::default() };
    let (mut world, talk) = World::start("127.0.0.1", way).await?;
    drop(talk);
    let bomb = bomb(300).await?;
    let load = world.load();
    let before = world.plane.peak()?;
    let cases = [
        ("said to be compressed", Some("gzip"), 1, bomb.len(), bomb.clone(), "compressed"),
        ("compressed all the same", None, 1, bomb.len(), bomb.clone(), "compressed"),
        (
            "said to be of 300 MB",
            None,
            0,
            300 << 20,
            Bytes::from_static(&[0; 1024]),
            "decoded message length too large",
        ),
        (
            "said to be of 4 GB",
            None,
            0,
            0xffff_ffff,
            Bytes::from_static(&[0; 1024]),
            "decoded message length too large",
        ),
    ];
    for (case, encoding, flag, length, bytes, words) in cases {
        let mut talk = world.control.stream().await?;
        talk.asked(CLUSTER).await?;
        let said = |log: &str| log.to_lowercase().matches(words).count();
        let already = said(&world.plane.proxy_log());
        // It may have left before everything is sent.
        let _left = talk.write(encoding, flag, length, bytes).await;
        eventually(&format!("the log says what was wrong with what is {case}"), async || {
            let log = world.plane.proxy_log();
            ensure!(said(&log) > already, "expected {words:?} in\n{log}");
            Ok(())
        })
        .await?;
    }
    let grown = world.plane.peak()?.saturating_sub(before);
    ensure!(grown < 16 << 10, "four bad responses took {grown} KiB");
    let talk = world.control.stream().await?;
    drop(world.tell_all(talk, "2").await.context("what is well-formed is taken on the next stream")?);
    load.finish(50).await?;
    Ok(())
}

#[tokio::test]
async fn a_hundred_updates_a_second_are_twenty_changes_a_second_and_fail_nothing() -> Result {
    let seconds = u32::try_from(size("CULVERT_UPDATES_S", 3)?)?;
    let (world, mut talk) = World::start("127.0.0.1", Way::default()).await?;
    let load = world.load();
    load.more(20).await?;
    let before = world.plane.stat("cluster_manager.cluster_modified").await?;
    let mut ticks = tokio::time::interval(Duration::from_millis(10));
    let began = Instant::now();
    let updates = 100 * seconds;
    for number in 0..updates {
        ticks.tick().await;
        let one = cluster("b", world.backend.address, 2 + u64::from(number));
        let nonce = format!("u{number}");
        talk.say(CLUSTER, &nonce, &[("b", one)], &[]).await?;
        ensure!(talk.answer(&nonce).await?.is_empty(), "{nonce} was refused");
    }
    let last = format!("u{}", updates - 1);
    eventually("the last one is in force", async || {
        let dump = world.plane.page("/config_dump?resource=dynamic_active_clusters").await?.to_string();
        ensure!(dump.contains(&format!("\"{last}\"")), "{dump}");
        Ok(())
    })
    .await?;
    let took = began.elapsed();
    let changes = world.plane.stat("cluster_manager.cluster_modified").await? - before;
    eprintln!("{updates} updates in {took:?} were {changes} changes");
    // One in 50 ms and a second's worth at the beginning; and now and then what came while another one was applied.
    let most = u64::try_from(took.as_millis() / 50)? * 21 / 20 + 30;
    ensure!(changes <= most, "expected at most {most} changes of {updates} updates in {took:?}, saw {changes}");
    ensure!(changes >= u64::from(updates) / 100, "expected changes as time goes on, saw {changes}");
    load.finish(100).await?;
    Ok(())
}

/// Two seconds it is there, two it is not, and so on.
#[tokio::test]
async fn a_control_plane_that_comes_and_goes_is_asked_within_the_back_off_and_fails_nothing() -> Result {
    const AWAY: Duration = Duration::from_secs(2);
    let times = size("CULVERT_FLAPS", 2)?;
    let (mut world, mut talk) = World::start("127.0.0.1", Way::default()).await?;
    let load = world.load();
    for time in 0..times {
        let before = world.control.attempts();
        world.control.set_working(false);
        drop(talk);
        tokio::time::sleep(AWAY).await;
        // It begins anew, since there were responses: delays of up to 0.5, 1, 2, ... s, each drawn evenly from zero on.
        let attempts = world.control.attempts() - before;
        ensure!(attempts <= 12, "expected a few attempts in {AWAY:?}, saw {attempts} the {time}th time");
        world.control.set_working(true);
        let before = world.control.attempts();
        let found = world.control.stream().await;
        talk = found.with_context(|| format!("the {time}th time:\n{}", world.plane.proxy_log()))?;
        let further = world.control.attempts() - before;
        ensure!(further <= 1, "expected the next attempt to be the one that succeeds, saw {further} the {time}th time");
        talk = world.tell_all(talk, &format!("t{time}")).await?;
        tokio::time::sleep(AWAY).await;
    }

    // Streams that are opened and never answered do not begin it anew.
    drop(talk);
    let before = world.control.attempts();
    let began = Instant::now();
    while began.elapsed() < 4 * AWAY {
        if let Ok(silent) = tokio::time::timeout(AWAY, world.control.stream()).await {
            drop(silent?);
        }
    }
    let attempts = world.control.attempts() - before;
    ensure!(attempts <= 14, "expected longer and longer delays, saw {attempts} attempts in {:?}", 4 * AWAY);
    load.finish(100).await?;
    Ok(())
}

#[tokio::test]
async fn of_two_control_planes_that_differ_the_one_that_answered_last_counts() -> Result {
    let (mut world, mut talk) = World::start("127.0.0.1", Way::default()).await?;
    let load = world.load();
    let timeouts = [7, 8];
    for turn in 0..4 {
        // The load balancer leads to the other one.
        drop(talk);
        talk = world.control.stream().await?;
        let held = talk.asked(CLUSTER).await?.initial_resource_versions;
        ensure!(held.len() == 1, "it says what it holds, whoever it comes to: {held:?}");
        let (who, timeout) = (["east", "west"][turn % 2], timeouts[turn % 2]);
        let nonce = format!("{who}-{turn}");
        let response = DeltaDiscoveryResponse {
            type_url: CLUSTER.to_owned(),
            nonce: nonce.clone(),
            resources: vec![resource("b", &nonce, &cluster("b", world.backend.address, timeout))?],
            control_plane: Some(ControlPlane { identifier: who.to_owned() }),
            ..DeltaDiscoveryResponse::default()
        };
        talk.send(&response).await?;
        ensure!(talk.answer(&nonce).await?.is_empty(), "{nonce} was refused");
        eventually("what came last is in force, and from whom is said", async || {
            let dump = world.plane.page("/config_dump?resource=dynamic_active_clusters").await?.to_string();
            ensure!(dump.contains(&format!("\"{nonce}\"")) && dump.contains(&format!("\"{timeout}s\"")), "{dump}");
            let stats = get(world.plane.admin, "/stats").await?.text();
            ensure!(stats.contains(&format!("control_plane.identifier: \"{who}\"")), "{stats}");
            Ok(())
        })
        .await?;
    }
    load.finish(50).await?;
    Ok(())
}

#[tokio::test]
async fn routes_that_want_their_clusters_checked_are_refused_over_rds_without_them() -> Result {
    let (world, mut talk) = World::start("127.0.0.1", Way::default()).await?;
    let mut checked = routes_to("r", "nobody");
    checked["validate_clusters"] = true.into();
    let load = world.load();
    talk.say(ROUTE_CONFIGURATION, "bad", &[("r", checked.clone())], &[]).await?;
    let refusal = talk.answer("bad").await?;
    let expected = "RouteConfiguration/r: validate_clusters: no cluster is named nobody";
    ensure!(refusal.contains(expected), "expected {expected:?}, saw {refusal:?}");
    load.more(50).await.context("the routes before serve on")?;
    talk.say(CLUSTER, "c", &[("nobody", cluster("nobody", world.backend.address, 1))], &[]).await?;
    talk.say(ROUTE_CONFIGURATION, "good", &[("r", checked)], &[]).await?;
    ensure!(talk.answer("good").await?.is_empty(), "with its cluster it is taken");
    load.finish(50).await?;
    Ok(())
}

/// The control plane's machine is gone without a word: the connection is open, and nothing comes back.
#[test]
fn a_control_plane_that_is_silently_gone_is_noticed_and_found_again() -> Result {
    if !namespace::entered("a_control_plane_that_is_silently_gone_is_noticed_and_found_again")? {
        return Ok(());
    }
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(silently_gone())
}

async fn silently_gone() -> Result {
    let cable = Cable::plugged()?;
    let http2 = "connection_keepalive: {interval: 1s, timeout: 1s}";
    let (mut world, talk) = World::start(Cable::ADDRESS, Way { http2, ..Way::default() }).await?;
    let load = world.load();
    world.connected(1, Duration::from_secs(5)).await?;
    let since = cable.cut()?;
    world.connected(0, Duration::from_secs(10)).await?;
    let after = since.elapsed();
    eprintln!("noticed after {after:?}");
    // Both, and time for a busy machine.
    ensure!(after < Duration::from_secs(5), "expected 2 s, noticed after {after:?}");
    cable.plug()?;
    drop(talk);
    let talk = world.control.stream().await?;
    drop(world.tell_all(talk, "2").await?);
    load.finish(50).await?;
    Ok(())
}
