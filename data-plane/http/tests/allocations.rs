//! What a request costs in allocations, once connections, buffers and heads are warm.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::cell::RefCell;
use std::rc::Rc;

use culvert_http::{
    BodyKind, Exchange, Handler, Http1Client, Io, ResponseHead, ServerOptions, StreamError, give_response,
    relay_response, serve, take_response,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

const REQUEST: &[u8] = b"GET /path HTTP/1.1\r\nHost: example\r\nUser-Agent: test\r\nAccept: */*\r\nX-A: 1\r\n\r\n";

/// Forwards over the one connection that it holds.
struct Forward(RefCell<Option<Http1Client>>);

impl Forward {
    async fn forward(&self, exchange: &mut Exchange<'_>, head: &mut ResponseHead) -> Result<(), StreamError> {
        let client = self.0.borrow_mut().take().expect("the connection is given back");
        let mut upstream = client.exchange();
        exchange.request.fields.push(b"x-forwarded-proto", b"http");
        upstream.send_head(exchange.request, BodyKind::Empty).await?;
        let (mut sink, mut source) = upstream.split();
        sink.finish(None).await?;
        let kind = source.head(head).await?;
        exchange.response.head(head, kind).await?;
        relay_response(&mut source, &mut exchange.response).await?;
        self.0.replace(upstream.finish());
        Ok(())
    }
}

impl Handler for Forward {
    async fn handle(self: &Rc<Self>, mut exchange: Exchange<'_>) {
        let mut head = take_response();
        self.forward(&mut exchange, &mut head).await.expect("forwarded");
        give_response(head);
    }

    fn refused(&self, status: u16, detail: &'static str) {
        panic!("{status} {detail}");
    }
}

struct Ok1024;

impl Handler for Ok1024 {
    async fn handle(self: &Rc<Self>, mut exchange: Exchange<'_>) {
        let mut head = take_response();
        head.status = 200;
        head.fields.push(b"content-type", b"text/plain");
        exchange.response.head(&head, BodyKind::Length(1024)).await.unwrap();
        exchange.response.data(culvert_http::Chunk::Borrowed(&[b'x'; 1024])).await.unwrap();
        exchange.response.finish(None).await.unwrap();
        give_response(head);
    }

    fn refused(&self, status: u16, detail: &'static str) {
        panic!("{status} {detail}");
    }
}

fn serving<H: Handler>(handler: H) -> DuplexStream {
    let (near, far) = duplex(1 << 16);
    tokio::task::spawn_local(async move {
        let options = ServerOptions::default();
        serve(Io::memory(far), &options, Rc::new(handler), std::future::pending()).await;
    });
    near
}

async fn ask(client: &mut DuplexStream, times: usize) {
    let mut buffer = [0; 4096];
    for _ in 0..times {
        client.write_all(REQUEST).await.unwrap();
        let mut got = 0;
        while got < 1024 || !buffer[..got].ends_with(b"xxxx") {
            got += client.read(&mut buffer[got..]).await.unwrap();
        }
    }
}

/// One allocation a request and hop: the future of the handler, which an idle connection does not hold.
#[test]
fn a_request_allocates_its_handler_and_nothing_else() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    let mut client = local.block_on(&runtime, async {
        let upstream = Http1Client::new(Io::memory(serving(Ok1024)));
        let mut client = serving(Forward(RefCell::new(Some(upstream))));
        ask(&mut client, 10).await;
        client
    });
    let mut measure = |times| allocation_counter::measure(|| local.block_on(&runtime, ask(&mut client, times)));
    let (few, many) = (measure(10), measure(110));
    let per_request = (many.count_total - few.count_total) as f64 / 100.0;
    assert!(per_request <= 2.0, "{per_request} allocations a request over two hops: {few:?}, {many:?}");
    assert!(few.bytes_current == 0 && many.bytes_current == 0, "something is kept: {few:?}, {many:?}");
}
