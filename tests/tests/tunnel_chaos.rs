//! Tunnels over a network that goes wrong in every way that a relay can make it. `CULVERT_CHAOS_SEED` is what is random
//! about it.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use culvert_tests::Result;
use culvert_tests::backend::{Backend, digest, pattern};
use culvert_tests::checked::Checked;
use culvert_tests::client::{get, send};
use culvert_tests::gateway::{Gateway, cluster, http_listener};
use culvert_tests::load::Load;
use culvert_tests::relay::{BOTH, Relay, Shape, Strike, Way};
use culvert_tests::reverse::{self, Tls};
use culvert_tests::scale::size;
use culvert_tests::tunnel::{self, connections, joined, tunnel_listener};
use culvert_tests::wait::{eventually, in_time, within};
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Three ping intervals, and what a busy machine may add.
const NOTICED: Duration = Duration::from_secs(6 + 10);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    Culvert,
    /// As MOSN carries requests: one at a time, and no pings.
    Plain,
    Envoy,
}

use Dialect::{Culvert, Envoy, Plain};

/// A cloud, an edge and what is between them.
struct Site {
    cloud: Gateway,
    edge: Gateway,
    relay: Relay,
    entry: SocketAddr,
    backend: Backend,
}

impl Site {
    async fn start(dialect: Dialect, tls: Option<&Tls>) -> Result<Self> {
        let cloud = cloud(dialect, tls).await?;
        let seed = size("CULVERT_CHAOS_SEED", 1)? as u64;
        let relay = Relay::seeded(cloud.listener("tunnel")?, seed).await?;
        let backend = Backend::start("behind").await?;
        let mut fields = "host_name: site, reconnect_max_interval: 0.2s, ".to_owned();
        fields += if dialect == Envoy { "envoy: {tenant_id: t}, " } else { "" };
        fields += tls.map_or("", |tls| &tls.cluster);
        let edge = tunnel::edge(&[relay.address], backend.address, &fields).await?;
        let entry = cloud.listener("in")?;
        let site = Self { cloud, edge, relay, entry, backend };
        site.serves().await?;
        Ok(site)
    }

    async fn serves(&self) -> Result {
        eventually("the tunnel serves", async || {
            let answer = get(self.entry, "/").await?;
            ensure!(answer.status == 200, "saw {} {}\n{}", answer.status, answer.text(), self.logs());
            Ok(())
        })
        .await
    }

    fn logs(&self) -> String {
        format!("cloud:\n{}\nedge:\n{}", self.cloud.daemon.output(), self.edge.daemon.output())
    }

    /// The one tunnel that stands.
    async fn standing(&self) -> Result<Value> {
        eventually("one tunnel stands", async || {
            let now = connections(&self.cloud).await?;
            ensure!(now.len() == 1, "saw {now:#?}");
            Ok(now[0]["id"].clone())
        })
        .await
    }

    async fn lost(&self) -> Result<u64> {
        self.edge.stat("tunnel_agent.agent.lost").await
    }

    /// Breaks the tunnel, and waits until both ends have given it up and another one stands.
    async fn struck(&self, ways: &[Way], strike: Strike) -> Result<Duration> {
        let (before, lost, began) = (self.standing().await?, self.lost().await?, Instant::now());
        for way in ways {
            self.relay.strike(*way, strike);
        }
        let what = format!("{strike:?} {ways:?}");
        within(NOTICED, &format!("{what}: the tunnel is replaced"), async || {
            let now = connections(&self.cloud).await?;
            let lost = self.lost().await? - lost;
            let replaced = now.len() == 1 && now[0]["id"] != before;
            ensure!(lost >= 1 && replaced, "the agent has lost {lost}, {before} stood, now {now:#?}");
            Ok(())
        })
        .await
        .with_context(|| self.logs())?;
        eprintln!("{what}: replaced after {:?}", began.elapsed());
        Ok(began.elapsed())
    }

    async fn stop(self) -> Result {
        self.edge.stop().await?;
        self.cloud.stop().await
    }
}

