//! The first bytes of a connection: TLS or not, and for whom.

use std::sync::Arc;

use culvert_http::Io;
use culvert_proxy::listener::{Hello, read_ahead};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

use crate::relay::on_worker;

/// The first byte says how the connection is cut into pieces. What is looked at is put back, and pieces make no
/// difference.
pub(crate) fn hello(data: &[u8]) {
    let Some((&how, bytes)) = data.split_first() else { return };
    on_worker(async {
        let whole = inspected(bytes, bytes.len()).await;
        let cut = inspected(bytes, usize::from(how) + 1).await;
        if let Some(hello) = &whole {
            assert!(bytes.first() == Some(&22) || !hello.tls, "taken for TLS");
            let name = hello.server_name.as_deref().unwrap_or_default();
            assert!(name.len() < 256 && !name.bytes().any(|byte| byte.is_ascii_uppercase()), "{name:?}");
        }
        assert_eq!(cut, whole, "in pieces, and in one");
    });
}

async fn inspected(bytes: &[u8], piece: usize) -> Option<Hello> {
    let (near, mut far) = duplex(bytes.len() + 1);
    let send = async {
        for piece in bytes.chunks(piece.max(1)) {
            far.write_all(piece).await.expect("room for all of it");
            tokio::task::yield_now().await;
        }
        drop(far);
    };
    let ((), read) = tokio::join!(send, read_ahead(Io::memory(near)));
    let (mut io, hello) = read.ok()?;
    let mut seen = Vec::new();
    io.read_to_end(&mut seen).await.expect("memory can be read");
    assert_eq!(seen, bytes, "what was looked at is put back");
    Some(hello)
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let mut seeds = vec![b"\x03GET / HTTP/1.1\r\n".to_vec(), vec![0, 22, 3], vec![9, 22, 3, 1, 0, 2, 1, 0]];
    for (name, alpn) in [("a.test", &[][..]), ("Sub.Example.TEST", &[b"h2".to_vec(), b"http/1.1".to_vec()][..])] {
        let mut config = config.clone();
        config.alpn_protocols = alpn.to_vec();
        let name = ServerName::try_from(name).expect("a name");
        let mut client = rustls::ClientConnection::new(Arc::new(config), name).expect("a client");
        let mut seed = vec![7];
        client.write_tls(&mut seed).expect("a hello");
        seeds.push(seed);
    }
    seeds
}
