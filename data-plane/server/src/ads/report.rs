//! Reports of this process's tunnels to its control plane, over the connection of the ADS stream: the service of Envoy's
//! contrib reporter (`proto/culvert/tunnel/v1/reverse_tunnel_reporting.proto`).
//!
//! **At most one report is unanswered**, and none is larger than [`MOST`] tunnels. A control plane that has no such service
//! is asked again on its next connection.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use culvert_api::culvert::tunnel::v1::{TunnelDetails, TunnelEvent};
use culvert_api::envoy::config::core::v3::Node;
use culvert_api::envoy::extensions::reverse_tunnel_reporters::v3alpha::clients::grpc_client::reverse_tunnel_reporting_service_client::ReverseTunnelReportingServiceClient;
use culvert_api::envoy::extensions::reverse_tunnel_reporters::v3alpha::clients::grpc_client as proto;
use culvert_api::envoy::extensions::reverse_tunnel_reporters::v3alpha::clients::grpc_client::{
    ReverseTunnel, StreamReverseTunnelsRequest, StreamReverseTunnelsResponse, TunnelInitiatorIdentity,
};
use culvert_runtime::backoff::Backoff;
use culvert_tunnel::status::{EndedTunnel, TunnelStatus};
use prost::Message;
use prost_types::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Streaming};

use super::Sources;
use super::stream::node_of;

/// Why reporting ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("{0}")]
    Status(#[from] tonic::Status),
    #[error("the control plane refused a report: {0}")]
    Refused(String),
    #[error("a report was not answered within {} s", ANSWER_TIME.as_secs())]
    Unanswered,
    #[error("the control plane ended the stream")]
    Closed,
}

/// Reports for ever: whenever there is a connection, and a tunnel.
pub(super) async fn run(sources: Arc<Sources>, mut connection: watch::Receiver<Option<Channel>>) {
    let mut backoff = Backoff::new(FIRST_DELAY, GREATEST_DELAY);
    loop {
        let channel = match connection.wait_for(Option::is_some).await {
            Ok(channel) => channel.clone(),
            Err(_) => return,
        };
        let Some(channel) = channel else { continue };
        let ended = tokio::select! {
            biased;
            // Reports end with the stream that they go beside.
            _ = connection.changed() => continue,
            ended = report(&sources, channel, &mut backoff) => ended,
        };
        match ended {
            Ended::Status(status) if status.code() == Code::Unimplemented => {
                tracing::info!("the control plane takes no reports of tunnels");
                if connection.changed().await.is_err() {
                    return;
                }
            }
            ended => {
                tracing::warn!(error = %ended, "reports of tunnels have ended; a new stream is opened");
                sleep(backoff.next_delay()).await;
            }
        }
    }
}

/// One stream.
async fn report(sources: &Sources, channel: Channel, backoff: &mut Backoff) -> Ended {
    // A process without tunnels has nothing to say.
    while sources.tunnels.version() == 0 {
        sleep(INTERVAL).await;
    }
    let (requests, sending) = mpsc::channel(1);
    let mut reports = Reports::new(node_of(sources));
    let mut client = ReverseTunnelReportingServiceClient::new(channel);
    // Before the stream is open: some servers say nothing, not even headers, until they were asked.
    let mut waiting = reports.changes(&sources.tunnels.status(), &sources.tunnels.ended());
    let mut version = None;
    if requests.try_send(reports.next(&mut waiting)).is_err() {
        return Ended::Closed;
    }
    let mut answers = match timeout(ANSWER_TIME, client.stream_reverse_tunnels(ReceiverStream::new(sending))).await {
        Ok(Ok(answers)) => answers.into_inner(),
        Ok(Err(status)) => return status.into(),
        Err(_) => return Ended::Unanswered,
    };
    let (mut interval, mut refreshed) = (INTERVAL, Instant::now());
    loop {
        match answer(&mut answers).await {
            Ok(wanted) => interval = wanted.unwrap_or(interval),
            Err(ended) => return ended,
        }
        backoff.reset();
        while waiting.is_empty() {
            sleep(interval).await;
            let now = sources.tunnels.version();
            // What changes all the time (round trips, counts) is told now and then.
            let due = refreshed.elapsed() >= REFRESH;
            if version != Some(now) || due {
                waiting = reports.changes(&sources.tunnels.status(), &sources.tunnels.ended());
                version = Some(now);
            }
            if due {
                refreshed = Instant::now();
            }
        }
        if requests.send(reports.next(&mut waiting)).await.is_err() {
            return Ended::Closed;
        }
    }
}

/// The answer to the last report: how often the control plane wants them.
async fn answer(answers: &mut Streaming<StreamReverseTunnelsResponse>) -> Result<Option<Duration>, Ended> {
    let answer = timeout(ANSWER_TIME, answers.message()).await.map_err(|_| Ended::Unanswered)??;
    let answer = answer.ok_or(Ended::Closed)?;
    if let Some(refused) = answer.error_detail {
        return Err(Ended::Refused(refused.message));
    }
    let wanted = answer.report_interval.and_then(|interval| Duration::try_from(interval).ok());
    Ok(wanted.map(|interval| interval.clamp(SHORTEST, LONGEST)))
}