async fn cloud(dialect: Dialect, tls: Option<&Tls>) -> Result<Gateway> {
    let (timeout, tunnel) = match dialect {
        Culvert => (30, tunnel_listener("tunnel", "protocol: HTTP2")),
        Plain => (2, tunnel_listener("tunnel", "protocol: HTTP1")),
        Envoy => (30, reverse::tunnel_listener("ping_interval: 2s", "")),
    };
    let (clusters, more) = if dialect == Envoy {
        (reverse::agents("edge", "host_id_format: site"), reverse::responder_extension(""))
    } else {
        (cluster("edge", &[], ""), String::new())
    };
    let routes = format!("[{{match: {{prefix: /}}, route: {{cluster: edge, timeout: {timeout}s}}}}]");
    let listeners = http_listener("in", &routes, "", "") + &tunnel + tls.map_or("", |tls| &tls.chain);
    Gateway::start_in(TempDir::with_prefix("culvert-")?, &listeners, &clusters, &more, 2).await
}

/// Later, slower, in pieces of one byte: everything comes, and no tunnel is taken for lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_that_delays_slows_or_cuts_what_passes_alters_nothing_and_fails_no_request() -> Result {
    let none = Shape::default();
    let (delay, jitter) = (Duration::from_millis(40), Duration::from_millis(30));
    let shapes = [
        ("delay", Shape { delay, ..none }),
        ("jitter", Shape { jitter, ..none }),
        ("rate", Shape { rate: 1_000_000, ..none }),
        ("split", Shape { split: 1, ..none }),
        ("merge", Shape { merge: Duration::from_millis(5), ..none }),
        ("all", Shape { delay, jitter, rate: 1_000_000, split: 7, ..none }),
    ];
    for dialect in [Culvert, Plain, Envoy] {
        let site = Site::start(dialect, None).await?;
        let before = site.standing().await?;
        let load = Checked::start(site.entry, 4);
        for (name, shape) in shapes {
            eprintln!("{dialect:?}, {name}: {shape:?}");
            for way in BOTH {
                site.relay.shape(way, shape);
            }
            load.more(48).await.with_context(|| format!("{dialect:?}, {name}"))?;
        }
        let seen = load.finish().await?;
        ensure!(seen.failed.is_empty(), "{dialect:?}: expected 0 failed, saw {:#?}\n{}", seen.failed, site.logs());
        let (after, lost) = (site.standing().await?, site.lost().await?);
        ensure!(
            after == before && lost == 0,
            "{dialect:?}: expected the one tunnel, {lost} were lost\n{}",
            site.logs()
        );
        site.stop().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_that_is_reset_or_half_closed_is_replaced_and_no_idempotent_request_fails() -> Result {
    for dialect in [Culvert, Plain, Envoy] {
        let site = Site::start(dialect, None).await?;
        let load = Load::new(site.entry, "/delay/2").start();
        for _ in 0..3 {
            for (ways, strike) in
                [(BOTH, Strike::Reset), ([Way::Up; 2], Strike::HalfClose), ([Way::Down; 2], Strike::HalfClose)]
            {
                load.more(10).await?;
                let struck = site.struck(&ways[..1], strike).await;
                struck.with_context(|| format!("{dialect:?}"))?;
            }
        }
        load.more(10).await?;
        load.finish(90).await.with_context(|| format!("{dialect:?}\n{}", site.logs()))?;
        site.stop().await?;
    }
    Ok(())
}

/// Nothing comes any more and no end either. Whoever asks finds out; a plain tunnel is given up by the request that it keeps
/// waiting for its timeout, and so long wait those behind it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_that_stalls_or_swallows_everything_is_replaced_within_three_pings() -> Result {
    for dialect in [Culvert, Envoy] {
        for strike in [Strike::Stall, Strike::Blackhole] {
            let site = Site::start(dialect, None).await?;
            let load = Load::new(site.entry, "/delay/2").start();
            load.more(10).await?;
            site.struck(&BOTH, strike).await.with_context(|| format!("{dialect:?}"))?;
            load.more(10).await?;
            load.finish(20).await.with_context(|| format!("{dialect:?}, {strike:?}\n{}", site.logs()))?;
            site.stop().await?;
        }
    }
    // What the agent says is lost, what the cloud says is not: so the agent learns of it.
    let site = Site::start(Plain, None).await?;
    let load = Load::new(site.entry, "/delay/2").start();
    load.more(10).await?;
    site.struck(&[Way::Up], Strike::Blackhole).await?;
    site.serves().await?;
    let (connections, counts) = (4, load.stop().await);
    let all = counts.failures.iter().all(|failure| failure.starts_with("status 504"));
    ensure!(all && counts.failed <= connections, "expected one 504 of each client at most, saw {:#?}", counts.failures);
    site.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_altered_byte_ends_a_tunnel_within_tls_and_never_makes_a_wrong_answer() -> Result {
    let tls = reverse::tls("cloud", "site")?;
    for dialect in [Culvert, Plain, Envoy] {
        let site = Site::start(dialect, Some(&tls)).await?;
        let load = Checked::start(site.entry, 4);
        for _ in 0..3 {
            for way in BOTH {
                load.more(10).await?;
                site.struck(&[way], Strike::Flip).await.with_context(|| format!("{dialect:?}"))?;
            }
        }
        let seen = load.finish().await.with_context(|| format!("{dialect:?}"))?;
        eprintln!("{dialect:?}: {} whole, {} failed", seen.whole, seen.failed.len());
        site.stop().await?;
    }
    Ok(())
}

/// Nobody can know of an altered byte where nothing protects it; that it harms nothing that lasts can be asked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn altered_bytes_in_plaintext_end_no_process_and_the_tunnel_serves_again() -> Result {
    for dialect in [Culvert, Plain, Envoy] {
        let mut site = Site::start(dialect, None).await?;
        let load = Checked::start(site.entry, 4);
        for turn in 0..20 {
            site.relay.strike(BOTH[turn % 2], Strike::Flip);
            load.more(2).await.with_context(|| format!("{dialect:?}, turn {turn}"))?;
        }
        // What is wrong in these is the network's.
        let seen = load.seen();
        drop(load);
        eprintln!("{dialect:?}: {} whole, {} failed, {} wrong", seen.whole, seen.failed.len(), seen.wrong.len());
        site.relay.reset();
        site.serves().await?;
        let load = Checked::start(site.entry, 4);
        load.more(40).await?;
        let seen = load.finish().await?;
        ensure!(seen.failed.is_empty(), "{dialect:?}: saw {:#?}", seen.failed);
        site.cloud.daemon.check_alive()?;
        site.edge.daemon.check_alive()?;
        site.stop().await?;
    }
    Ok(())
}

