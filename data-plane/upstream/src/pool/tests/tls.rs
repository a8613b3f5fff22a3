//! TLS towards hosts: names, ALPN, failures.

use tokio_rustls::TlsAcceptor;

use super::*;

/// A self-signed server for `edge.test` and a few more, and a client's configuration that believes it.
fn certificates(alpn: &[&[u8]]) -> (TlsAcceptor, Arc<rustls::ClientConfig>) {
    let key =
        rcgen::generate_simple_self_signed(["edge", "one", "two", "three"].map(|name| format!("{name}.test"))).unwrap();
    let chain = vec![key.cert.der().clone()];
    let private = rustls::pki_types::PrivateKeyDer::Pkcs8(key.signing_key.serialize_der().into());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain.clone(), private)
        .unwrap();
    server.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(chain[0].clone()).unwrap();
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    (TlsAcceptor::from(Arc::new(server)), Arc::new(client))
}

/// Serves what ALPN says.
async fn serve(stream: tokio::net::TcpStream, acceptor: TlsAcceptor) {
    let Ok(stream) = acceptor.accept(stream).await else { return };
    match stream.get_ref().1.alpn_protocol() {
        Some(b"h2") => serve_http2(stream, "tls", 100).await,
        _ => serve_http1(stream, "tls").await,
    }
}

fn named(address: SocketAddr, hostname: &str, protocol: UpstreamProtocol) -> Cluster {
    let mut endpoints = (*crate::fixture::ips(&[address])).clone();
    endpoints.localities[0].endpoints[0].hostname = hostname.into();
    let discovery = culvert_model::cluster::Discovery::Static(Arc::new(endpoints));
    Cluster { discovery, protocol, ..cluster("a", &[]) }
}

#[tokio::test]
async fn alpn_decides_what_is_spoken() {
    use culvert_http::Version::{Http2, Http11};
    let both: &[&[u8]] = &[b"h2", b"http/1.1"];
    let one: &[&[u8]] = &[b"http/1.1"];
    // (what the server takes, the cluster's protocol, what is spoken)
    let cases = [
        (both, UpstreamProtocol::Auto, Http2),
        (one, UpstreamProtocol::Auto, Http11),
        (both, UpstreamProtocol::Http1, Http11),
        (both, UpstreamProtocol::Http2, Http2),
        (both, UpstreamProtocol::Downstream, Http11),
    ];
    for (alpn, protocol, expected) in cases {
        on_worker(async {
            let (acceptor, client) = certificates(alpn);
            let (address, accepted) = listen(move |stream| serve(stream, acceptor.clone())).await;
            let (clusters, pools) = worker();
            clusters.apply(Arc::new(named(address, "edge.test", protocol)), Some(client));
            let slot = clusters.slot("a");
            for round in 0..3 {
                let mut checkout = pools.checkout(&slot, &any()).await.unwrap();
                assert_eq!(checkout.protocol(), expected, "{protocol:?}, round {round}");
                assert_eq!(get(&mut checkout, "/").await.unwrap(), "200 tls /", "{protocol:?}, round {round}");
            }
            assert_eq!(accepted.get(), 1, "{protocol:?}: connections for three requests");
            assert_eq!(counted(&slot, ClusterMetric::SslHandshake), 1, "{protocol:?}: handshakes");
        })
        .await;
    }
}

#[tokio::test]
async fn a_certificate_for_another_name_is_refused() {
    on_worker(async {
        let (acceptor, client) = certificates(&[]);
        let (address, _) = listen(move |stream| serve(stream, acceptor.clone())).await;
        let (clusters, pools) = worker();
        clusters.apply(Arc::new(named(address, "other.test", UpstreamProtocol::Http1)), Some(client));
        let slot = clusters.slot("a");
        let failure = pools.checkout(&slot, &any()).await.unwrap_err();
        assert!(matches!(failure, UpstreamFailure::TlsFailure { .. }), "TLS is to blame: {failure:?}");
        assert_eq!(counted(&slot, ClusterMetric::SslConnectionError), 1, "counted");
    })
    .await;
}

