//! A load generator for control planes: many streams that ask for all clusters and accept whatever comes.
//!
//! `xds_load ADDRESS STREAMS CONNECTIONS sotw|delta`; then a command on each line of standard input: `wait` (until every
//! stream got one more response; prints when, in seconds since 1970, and how many bytes of resources), `reconnect` (all
//! streams anew, with what they hold), `quit`. Used by scripts/bench-control.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use bytes::{Buf, BufMut, Bytes};
use culvert_api::envoy::config::core::v3::Node;
use culvert_api::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use culvert_api::type_url::CLUSTER;
use http::uri::PathAndQuery;
use parking_lot::Mutex;
use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

/// For every stream to get a response.
const DEADLINE: Duration = Duration::from_secs(120);
/// Largest response.
const MAX_RESPONSE: usize = 256 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Variant {
    Sotw,
    Delta,
}

/// What came since the last `wait`.
#[derive(Debug, Default)]
struct Round {
    arrivals: Vec<f64>,
    bytes: usize,
}

#[derive(Debug)]
struct Shared {
    streams: usize,
    variant: Variant,
    round: Mutex<Round>,
    came: Notify,
    /// What each stream holds, by name: version.
    held: Vec<Mutex<Vec<(String, String)>>>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [address, streams, connections, variant] = args.as_slice() else {
        bail!("usage: xds_load ADDRESS STREAMS CONNECTIONS sotw|delta");
    };
    let variant = match variant.as_str() {
        "sotw" => Variant::Sotw,
        "delta" => Variant::Delta,
        other => bail!("{other}: neither sotw nor delta"),
    };
    let streams: usize = streams.parse()?;
    let connections: usize = connections.parse()?;
    let held = (0..streams).map(|_| Mutex::default()).collect();
    let shared = Arc::new(Shared { streams, variant, round: Mutex::default(), came: Notify::new(), held });
    let mut running = open(&shared, address, connections).await?;
    let (commands, mut lines) = mpsc::channel(1);
    std::thread::spawn(move || {
        let mut lines = std::io::stdin().lines().map_while(Result::ok);
        lines.all(|line| commands.blocking_send(line).is_ok())
    });
    while let Some(line) = lines.recv().await {
        match line.trim() {
            "wait" => {
                say(&tokio::time::timeout(DEADLINE, wait(&shared)).await.context("not every stream got a response")?)?
            }
            "reconnect" => {
                running.shutdown().await;
                *shared.round.lock() = Round::default();
                say(&format!("{:.6}", now()))?;
                running = open(&shared, address, connections).await?;
            }
            "quit" => break,
            other => bail!("{other}: no such command"),
        }
    }
    Ok(())
}