/// A request that the backend has read when its tunnel is reset: a POST fails and is not sent again. A GET is, twice at most.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_post_in_flight_is_not_sent_twice_and_a_get_three_times_at_most() -> Result {
    for dialect in [Culvert, Plain, Envoy] {
        // Longer than a reset takes, and within the plain tunnel's timeout.
        const PATH: &str = "/delay/1500";
        let site = Site::start(dialect, None).await?;
        // Method, how often its tunnel is reset, what comes of it, and how often the backend has seen it.
        for (method, resets, status, times) in
            [("POST", 1, 503, 1), ("GET", 1, 200, 2), ("GET", 3, 503, 3), ("POST", 0, 200, 1)]
        {
            let what = format!("{dialect:?}, {method}, {resets} resets");
            site.standing().await?;
            let before = site.backend.requests();
            let request = Request::builder().method(method).uri(PATH).header("host", "a").body(Full::from("once"))?;
            let asked = tokio::spawn(send(site.entry, request));
            for reset in 1..=resets {
                eventually(&format!("{what}: the backend has it {reset} times"), async || {
                    let seen = site.backend.requests() - before;
                    ensure!(seen == reset, "it saw {seen}\n{}", site.logs());
                    Ok(())
                })
                .await?;
                site.relay.reset();
            }
            let answer = asked.await??;
            ensure!(answer.status == status, "{what}: expected {status}, saw {} {}", answer.status, answer.text());
            // Behind whatever may still come.
            site.serves().await?;
            let seen = site.backend.requests() - before;
            ensure!(seen == times + 1, "{what}: expected the backend to see it {times} times, saw {}", seen - 1);
        }
        site.stop().await?;
    }
    Ok(())
}

