//! Listeners on loopback sockets: draining, replacing, limits, TLS.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use culvert_http::Io;
use culvert_model::http::{ForwardClientCert, HttpConnectionManager};
use culvert_model::listener::{FilterChain, FilterChainMatch, Listener, NetworkFilter, TransportProtocol};
use culvert_model::tls::{CommonTls, DownstreamTls, TlsVersion};
use culvert_runtime::tls::{ClientTls, Identity, Roots, ServerTls, Trust, Version, client_config, server_config};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::listener::{TlsSlot, serve_listener};
use crate::stats::{HttpMetric, ListenerMetric};
use crate::testing::{
    Gateway, backend, chain, cluster, forward, listener, manager_of, ok, on_worker, route, to, virtual_host,
};

fn http_to(name: &str, cluster: &str) -> FilterChain {
    let manager = manager_of(vec![virtual_host(vec![route("/", forward(to(cluster)))])]);
    FilterChain { name: name.into(), ..chain(NetworkFilter::Http(Arc::new(manager))) }
}

/// Serves the gateway's listener on a socket; the accept loop's end can be waited for.
fn listen(gateway: &Gateway) -> (std::net::SocketAddr, tokio::task::JoinHandle<std::io::Result<()>>) {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let (worker, slot) = (Rc::clone(&gateway.worker), Arc::clone(&gateway.slot));
    (address, tokio::task::spawn_local(serve_listener(worker, socket, slot)))
}

const KEEP: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";

/// One response with a body of three bytes.
async fn response(stream: &mut (impl AsyncReadExt + Unpin)) -> String {
    let mut seen = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&seen).into_owned();
        if text.split_once("\r\n\r\n").is_some_and(|(_, body)| body.len() >= 3) {
            return text;
        }
        let read = tokio::time::timeout(Duration::from_secs(10), stream.read_buf(&mut seen));
        assert!(read.await.expect("an answer in time").unwrap() > 0, "the connection ended after {text:?}");
    }
}

#[test]
fn a_listener_that_drains_finishes_what_it_has() {
    on_worker(async {
        let host = backend(|_| ok("yes")).await;
        let gateway = Gateway::start(vec![cluster("a", &[host])], listener(vec![http_to("chain", "a")]));
        let (address, served) = listen(&gateway);
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(KEEP).await.unwrap();
        assert!(!response(&mut client).await.contains("connection: close"), "the connection stays");
        gateway.slot.drain(Duration::from_secs(10));
        served.await.unwrap().unwrap();
        assert!(TcpStream::connect(address).await.is_err(), "the socket is closed");
        client.write_all(KEEP).await.unwrap();
        assert!(response(&mut client).await.contains("connection: close"), "the last request is answered, and says so");
        gateway.slot.drained().await;
    });
}

/// Turns that another task of the worker had until so many connections that waited were accepted.
async fn turns_beside(accepts_per_event: u32, connections: usize) -> usize {
    let gateway = Gateway::start(vec![], Listener { accepts_per_event, ..listener(vec![http_to("chain", "a")]) });
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let waiting: Vec<_> = (0..connections).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
    let (worker, slot) = (Rc::clone(&gateway.worker), Arc::clone(&gateway.slot));
    tokio::task::spawn_local(serve_listener(worker, socket, slot));
    let mut turns = 0;
    while stat(&gateway, ListenerMetric::CxTotal) < waiting.len() as u64 {
        tokio::task::yield_now().await;
        turns += 1;
        assert!(turns < 100_000, "{} of {connections} are accepted", stat(&gateway, ListenerMetric::CxTotal));
    }
    turns
}

#[test]
fn connections_that_come_at_once_leave_turns_to_what_is_served() {
    on_worker(async {
        let few = turns_beside(1000, 64).await;
        let many = turns_beside(1, 64).await;
        assert!(many >= 64, "expected a turn between any two of 64 connections, saw {many}");
        assert!(few < 32, "expected 64 connections to be accepted in a few turns where 1000 may be, saw {few}");
    });
}

