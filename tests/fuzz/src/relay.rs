//! A proxy in memory that forwards every request to an upstream of its own and keeps what it forwarded.

use std::cell::RefCell;
use std::future::pending;
use std::rc::Rc;

use culvert_http::{BodyKind, Exchange, Handler, Http1Client, Io, Method, ResponseHead, ServerOptions, StreamError};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::task::LocalSet;

use crate::message::{self, Kind};

/// Runs on a thread as the data plane has them.
pub(crate) fn on_worker<T>(test: impl Future<Output = T>) -> T {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    }
    RUNTIME.with(|runtime| LocalSet::new().block_on(runtime, test))
}

/// A request as the codec gave it to its handler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) method: String,
    authority: String,
    path: String,
    upgrade: Option<String>,
    fields: Vec<(Vec<u8>, Vec<u8>)>,
    /// Empty unless it was whole: how much comes of one that breaks is a matter of time.
    body: Vec<u8>,
    pub(crate) whole: bool,
}

impl Asked {
    /// The status that it gets: nobody here switches protocols.
    pub(crate) fn answer(&self) -> u16 {
        if self.upgrade.is_some() || self.method == "CONNECT" { 403 } else { 200 }
    }
}

/// Forwards, and keeps each request with the bytes that its upstream got.
#[derive(Debug, Default)]
pub(crate) struct Forward {
    pub(crate) asked: RefCell<Vec<(Asked, Vec<u8>)>>,
    pub(crate) refused: RefCell<Vec<u16>>,
}

/// More than any input grows to by its framing.
const ROOM: usize = 4 << 20;

impl Forward {
    async fn forward(&self, exchange: &mut Exchange<'_>, io: Io, body: &mut Vec<u8>) -> Result<(), StreamError> {
        let mut upstream = Http1Client::new(io).exchange();
        let kind = exchange.body.kind();
        upstream.send_head(exchange.request, kind).await?;
        let (mut sink, _source) = upstream.split();
        let switches = exchange.request.upgrade.is_some() || exchange.request.method == Method::Connect;
        if switches && kind == BodyKind::Empty {
            return sink.flush().await;
        }
        while let Some(chunk) = exchange.body.chunk().await? {
            body.extend_from_slice(&chunk);
            sink.data(chunk).await?;
        }
        sink.finish(exchange.body.trailers()).await
    }
}

impl Handler for Forward {
    async fn handle(self: &Rc<Self>, mut exchange: Exchange<'_>) {
        let head = &*exchange.request;
        let mut asked = Asked {
            method: head.method.as_str().to_owned(),
            authority: head.authority.clone(),
            path: head.path.clone(),
            upgrade: head.upgrade.as_ref().map(|token| token.to_string()),
            fields: head.fields.iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect(),
            body: Vec::new(),
            whole: false,
        };
        let (near, mut far) = duplex(ROOM);
        let mut body = Vec::new();
        let outcome = self.forward(&mut exchange, Io::memory(near), &mut body).await;
        let mut bytes = Vec::new();
        far.read_to_end(&mut bytes).await.expect("memory can be read");
        if outcome.is_ok() {
            (asked.whole, asked.body) = (true, body);
        }
        let answer = ResponseHead::new(asked.answer());
        self.asked.borrow_mut().push((asked, bytes));
        let answered = match outcome {
            Ok(()) => exchange.response.head(&answer, BodyKind::Empty).await,
            Err(_) => {
                exchange.response.reset();
                Ok(())
            }
        };
        // Whoever asked may be gone.
        if answered.is_ok() {
            exchange.response.finish(None).await.ok();
        }
    }

    fn refused(&self, status: u16, _detail: &'static str) {
        self.refused.borrow_mut().push(status);
    }
}