/// Asks for a large answer: over either protocol, of a length that is said before or not. Tells when the answer of the agent
/// that loses its tunnel begins; who answered, and the digest of what came.
async fn large(entry: SocketAddr, client: usize, begun: watch::Sender<usize>) -> Result<(String, String)> {
    let path = if client.is_multiple_of(2) { "pattern" } else { "stream" };
    let (path, http1) = (format!("/{path}/{LENGTH}"), (client / 2).is_multiple_of(2));
    let request = if http1 {
        Request::get(path).header("host", "culvert.test")
    } else {
        Request::get(format!("http://culvert.test{path}"))
    };
    let request = request.body(Full::<Bytes>::default())?;
    let socket = TokioIo::new(TcpStream::connect(entry).await?);
    let mut drivers = JoinSet::new();
    let answer = if http1 {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(socket).await?;
        drivers.spawn(connection);
        in_time("an answer", sender.send_request(request)).await??
    } else {
        let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), socket).await?;
        drivers.spawn(connection);
        in_time("an answer", sender.send_request(request)).await??
    };
    ensure!(answer.status() == 200, "client {client}: saw {}", answer.status());
    let by = answer.headers().get("x-backend").and_then(|by| by.to_str().ok()).unwrap_or_default().to_owned();
    if by == "behind" {
        begun.send_modify(|begun| *begun += 1);
    }
    let body = in_time("the whole answer", answer.into_body().collect()).await?;
    let body = body.with_context(|| format!("{CUT} of client {client} by {by}"))?;
    Ok((by, digest(&body.to_bytes())))
}

const LENGTH: u64 = 400_000;
const CUT: &str = "cut off";

/// Two agents, of which one has its tunnel reset while answers pass.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_cut_off_never_looks_whole_and_no_other_tunnels_is_touched() -> Result {
    let known = digest(&pattern(LENGTH));
    for dialect in [Culvert, Plain] {
        let cut = Site::start(dialect, None).await?;
        let beside = Backend::start("beside").await?;
        let spared = tunnel::edge(&[cut.cloud.listener("tunnel")?], beside.address, "host_name: spared").await?;
        cut.relay.shape(Way::Up, Shape { rate: 2_000_000, ..Shape::default() });
        let (mut broken, mut whole) = (0, 0);
        for turn in 0..8 {
            joined(&cut.cloud, 2).await?;
            let (begun, mut begins) = watch::channel(0);
            let mut asked = JoinSet::new();
            for client in 0..8 {
                asked.spawn(large(cut.entry, client, begun.clone()));
            }
            // Of a plain one there is one at a time.
            let at_once = if dialect == Plain { 1 } else { 3 };
            in_time("answers through the one tunnel begin", begins.wait_for(|begun| *begun >= at_once)).await??;
            cut.relay.reset();
            while let Some(outcome) = asked.join_next().await {
                match outcome? {
                    Ok((by, seen)) => {
                        ensure!(seen == known, "{dialect:?}, turn {turn}: what {by} gave came as something else");
                        whole += 1;
                    }
                    Err(error) => {
                        let text = format!("{error:#}");
                        let by_it = text.contains(CUT) && text.contains("behind");
                        ensure!(by_it, "{dialect:?}, turn {turn}: expected others to be whole: {text}\n{}", cut.logs());
                        broken += 1;
                    }
                }
            }
        }
        eprintln!("{dialect:?}: {broken} answers were cut off, {whole} came whole");
        ensure!(broken >= 8 && whole > 0, "expected some of each: {broken} were cut off, {whole} came whole");
        spared.stop().await?;
        cut.stop().await?;
    }
    Ok(())
}