#[test]
fn what_waits_in_the_accept_queue_is_served() {
    on_worker(async {
        let host = backend(|_| ok("yes")).await;
        let gateway = Gateway::start(vec![cluster("a", &[host])], listener(vec![http_to("chain", "a")]));
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        // Connected before anybody accepts, and the listener drains at once.
        let client = std::net::TcpStream::connect(socket.local_addr().unwrap()).unwrap();
        client.set_nonblocking(true).unwrap();
        let mut client = TcpStream::from_std(client).unwrap();
        gateway.slot.drain(Duration::from_secs(10));
        serve_listener(Rc::clone(&gateway.worker), socket, Arc::clone(&gateway.slot)).await.unwrap();
        client.write_all(KEEP).await.unwrap();
        assert!(response(&mut client).await.starts_with("HTTP/1.1 200"), "it is served");
    });
}

#[test]
fn only_chains_that_changed_drain() {
    on_worker(async {
        let one = backend(|_| ok("one")).await;
        let two = backend(|_| ok("two")).await;
        let gateway = Gateway::start(
            vec![cluster("one", &[one]), cluster("two", &[two])],
            listener(vec![http_to("chain", "one")]),
        );
        let mut client = gateway.connect();
        client.write_all(KEEP).await.unwrap();
        assert!(response(&mut client).await.ends_with("one"), "the first generation");
        let same = Listener { tcp_backlog: 7, ..listener(vec![http_to("chain", "one")]) };
        // Equal by value and another object: the model is parsed anew with every push.
        gateway.publish(same, &|_| unreachable!("no TLS"));
        client.write_all(KEEP).await.unwrap();
        let text = response(&mut client).await;
        assert!(text.ends_with("one") && !text.contains("connection: close"), "the connection did not notice: {text}");
        gateway.publish(listener(vec![http_to("chain", "two")]), &|_| unreachable!("no TLS"));
        client.write_all(KEEP).await.unwrap();
        let text = response(&mut client).await;
        assert!(text.ends_with("one") && text.contains("connection: close"), "its chain drains: {text}");
        let mut client = gateway.connect();
        client.write_all(KEEP).await.unwrap();
        assert!(response(&mut client).await.ends_with("two"), "new connections see the new chain");
    });
}

#[test]
fn without_a_permit_nothing_is_accepted() {
    on_worker(async {
        let host = backend(|_| ok("yes")).await;
        let limited = Listener { max_connections: Some(1), ..listener(vec![http_to("chain", "a")]) };
        let gateway = Gateway::start(vec![cluster("a", &[host])], limited);
        let (address, _served) = listen(&gateway);
        let mut first = TcpStream::connect(address).await.unwrap();
        first.write_all(KEEP).await.unwrap();
        response(&mut first).await;
        let mut second = TcpStream::connect(address).await.unwrap();
        second.write_all(KEEP).await.unwrap();
        let early = tokio::time::timeout(Duration::from_millis(100), response(&mut second)).await;
        assert!(early.is_err(), "the second waits in the kernel");
        drop(first);
        assert!(response(&mut second).await.ends_with("yes"), "and is served when the first has gone");
    });
}

fn tls() -> DownstreamTls {
    let common = CommonTls {
        certificates: Vec::new(),
        validation: None,
        validation_default: None,
        alpn: Vec::new(),
        min: TlsVersion::V1_2,
        max: TlsVersion::V1_3,
    };
    DownstreamTls { common, require_client_certificate: false }
}

/// A server's configuration for `name`, and its certificate.
fn certified(name: &str) -> (Arc<rustls::ServerConfig>, String) {
    let rcgen::CertifiedKey { cert, signing_key } = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    let identity = Identity::from_pem(cert.pem().as_bytes(), signing_key.serialize_pem().as_bytes()).unwrap();
    let config = server_config(ServerTls {
        identities: vec![identity],
        trust: None,
        require_client_certificate: false,
        alpn: vec![b"http/1.1".to_vec()],
        min: Version::V1_2,
        max: Version::V1_3,
    });
    (config.unwrap(), cert.pem())
}