/// A client that sends `bytes` in pieces; what was made of them, and what it was answered.
pub(crate) async fn converse(bytes: &[u8], piece: usize, options: ServerOptions) -> (Rc<Forward>, Vec<u8>) {
    let forward = Rc::new(Forward::default());
    let (near, far) = duplex(64 * 1024);
    let handler = Rc::clone(&forward);
    let server = tokio::task::spawn_local(async move {
        culvert_http::serve(Io::memory(near), &options, handler, pending()).await;
    });
    let (mut reading, mut writing) = tokio::io::split(far);
    let send = async {
        for piece in bytes.chunks(piece.max(1)) {
            // Whoever is refused may not be read to the end.
            if writing.write_all(piece).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
        writing.shutdown().await.ok();
    };
    let receive = async {
        let mut answers = Vec::new();
        reading.read_to_end(&mut answers).await.ok();
        answers
    };
    let ((), answers) = tokio::join!(send, receive);
    server.await.expect("the server does not panic");
    (forward, answers)
}

/// What an upstream got is what was asked, and nothing else: to a reader that shares nothing with the codec, and to the
/// codec itself. Of a request that broke it got no whole one.
pub(crate) async fn check_forwarded(forward: &Forward) {
    let all = forward.asked.borrow().clone();
    for (asked, bytes) in &all {
        let shown = bytes.escape_ascii();
        let read = message::read(bytes, Kind::Request);
        if !asked.whole {
            // What a length announced may be there before an HTTP/2 stream breaks: nobody waits for its end.
            let whole = read.filter(|(message, _)| message.field("content-length").is_none_or(|length| length == b"0"));
            assert!(whole.is_none(), "a request that broke arrived whole: {asked:?}\n{shown}");
            continue;
        }
        let (message, used) = read.unwrap_or_else(|| panic!("a whole request did not arrive: {asked:?}\n{shown}"));
        assert_eq!(used, bytes.len(), "more than a request arrived: {asked:?}\n{shown}");
        let tunnel = asked.method == "CONNECT" && asked.upgrade.is_none();
        // RFC 8441, 5: an extended CONNECT becomes the GET that HTTP/1 upgrades with.
        let method = if asked.method == "CONNECT" && !tunnel { "GET" } else { &*asked.method };
        let target = if tunnel { &asked.authority } else { &asked.path };
        assert_eq!(message.first, format!("{method} {target} HTTP/1.1"), "{asked:?}\n{shown}");
        assert_eq!(message.field("host"), Some(asked.authority.as_bytes()), "{asked:?}\n{shown}");
        assert_eq!(message.body, asked.body, "{asked:?}\n{shown}");
        let (own, kept) = ([&b"host"[..], b"connection", b"upgrade"], |name: &[u8]| !FRAMING.contains(&name));
        let sent: Vec<_> = message.fields.iter().filter(|(name, _)| kept(name) && !own.contains(&&**name)).collect();
        let given: Vec<_> = asked.fields.iter().filter(|(name, _)| kept(name)).collect();
        assert_eq!(sent, given, "{shown}");
        // HTTP/1.0 without a host goes on with an empty one (RFC 9110, 7.2), which we ourselves take from nobody.
        if tunnel || asked.authority.is_empty() {
            continue;
        }
        let options = ServerOptions { custom_methods: true, max_head_bytes: 1 << 20, ..ServerOptions::default() };
        let (again, _) = converse(bytes, bytes.len(), options).await;
        let (again, refused) = (again.asked.borrow(), again.refused.borrow());
        assert!(refused.is_empty() && again.len() == 1, "asked again: {refused:?}, {again:?}\n{shown}");
        let again = &again[0].0;
        let same = |asked: &Asked| {
            let fields = asked.fields.iter().filter(|(name, _)| kept(name)).cloned().collect();
            // RFC 8441, 5: an upgrade is a CONNECT over HTTP/2, and a GET over HTTP/1.
            let method = if asked.upgrade.is_some() { "GET".to_owned() } else { asked.method.clone() };
            Asked { method, fields, ..asked.clone() }
        };
        assert_eq!(same(again), same(asked), "{shown}");
    }
}

/// Written by the codec itself: from the body, or for an upgrade that came over HTTP/2 and has none.
const FRAMING: &[&[u8]] = &[b"content-length", b"transfer-encoding", b"trailer", b"te", b"sec-websocket-key"];
