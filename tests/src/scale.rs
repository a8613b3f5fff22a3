//! Many agents at a time: light ones that live in the test process, and what they cost the daemon.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::Result;
use crate::gateway::Gateway;

/// Fields of a `TunnelServer` for agents that all come from one address.
pub const UNLIMITED: &str = "max_pending_handshakes: 20000, max_pending_handshakes_per_source: 20000, max_handshakes_per_second_per_source: 0, reconnect_window: 0s, handshake_timeout: 30s";

/// A size that the environment may set; it is printed.
pub fn size(variable: &str, default: usize) -> Result<usize> {
    let size = match std::env::var(variable) {
        Ok(text) => text.parse().with_context(|| format!("{variable}={text}"))?,
        Err(_) => default,
    };
    eprintln!("{variable}={size}");
    Ok(size)
}

/// Whether work took no longer than its goal, which is one for a build with optimization (`CULVERT_OPTIMIZED`) on a machine
/// that has nothing else to do. It is printed; four times as much is a failure, which neighbours alone do not make.
pub fn goal(what: &str, took: Duration, goal: Duration) -> Result {
    if std::env::var_os("CULVERT_OPTIMIZED").is_none() {
        return Ok(());
    }
    eprintln!("{what}: {took:?}, goal {goal:?}: {}", if took <= goal { "held" } else { "missed" });
    ensure!(took <= 4 * goal, "{what}: the goal is {goal:?}, expected four times that at most, saw {took:?}");
    Ok(())
}

/// An agent of ours that has joined; `success` was read.
pub async fn join(server: SocketAddr, name: &str) -> Result<TcpStream> {
    let mut socket = TcpStream::connect(server).await?;
    // Gone at once when closed: no port waits.
    socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO))?;
    join_over(&mut socket, name, "\"caps\":[\"culvert/1\"]").await?;
    Ok(socket)
}

/// The same on a connection that stands; `extra` is the inside of the object of that name.
pub async fn join_over(socket: &mut (impl AsyncRead + AsyncWrite + Unpin), name: &str, extra: &str) -> Result {
    let json = format!(
        "{{\"cluster_name\":\"edge\",\"weight\":10,\"host_name\":\"{name}\",\"credential_policy\":\"\",\"credential\":\"\",\"extra\":{{{extra}}}}}"
    );
    let length = u16::try_from(json.len())?.to_be_bytes();
    socket.write_all(&[b"\x20\x88\x01\x01\x01\x00".as_slice(), &length, json.as_bytes()].concat()).await?;
    socket.flush().await?;
    let mut header = [0; 8];
    socket.read_exact(&mut header).await.with_context(|| format!("{name} got no answer"))?;
    let mut payload = vec![0; usize::from(u16::from_be_bytes([header[6], header[7]]))];
    socket.read_exact(&mut payload).await?;
    let text = String::from_utf8_lossy(&payload);
    ensure!(text.starts_with("{\"status\":1"), "{name} was answered {text}");
    Ok(())
}

/// What a process has used so far.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    pub cpu: Duration,
    pub resident_kib: u64,
    pub descriptors: usize,
}

impl Usage {
    /// Of a running proxy.
    pub fn of(gateway: &Gateway) -> Result<Self> {
        Self::of_process(gateway.daemon.id()?)
    }

    /// Of any process.
    pub fn of_process(id: u32) -> Result<Self> {
        let folder = format!("/proc/{id}");
        let stat = std::fs::read_to_string(format!("{folder}/stat"))?;
        let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |place: usize| fields.get(place).and_then(|text| text.parse::<u64>().ok()).context("no ticks");
        let status = std::fs::read_to_string(format!("{folder}/status"))?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(Self {
            // A hundred ticks a second, on every Linux that we know.
            cpu: Duration::from_millis(10 * (ticks(11)? + ticks(12)?)),
            resident_kib: resident.trim().trim_end_matches(" kB").parse()?,
            descriptors: std::fs::read_dir(format!("{folder}/fd"))?.count(),
        })
    }
}