async fn secure(gateway: &Gateway, name: &'static str, trusted: &str) -> std::io::Result<String> {
    let config = client_config(ClientTls {
        identity: None,
        trust: Some(Trust { roots: Roots::Pem(trusted.as_bytes().into()), crl: None, sans: Vec::new() }),
        verify_server_name: true,
        send_server_name: true,
        alpn: vec![b"http/1.1".to_vec()],
        min: Version::V1_2,
        max: Version::V1_3,
    })
    .unwrap();
    let connector = tokio_rustls::TlsConnector::from(config);
    let mut stream = connector.connect(name.try_into().unwrap(), gateway.connect()).await?;
    stream.write_all(KEEP).await?;
    Ok(response(&mut stream).await)
}

fn stat(gateway: &Gateway, metric: ListenerMetric) -> u64 {
    gateway.slot.stats.read(metric)
}

#[test]
fn server_names_choose_chain_and_certificate() {
    on_worker(async {
        let one = backend(|_| ok("one")).await;
        let two = backend(|request| ok(if request.contains("x-forwarded-proto: https") { "two" } else { "not" })).await;
        let (first, first_pem) = certified("one.example");
        let (second, second_pem) = certified("two.example");
        let on = |name: &str, cluster: &str| FilterChain {
            matches: FilterChainMatch { server_names: vec![name.into()], ..FilterChainMatch::default() },
            tls: Some(Arc::new(tls())),
            ..http_to(name, cluster)
        };
        let plain = FilterChain {
            matches: FilterChainMatch {
                transport_protocol: Some(TransportProtocol::RawBuffer),
                ..FilterChainMatch::default()
            },
            ..http_to("plain", "one")
        };
        let gateway = Gateway::start(vec![cluster("one", &[one]), cluster("two", &[two])], listener(Vec::new()));
        // One way to inspect while every chain is TLS, another when one is not.
        for with_plain in [false, true] {
            let slots = [TlsSlot::new(Some(Arc::clone(&first))), TlsSlot::new(Some(Arc::clone(&second)))];
            let next = std::cell::Cell::new(0);
            let mut chains = vec![on("one.example", "one"), on("*.example", "two")];
            if with_plain {
                chains.push(plain.clone());
            }
            let fresh = Listener { inspect_tls: with_plain, ..listener(chains) };
            gateway.publish(listener(Vec::new()), &|_| unreachable!("no chains"));
            gateway.publish(fresh, &|_| {
                next.set(next.get() + 1);
                Arc::clone(&slots[next.get() - 1])
            });
            let text = secure(&gateway, "one.example", &first_pem).await.unwrap();
            assert!(text.ends_with("one"), "{text}");
            let text = secure(&gateway, "two.example", &second_pem).await.unwrap();
            assert!(text.ends_with("two"), "{text}");
            if with_plain {
                let mut client = gateway.connect();
                client.write_all(KEEP).await.unwrap();
                assert!(response(&mut client).await.ends_with("one"), "plaintext beside TLS");
            }
            slots[0].publish(None);
            assert!(secure(&gateway, "one.example", &first_pem).await.is_err(), "no certificate, no handshake");
        }
        assert_eq!(stat(&gateway, ListenerMetric::SslHandshake), 4, "four handshakes");
        assert_eq!(stat(&gateway, ListenerMetric::SslNotReady), 2, "two without certificate");
        assert_eq!(gateway.http_stat(HttpMetric::CxSslTotal), 4, "four connections over TLS");
    });
}

