//! What agents and tunnel servers send each other before there is a tunnel.

use std::time::{Duration, SystemTime};

use bytes::BytesMut;
use culvert_model::tunnel::policy::TokenRules;
use culvert_tunnel::envoy::jwt::KeySet;
use culvert_tunnel::envoy::ping;
use culvert_tunnel::envoy::wire::{Identity, RequestHead, RequestReader, ResponseReader};
use culvert_tunnel::wire::{Decoder, Frame, GracefulClose, HEADER_LEN, Init, Response, Secret};

pub(crate) const WORDS: &[&str] = &[
    " \u{88}",
    "{",
    "}",
    "[",
    "]",
    "\"",
    ":",
    ",",
    "null",
    "true",
    "1e400",
    "-1",
    "\\ud800",
    "\"cluster_name\"",
    "\"weight\"",
    "\"host_name\"",
    "\"credential_policy\"",
    "\"credential\"",
    "\"status\"",
    "\"caps\"",
    "GET ",
    " HTTP/1.1\r\n",
    "\r\n\r\n",
    "x-envoy-reverse-tunnel-node-id: a\r\n",
    "x-envoy-reverse-tunnel-cluster-id: a\r\n",
    "RPING",
    "x-envoy-reverse-tunnel-tenant-id: a\r\n",
    "content-length: 0\r\n",
    "transfer-encoding: chunked\r\n",
    "connection: upgrade\r\n",
    "upgrade: reverse-tunnel\r\n",
    "HTTP/1.1 200 OK\r\n",
    "HTTP/1.1 101 x\r\n",
    "\"keys\"",
    "\"kty\"",
    "\"EC\"",
    "\"OKP\"",
    "\"RSA\"",
    "\"crv\"",
    "\"Ed25519\"",
    "\"P-256\"",
    "\"kid\"",
    "eyJhbGciOiJFZERTQSJ9",
    ".",
];

/// Of a payload.
const MOST: usize = 4096;

/// MOSN's frames: the first byte says how they are cut into pieces. What was understood is written and read again.
pub(crate) fn frames(data: &[u8]) {
    let Some((&how, bytes)) = data.split_first() else { return };
    let whole = decoded(bytes, bytes.len());
    assert_eq!(decoded(bytes, usize::from(how) + 1), whole, "in pieces, and in one");
    for frame in &whole.0 {
        let Ok(encoded) = frame.encode() else { continue };
        let mut decoder = Decoder::new(usize::MAX);
        decoder.push(&encoded);
        let again = decoder.next_frame();
        assert_eq!(again.as_ref().ok(), Some(&Some(frame.clone())), "written and read again: {again:?}");
        assert!(decoder.buffered().is_empty(), "a frame and nothing behind it");
        if let Frame::Init(init) = frame {
            assert!((1..=128).contains(&init.clamped_weight()), "{init:?}");
        }
    }
}

/// All frames, and whether what comes behind them can be one.
fn decoded(bytes: &[u8], piece: usize) -> (Vec<Frame>, bool) {
    let mut decoder = Decoder::new(MOST);
    let mut frames = Vec::new();
    for piece in bytes.chunks(piece.max(1)) {
        decoder.push(piece);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(_) => return (frames, false),
            }
        }
        assert!(decoder.buffered().len() < HEADER_LEN + MOST, "no more than a frame is held");
    }
    (frames, true)
}

pub(crate) fn frame_seeds() -> Vec<Vec<u8>> {
    let init = Init {
        cluster_name: "a".into(),
        weight: 10,
        host_name: "edge-1".into(),
        credential_policy: "token".into(),
        credential: Secret("c".into()),
        caps: vec!["culvert".into()],
        ..Init::default()
    };
    let frames =
        [Frame::Init(init), Frame::Response(Response::default()), Frame::GracefulClose(GracefulClose::default())];
    frames.iter().map(|frame| [&[3][..], &frame.encode().expect("a short frame")].concat()).collect()
}

