//! A reverse proxy in one page, and peers to put on either side of it.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use culvert_http::{
    Blame, BodyKind, ClientExchange, Exchange, Handler, Http1Client, Http2Client, Http2ClientOptions, Io, RequestBody,
    ResponseHead, ResponseSink, ServerOptions, StreamError, StreamErrorKind, relay_request, relay_response, serve,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

/// Runs on a worker as the data plane has them, with the clock paused.
pub(crate) fn on_worker<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test)
}

/// Where a [`Relay`] gets its upstream connection.
pub(crate) enum Upstream {
    /// A fresh HTTP/1 connection a request: the other end is put here.
    Http1(RefCell<Vec<DuplexStream>>),
    Http2(Http2Client),
}

/// Forwards every request.
pub(crate) struct Relay {
    pub(crate) upstream: Upstream,
    pub(crate) refused: RefCell<Vec<u16>>,
    pub(crate) errors: RefCell<Vec<StreamError>>,
    pub(crate) reused: RefCell<Option<Http1Client>>,
}

impl Relay {
    pub(crate) fn new(upstream: Upstream) -> Rc<Self> {
        Rc::new(Self { upstream, refused: RefCell::default(), errors: RefCell::default(), reused: RefCell::default() })
    }

    pub(crate) fn http1(ends: Vec<DuplexStream>) -> Rc<Self> {
        Self::new(Upstream::Http1(RefCell::new(ends)))
    }

    fn connect(&self) -> ClientExchange {
        match &self.upstream {
            Upstream::Http1(ends) => match self.reused.borrow_mut().take() {
                Some(client) => client.exchange(),
                None => {
                    let end = ends.borrow_mut().pop().expect("an upstream connection for this request");
                    Http1Client::new(Io::memory(end)).exchange()
                }
            },
            Upstream::Http2(client) => client.exchange(),
        }
    }

    async fn forward(&self, exchange: &mut Exchange<'_>, client: &mut ClientExchange) -> Result<(), StreamError> {
        let upgrade = exchange.request.upgrade.is_some() || exchange.request.method.as_str() == "CONNECT";
        client.send_head(exchange.request, exchange.body.kind()).await?;
        let (mut sink, mut source) = client.split();
        let mut head = ResponseHead::new(0);
        if upgrade {
            sink.flush().await?;
            let kind = source.head(&mut head).await?;
            exchange.response.head(&head, kind).await?;
            if kind == BodyKind::Tunnel {
                let up = relay_request(&mut exchange.body, &mut sink);
                let down = relay_response(&mut source, &mut exchange.response);
                let (up, down) = tokio::join!(up, down);
                return up.and(down).map(|_| ());
            }
            return relay_response(&mut source, &mut exchange.response).await.map(|_| ());
        }
        let upload = relay_request(&mut exchange.body, &mut sink);
        let response = &mut exchange.response;
        let download = async {
            loop {
                let kind = source.head(&mut head).await?;
                response.head(&head, kind).await?;
                if !head.is_informational() {
                    return relay_response(&mut source, response).await;
                }
            }
        };
        tokio::pin!(upload, download);
        let mut uploaded = false;
        loop {
            tokio::select! {
                biased;
                result = &mut upload, if !uploaded => {
                    result?;
                    uploaded = true;
                }
                result = &mut download => return result.map(|_| ()),
            }
        }
    }
}

impl Handler for Relay {
    async fn handle(self: &Rc<Self>, mut exchange: Exchange<'_>) {
        let mut client = self.connect();
        match self.forward(&mut exchange, &mut client).await {
            Ok(()) => {
                if let Some(client) = client.finish() {
                    self.reused.replace(Some(client));
                }
            }
            Err(error) => {
                drop(client);
                self.errors.borrow_mut().push(error);
                answer_error(error, &mut exchange.response).await;
            }
        }
    }

    fn refused(&self, status: u16, _detail: &'static str) {
        self.refused.borrow_mut().push(status);
    }
}

async fn answer_error(error: StreamError, response: &mut ResponseSink<'_>) {
    let status = match error.kind {
        StreamErrorKind::Protocol { status, .. } => status,
        _ if error.blame == Blame::Upstream => 503,
        _ => return response.reset(),
    };
    response.close_after();
    if response.head(&ResponseHead::new(status), BodyKind::Length(0)).await.is_err() {
        response.reset();
    }
}

