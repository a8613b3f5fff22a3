//! Large bodies that pass within the kernel, between sockets.

use std::cell::Cell;
use std::net::Ipv4Addr;
use std::rc::Rc;

use culvert_http::{BodyKind, Exchange, Handler, Http1Client, Io, ResponseHead, ServerOptions, StreamError, serve};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Forwards one request after the other over a new connection each, by pipes where that is worth while.
struct Forward {
    upstream: std::net::SocketAddr,
    spliced: Cell<u64>,
    copied: Cell<u64>,
}

impl Forward {
    async fn forward(&self, exchange: &mut Exchange<'_>) -> Result<(), StreamError> {
        let mut client = Http1Client::new(Io::tcp(TcpStream::connect(self.upstream).await.unwrap())).exchange();
        client.send_head(exchange.request, exchange.body.kind()).await?;
        let (mut sink, mut source) = client.split();
        loop {
            if sink.can_splice(&exchange.body) {
                let piece = exchange.body.splice().await?.expect("a pipe is free");
                self.spliced.set(self.spliced.get() + piece.len() as u64);
                sink.splice(piece).await?;
                continue;
            }
            let Some(chunk) = exchange.body.chunk().await? else { break };
            self.copied.set(self.copied.get() + chunk.len() as u64);
            sink.data(chunk).await?;
        }
        sink.finish(None).await?;
        let mut head = ResponseHead::new(0);
        let kind = source.head(&mut head).await?;
        exchange.response.head(&head, kind).await?;
        loop {
            if exchange.response.can_splice(&mut source) {
                let piece = source.splice().await?.expect("a pipe is free");
                self.spliced.set(self.spliced.get() + piece.len() as u64);
                exchange.response.splice(piece).await?;
                continue;
            }
            let Some(chunk) = source.chunk().await? else { break };
            self.copied.set(self.copied.get() + chunk.len() as u64);
            exchange.response.data(chunk).await?;
        }
        exchange.response.finish(None).await
    }
}

impl Handler for Forward {
    async fn handle(self: &Rc<Self>, mut exchange: Exchange<'_>) {
        if self.forward(&mut exchange).await.is_err() {
            exchange.response.reset();
        }
    }

    fn refused(&self, status: u16, detail: &'static str) {
        panic!("{status} {detail}");
    }
}

/// Sends back the body that it gets, and says how long it is; breaks off after `most` bytes.
struct Echo {
    most: usize,
}

impl Handler for Echo {
    async fn handle(self: &Rc<Self>, mut exchange: Exchange<'_>) {
        let mut body = Vec::new();
        while let Ok(Some(chunk)) = exchange.body.chunk().await {
            body.extend_from_slice(&chunk);
        }
        let kind = BodyKind::Length(body.len() as u64);
        exchange.response.head(&ResponseHead::new(200), kind).await.unwrap();
        for piece in body[..body.len().min(self.most)].chunks(100_000) {
            if exchange.response.data(culvert_http::Chunk::Borrowed(piece)).await.is_err() {
                return;
            }
        }
        if body.len() > self.most {
            return exchange.response.reset();
        }
        exchange.response.finish(None).await.unwrap();
    }

    fn refused(&self, status: u16, detail: &'static str) {
        panic!("{status} {detail}");
    }
}

async fn listening<H: Handler>(handler: Rc<H>) -> std::net::SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::task::spawn_local(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let handler = Rc::clone(&handler);
            tokio::task::spawn_local(async move {
                serve(Io::tcp(socket), &ServerOptions::default(), handler, std::future::pending()).await;
            });
        }
    });
    address
}

async fn forwarding(most: usize) -> (Rc<Forward>, TcpStream) {
    let upstream = listening(Rc::new(Echo { most })).await;
    let forward = Rc::new(Forward { upstream, spliced: Cell::new(0), copied: Cell::new(0) });
    let client = TcpStream::connect(listening(Rc::clone(&forward)).await).await.unwrap();
    (forward, client)
}

fn on_sockets<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test)
}