/// Envoy's handshake, both ways: the first byte says how it is cut into pieces and in which mode.
pub(crate) fn envoy(data: &[u8]) {
    let Some((&how, bytes)) = data.split_first() else { return };
    let piece = usize::from(how & 0x7f) + 1;
    let asked = request(bytes, bytes.len());
    assert_eq!(request(bytes, piece), asked, "a request in pieces, and in one");
    if let Some(identity) = asked {
        let Identity { node, cluster, tenant } = &identity;
        let head = RequestHead {
            path: "/reverse_connections/request",
            host: "h",
            upgrade: how & 0x80 != 0,
            prefix: "x-envoy",
            node,
            cluster,
            tenant,
            upstream_cluster: "c",
            time: 0,
            worker: 0,
            connection: 0,
            additional: &[],
            tls_kept: false,
        };
        let again = request(&head.encode(), usize::MAX);
        assert_eq!(again.as_ref(), Some(&identity), "written and read again");
    }
    let answered = response(bytes, bytes.len(), how & 0x80 != 0);
    assert_eq!(response(bytes, piece, how & 0x80 != 0), answered, "an answer in pieces, and in one");
    let mut buffer = BytesMut::from(bytes);
    let pings = ping::take_pings(&mut buffer);
    assert!(
        bytes.ends_with(&buffer) && bytes.len() - buffer.len() == pings as usize * 5,
        "{pings} pings of five bytes"
    );
}

fn request(bytes: &[u8], piece: usize) -> Option<Identity> {
    let mut reader = RequestReader::default();
    for piece in bytes.chunks(piece.max(1)) {
        reader.buffer().extend_from_slice(piece);
        if let Some(request) = reader.next_request().ok()? {
            assert!(!request.method.is_empty(), "{request:?}");
            return request.identity("x-envoy").ok();
        }
    }
    None
}

fn response(bytes: &[u8], piece: usize, upgrade: bool) -> Option<bool> {
    let mut reader = ResponseReader::default();
    for piece in bytes.chunks(piece.max(1)) {
        reader.buffer().extend_from_slice(piece);
        if let Some(accepted) = reader.next_response(upgrade).ok()? {
            let status = if upgrade { "101" } else { "200" };
            assert_eq!(bytes.get(9..12), Some(status.as_bytes()), "success is what was asked for");
            return Some(accepted.tls_kept);
        }
    }
    None
}

pub(crate) fn envoy_seeds() -> Vec<Vec<u8>> {
    let head = RequestHead {
        path: "/reverse_connections/request",
        host: "192.0.2.1:9000",
        upgrade: true,
        prefix: "x-envoy",
        node: "edge-1",
        cluster: "edge",
        tenant: "a",
        upstream_cluster: "cloud",
        time: 1,
        worker: 0,
        connection: 1,
        additional: &[],
        tls_kept: true,
    };
    let plain = RequestHead { upgrade: false, tls_kept: false, ..head };
    vec![
        [&[0x83][..], &head.encode()].concat(),
        [&[5][..], &plain.encode()].concat(),
        b"\x02HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\nRPING".to_vec(),
        b"\x84HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: reverse-tunnel\r\n\r\n".to_vec(),
        b"\x01RPINGRPINGRPI".to_vec(),
    ]
}

/// A key set, a zero byte, and a token: nobody here has a private key, so nothing is believed.
pub(crate) fn tokens(data: &[u8]) {
    let at = data.iter().position(|byte| *byte == 0).unwrap_or(data.len());
    let (keys, token) = data.split_at(at);
    let rules = TokenRules { issuer: "i".into(), audiences: Vec::new(), clock_skew: Duration::from_secs(60) };
    let token = String::from_utf8_lossy(token.get(1..).unwrap_or_default());
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    for keys in [keys, KEYS.as_bytes()] {
        if let Ok(keys) = KeySet::parse(keys) {
            let believed = keys.verify(&token, &rules, now);
            assert!(believed.is_err(), "a forged token is believed: {believed:?}");
        }
    }
}

/// Public keys of RFC 8037, A.2, and RFC 7515, A.3.
const KEYS: &str = r#"{"keys": [
    {"kty": "OKP", "crv": "Ed25519", "kid": "a", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"},
    {"kty": "EC", "crv": "P-256", "kid": "b", "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
     "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}"#;

pub(crate) fn token_seeds() -> Vec<Vec<u8>> {
    // {"alg":"EdDSA","kid":"a"} and {"iss":"i","exp":1900000000}, with a signature that is none.
    let token = "eyJhbGciOiJFZERTQSIsImtpZCI6ImEifQ.eyJpc3MiOiJpIiwiZXhwIjoxOTAwMDAwMDAwfQ";
    let signature = "A".repeat(86);
    vec![format!("{KEYS}\0{token}.{signature}").into_bytes(), format!("{{}}\0{token}.").into_bytes()]
}
