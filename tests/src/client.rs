//! One request, one answer, read whole.

use std::net::SocketAddr;

use anyhow::Context;
use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::Result;
use crate::wait::{PATIENCE, in_time};

/// A response, whole.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// A header as text; empty when absent.
    #[must_use]
    pub fn header(&self, name: &str) -> String {
        self.headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).unwrap_or_default()
    }

    /// The body as JSON.
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_slice(&self.body).with_context(|| format!("not JSON: {}", self.text()))
    }
}

/// GET over a new HTTP/1 connection.
pub async fn get(address: SocketAddr, path: &str) -> Result<Answer> {
    send(address, Request::get(path).header("host", address.to_string()).body(Full::default())?).await
}

/// POST over a new HTTP/1 connection.
pub async fn post(address: SocketAddr, path: &str, body: impl Into<Bytes>) -> Result<Answer> {
    send(address, Request::post(path).header("host", address.to_string()).body(Full::new(body.into()))?).await
}

/// Any request over a new HTTP/1 connection.
pub async fn send(address: SocketAddr, request: Request<Full<Bytes>>) -> Result<Answer> {
    let exchange = async {
        let socket = TcpStream::connect(address).await.with_context(|| format!("cannot connect to {address}"))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(socket)).await?;
        let driver = tokio::spawn(connection);
        let answer = whole(sender.send_request(request).await?).await;
        driver.abort();
        answer
    };
    tokio::time::timeout(PATIENCE, exchange)
        .await
        .with_context(|| format!("{address} did not answer within {PATIENCE:?}"))?
}

/// Any request over a new HTTP/2 connection with prior knowledge.
pub async fn send_h2(address: SocketAddr, request: Request<Full<Bytes>>) -> Result<Answer> {
    let exchange = async {
        let socket = TcpStream::connect(address).await.with_context(|| format!("cannot connect to {address}"))?;
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(socket)).await?;
        let driver = tokio::spawn(connection);
        let answer = whole(sender.send_request(request).await?).await;
        driver.abort();
        answer
    };
    tokio::time::timeout(PATIENCE, exchange)
        .await
        .with_context(|| format!("{address} did not answer within {PATIENCE:?}"))?
}

/// Reads a response to its end.
pub async fn whole(response: http::Response<hyper::body::Incoming>) -> Result<Answer> {
    let (head, body) = response.into_parts();
    let body = body.collect().await.context("the body ended early")?.to_bytes();
    Ok(Answer { status: head.status, headers: head.headers, body })
}

/// Reads a head of HTTP/1 and not a byte more.
pub async fn read_head(socket: &mut TcpStream) -> Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(in_time("a head", socket.read_u8()).await??);
    }
    Ok(String::from_utf8(head)?)
}
