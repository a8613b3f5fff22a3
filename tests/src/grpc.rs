//! A gRPC server in a few lines, and what a client must see of it.

use std::net::SocketAddr;

use anyhow::{Context, ensure};
use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, Request, Response};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use crate::Result;
use crate::wait::in_time;

/// Answers `/only` with a trailers-only response, `/echo` with the messages it gets, each at once, and anything else with
/// a message; then trailers.
pub async fn serve(socket: TcpStream) -> Result {
    let mut connection = h2::server::handshake(socket).await?;
    while let Some(request) = connection.accept().await {
        let (request, mut respond) = request?;
        let head = Response::builder().header("content-type", "application/grpc");
        if request.uri().path() == "/only" {
            respond.send_response(head.header("grpc-status", "5").body(())?, true)?;
            continue;
        }
        let mut body = respond.send_response(head.body(())?, false)?;
        tokio::spawn(async move {
            if request.uri().path() == "/echo" {
                let mut incoming = request.into_body();
                while let Some(data) = incoming.data().await {
                    let data = data?;
                    incoming.flow_control().release_capacity(data.len())?;
                    body.send_data(data, false)?;
                }
            } else {
                body.send_data(Bytes::from_static(MESSAGE), false)?;
            }
            body.send_trailers(HeaderMap::from_iter([("grpc-status".parse()?, "0".parse()?)]))?;
            Ok::<_, anyhow::Error>(())
        });
    }
    Ok(())
}

/// Calls [`serve`] through whatever listens on `address`: one message, none, and a stream both ways.
pub async fn check(address: SocketAddr) -> Result {
    let (mut client, connection) = h2::client::handshake(TcpStream::connect(address).await?).await?;
    let driver = tokio::spawn(connection);
    for path in ["/call", "/only", "/echo"] {
        let request = Request::post(format!("http://culvert.test{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())?;
        client = client.ready().await?;
        let (response, mut sending) = client.send_request(request, path != "/echo")?;
        let response = in_time("a response", response).await?.with_context(|| path)?;
        let (head, mut body) = response.into_parts();
        if path == "/only" {
            ensure!(head.headers["grpc-status"] == "5" && body.is_end_stream(), "expected no more than {head:?}");
            continue;
        }
        for turn in 0..3 {
            if path == "/echo" {
                // The answer to one message comes before the next one is sent.
                sending.send_data(Bytes::from_static(MESSAGE), turn == 2)?;
            } else if turn > 0 {
                break;
            }
            let data = in_time("a message", body.data()).await?.context("no message")??;
            ensure!(&*data == MESSAGE, "{path} {turn}: saw {data:?}");
        }
        let trailers = in_time("trailers", body.trailers()).await??.context("no trailers")?;
        ensure!(trailers["grpc-status"] == "0", "{path}: saw {trailers:?}");
    }
    driver.abort();
    Ok(())
}

/// A gRPC server on a free port that answers every message of every call with its name; ends when dropped.
#[derive(Debug)]
pub struct Named {
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Named {
    /// Starts it.
    pub async fn start(name: &'static str) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                connections.spawn(async move {
                    if let Err(error) = answer_all(socket, name).await {
                        eprintln!("{name}: {error:#}");
                    }
                });
            }
        });
        Ok(Self { address, task })
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer_all(socket: TcpStream, name: &'static str) -> Result {
    socket.set_nodelay(true)?;
    let mut connection = h2::server::handshake(socket).await?;
    let mut calls = JoinSet::new();
    while let Some(request) = connection.accept().await {
        let (request, mut respond) = request?;
        while calls.try_join_next().is_some() {}
        calls.spawn(async move {
            let head = Response::builder().header("content-type", "application/grpc");
            let mut body = respond.send_response(head.body(())?, false)?;
            let mut incoming = request.into_body();
            let mut read = BytesMut::new();
            while let Some(data) = incoming.data().await {
                let data = data?;
                incoming.flow_control().release_capacity(data.len())?;
                read.extend_from_slice(&data);
                while take_message(&mut read) {
                    body.send_data(message(name), false)?;
                }
            }
            body.send_trailers(HeaderMap::from_iter([("grpc-status".parse()?, "0".parse()?)]))?;
            Ok::<_, anyhow::Error>(())
        });
    }
    Ok(())
}

/// Whether a whole message was there; it is gone then.
fn take_message(read: &mut BytesMut) -> bool {
    let Some(Ok(length)) = read.get(1..5).map(<[u8; 4]>::try_from) else { return false };
    let end = usize::try_from(u32::from_be_bytes(length)).map_or(usize::MAX, |length| length + 5);
    let whole = read.len() >= end;
    if whole {
        read.advance(end);
    }
    whole
}

/// gRPC's framing of one message.
fn message(text: &str) -> Bytes {
    let length = u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes();
    [&[0], &length[..], text.as_bytes()].concat().into()
}

const MESSAGE: &[u8] = b"\0\0\0\0\x02hi";
