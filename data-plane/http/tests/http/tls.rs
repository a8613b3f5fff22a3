//! TLS under HTTP: what was agreed, what is closed how, what is counted.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use culvert_http::{
    BodyKind, Chunk, Exchange, Handler, Http1Client, Http2Client, Http2ClientOptions, Io, RequestHead, ResponseHead,
    ServerOptions, serve,
};
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

use crate::peers::{Echo, on_worker};

fn configs(alpn: &[&str]) -> (Arc<ServerConfig>, Arc<ClientConfig>) {
    let alpn: Vec<Vec<u8>> = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    let signed = rcgen::generate_simple_self_signed(vec!["example.test".into()]).unwrap();
    let certificate = signed.cert.der().clone();
    let key = PrivateKeyDer::try_from(signed.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(certificate).unwrap();
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    server.alpn_protocols.clone_from(&alpn);
    client.alpn_protocols = alpn;
    (Arc::new(server), Arc::new(client))
}

/// A handler behind TLS; the client's end, after its handshake.
async fn over_tls<H: Handler>(handler: Rc<H>, alpn: &'static [&'static str]) -> Io {
    let (server, client) = configs(alpn);
    let (near, far) = duplex(1 << 16);
    tokio::task::spawn_local(async move {
        let io = Io::memory(far).accept_tls(server).await.unwrap();
        let tls = io.tls().expect("it is TLS");
        assert_eq!(tls.server_name(), Some("example.test"));
        assert_eq!(tls.alpn(), alpn.first().map(|name| name.as_bytes()));
        let options = ServerOptions { scheme: "https", ..ServerOptions::default() };
        serve(io, &options, handler, std::future::pending()).await;
    });
    let io = Io::memory(near).connect_tls(client, ServerName::try_from("example.test").unwrap()).await.unwrap();
    let tls = io.tls().expect("it is TLS");
    assert_eq!(tls.version(), Some(rustls::ProtocolVersion::TLSv1_3));
    assert!(tls.cipher_suite().is_some() && tls.peer_certificates().is_some_and(|chain| chain.len() == 1));
    io
}

fn post() -> RequestHead {
    let mut head = RequestHead::new();
    head.method = culvert_http::Method::Post;
    head.scheme = "https";
    head.authority.push_str("example.test");
    head.path.push('/');
    head
}

async fn exchange(exchange: &mut culvert_http::ClientExchange, body: &[u8]) {
    exchange.send_head(&post(), BodyKind::Length(body.len() as u64)).await.unwrap();
    let (mut sink, mut source) = exchange.split();
    let send = async {
        sink.data(Chunk::Borrowed(body)).await.unwrap();
        sink.finish(None).await.unwrap();
    };
    let receive = async {
        source.head(&mut ResponseHead::new(0)).await.unwrap();
        let mut got = Vec::new();
        while let Some(chunk) = source.chunk().await.unwrap() {
            got.extend_from_slice(&chunk);
        }
        got
    };
    let ((), got) = tokio::join!(send, receive);
    assert!(got == body, "{} bytes came back of {}", got.len(), body.len());
}

#[test]
fn http_1_over_tls() {
    on_worker(async {
        let mut io = over_tls(Rc::new(Echo), &["http/1.1"]).await;
        let meter = io.meter();
        let mut client = Http1Client::new(io);
        let body = vec![5; 300_000];
        for size in [0, 10, body.len()] {
            let mut running = client.exchange();
            exchange(&mut running, &body[..size]).await;
            client = running.finish().expect("reusable");
            let idle = tokio::time::timeout(Duration::from_secs(1), client.closed()).await;
            assert!(idle.is_err(), "tickets and the like end no connection");
        }
        assert!(meter.written() > 300_010 && meter.read() > 300_010, "{meter:?}");
        assert!(meter.written() < 302_000, "plaintext is counted: {meter:?}");
    });
}

#[test]
fn http_2_over_tls() {
    on_worker(async {
        let io = over_tls(Rc::new(Echo), &["h2"]).await;
        let (client, driver) = Http2Client::connect(io, &Http2ClientOptions::default());
        tokio::task::spawn_local(async move { driver.await.unwrap() });
        for size in [0, 10, 300_000] {
            exchange(&mut client.exchange(), &vec![5; size]).await;
        }
    });
}

/// Says less than it promised.
struct Broken {
    whole: bool,
}

impl Handler for Broken {
    async fn handle(self: &Rc<Self>, mut exchange: Exchange<'_>) {
        exchange.response.close_after();
        exchange.response.head(&ResponseHead::new(200), BodyKind::Length(10)).await.unwrap();
        let body: &[u8] = if self.whole { b"0123456789" } else { b"01234" };
        exchange.response.data(Chunk::Borrowed(body)).await.unwrap();
    }

    fn refused(&self, _status: u16, _detail: &'static str) {}
}

/// `close_notify` says that everything was said: it follows a whole response, and no other.
#[test]
fn a_truncated_response_does_not_look_whole() {
    on_worker(async {
        for whole in [true, false] {
            let mut io = over_tls(Rc::new(Broken { whole }), &[]).await;
            io.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
            let mut answer = Vec::new();
            let end = io.read_to_end(&mut answer).await;
            assert!(answer.ends_with(if whole { b"89" } else { b"34" }), "{}", answer.escape_ascii());
            assert_eq!(end.is_ok(), whole, "{end:?}");
        }
    });
}
