//! One tunnel serves everything: whatever number of workers at both ends, clusters and protocols, through one connection.

use std::net::SocketAddr;

use anyhow::{Context, ensure};
use bytes::Bytes;
use culvert_tests::Result;
use culvert_tests::backend::{Backend, scripted, web_socket};
use culvert_tests::client::{get, read_head, send, send_h2};
use culvert_tests::datagrams::{self, Asker, Echo};
use culvert_tests::gateway::{Gateway, HTTP2, cluster, http_listener};
use culvert_tests::grpc;
use culvert_tests::reverse;
use culvert_tests::tunnel::{agent, connections, hosting, sharing, tcp_listener, tunnel_listener};
use culvert_tests::wait::{eventually, in_time};
use http::Request;
use http_body_util::Full;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

const UPGRADES: &str = "upgrade_configs: [{upgrade_type: websocket}, {upgrade_type: CONNECT-UDP}]\nhttp2_protocol_options: {allow_connect: true}";

/// What goes through a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Http1,
    Http2,
    Grpc,
    WebSocket,
    Udp,
    Tcp,
}

/// A column of the matrix.
#[derive(Debug, Clone, Copy)]
struct Case {
    workers: usize,
    /// Each is a cluster of the cloud too. Over ours and MOSN's dialect the agent has joined the first, and the others
    /// share it.
    clusters: usize,
    dialect: Dialect,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    Culvert,
    /// As MOSN carries requests: one at a time.
    Plain,
    Envoy,
}

/// The clusters behind the edge: of each an HTTP/1 backend, and for all of them one for gRPC, one for
/// WebSockets and one for datagrams.
struct Behind {
    backends: Vec<Backend>,
    grpc: SocketAddr,
    echo: SocketAddr,
    datagrams: Echo,
}

impl Behind {
    async fn start(clusters: usize) -> Result<Self> {
        let mut backends = Vec::new();
        for index in 0..clusters {
            backends.push(Backend::start(&format!("behind-{index}")).await?);
        }
        let (grpc, echo) = (scripted(grpc::serve).await?, scripted(web_socket).await?);
        Ok(Self { backends, grpc, echo, datagrams: Echo::start().await? })
    }

    fn clusters(&self) -> String {
        let own = self.backends.iter().enumerate();
        let own: String = own.map(|(index, backend)| cluster(&format!("c{index}"), &[backend.address], "")).collect();
        let udp = cluster("udp", &[self.datagrams.address], "");
        own + &cluster("grpc", &[self.grpc], HTTP2) + &cluster("echo", &[self.echo], "") + &udp
    }

    fn listener(&self) -> String {
        let own = (0..self.backends.len())
            .map(|index| format!("{{match: {{prefix: /{index}/}}, route: {{cluster: c{index}}}}}, "))
            .collect::<String>();
        let routes = format!(
            "[{{match: {{connect_matcher: {{}}}}, route: {{cluster: udp, upgrade_configs: [{{upgrade_type: CONNECT-UDP, connect_config: {{}}}}]}}}}, {own}{{match: {{prefix: /chat}}, route: {{cluster: echo}}}}, {{match: {{prefix: /}}, route: {{cluster: grpc}}}}]"
        );
        hosting(&http_listener("hosted", &routes, UPGRADES, ""))
    }
}

impl Case {
    /// A cluster of the cloud.
    fn cluster(self, index: usize) -> String {
        if index == 0 { "edge".to_owned() } else { format!("s{index}") }
    }

    async fn cloud(self) -> Result<Gateway> {
        let folder = TempDir::with_prefix("culvert-")?;
        let name = |index| self.cluster(index);
        let routes: String = (0..self.clusters)
            .map(|index| format!("{{match: {{prefix: /{index}/}}, route: {{cluster: {}}}}}, ", name(index)))
            .collect();
        let routes = format!("[{routes}{{match: {{prefix: /}}, route: {{cluster: {}}}}}]", name(self.clusters - 1));
        let of_each = |listener: &dyn Fn(usize) -> String| (0..self.clusters).map(listener).collect::<String>();
        // A process that ends waits for sessions until they are idle.
        let fields = format!("{}, idle_timeout: 1s", datagrams::TUNNELING);
        let udp = of_each(&|index| datagrams::listener(&format!("udp-{index}"), &name(index), &fields));
        if self.dialect != Dialect::Envoy {
            let tcp = of_each(&|index| tcp_listener(&format!("tcp-{index}"), &name(index)));
            let listeners =
                http_listener("in", &routes, UPGRADES, "") + &tcp + &udp + &tunnel_listener("tunnel", self.server());
            let others = (1..self.clusters).map(|index| sharing(&name(index), "{registered_as: edge}", ""));
            // In this order those that share come before the one that they name.
            let clusters: String = others.chain([cluster("edge", &[], "")]).collect();
            return Gateway::start_in(folder, &listeners, &clusters, "", self.workers).await;
        }
        let listeners =
            http_listener("in", &routes, UPGRADES, "") + &udp + &reverse::tunnel_listener("ping_interval: 5s", "");
        let clusters: String =
            (0..self.clusters).map(|index| reverse::agents(&name(index), "host_id_format: edge-7")).collect();
        Gateway::start_in(folder, &listeners, &clusters, &reverse::responder_extension(""), self.workers).await
    }

