//! HTTP/1 from both sides.

use std::cell::RefCell;
use std::future::pending;
use std::rc::Rc;

use culvert_http::{
    BodyKind, Exchange, Handler, Http1Client, Http2Client, Http2ClientOptions, Io, Protocol, ResponseHead,
    ServerOptions, StreamError, Version,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

use crate::message::{self, Kind};
use crate::relay::{Forward, check_forwarded, converse, on_worker};

pub(crate) const WORDS: &[&str] = &[
    "\r\n",
    "\r\n\r\n",
    "\n",
    "\r",
    ": ",
    " HTTP/1.1\r\n",
    " HTTP/1.0",
    "GET ",
    "POST ",
    "HEAD ",
    "CONNECT ",
    "OPTIONS * ",
    "http://a/",
    "host: h\r\n",
    "content-length: 5\r\n",
    "content-length: ",
    "transfer-encoding: chunked\r\n",
    "Transfer-Encoding:\tchunked",
    "chunked",
    "gzip, chunked",
    "connection: close\r\n",
    "connection: upgrade\r\n",
    "connection: keep-alive, x",
    "upgrade: websocket\r\n",
    "expect: 100-continue\r\n",
    "te: trailers",
    "trailer: a",
    "0\r\n\r\n",
    "5\r\nhello\r\n",
    ";a=b",
    "HTTP/1.1 200 OK\r\n",
    "HTTP/1.1 100 Continue\r\n\r\n",
    "HTTP/1.1 101 x\r\n",
    "HTTP/1.1 204 x\r\n",
    "HTTP/1.1 304 x\r\n",
    "\t",
    "\0",
    "%0d%0a",
    "x-a: b\r\n",
    "18446744073709551616",
    "+5",
    "0x5",
];

/// A connection: the first byte says how it is cut into pieces and what is allowed, the rest is what a client sends.
pub(crate) fn requests(data: &[u8]) {
    let Some((&how, bytes)) = data.split_first() else { return };
    let options = ServerOptions {
        protocol: Protocol::Http1,
        accept_http_10: how & 0x80 != 0,
        custom_methods: how & 0x40 != 0,
        ..ServerOptions::default()
    };
    on_worker(async {
        let (whole, answers) = converse(bytes, bytes.len(), options.clone()).await;
        check_forwarded(&whole).await;
        check_answers(&whole, &answers);
        let (cut, _) = converse(bytes, usize::from(how & 0x3f) + 1, options).await;
        let without_bytes =
            |forward: &Forward| -> Vec<_> { forward.asked.borrow().iter().map(|(asked, _)| asked.clone()).collect() };
        assert_eq!(without_bytes(&cut), without_bytes(&whole), "in pieces, and in one");
        // A head that comes in pieces is judged at its beginning and at its end: one that never ends is not refused.
        let (cut, whole) = (cut.refused.borrow(), whole.refused.borrow());
        assert!(whole.starts_with(&cut) && whole.len() <= cut.len() + 1, "refused in pieces {cut:?}, in one {whole:?}");
    });
}

/// Whatever a client sent, it can read its answers: one for each request, and one for what was refused.
fn check_answers(forward: &Forward, mut answers: &[u8]) {
    let mut next = |kind| loop {
        let (message, used) = message::read(answers, kind)?;
        answers = &answers[used..];
        if message.status() >= 200 {
            return Some(message.status());
        }
    };
    for (asked, _) in &*forward.asked.borrow() {
        if !asked.whole {
            return;
        }
        let kind = if asked.method == "HEAD" { Kind::Bodyless } else { Kind::Response };
        assert_eq!(next(kind), Some(asked.answer()), "the answer to {asked:?}");
    }
    for status in &*forward.refused.borrow() {
        assert_eq!(next(Kind::Response), Some(*status), "the answer to what was refused");
    }
    assert!(answers.is_empty(), "answers that nobody asked for: {}", answers.escape_ascii());
}

pub(crate) fn request_seeds() -> Vec<Vec<u8>> {
    let seeds: [&[u8]; 9] = [
        b"\x03GET / HTTP/1.1\r\nHost: h\r\n\r\nGET /b?c=d HTTP/1.1\r\nhost: h:80\r\nx-a: b\r\nX-A: c\r\n\r\n",
        b"\x00POST /a HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\n\r\nhelloGET / HTTP/1.1\r\nhost: h\r\n\r\n",
        b"\x01POST /a HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\ntrailer: x-t\r\n\r\n\
            5;a=b\r\nhello\r\nA\r\n0123456789\r\n0\r\nx-t: 1\r\n\r\nGET / HTTP/1.1\r\nhost: h\r\n\r\n",
        b"\x10GET / HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nbytes",
        b"\x20CONNECT h:443 HTTP/1.1\r\nhost: h:443\r\n\r\nbytes",
        b"\x02GET http://a.test/x?y HTTP/1.1\r\nhost: b\r\n\r\nOPTIONS * HTTP/1.1\r\nhost: h\r\n\r\n",
        b"\xc0GET / HTTP/1.0\r\n\r\nBREW /pot HTTP/1.1\r\nhost: h\r\n\r\n",
        b"\x02POST / HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\nhi",
        b"\x02POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    ];
    seeds.map(<[u8]>::to_vec).to_vec()
}

/// Answers from an upstream what a client asked.
struct Answer {
    /// What the upstream speaks.
    version: Version,
    upstream: Vec<u8>,
    piece: usize,
    seen: RefCell<Seen>,
}

/// Names and values.
pub(crate) type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

/// What the codec made of an upstream's bytes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) heads: Vec<(u16, Pairs)>,
    pub(crate) body: Vec<u8>,
    pub(crate) whole: bool,
    tunnel: bool,
}

impl Answer {
    async fn relay(&self, exchange: &mut Exchange<'_>, io: Io) -> Result<(), StreamError> {
        let mut upstream = match self.version {
            Version::Http2 => {
                let (client, driver) = Http2Client::connect(io, &Http2ClientOptions::default());
                // Whoever has a stream is told how it ends.
                tokio::task::spawn_local(async move { driver.await.ok() });
                client.exchange()
            }
            _ => Http1Client::new(io).exchange(),
        };
        upstream.send_head(exchange.request, BodyKind::Empty).await?;
        let (mut sink, mut source) = upstream.split();
        sink.finish(None).await?;
        let mut head = ResponseHead::new(0);
        let kind = loop {
            let kind = source.head(&mut head).await?;
            let fields = head.fields.iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
            self.seen.borrow_mut().heads.push((head.status, fields));
            exchange.response.head(&head, kind).await?;
            if !head.is_informational() {
                break kind;
            }
        };
        self.seen.borrow_mut().tunnel = kind == BodyKind::Tunnel;
        while let Some(chunk) = source.chunk().await? {
            self.seen.borrow_mut().body.extend_from_slice(&chunk);
            exchange.response.data(chunk).await?;
        }
        exchange.response.finish(source.trailers()).await?;
        self.seen.borrow_mut().whole = true;
        Ok(())
    }
}

impl Handler for Answer {
    async fn handle(self: &Rc<Self>, mut exchange: Exchange<'_>) {
        let (near, mut far) = duplex(64 * 1024);
        let this = Rc::clone(self);
        let upstream = tokio::task::spawn_local(async move {
            for piece in this.upstream.chunks(this.piece) {
                if far.write_all(piece).await.is_err() {
                    return;
                }
                tokio::task::yield_now().await;
            }
            // Ends its direction, and reads the request.
            far.shutdown().await.ok();
            far.read_to_end(&mut Vec::new()).await.ok();
        });
        if self.relay(&mut exchange, Io::memory(near)).await.is_err() {
            exchange.response.reset();
        }
        upstream.await.expect("the upstream does not panic");
    }

    fn refused(&self, status: u16, detail: &'static str) {
        panic!("a good request was refused: {status} {detail}");
    }
}

/// A response: the first byte says what was asked and how it is cut into pieces, the rest is what an upstream sends.
pub(crate) fn responses(data: &[u8]) {
    let Some((&how, bytes)) = data.split_first() else { return };
    let (method, more, kind) = match how >> 6 {
        0 | 1 => ("GET", "", Kind::Response),
        2 => ("HEAD", "", Kind::Bodyless),
        _ => ("GET", "connection: upgrade\r\nupgrade: websocket\r\n", Kind::Response),
    };
    let request = format!("{method} / HTTP/1.1\r\nhost: h\r\n{more}\r\n");
    on_worker(async {
        let (whole, answer) = answered(Version::Http11, bytes, bytes.len(), &request).await;
        check_answer(&whole, &answer, kind);
        let (cut, _) = answered(Version::Http11, bytes, usize::from(how & 0x3f) + 1, &request).await;
        assert_eq!((cut.whole, &cut.heads), (whole.whole, &whole.heads), "in pieces, and in one");
        assert!(!whole.whole || cut.body == whole.body, "in pieces {cut:?}, and in one {whole:?}");
    });
}

/// What a client reads who asks by `request`, of an upstream that sends these bytes in pieces; and what was made of them.
pub(crate) async fn answered(version: Version, upstream: &[u8], piece: usize, request: &str) -> (Seen, Vec<u8>) {
    let answer = Answer { version, upstream: upstream.to_vec(), piece: piece.max(1), seen: RefCell::default() };
    let handler = Rc::new(answer);
    let (near, mut far) = duplex(1 << 20);
    let served = Rc::clone(&handler);
    let server = tokio::task::spawn_local(async move {
        culvert_http::serve(Io::memory(near), &ServerOptions::default(), served, pending()).await;
    });
    far.write_all(request.as_bytes()).await.expect("room for a request");
    far.shutdown().await.expect("memory can be ended");
    let mut bytes = Vec::new();
    far.read_to_end(&mut bytes).await.expect("memory can be read");
    server.await.expect("the server does not panic");
    (handler.seen.take(), bytes)
}

/// The client reads what the codec read, or sees that it is not all.
pub(crate) fn check_answer(seen: &Seen, mut answer: &[u8], kind: Kind) {
    let shown = answer.escape_ascii().to_string();
    if seen.tunnel {
        return;
    }
    for (status, fields) in &seen.heads {
        let Some((message, used)) = message::read(answer, kind) else {
            assert!(!seen.whole, "a whole response did not arrive: {seen:?}\n{shown}");
            return;
        };
        let last = !(100..200).contains(status);
        assert!(
            !last || seen.whole || kind == Kind::Bodyless || matches!(status, 204 | 304),
            "a response that broke arrived whole: {seen:?}\n{shown}"
        );
        assert_eq!(message.status(), *status, "{shown}");
        let own = [&b"content-length"[..], b"transfer-encoding", b"connection", b"date", b"trailer", b"host"];
        let kept = |(name, _): &&(Vec<u8>, Vec<u8>)| !own.contains(&&**name);
        let (sent, given): (Vec<_>, Vec<_>) =
            (message.fields.iter().filter(kept).collect(), fields.iter().filter(kept).collect());
        assert_eq!(sent, given, "{shown}");
        assert!(!last || message.body == seen.body, "{seen:?}\n{shown}");
        answer = &answer[used..];
    }
    assert!(answer.is_empty() || !seen.whole, "more than a response arrived: {seen:?}\n{shown}");
}

pub(crate) fn response_seeds() -> Vec<Vec<u8>> {
    let seeds: [&[u8]; 8] = [
        b"\x02HTTP/1.1 200 OK\r\ncontent-length: 5\r\nX-A: b\r\n\r\nhello",
        b"\x00HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nx-t: 1\r\n\r\n",
        b"\x05HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nlink: a\r\n\r\nHTTP/1.0 404 Not Found\r\n\r\nuntil the end",
        b"\x01HTTP/1.1 204 No\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
        b"\x83HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n",
        b"\x04HTTP/1.1 304 Not Modified\r\ncontent-length: 7\r\netag: \"a\"\r\n\r\n",
        b"\xc3HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nbytes",
        b"\xc3HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno",
    ];
    seeds.map(<[u8]>::to_vec).to_vec()
}