/// `By=` of `x-forwarded-client-cert` is the certificate that this very handshake presented.
#[test]
fn upstreams_hear_which_certificate_was_presented() {
    on_worker(async {
        let own = |name: &str, uri: &str| {
            let mut params = rcgen::CertificateParams::new([name.to_owned()]).unwrap();
            params.subject_alt_names.push(rcgen::SanType::URI(uri.try_into().unwrap()));
            let key = rcgen::KeyPair::generate().unwrap();
            let pem = params.self_signed(&key).unwrap().pem();
            let identity = Identity::from_pem(pem.as_bytes(), key.serialize_pem().as_bytes()).unwrap();
            (pem, identity)
        };
        let (first, second) = (own("one.example", "spiffe://x/one"), own("two.example", "spiffe://x/two"));
        let client = own("client.example", "spiffe://x/client");
        let trust = |pem: &str| Some(Trust { roots: Roots::Pem(pem.as_bytes().into()), crl: None, sans: Vec::new() });
        let (min, max) = (Version::V1_2, Version::V1_3);
        let identities = vec![first.1, second.1];
        let server = ServerTls {
            identities,
            trust: trust(&client.0),
            require_client_certificate: true,
            alpn: Vec::new(),
            min,
            max,
        };
        let slot = TlsSlot::new(Some(server_config(server).unwrap()));
        let host = backend(|request| {
            let by = request.lines().find_map(|line| line.strip_prefix("x-forwarded-client-cert: By="));
            ok(by.and_then(|by| by.split(';').next()?.strip_prefix("spiffe://x/")).unwrap_or("nobody"))
        });
        let manager = HttpConnectionManager {
            forward_client_cert: ForwardClientCert::SanitizeSet,
            ..manager_of(vec![virtual_host(vec![route("/", forward(to("a")))])])
        };
        let chain = FilterChain { tls: Some(Arc::new(tls())), ..chain(NetworkFilter::Http(Arc::new(manager))) };
        let gateway = Gateway::start(vec![cluster("a", &[host.await])], listener(Vec::new()));
        gateway.publish(listener(vec![chain]), &|_| Arc::clone(&slot));
        for (name, pem, expected) in [("one.example", &first.0, "one"), ("two.example", &second.0, "two")] {
            let config = ClientTls {
                identity: Some(client.1.clone()),
                trust: trust(pem),
                verify_server_name: true,
                send_server_name: true,
                alpn: Vec::new(),
                min,
                max,
            };
            let connector = tokio_rustls::TlsConnector::from(client_config(config).unwrap());
            let mut stream = connector.connect(name.try_into().unwrap(), gateway.connect()).await.unwrap();
            stream.write_all(KEEP).await.unwrap();
            let text = response(&mut stream).await;
            assert!(text.ends_with(&format!("\r\n\r\n{expected}")), "{name}: {text}");
        }
    });
}

#[test]
fn a_connection_that_no_chain_takes_is_closed() {
    on_worker(async {
        let only = FilterChain {
            matches: FilterChainMatch { destination_port: Some(9), ..FilterChainMatch::default() },
            ..http_to("chain", "a")
        };
        let gateway = Gateway::start(Vec::new(), listener(vec![only]));
        let mut client = gateway.connect();
        let mut seen = Vec::new();
        client.read_to_end(&mut seen).await.unwrap();
        assert!(seen.is_empty(), "closed without a byte");
        assert_eq!(stat(&gateway, ListenerMetric::NoFilterChainMatch), 1, "and counted");
        assert_eq!(stat(&gateway, ListenerMetric::CxActive), 0, "nothing is left");
    });
}

#[test]
fn an_idle_connection_is_small() {
    on_worker(async {
        let gateway = Gateway::start(Vec::new(), listener(vec![http_to("chain", "a")]));
        let served = gateway.worker.listener(&gateway.slot).serving(Io::memory(tokio::io::duplex(1).0));
        let size = size_of_val(&served);
        assert!(size <= 2048, "the task of a connection takes {size} bytes, at most 2048 of the goal of 4 KiB");
    });
}