    fn server(self) -> &'static str {
        if self.dialect == Dialect::Plain { "protocol: HTTP1" } else { "" }
    }

    async fn edge(self, server: SocketAddr, behind: &Behind) -> Result<Gateway> {
        let more = match self.dialect {
            Dialect::Culvert | Dialect::Plain => "host_name: edge-7",
            Dialect::Envoy => "host_name: edge-7, envoy: {tenant_id: t}",
        };
        let folder = TempDir::with_prefix("culvert-")?;
        Gateway::start_in(folder, &behind.listener(), &behind.clusters(), &agent(&[server], more), self.workers).await
    }

    fn kinds(self) -> &'static [Kind] {
        const ALL: [Kind; 6] = [Kind::Http1, Kind::Http2, Kind::Grpc, Kind::WebSocket, Kind::Udp, Kind::Tcp];
        match self.dialect {
            Dialect::Culvert => &ALL,
            // Envoy's dialect carries requests, of which a session is one.
            Dialect::Envoy => &ALL[..5],
            // What else there is takes a plain tunnel for good.
            Dialect::Plain => &ALL[..2],
        }
    }
}

/// One exchange of that kind, with that cluster.
async fn exchange(cloud: SocketAddr, raw: Option<SocketAddr>, kind: Kind, cluster: usize) -> Result {
    let expected = format!("behind-{cluster}\n");
    match kind {
        Kind::Http1 => {
            let answer = get(cloud, &format!("/{cluster}/x")).await?;
            ensure!(answer.status == 200 && answer.text() == expected, "saw {} {:?}", answer.status, answer.text());
        }
        Kind::Http2 => {
            let request = Request::get(format!("http://culvert.test/{cluster}/x")).body(Full::new(Bytes::new()))?;
            let answer = send_h2(cloud, request).await?;
            ensure!(answer.status == 200 && answer.text() == expected, "saw {} {:?}", answer.status, answer.text());
        }
        Kind::Grpc => grpc::check(cloud).await?,
        Kind::WebSocket => {
            let mut socket = TcpStream::connect(cloud).await?;
            let ask = b"GET /chat HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n";
            socket.write_all(ask).await?;
            let head = in_time("the switch", read_head(&mut socket)).await??;
            ensure!(head.starts_with("HTTP/1.1 101 "), "saw {head:?}");
            for word in [expected, "x".repeat(10_000)] {
                socket.write_all(word.as_bytes()).await?;
                let mut seen = vec![0; word.len()];
                in_time("an echo", socket.read_exact(&mut seen)).await??;
                ensure!(seen == word.as_bytes(), "expected {} bytes back, saw others", word.len());
            }
        }
        Kind::Udp => {
            let asker = Asker::new(raw.context("no listener of datagrams")?).await?;
            for length in [1, 1400] {
                asker.ask_again(&vec![7; length]).await?;
            }
        }
        Kind::Tcp => {
            // Bytes, which the hosting listener happens to understand: so it is seen which cluster they reach.
            let request = Request::get(format!("/{cluster}/x")).header("host", "a").body(Full::new(Bytes::new()))?;
            let answer = send(raw.context("no TCP listener")?, request).await?;
            ensure!(answer.status == 200 && answer.text() == expected, "saw {} {:?}", answer.status, answer.text());
        }
    }
    Ok(())
}

async fn runs(case: Case) -> Result {
    const TIMES: usize = 12;
    let behind = Behind::start(case.clusters).await?;
    let cloud = case.cloud().await?;
    let edge = case.edge(cloud.listener("tunnel")?, &behind).await?;
    // Its host serves once it is wanted, in Envoy's dialect.
    let one = eventually("one tunnel stands", async || {
        let now = connections(&cloud).await?;
        ensure!(now.len() == 1, "saw {now:#?}");
        Ok(now[0]["id"].clone())
    })
    .await?;
    let entry = cloud.listener("in")?;
    // Everything at a time.
    let mut exchanges = JoinSet::new();
    for turn in 0..TIMES {
        for kind in case.kinds().iter().copied() {
            for cluster in 0..case.clusters {
                let protocol = if kind == Kind::Udp { "udp" } else { "tcp" };
                let raw = cloud.listener(&format!("{protocol}-{cluster}")).ok();
                exchanges.spawn(async move {
                    let done = exchange(entry, raw, kind, cluster).await;
                    done.with_context(|| format!("{kind:?} to cluster {cluster}, turn {turn}"))
                });
            }
        }
    }
    let (mut done, mut failed) = (0, Vec::new());
    while let Some(outcome) = exchanges.join_next().await {
        match outcome? {
            Ok(()) => done += 1,
            Err(error) => failed.push(format!("{error:#}")),
        }
    }
    let expected = TIMES * case.kinds().len() * case.clusters;
    ensure!(failed.is_empty() && done == expected, "{done} of {expected} done; failed: {failed:#?}");
    let sessions = if case.kinds().contains(&Kind::Udp) { TIMES as u64 } else { 0 };
    for name in (0..case.clusters).map(|index| case.cluster(index)) {
        let streams = cloud.stat(&format!("cluster.{name}.udp.sess_tunnel_success")).await?;
        // A client may have the port, and with it the session, of one that went before.
        ensure!(streams >= sessions / 2, "{name}: expected some {sessions} streams with datagrams, saw {streams}");
    }
    let now = connections(&cloud).await?;
    ensure!(now.len() == 1 && now[0]["id"] == one, "expected the one tunnel {one} to have carried all, saw {now:#?}");
    edge.stop().await?;
    cloud.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_tunnel_serves_any_number_of_workers_clusters_and_all_protocols() -> Result {
    for dialect in [Dialect::Culvert, Dialect::Envoy] {
        for workers in [1, 8] {
            for clusters in [1, 4] {
                let case = Case { workers, clusters, dialect };
                runs(case).await.with_context(|| format!("{case:?}"))?;
            }
        }
    }
    let case = Case { workers: 8, clusters: 4, dialect: Dialect::Plain };
    runs(case).await.with_context(|| format!("{case:?}"))
}