/// Serves a client's connection by a handler; the client's end.
pub(crate) fn serving<H: Handler>(handler: &Rc<H>, options: ServerOptions) -> DuplexStream {
    serving_until(handler, options, std::future::pending())
}

pub(crate) fn serving_until<H: Handler>(
    handler: &Rc<H>,
    options: ServerOptions,
    drain: impl Future<Output = ()> + 'static,
) -> DuplexStream {
    let (near, far) = duplex(1 << 20);
    let handler = Rc::clone(handler);
    tokio::task::spawn_local(async move { serve(Io::memory(far), &options, handler, drain).await });
    near
}

/// An HTTP/2 client of a handler, over memory.
pub(crate) async fn http2_client<H: Handler>(handler: &Rc<H>, options: ServerOptions) -> Http2Client {
    http2_over(serving(handler, options)).await
}

pub(crate) async fn http2_over(end: DuplexStream) -> Http2Client {
    let (client, driver) = Http2Client::connect(Io::memory(end), &Http2ClientOptions::default());
    tokio::task::spawn_local(async move {
        // Tests look at the streams.
        driver.await.ok();
    });
    // Settings arrive.
    tokio::time::sleep(Duration::from_millis(1)).await;
    client
}

/// Reads what comes until `quiet` passes without more; whether the end came too.
pub(crate) async fn read_quiet(end: &mut DuplexStream, quiet: Duration) -> (Vec<u8>, bool) {
    let mut all = Vec::new();
    loop {
        match tokio::time::timeout(quiet, end.read_buf(&mut all)).await {
            Ok(Ok(0) | Err(_)) => return (all, true),
            Ok(Ok(_)) => {}
            Err(_) => return (all, false),
        }
    }
}

/// An upstream that answers `response` to each request after a moment of silence; what it read, once the connection
/// has ended.
pub(crate) fn scripted(mut end: DuplexStream, response: &'static [u8]) -> tokio::task::JoinHandle<Vec<u8>> {
    tokio::task::spawn_local(async move {
        let mut all = Vec::new();
        loop {
            let (read, ended) = read_quiet(&mut end, Duration::from_millis(10)).await;
            all.extend_from_slice(&read);
            if !read.is_empty() && end.write_all(response).await.is_err() || ended {
                return all;
            }
        }
    })
}

/// Answers by what it was asked: the method, target, authority, body, and trailers, in the response's fields and body.
pub(crate) struct Echo;

impl Handler for Echo {
    async fn handle(self: &Rc<Self>, mut exchange: Exchange<'_>) {
        if echo(&mut exchange).await.is_err() {
            exchange.response.reset();
        }
    }

    fn refused(&self, _status: u16, _detail: &'static str) {}
}

async fn echo(exchange: &mut Exchange<'_>) -> Result<(), StreamError> {
    let request = &*exchange.request;
    let mut head = ResponseHead::new(200);
    head.fields.push(b"x-method", request.method.as_str().as_bytes());
    head.fields.push(b"x-target", request.path.as_bytes());
    head.fields.push(b"x-authority", request.authority.as_bytes());
    if request.upgrade.is_some() || request.method.as_str() == "CONNECT" {
        exchange.response.head(&head, BodyKind::Tunnel).await?;
    } else {
        if request.fields.get(b"expect").is_some() {
            exchange.response.head(&ResponseHead::new(100), BodyKind::Empty).await?;
        }
        let kind = exchange.body.kind();
        head.fields.push(b"x-kind", format!("{kind:?}").as_bytes());
        exchange.response.head(&head, if kind.is_empty() { BodyKind::Length(0) } else { kind }).await?;
        if kind.is_empty() {
            return exchange.response.finish(None).await;
        }
    }
    copy(&mut exchange.body, &mut exchange.response).await?;
    exchange.response.finish(exchange.body.trailers()).await
}

async fn copy(body: &mut RequestBody<'_>, response: &mut ResponseSink<'_>) -> Result<(), StreamError> {
    while let Some(chunk) = body.chunk().await? {
        response.data(chunk).await?;
    }
    Ok(())
}
