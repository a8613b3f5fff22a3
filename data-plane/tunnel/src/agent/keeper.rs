//! Per peer: the aside connection, and the graceful close.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use culvert_http::Io;
use culvert_model::control::MAX_IDS;
use culvert_runtime::backoff::Backoff;
use culvert_runtime::telemetry::Block;
use futures_util::future::select_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use super::Agent;
use super::dial::{self, DialError};
use super::pace::{Served, after_tunnel};
use super::peer::{Names, Peer, Phase};
use crate::metrics::AgentMetric;
use crate::status::AsideState;
use crate::wire::{Decoder, Frame, GracefulClose, HEADER_LEN, MAX_PAYLOAD};

/// Until the peer is closed.
pub(super) async fn keep(agent: Arc<Agent>, peer: Arc<Peer>, metrics: Rc<Block<AgentMetric>>) -> Arc<Peer> {
    let mut aside = None;
    tokio::select! {
        biased;
        () = peer.leaving() => {}
        () = keep_aside(&agent, &peer, &mut aside), if agent.config.envoy.is_none() => {}
    }
    wait_for_replacement(&agent, &peer).await;
    let patience = peer.ends().unwrap_or_default().max(agent.config.graceful_close_max_wait);
    let deadline = Instant::now() + patience;
    // In Envoy's dialect a tunnel says by itself that it drains: by HTTP/2's GOAWAY.
    let names = if agent.config.envoy.is_some() { Names::default() } else { peer.names() };
    let acknowledged = if peer.ends().is_some() {
        // It sends its last requests through them, and closes them itself.
        true
    } else if names == Names::default() {
        false
    } else {
        metrics.inc(AgentMetric::GracefulClose);
        let announced = timeout_at(deadline.min(Instant::now() + ANNOUNCE), announce(&agent, &peer, aside, &names));
        match announced.await {
            Ok(Ok(acknowledged)) => acknowledged,
            Ok(Err(error)) => {
                tracing::warn!(agent = %agent.config.name, server = %peer.address, %error, "graceful close not sent");
                false
            }
            Err(_) => {
                tracing::warn!(agent = %agent.config.name, server = %peer.address, "graceful close not taken in time");
                false
            }
        }
    };
    peer.set_aside(AsideState::None);
    peer.enter(Phase::Draining { deadline, acknowledged });
    tokio::select! {
        biased;
        () = peer.none_live() => {}
        () = sleep_until(deadline) => {}
    }
    peer.enter(Phase::Cut);
    peer.none_live().await;
    peer
}

/// Make before break: a server that left the list is drained when one that came stands, or has had its time to, and a
/// moment after: whoever stands in front of the servers finds the new one in its own time. A server that drains by
/// itself has its own deadline, which is not waited out here.
async fn wait_for_replacement(agent: &Agent, peer: &Peer) {
    let replacements = peer.take_replacements();
    if replacements.is_empty() || peer.live() == 0 {
        return;
    }
    let first = select_all(replacements.iter().map(|replacement| Box::pin(replacement.any_live())));
    tokio::select! {
        biased;
        () = agent.stop.cancelled() => {}
        stands = timeout(agent.config.connect_timeout, first) => {
            if stands.is_ok() && peer.ends().is_none() {
                overlap(agent, peer).await;
            }
        }
    }
}

/// The old tunnels and the new ones serve together.
async fn overlap(agent: &Agent, peer: &Peer) {
    tokio::select! {
        biased;
        () = agent.stop.cancelled() => {}
        () = peer.none_live() => {}
        () = sleep(OVERLAP) => {}
    }
}

