//! What an idle tunnel of each kind takes on the heap. (Within TLS some of it is the cryptographic library's own, which this does
//! not see: two keys' schedules.)

use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, Ordering};

use culvert_model::tls::{CommonTls, DownstreamTls, TlsVersion};
use culvert_runtime::tls::{ClientTls, Identity, Roots, ServerTls, Trust, Version, client_config, server_config};

use super::*;
use crate::listener::TlsSlot;

/// A kind of tunnel, and the most that each may take, in bytes.
#[derive(Debug, Clone, Copy)]
struct Kind {
    tls: bool,
    http2: bool,
    /// How many there are.
    count: usize,
    most: i64,
}

trait Stream: Read + Write + Send {}
impl<S: Read + Write + Send> Stream for S {}

/// An agent that has joined; over HTTP/2 it answers PING, and the control service's stream.
struct Idle {
    stream: Box<dyn Stream>,
    read: Vec<u8>,
}

impl Idle {
    /// Takes what came; of HTTP/2's frames it answers those that must be.
    fn turn(&mut self) {
        let mut piece = [0; 4096];
        loop {
            match self.stream.read(&mut piece) {
                Ok(0) => panic!("the server has closed a tunnel"),
                Ok(read) => self.read.extend_from_slice(&piece[..read]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
        if self.read.starts_with(PREFACE) {
            self.read.drain(..PREFACE.len());
        }
        while let Some((head, rest)) = self.read.split_first_chunk::<9>() {
            let length = usize::from(u16::from_be_bytes([head[1], head[2]]));
            let Some(payload) = rest.get(..length) else { return };
            let answer: Vec<u8> = match (head[3], head[4]) {
                // SETTINGS: ours, and an acknowledgement.
                (4, 0) => [[0, 0, 0, 4, 0, 0, 0, 0, 0], [0, 0, 0, 4, 1, 0, 0, 0, 0]].concat(),
                // HEADERS: `:status 200` on that stream.
                (1, _) => [&[0, 0, 1, 1, 4], &head[5..], &[0x88]].concat(),
                (6, 0) => [&[0, 0, 8, 6, 1, 0, 0, 0, 0], payload].concat(),
                _ => Vec::new(),
            };
            self.stream.write_all(&answer).unwrap();
            self.stream.flush().unwrap();
            self.read.drain(..9 + length);
        }
    }
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

fn certificates() -> (Arc<rustls::ServerConfig>, Arc<rustls::ClientConfig>) {
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(["cloud.example".to_owned()]).unwrap();
    let identity = Identity::from_pem(cert.pem().as_bytes(), signing_key.serialize_pem().as_bytes()).unwrap();
    let (min, max) = (Version::V1_3, Version::V1_3);
    let (trust, alpn) = (None, Vec::new());
    let require_client_certificate = false;
    let server =
        server_config(ServerTls { identities: vec![identity], trust, require_client_certificate, alpn, min, max });
    let client = client_config(ClientTls {
        identity: None,
        trust: Some(Trust { roots: Roots::Pem(cert.pem().as_bytes().into()), crl: None, sans: Vec::new() }),
        verify_server_name: true,
        send_server_name: true,
        alpn: Vec::new(),
        min,
        max,
    });
    (server.unwrap(), client.unwrap())
}

/// A worker's tunnel listener; agents join its cluster over TLS where that is set.
fn tunnels(tls: Option<&Arc<rustls::ServerConfig>>) -> Gateway {
    let gateway = gateway();
    if let Some(config) = tls {
        let (certificates, alpn) = (Vec::new(), Vec::new());
        let (min, max) = (TlsVersion::V1_3, TlsVersion::V1_3);
        let common = CommonTls { certificates, validation: None, validation_default: None, alpn, min, max };
        let mut chain = chain(NetworkFilter::Tunnel(Arc::new(server())));
        chain.tls = Some(Arc::new(DownstreamTls { common, require_client_certificate: false }));
        gateway.publish(listener(vec![chain]), &|_| TlsSlot::new(Some(Arc::clone(config))));
    }
    gateway
}

/// Has so many agents join, from a thread of its own, and keeps them as they are until `ended`.
fn join_idle(
    address: std::net::SocketAddr,
    kind: Kind,
    client: &Arc<rustls::ClientConfig>,
    names: std::ops::Range<usize>,
    ended: &Arc<AtomicBool>,
) -> oneshot::Receiver<()> {
    let (done, joined) = oneshot::channel();
    let (client, ended) = (Arc::clone(client), Arc::clone(ended));
    let mut done = Some(done);
    std::thread::spawn(move || {
        let (mut agents, mut sockets) = (Vec::new(), Vec::new());
        // All ask before the first is heard: registrations are published together.
        for name in names {
            let socket = TcpStream::connect(address).unwrap();
            sockets.push(socket.try_clone().unwrap());
            let mut stream: Box<dyn Stream> = if kind.tls {
                let name = "cloud.example".try_into().unwrap();
                let session = rustls::ClientConnection::new(Arc::clone(&client), name).unwrap();
                Box::new(rustls::StreamOwned::new(session, socket))
            } else {
                Box::new(socket)
            };
            let caps =
                if kind.http2 { r#""caps":["culvert/1","h2"],"protocol":"h2""# } else { r#""caps":["culvert/1"]"# };
            stream.write_all(&init_with(&format!("agent-{name}"), caps)).unwrap();
            agents.push(Idle { stream, read: Vec::new() });
        }
        for (Idle { stream, .. }, socket) in agents.iter_mut().zip(sockets) {
            let mut head = [0; 8];
            stream.read_exact(&mut head).unwrap();
            let mut reply = vec![0; usize::from(u16::from_be_bytes([head[6], head[7]]))];
            stream.read_exact(&mut reply).unwrap();
            assert!(reply.starts_with(SUCCESS), "{}", String::from_utf8_lossy(&reply));
            socket.set_nonblocking(true).unwrap();
        }
        while !ended.load(Ordering::Relaxed) {
            agents.iter_mut().for_each(Idle::turn);
            if let Some(done) = done.take() {
                done.send(()).unwrap();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    joined
}

/// Bytes and pieces that each of so many takes.
fn measured(kind: Kind) -> (i64, i64) {
    let count = kind.count;
    culvert_runtime::process::raise_open_files();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = LocalSet::new();
    let (server, client) = certificates();
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let gateway = local.block_on(&runtime, async {
        let gateway = tunnels(kind.tls.then_some(&server));
        let (worker, slot) = (Rc::clone(&gateway.worker), Arc::clone(&gateway.slot));
        tokio::task::spawn_local(async move { serve_listener(worker, socket, slot).await.unwrap() });
        gateway
    });
    let ended = Arc::new(AtomicBool::new(false));
    // Their first ping, after half a second, is behind them, and what it needed is given back.
    let settled = || tokio::time::sleep(Duration::from_millis(if kind.http2 { 800 } else { 100 }));
    // The first ones also pay for what is there once.
    local.block_on(&runtime, async {
        join_idle(address, kind, &client, 0..24, &ended).await.unwrap();
        settled().await;
    });
    let counted = allocation_counter::measure(|| {
        local.block_on(&runtime, async {
            join_idle(address, kind, &client, 24..24 + count, &ended).await.unwrap();
            settled().await;
        });
    });
    assert_eq!(hosts(&gateway), 24 + count as u64, "all are hosts");
    ended.store(true, Ordering::Relaxed);
    (counted.bytes_current / count as i64, counted.count_current / count as i64)
}

#[test]
fn an_idle_tunnel_is_small_whatever_it_carries() {
    for kind in [
        Kind { tls: false, http2: false, count: 1000, most: 4_500 },
        Kind { tls: true, http2: false, count: 300, most: 20_000 },
        Kind { tls: false, http2: true, count: 300, most: 12_000 },
        Kind { tls: true, http2: true, count: 300, most: 20_000 },
    ] {
        let (bytes, pieces) = measured(kind);
        eprintln!("an idle tunnel, {kind:?}: {bytes} bytes in {pieces} pieces");
        assert!(bytes <= kind.most, "{kind:?}: expected no more, an idle one takes {bytes} bytes");
    }
}