/// What the control plane knows by now.
struct Reports {
    node: Node,
    nonce: i64,
    /// What was said of each tunnel, as a hash.
    known: HashMap<String, u64>,
    hashes: RandomState,
    /// Those of the latest that ended of which that was said.
    told: HashSet<String>,
}

/// What is still to be said.
#[derive(Default)]
struct Changes {
    added: Vec<ReverseTunnel>,
    removed: Vec<String>,
    ended: Vec<proto::EndedTunnel>,
}

impl Changes {
    fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.ended.is_empty()
    }
}

impl Reports {
    fn new(node: Node) -> Self {
        Self { node, nonce: 0, known: HashMap::new(), hashes: RandomState::new(), told: HashSet::new() }
    }

    fn changes(&mut self, tunnels: &[TunnelStatus], ended: &[EndedTunnel]) -> Changes {
        let live: HashSet<&str> = tunnels.iter().map(|tunnel| tunnel.id.as_str()).collect();
        let removed: Vec<String> = self.known.keys().filter(|name| !live.contains(name.as_str())).cloned().collect();
        for name in &removed {
            self.known.remove(name);
        }
        let mut added = Vec::new();
        for tunnel in tunnels {
            let message = message(tunnel);
            let hash = self.hashes.hash_one(message.encode_to_vec());
            if self.known.insert(message.name.clone(), hash) != Some(hash) {
                added.push(message);
            }
        }
        let before = std::mem::take(&mut self.told);
        self.told = ended.iter().map(|one| one.tunnel.id.clone()).collect();
        let new = ended.iter().filter(|one| !before.contains(&one.tunnel.id));
        // Latest first.
        Changes { added, removed, ended: new.rev().map(end).collect() }
    }

    /// The next report: of a full push all that fits, the rest follows as additions.
    fn next(&mut self, waiting: &mut Changes) -> StreamReverseTunnelsRequest {
        self.nonce += 1;
        let added = waiting.added.len().min(MOST);
        let removed = waiting.removed.len().min(MOST);
        StreamReverseTunnelsRequest {
            node: Some(self.node.clone()),
            added_tunnels: waiting.added.drain(..added).collect(),
            removed_tunnel_names: waiting.removed.drain(..removed).collect(),
            full_push: self.nonce == 1,
            nonce: self.nonce,
            ended_tunnels: std::mem::take(&mut waiting.ended),
        }
    }
}

fn end(ended: &EndedTunnel) -> proto::EndedTunnel {
    proto::EndedTunnel {
        tunnel: Some(message(&ended.tunnel)),
        ended_at: Some(timestamp(SystemTime::now() - Duration::from_secs(ended.ended_seconds_ago))),
        reason: ended.reason.clone().unwrap_or_default(),
    }
}

fn message(tunnel: &TunnelStatus) -> ReverseTunnel {
    let given = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
    let events = tunnel.events.iter().map(|event| TunnelEvent {
        at: Some(timestamp(tunnel.created_at + Duration::from_millis(event.at_ms))),
        kind: event.kind.name().to_owned(),
        detail: event.detail.as_deref().unwrap_or_default().to_owned(),
    });
    ReverseTunnel {
        name: tunnel.id.clone(),
        identity: Some(TunnelInitiatorIdentity {
            tenant_id: given(tunnel.tenant.as_deref().unwrap_or_default()),
            cluster_id: given(&tunnel.cluster),
            node_id: given(&tunnel.host_name),
        }),
        created_at: Some(timestamp(tunnel.created_at)),
        details: Some(TunnelDetails {
            peer: tunnel.peer.map(|peer| peer.to_string()).unwrap_or_default(),
            dialect: tunnel.dialect.name().to_owned(),
            protocol: tunnel.protocol.to_owned(),
            identity: tunnel.identity.clone().unwrap_or_default(),
            policy: tunnel.policy.clone().unwrap_or_default(),
            weight: tunnel.weight,
            draining: tunnel.draining,
            round_trip: tunnel.round_trip_us.map(|time| {
                let time = Duration::from_micros(time);
                prost_types::Duration {
                    seconds: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
                    nanos: i32::try_from(time.subsec_nanos()).unwrap_or(0),
                }
            }),
            streams: tunnel.requests,
            active_streams: tunnel.active,
            received_bytes: tunnel.received_bytes,
            sent_bytes: tunnel.sent_bytes,
            events: events.collect(),
            listener: tunnel.listener.clone(),
            further_clusters: tunnel.further_clusters.clone(),
        }),
    }
}

fn timestamp(time: SystemTime) -> Timestamp {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
    Timestamp { seconds, nanos: i32::try_from(since.subsec_nanos()).unwrap_or(0) }
}

/// Tunnels in one report.
const MOST: usize = 1000;
/// How often it is looked for changes, unless the control plane asks for something else.
const INTERVAL: Duration = Duration::from_secs(1);
const SHORTEST: Duration = Duration::from_millis(25);
const LONGEST: Duration = Duration::from_secs(3600);
/// How often round trips and counts are told.
const REFRESH: Duration = Duration::from_secs(30);
const ANSWER_TIME: Duration = Duration::from_secs(30);
const FIRST_DELAY: Duration = Duration::from_millis(500);
const GREATEST_DELAY: Duration = Duration::from_secs(30);