/// MOSN's servers are kept an aside connection, as MOSN's agents do. Ours close one that says nothing after a while;
/// for them it is dialled when there is something to say.
async fn keep_aside(agent: &Agent, peer: &Peer, aside: &mut Option<Io>) {
    let config = &agent.config;
    let mut backoff = Backoff::new(config.reconnect_base, config.reconnect_max);
    loop {
        peer.set_aside(AsideState::OnDemand);
        peer.is_capable(false).await;
        peer.any_live().await;
        let (opened, mut delay) = (Instant::now(), None);
        match timeout(config.connect_timeout, open(agent, peer)).await {
            Ok(Ok(io)) => {
                peer.set_aside(AsideState::Connected);
                let ended = wait_for_end(aside.insert(io)).await;
                *aside = None;
                tracing::debug!(agent = %config.name, server = %peer.address, ?ended, "aside connection ended");
                let served = Served { lived: opened.elapsed(), used: false, end: "".into() };
                delay = Some(after_tunnel(&mut backoff, &served));
            }
            Ok(Err(error)) => {
                tracing::debug!(agent = %config.name, server = %peer.address, %error, "no aside connection");
            }
            Err(_) => tracing::debug!(agent = %config.name, server = %peer.address, "no aside connection in time"),
        }
        peer.set_aside(AsideState::OnDemand);
        sleep(delay.unwrap_or_else(|| backoff.next_delay())).await;
    }
}

async fn open(agent: &Agent, peer: &Peer) -> Result<Io, DialError> {
    dial::connect(&agent.target(peer).await, &|_, _| {}).await
}

/// Nothing is expected to come in.
async fn wait_for_end(io: &mut Io) -> std::io::Result<usize> {
    io.read(&mut [0]).await
}

/// Tells the server; whether it acknowledged all of it.
pub(super) async fn announce(agent: &Agent, peer: &Peer, aside: Option<Io>, names: &Names) -> Result<bool, DialError> {
    if names.addresses.is_empty() && peer.has_control() {
        let mut found = 0;
        for ids in names.ids.chunks(MAX_IDS) {
            found += peer.close(ids.to_vec()).await.ok_or(DialError::Closed)?;
        }
        return Ok(found == u64::try_from(names.ids.len()).unwrap_or(u64::MAX));
    }
    let mut io = match aside {
        Some(io) => io,
        None => open(agent, peer).await?,
    };
    let cluster_name = agent.config.cluster.to_string();
    let (mut decoder, mut all) = (Decoder::new(MAX_PAYLOAD), names.addresses.is_empty());
    for ids in names.ids.chunks(IDS) {
        let connection_ids = ids.to_vec();
        let close = GracefulClose { addresses: None, cluster_name: cluster_name.clone(), connection_ids };
        send(&mut io, close).await?;
        all &= read_ack(&mut io, &mut decoder).await? == i64::try_from(ids.len()).unwrap_or(i64::MAX);
    }
    if !names.addresses.is_empty() {
        // One frame: MOSN reads no second one before further bytes come.
        let addresses = Some(names.addresses.clone());
        send(&mut io, GracefulClose { addresses, cluster_name, connection_ids: Vec::new() }).await?;
    }
    if let Err(error) = io.shutdown().await {
        tracing::debug!(%error, "the aside connection was not closed cleanly");
    }
    Ok(all)
}

async fn send(io: &mut Io, close: GracefulClose) -> Result<(), DialError> {
    let frame = Frame::GracefulClose(close).encode()?;
    io.write_all(&frame).await.map_err(DialError::Handshake)?;
    io.flush().await.map_err(DialError::Handshake)
}

async fn read_ack(io: &mut Io, decoder: &mut Decoder) -> Result<i64, DialError> {
    loop {
        match decoder.next_frame()? {
            Some(Frame::GracefulCloseAck(ack)) => {
                tracing::debug!(closed = ack.closed, "graceful close acknowledged");
                return Ok(ack.closed);
            }
            Some(frame) => return Err(DialError::Unexpected(frame.kind())),
            None => {}
        }
        let buffer = decoder.buffer();
        buffer.reserve(HEADER_LEN * 8);
        if io.read_buf(buffer).await.map_err(DialError::Handshake)? == 0 {
            return Err(DialError::Closed);
        }
    }
}

/// Ids in one frame: it must fit the handshake limit of a server.
const IDS: usize = 256;
/// A load balancer that is told by a failed request, or a health check every second, has moved by then.
const OVERLAP: Duration = Duration::from_secs(1);
/// To dial, if need be, to tell, and to hear that it was heard.
const ANNOUNCE: Duration = Duration::from_secs(5);