/// Requests that ask for different names share no connection; a certificate is for the name that was asked for.
#[tokio::test]
async fn requests_choose_the_name_of_their_host() {
    use culvert_model::cluster::AutoSni;
    let header = || Some(Arc::from("x-name"));
    // (authority, x-name, header that counts, validates, the server name that is seen; `None`: refused)
    let cases = [
        ("edge.test", "", None, false, Some("edge.test")),
        ("EDGE.test:8443", "", None, false, Some("edge.test")),
        ("10.0.0.1", "edge.test", header(), true, Some("edge.test")),
        ("edge.test", "", header(), true, Some("edge.test")),
        ("10.0.0.1:80", "", None, false, Some("edge.test")),
        ("a b", "", None, false, Some("edge.test")),
        ("other.test", "edge.test", None, true, None),
        ("10.0.0.1", "", None, true, None),
        ("[2001:db8::1]:80", "", None, true, None),
    ];
    for (authority, named, header, validates, expected) in cases {
        on_worker(async {
            let (acceptor, client) = certificates(&[]);
            let seen = Rc::new(RefCell::new(Vec::new()));
            let names = Rc::clone(&seen);
            let (address, accepted) = listen(move |stream| {
                let (acceptor, names) = (acceptor.clone(), Rc::clone(&names));
                async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    names.borrow_mut().push(stream.get_ref().1.server_name().map(str::to_owned));
                    serve_http1(stream, "tls").await;
                }
            })
            .await;
            let (clusters, pools) = worker();
            let auto_sni = Some(AutoSni { header, validates });
            // Its endpoint has a name of its own, which counts where the request has none.
            let config = Cluster { auto_sni, ..named_cluster(address) };
            clusters.apply(Arc::new(config), Some(client));
            let slot = clusters.slot("a");
            let mut head = RequestHead { authority: authority.to_owned(), ..RequestHead::default() };
            head.fields.push(b"x-name", named.as_bytes());
            let context = PickContext { request: Some(&head), ..any() };
            let case = format!("{authority}, x-name {named:?}");
            for round in 0..2 {
                match (pools.checkout(&slot, &context).await, expected) {
                    (Ok(mut checkout), Some(name)) => {
                        assert_eq!(get(&mut checkout, "/").await.unwrap(), "200 tls /", "{case}, round {round}");
                        assert_eq!(*seen.borrow(), [Some(name.to_owned())], "{case}: server names, round {round}");
                    }
                    (Err(UpstreamFailure::TlsFailure { .. }), None) => {}
                    (outcome, _) => panic!("{case}: expected {expected:?}, saw {outcome:?}"),
                }
            }
            let connections = if expected.is_some() { 1 } else { 2 };
            assert_eq!(accepted.get(), connections, "{case}: connections for two requests");
        })
        .await;
    }
}

fn named_cluster(address: SocketAddr) -> Cluster {
    named(address, "edge.test", UpstreamProtocol::Http1)
}

/// A connection that was opened for one name is never another's; what nobody uses any more is closed and forgotten.
#[tokio::test]
async fn names_have_connections_of_their_own() {
    on_worker(async {
        let (acceptor, client) = certificates(&[]);
        let (address, accepted) = listen(move |stream| serve(stream, acceptor.clone())).await;
        let (clusters, pools) = worker();
        let auto_sni = Some(culvert_model::cluster::AutoSni { header: None, validates: false });
        clusters.apply(Arc::new(Cluster { auto_sni, ..named_cluster(address) }), Some(client));
        let slot = clusters.slot("a");
        for round in 0..2 {
            for name in ["one.test", "two.test", "three.test"] {
                let head = RequestHead { authority: name.to_owned(), ..RequestHead::default() };
                let context = PickContext { request: Some(&head), ..any() };
                let mut checkout = pools.checkout(&slot, &context).await.unwrap();
                assert_eq!(get(&mut checkout, "/").await.unwrap(), "200 tls /", "{name}, round {round}");
            }
        }
        assert_eq!(accepted.get(), 3, "one connection for each name");
        for _ in 0..3 {
            assert!(pools.slots.borrow()[&slot.id()].evict_idle(), "each can be taken for another's need");
        }
        assert!(!pools.slots.borrow()[&slot.id()].evict_idle(), "nothing is left");
        pools.sweep();
        assert!(pools.slots.borrow()[&slot.id()].named.borrow().is_empty(), "names that nobody asks for are forgotten");
    })
    .await;
}

#[tokio::test]
async fn a_new_client_configuration_opens_new_connections() {
    on_worker(async {
        let (acceptor, client) = certificates(&[]);
        let (address, accepted) = listen(move |stream| serve(stream, acceptor.clone())).await;
        let (clusters, pools) = worker();
        let config = Arc::new(named(address, "edge.test", UpstreamProtocol::Http1));
        for expected in [1, 2] {
            clusters.apply(Arc::clone(&config), Some(Arc::new((*client).clone())));
            let slot = clusters.slot("a");
            for _ in 0..2 {
                get(&mut pools.checkout(&slot, &any()).await.unwrap(), "/").await.unwrap();
            }
            assert_eq!(accepted.get(), expected, "connections after rotation {expected}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_silent_server_meets_the_connect_timeout() {
    on_worker(async {
        let (_, client) = certificates(&[]);
        let (address, _) = listen(|stream| async move {
            std::future::pending::<()>().await;
            drop(stream);
        })
        .await;
        let (clusters, pools) = worker();
        let limit = Duration::from_millis(50);
        let config = Cluster { connect_timeout: limit, ..named(address, "edge.test", UpstreamProtocol::Http1) };
        clusters.apply(Arc::new(config), Some(client));
        let slot = clusters.slot("a");
        let failure = pools.checkout(&slot, &any()).await.unwrap_err();
        assert_eq!(failure, UpstreamFailure::ConnectTimeout { address, limit }, "no handshake in 50 ms");
        assert_eq!(counted(&slot, ClusterMetric::CxConnectTimeout), 1, "counted");
    })
    .await;
}