fn say(line: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// `FIRST P50 P99 LAST BYTES` once every stream got a response.
async fn wait(shared: &Shared) -> String {
    loop {
        let came = shared.came.notified();
        let round = {
            let mut round = shared.round.lock();
            (round.arrivals.len() >= shared.streams).then(|| std::mem::take(&mut *round))
        };
        if let Some(Round { mut arrivals, bytes }) = round {
            arrivals.sort_by(f64::total_cmp);
            let at = |part: f64| {
                let place = (part * (arrivals.len() - 1) as f64).round();
                arrivals.iter().copied().nth(place as usize).unwrap_or_default()
            };
            return format!("{:.6} {:.6} {:.6} {:.6} {bytes}", at(0.0), at(0.5), at(0.99), at(1.0));
        }
        came.await;
    }
}

async fn open(shared: &Arc<Shared>, address: &str, connections: usize) -> anyhow::Result<JoinSet<()>> {
    let mut tasks = JoinSet::new();
    let mut channels = Vec::with_capacity(connections);
    for _ in 0..connections {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
        let endpoint = endpoint.initial_stream_window_size(1 << 20).initial_connection_window_size(64 << 20);
        channels.push(endpoint.connect().await?);
    }
    for (index, channel) in (0..shared.streams).zip(channels.into_iter().cycle()) {
        let shared = Arc::clone(shared);
        tasks.spawn(async move {
            if let Err(error) = stream(&shared, index, channel).await {
                // To standard error: whoever waits is told by the deadline.
                drop(writeln!(std::io::stderr(), "stream {index}: {error:#}"));
            }
        });
    }
    Ok(tasks)
}

async fn stream(shared: &Shared, index: usize, channel: Channel) -> anyhow::Result<()> {
    let (requests, queue) = mpsc::channel(4);
    requests.send(first(shared, index)).await?;
    let method = match shared.variant {
        Variant::Sotw => "StreamAggregatedResources",
        Variant::Delta => "DeltaAggregatedResources",
    };
    let path = format!("/envoy.service.discovery.v3.AggregatedDiscoveryService/{method}");
    let mut grpc = Grpc::new(channel).max_decoding_message_size(MAX_RESPONSE);
    grpc.ready().await?;
    let request = Request::new(ReceiverStream::new(queue));
    let responses = grpc.streaming(request, PathAndQuery::try_from(path)?, Raw).await?;
    let mut responses = responses.into_inner();
    while let Some(seen) = responses.message().await? {
        let answer = acknowledge(shared.variant, &seen);
        hold(&shared.held[index], seen.held);
        {
            let mut round = shared.round.lock();
            round.arrivals.push(now());
            round.bytes += seen.bytes;
            if round.arrivals.len() >= shared.streams {
                shared.came.notify_one();
            }
        }
        requests.send(answer).await?;
    }
    bail!("the server ended it")
}

fn hold(held: &Mutex<Vec<(String, String)>>, news: Vec<(String, String)>) {
    let mut held = held.lock();
    for (name, version) in news {
        match held.iter_mut().find(|(known, _)| *known == name) {
            Some(known) => known.1 = version,
            None => held.push((name, version)),
        }
    }
}

fn first(shared: &Shared, index: usize) -> Bytes {
    let node = Some(Node { id: format!("node-{index}"), cluster: "load".into(), ..Node::default() });
    let request = match shared.variant {
        Variant::Sotw => DiscoveryRequest { node, type_url: CLUSTER.into(), ..Default::default() }.encode_to_vec(),
        Variant::Delta => {
            let initial_resource_versions = shared.held[index].lock().iter().cloned().collect();
            let type_url = CLUSTER.into();
            DeltaDiscoveryRequest { node, type_url, initial_resource_versions, ..Default::default() }.encode_to_vec()
        }
    };
    request.into()
}

fn acknowledge(variant: Variant, seen: &Seen) -> Bytes {
    let (version_info, response_nonce) = (seen.version.clone(), seen.nonce.clone());
    let type_url = CLUSTER.into();
    let request = match variant {
        Variant::Sotw => {
            DiscoveryRequest { version_info, response_nonce, type_url, ..Default::default() }.encode_to_vec()
        }
        Variant::Delta => DeltaDiscoveryRequest { response_nonce, type_url, ..Default::default() }.encode_to_vec(),
    };
    request.into()
}

/// What matters of a response; the load generator shall cost little.
#[derive(Debug, Default)]
struct Seen {
    version: String,
    nonce: String,
    bytes: usize,
    /// Of delta: names and versions.
    held: Vec<(String, String)>,
}

impl Seen {
    fn parse(mut message: Bytes) -> Result<Self, prost::DecodeError> {
        let mut seen = Self::default();
        while message.has_remaining() {
            let (tag, wire_type) = decode_key(&mut message)?;
            if wire_type != WireType::LengthDelimited {
                skip_field(wire_type, tag, &mut message, DecodeContext::default())?;
                continue;
            }
            let length = usize::try_from(decode_varint(&mut message)?).unwrap_or(usize::MAX);
            let value = message.split_to(length.min(message.len()));
            match tag {
                1 => seen.version = String::from_utf8_lossy(&value).into_owned(),
                2 => {
                    seen.bytes += value.len();
                    // Of state of the world it is an Any, whose second field is no version.
                    seen.held.extend(entry(value));
                }
                5 => seen.nonce = String::from_utf8_lossy(&value).into_owned(),
                _ => {}
            }
        }
        Ok(seen)
    }
}

/// Name and version of a `discovery.v3.Resource`: fields 3 and 1.
fn entry(mut resource: Bytes) -> Option<(String, String)> {
    let (mut name, mut version) = (None, None);
    while resource.has_remaining() {
        let (tag, wire_type) = decode_key(&mut resource).ok()?;
        if wire_type != WireType::LengthDelimited {
            skip_field(wire_type, tag, &mut resource, DecodeContext::default()).ok()?;
            continue;
        }
        let length = usize::try_from(decode_varint(&mut resource).ok()?).ok()?;
        let value = resource.split_to(length.min(resource.len()));
        let text = || String::from_utf8_lossy(&value).into_owned();
        match tag {
            1 => version = Some(text()),
            3 => name = Some(text()),
            _ => {}
        }
    }
    name.zip(version)
}

#[derive(Debug, Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Seen;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buf.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Seen;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<Seen>, Status> {
        let message = buf.copy_to_bytes(buf.remaining());
        Seen::parse(message).map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}
