//! A control plane of which a test says every byte: aggregated delta streams without any xDS logic, on a socket that can
//! be out of order.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, ensure};
use bytes::{Buf, Bytes, BytesMut};
use culvert_api::document::{self, Syntax};
use culvert_api::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{Request, Response};
use prost::Message;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};

use crate::Result;
use crate::wait::in_time;

/// The control plane; ends when dropped.
#[derive(Debug)]
pub struct Scripted {
    pub address: SocketAddr,
    attempts: Arc<AtomicUsize>,
    works: watch::Sender<bool>,
    streams: mpsc::Receiver<Talk>,
    task: JoinHandle<()>,
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Scripted {
    /// Starts it on a free port of an address.
    pub async fn start(ip: &str) -> Result<Self> {
        let listener = TcpListener::bind((ip, 0)).await?;
        let address = listener.local_addr()?;
        let attempts = Arc::new(AtomicUsize::new(0));
        let (works, working) = watch::channel(true);
        let (opened, streams) = mpsc::channel(16);
        let count = Arc::clone(&attempts);
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                let (opened, working) = (opened.clone(), working.clone());
                connections.spawn(async move {
                    if let Err(error) = serve(socket, opened, working).await {
                        eprintln!("scripted control plane: {error:#}");
                    }
                });
            }
        });
        Ok(Self { address, attempts, works, streams, task })
    }

    /// Out of order it ends every connection, also those that come.
    pub fn set_working(&self, works: bool) {
        self.works.send_replace(works);
    }

    /// Connections that came so far.
    #[must_use]
    pub fn attempts(&self) -> usize {
        self.attempts.load(Ordering::SeqCst)
    }

    /// The next stream that a client opens.
    pub async fn stream(&mut self) -> Result<Talk> {
        in_time("a stream", self.streams.recv()).await?.context("the control plane has ended")
    }
}

async fn serve(socket: TcpStream, opened: mpsc::Sender<Talk>, mut working: watch::Receiver<bool>) -> Result {
    if !*working.borrow() {
        return Ok(());
    }
    socket.set_nodelay(true)?;
    let mut connection = h2::server::handshake(socket).await?;
    loop {
        let accepted = tokio::select! {
            _ = working.wait_for(|works| !works) => return Ok(()),
            accepted = connection.accept() => accepted,
        };
        let Some(accepted) = accepted else { return Ok(()) };
        let (request, respond): (Request<RecvStream>, _) = accepted?;
        let path = request.uri().path().to_owned();
        if path.ends_with("/DeltaAggregatedResources") {
            let requests = request.into_body();
            let talk = Talk { requests, read: BytesMut::new(), seen: Vec::new(), respond, sending: None };
            opened.send(talk).await.context("nobody waits for streams any more")?;
        }
    }
}

/// One delta stream. **Dropped, it is reset.**
#[derive(Debug)]
pub struct Talk {
    requests: RecvStream,
    read: BytesMut,
    seen: Vec<DeltaDiscoveryRequest>,
    respond: SendResponse<Bytes>,
    sending: Option<SendStream<Bytes>>,
}

impl Talk {
    /// Waits until the client has asked for a type; its first request for it.
    pub async fn asked(&mut self, type_url: &str) -> Result<DeltaDiscoveryRequest> {
        self.heard(|request| request.type_url == type_url).await.with_context(|| format!("asked for {type_url}"))
    }

    /// Waits for the answer to a response: what it was refused with, empty if it was accepted.
    pub async fn answer(&mut self, nonce: &str) -> Result<String> {
        let request = self.heard(|request| request.response_nonce == nonce).await;
        let request = request.with_context(|| format!("an answer to {nonce}"))?;
        Ok(request.error_detail.map(|error| error.message).unwrap_or_default())
    }

    async fn heard(&mut self, wanted: impl Fn(&DeltaDiscoveryRequest) -> bool) -> Result<DeltaDiscoveryRequest> {
        loop {
            if let Some(request) = self.seen.iter().find(|request| wanted(request)) {
                return Ok(request.clone());
            }
            let request = in_time("a request", self.request()).await??;
            self.seen.push(request);
        }
    }

    /// The next request.
    pub async fn request(&mut self) -> Result<DeltaDiscoveryRequest> {
        loop {
            if let Some(prefix) = self.read.first_chunk::<PREFIX>() {
                let [flag, length @ ..] = *prefix;
                ensure!(flag == 0, "a compressed request");
                let end = usize::try_from(u32::from_be_bytes(length))? + PREFIX;
                if self.read.len() >= end {
                    self.read.advance(PREFIX);
                    return Ok(DeltaDiscoveryRequest::decode(self.read.split_to(end - PREFIX).freeze())?);
                }
            }
            let data = self.requests.data().await.context("the client has ended the stream")??;
            self.requests.flow_control().release_capacity(data.len())?;
            self.read.extend_from_slice(&data);
        }
    }

    /// Sends resources and names that are gone; the nonce is the resources' version too.
    pub async fn say(&mut self, type_url: &str, nonce: &str, resources: &[(&str, Value)], removed: &[&str]) -> Result {
        let resources = resources.iter().map(|(name, json)| resource(name, nonce, json)).collect::<Result<_>>()?;
        self.send(&DeltaDiscoveryResponse {
            type_url: type_url.to_owned(),
            nonce: nonce.to_owned(),
            resources,
            removed_resources: removed.iter().map(ToString::to_string).collect(),
            ..DeltaDiscoveryResponse::default()
        })
        .await
    }

    /// Sends a response.
    pub async fn send(&mut self, response: &DeltaDiscoveryResponse) -> Result {
        let bytes = response.encode_to_vec();
        self.write(None, 0, bytes.len(), bytes.into()).await
    }

    /// Sends whatever bytes: a flag and a length of a gRPC message and what follows, with a `grpc-encoding` if these are the first.
    pub async fn write(&mut self, encoding: Option<&str>, flag: u8, length: usize, mut bytes: Bytes) -> Result {
        if self.sending.is_none() {
            let mut head = Response::builder().header("content-type", "application/grpc");
            if let Some(encoding) = encoding {
                head = head.header("grpc-encoding", encoding);
            }
            self.sending = Some(self.respond.send_response(head.body(())?, false)?);
        }
        let sending = self.sending.as_mut().context("no stream")?;
        let length = u32::try_from(length)?.to_be_bytes();
        sending.send_data([&[flag], &length[..]].concat().into(), false)?;
        while !bytes.is_empty() {
            sending.reserve_capacity(bytes.len());
            let capacity = poll_fn(|cx| sending.poll_capacity(cx));
            let capacity = in_time("room to send", capacity).await?.context("the client has left")??;
            sending.send_data(bytes.split_to(capacity.min(bytes.len())), false)?;
        }
        Ok(())
    }
}

/// A resource of a delta response, of JSON with its `@type`.
pub fn resource(name: &str, version: &str, json: &Value) -> Result<Resource> {
    let tree = document::parse(json.to_string().as_bytes(), Syntax::Json, &document::Limits::default());
    let tree = tree.ok().and_then(|mut trees| trees.pop()).context("no JSON")?;
    let any = document::load_any(&tree).map_err(|problems| anyhow::anyhow!("{problems:?}"))?;
    Ok(Resource { name: name.to_owned(), version: version.to_owned(), resource: Some(any), ..Resource::default() })
}

/// A flag and a length.
const PREFIX: usize = 5;
