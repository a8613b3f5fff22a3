//! TLS towards hosts: names, ALPN, failures.

use tokio_rustls::TlsAcceptor;

use super::*;

/// A self-signed server for `edge.test`, and a client's configuration that believes it.
fn certificates(alpn: &[&[u8]]) -> (TlsAcceptor, Arc<rustls::ClientConfig>) {
    let key = rcgen::generate_simple_self_signed(vec!["edge.test".to_owned()]).unwrap();
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