/// No two bodies alike, and no two places in one.
fn body(length: usize, seed: u64) -> Vec<u8> {
    (0..length as u64).map(|at| ((at ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

/// Asks with `body` and reads the answer, head and body; less only if the connection ends before.
async fn ask(client: &mut TcpStream, body: &[u8]) -> (String, Vec<u8>) {
    let (mut read, mut write) = client.split();
    let head = format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n", body.len());
    let sent = async {
        write.write_all(head.as_bytes()).await.unwrap();
        write.write_all(body).await.unwrap();
    };
    let received = async {
        let (mut seen, mut at) = (Vec::new(), None);
        while at.is_none_or(|at| seen.len() < at + body.len()) {
            if read.read_buf(&mut seen).await.unwrap_or(0) == 0 {
                break;
            }
            at = at.or_else(|| seen.windows(4).position(|four| four == b"\r\n\r\n").map(|end| end + 4));
        }
        let rest = seen.split_off(at.unwrap_or(seen.len()));
        (String::from_utf8(seen).unwrap(), rest)
    };
    tokio::join!(sent, received).1
}

#[test]
fn bodies_are_the_same_whichever_way_they_pass() {
    on_sockets(async {
        let (forward, mut client) = forwarding(usize::MAX).await;
        // One connection for all: what follows a body is the next head, and none of it is taken for body.
        for (number, length) in
            [0, 1, 65_535, 65_536, 65_537, 200_000, 1 << 20, 70_000, 5 << 20].into_iter().enumerate()
        {
            let sent = body(length, number as u64);
            let before = (forward.spliced.get(), forward.copied.get());
            let (head, seen) = ask(&mut client, &sent).await;
            assert!(head.starts_with("HTTP/1.1 200"), "{length} bytes: {head}");
            assert!(seen == sent, "{length} bytes: another body of {} came back", seen.len());
            let (spliced, copied) = (forward.spliced.get() - before.0, forward.copied.get() - before.1);
            assert_eq!(spliced + copied, 2 * length as u64, "{length} bytes: all are counted, there and back");
            if length < 64 * 1024 {
                assert_eq!(spliced, 0, "{length} bytes are copied");
            } else if length >= 1 << 20 {
                assert!(copied < spliced / 4, "of {length} bytes {copied} were copied and {spliced} not");
            }
        }
    });
}

#[test]
fn a_body_that_breaks_off_ends_the_connection_and_nothing_else() {
    on_sockets(async {
        // More often than there are pipes: each has to come back, or be replaced.
        for round in 0..80 {
            let (_, mut client) = forwarding(300_000 + round).await;
            let (head, seen) = ask(&mut client, &body(1 << 20, 7)).await;
            assert!(head.starts_with("HTTP/1.1 200"), "round {round}: {head}");
            assert!(seen.len() <= 300_000 + round, "round {round}: {} bytes of a body that broke off", seen.len());
            assert!(body(1 << 20, 7).starts_with(&seen), "round {round}: other bytes");
        }
        let (forward, mut client) = forwarding(usize::MAX).await;
        let sent = body(1 << 20, 9);
        assert!(ask(&mut client, &sent).await.1 == sent, "another body came back");
        assert!(forward.spliced.get() > 1 << 20, "pipes are free again: {} bytes", forward.spliced.get());
    });
}

#[test]
fn a_client_that_leaves_in_the_middle_costs_no_pipe() {
    on_sockets(async {
        let (forward, _) = forwarding(usize::MAX).await;
        for _ in 0..80 {
            let mut client = TcpStream::connect(listening(Rc::clone(&forward)).await).await.unwrap();
            client.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\n").await.unwrap();
            client.write_all(&body(500_000, 3)).await.unwrap();
        }
        let mut client = TcpStream::connect(listening(Rc::clone(&forward)).await).await.unwrap();
        let sent = body(1 << 20, 4);
        let before = forward.spliced.get();
        assert!(ask(&mut client, &sent).await.1 == sent, "another body came back");
        assert!(forward.spliced.get() - before > 1 << 20, "pipes are free");
    });
}
