use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

use super::*;

/// As an Envoy 1.40 sent it.
const REQUEST: &str = "GET /reverse_connections/request HTTP/1.1\r\n\
    host: 127.0.0.1:21001\r\n\
    x-envoy-reverse-tunnel-node-id: edge-1\r\n\
    x-envoy-reverse-tunnel-cluster-id: edge-cluster\r\n\
    x-envoy-reverse-tunnel-tenant-id: tenant-a\r\n\
    x-envoy-reverse-tunnel-upstream-cluster-name: cloud\r\n\
    x-envoy-reverse-tunnel-initiation-time: 1795252118690\r\n\
    x-envoy-reverse-tunnel-worker-id: worker_0\r\n\
    x-envoy-reverse-tunnel-connection-id: 0\r\n\
    content-length: 0\r\n\r\n";
const PREFIX: &str = "x-envoy";

fn head() -> RequestHead<'static> {
    RequestHead {
        path: DEFAULT_PATH,
        host: "127.0.0.1:21001",
        upgrade: false,
        prefix: PREFIX,
        node: "edge-1",
        cluster: "edge-cluster",
        tenant: "tenant-a",
        upstream_cluster: "cloud",
        time: 1_795_252_118_690,
        worker: 0,
        connection: 0,
        additional: &[],
        tls_kept: false,
    }
}

/// Reads in pieces of `size` bytes.
fn read(bytes: &[u8], size: usize) -> Result<Option<(Request, Bytes)>, Answer> {
    let mut reader = RequestReader::default();
    let mut pieces = bytes.chunks(size);
    while let Some(piece) = pieces.next() {
        reader.buffer().extend_from_slice(piece);
        if let Some(request) = reader.next_request()? {
            pieces.for_each(|piece| reader.buffer().extend_from_slice(piece));
            return Ok(Some((request, reader.into_surplus())));
        }
    }
    Ok(None)
}

fn refused(bytes: &[u8]) -> Answer {
    match read(bytes, bytes.len().max(1)) {
        Err(answer) => answer,
        Ok(Some((request, _))) => match request.identity(PREFIX) {
            Err(answer) => answer,
            Ok(identity) => panic!("accepted as {identity:?}: {:?}", String::from_utf8_lossy(bytes)),
        },
        Ok(None) => panic!("waits for more: {:?}", String::from_utf8_lossy(bytes)),
    }
}

/// The request with its fields changed.
fn with(find: &str, replace: &str) -> Vec<u8> {
    assert!(REQUEST.contains(find), "the test's own mistake: {find:?}");
    REQUEST.replace(find, replace).into_bytes()
}

#[test]
fn the_request_is_envoys_byte_for_byte() {
    assert_eq!(String::from_utf8(head().encode()).unwrap(), REQUEST);
    let upgrade = String::from_utf8(RequestHead { upgrade: true, ..head() }.encode()).unwrap();
    let expected = REQUEST.replace("21001\r\n", "21001\r\nconnection: upgrade\r\nupgrade: reverse-tunnel\r\n");
    assert_eq!(upgrade, expected);
    let additional = [("authorization".to_owned(), "Bearer x".to_owned())];
    let more = RequestHead { additional: &additional, tls_kept: true, ..head() }.encode();
    let expected = "authorization: Bearer x\r\nculvert-tunnel-tls: kept\r\ncontent-length: 0\r\n\r\n";
    assert!(String::from_utf8(more).unwrap().ends_with(expected), "behind Envoy's own fields");
}

#[test]
fn the_request_is_read_whatever_way_it_is_cut() {
    let identity = Identity { node: "edge-1".into(), cluster: "edge-cluster".into(), tenant: "tenant-a".into() };
    let bytes = [REQUEST.as_bytes(), b"RPI"].concat();
    for size in 1..bytes.len() {
        let (request, surplus) = read(&bytes, size).unwrap().expect("the request is whole");
        assert_eq!(request.identity(PREFIX), Ok(identity.clone()), "in pieces of {size}");
        assert_eq!((request.method.as_str(), request.path.as_str()), ("GET", DEFAULT_PATH), "in pieces of {size}");
        assert!(!request.upgrade && !request.keeps_tls(), "in pieces of {size}");
        assert_eq!(surplus, "RPI", "in pieces of {size}");
    }
    for length in 0..REQUEST.len() {
        assert_eq!(read(&REQUEST.as_bytes()[..length], 1), Ok(None), "after {length} bytes");
    }
}

#[test]
fn fields_are_told_from_one_another() {
    let upgraded = with("host:", "Connection: keep-alive, Upgrade\r\nUPGRADE: Reverse-Tunnel\r\nhost:");
    assert!(read(&upgraded, 7).unwrap().unwrap().0.upgrade);
    let other = with("host:", "connection: upgrade\r\nupgrade: websocket\r\nhost:");
    assert!(!read(&other, 7).unwrap().unwrap().0.upgrade, "another protocol");
    let kept = with("content-length: 0", "Culvert-Tunnel-TLS: kept\r\ncontent-length: 0");
    assert!(read(&kept, 7).unwrap().unwrap().0.keeps_tls());
    let request = read(REQUEST.as_bytes(), 500).unwrap().unwrap().0;
    for (required, expected) in [("cloud", Ok(())), ("other", Err(Answer::UpstreamClusterWrong))] {
        assert_eq!(request.check_upstream_cluster(PREFIX, required), expected, "{required}");
    }
    let without = with("x-envoy-reverse-tunnel-upstream-cluster-name: cloud\r\n", "");
    let request = read(&without, 500).unwrap().unwrap().0;
    assert_eq!(request.check_upstream_cluster(PREFIX, "cloud"), Err(Answer::UpstreamClusterMissing));
    // What Envoy takes too.
    for bytes in [
        with("host: 127.0.0.1:21001\r\n", ""),
        with("content-length: 0\r\n", ""),
        with("content-length: 0\r\n\r\n", "transfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
        with("edge-1", &"n".repeat(8192)),
    ] {
        for size in [1, 64, bytes.len()] {
            let (request, surplus) = read(&bytes, size).unwrap().expect("the request is whole");
            assert!(request.identity(PREFIX).is_ok() && surplus.is_empty(), "{:?}", String::from_utf8_lossy(&bytes));
        }
    }
}

#[test]
fn what_is_no_request_is_answered() {
    let many: String = (0..100).map(|n| format!("a{n}: b\r\n")).collect();
    let cases: &[(Vec<u8>, Answer)] = &[
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), Answer::BadRequest),
        (b"what is this\r\n".to_vec(), Answer::BadRequest),
        (b"GET\r\n".to_vec(), Answer::BadRequest),
        (b"GET /reverse_connections/request HTTP/1.1\r\nno colon\r\n\r\n".to_vec(), Answer::BadRequest),
        (b"GET /\0 HTTP/1.1\r\n".to_vec(), Answer::BadRequest),
        (with("HTTP/1.1", "HTTP/1.0"), Answer::HttpVersion),
        (with("HTTP/1.1", "HTTP/2.0"), Answer::BadRequest),
        (with("host: ", "host : "), Answer::BadRequest),
        (with("host: ", " folded: "), Answer::BadRequest),
        (with("host: ", &format!("{many}host: ")), Answer::HeadTooLarge),
        (with("edge-1", &"n".repeat(MAX_HEAD)), Answer::HeadTooLarge),
        ([b"G".repeat(MAX_HEAD), b"G".to_vec()].concat(), Answer::HeadTooLarge),
        (with("content-length: 0\r\n\r\n", "content-length: 3\r\n\r\nabc"), Answer::Body),
        (with("content-length: 0", "content-length: -1"), Answer::Body),
        (with("content-length: 0", "content-length: 0\r\ncontent-length: 0"), Answer::BadRequest),
        (with("content-length: 0", "content-length: 0\r\ntransfer-encoding: chunked"), Answer::BadRequest),
        (with("content-length: 0", "transfer-encoding: gzip"), Answer::BadRequest),
        (with("content-length: 0\r\n\r\n", "transfer-encoding: chunked\r\n\r\n1\r\na"), Answer::Body),
        (with("x-envoy-reverse-tunnel-node-id: edge-1\r\n", ""), Answer::HeadersMissing),
        (with("x-envoy-reverse-tunnel-cluster-id: edge-cluster\r\n", ""), Answer::HeadersMissing),
        (with("x-envoy-reverse-tunnel-tenant-id: tenant-a\r\n", ""), Answer::HeadersMissing),
        (with("tenant-a", ""), Answer::TenantEmpty),
        (with("tenant-a", " \t "), Answer::TenantEmpty),
        (with("edge-1", ""), Answer::NodeEmpty),
        (with("edge-cluster", ""), Answer::ClusterEmpty),
        (with("edge-1", &"n".repeat(8193)), Answer::IdInvalid),
        (with("host: ", "x-envoy-reverse-tunnel-node-id: edge-2\r\nhost: "), Answer::IdInvalid),
        (with("edge-1", "edge\t1"), Answer::IdInvalid),
        (with("edge-1", "edge\u{85}1"), Answer::IdInvalid),
    ];
    for (bytes, expected) in cases {
        assert_eq!(refused(bytes), *expected, "{:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(600)]));
    }
    let not_text = [&REQUEST.as_bytes()[..REQUEST.find("edge-1").unwrap()], b"\xff\xfe\r\n\r\n"].concat();
    let request = read(&not_text, 64).unwrap().unwrap().0;
    assert_eq!(request.identity(PREFIX), Err(Answer::IdInvalid), "bytes that are no UTF-8");
}

#[test]
fn answers_are_envoys() {
    let plain = Answer::Accepted { upgrade: false, tls_kept: false }.encode();
    assert_eq!(plain, b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
    assert_eq!(plain.len(), 38);
    let upgrade = Answer::Accepted { upgrade: true, tls_kept: false }.encode();
    let expected = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: reverse-tunnel\r\n\r\n";
    assert_eq!(upgrade, expected);
    assert_eq!(upgrade.len(), 82);
    let refusal = String::from_utf8(Answer::NotFound.encode()).unwrap();
    let expected = "HTTP/1.1 404 Not Found\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n1c\r\nNot a reverse tunnel request\r\n0\r\n\r\n";
    assert_eq!(refusal, expected);
    for (answer, start) in [
        (Answer::UpgradeRequired, "HTTP/1.1 426 Upgrade Required\r\nupgrade: reverse-tunnel\r\n"),
        (Answer::TooMany, "HTTP/1.1 429 Too Many Requests\r\nretry-after: 1\r\n"),
        (Answer::HeadTooLarge, "HTTP/1.1 431 Request Header Fields Too Large\r\n"),
        (Answer::Unauthenticated, "HTTP/1.1 401 Unauthorized\r\n"),
        (Answer::ValidationFailed, "HTTP/1.1 403 Forbidden\r\n"),
    ] {
        let answer = String::from_utf8(answer.encode()).unwrap();
        assert!(answer.starts_with(start), "saw {answer:?}");
    }
}

/// What an initiator makes of an answer that comes in pieces of `size` bytes.
fn answered(bytes: &[u8], upgrade: bool, size: usize) -> Result<Option<(Accepted, Bytes)>, ResponseError> {
    let mut reader = ResponseReader::default();
    let mut pieces = bytes.chunks(size);
    while let Some(piece) = pieces.next() {
        reader.buffer().extend_from_slice(piece);
        if let Some(accepted) = reader.next_response(upgrade)? {
            pieces.for_each(|piece| reader.buffer().extend_from_slice(piece));
            return Ok(Some((accepted, reader.into_surplus())));
        }
    }
    Ok(None)
}

#[test]
fn answers_are_read_with_what_stands_behind() {
    for upgrade in [false, true] {
        for tls_kept in [false, true] {
            let mut bytes = Answer::Accepted { upgrade, tls_kept }.encode();
            let length = bytes.len();
            bytes.extend_from_slice(b"PRI * HTTP/2.0");
            for size in 1..bytes.len() {
                let (accepted, surplus) = answered(&bytes, upgrade, size).unwrap().expect("the answer is whole");
                assert_eq!(accepted, Accepted { tls_kept }, "in pieces of {size}");
                assert_eq!(surplus, "PRI * HTTP/2.0", "in pieces of {size}");
            }
            assert_eq!(answered(&bytes[..length - 1], upgrade, 1), Ok(None), "all but one byte");
        }
    }
}

#[test]
fn answers_that_are_no_success() {
    let refused = |status, reason: &str| ResponseError::Refused { status, reason: reason.to_owned() };
    let ok = Answer::Accepted { upgrade: false, tls_kept: false }.encode();
    let switched = Answer::Accepted { upgrade: true, tls_kept: false }.encode();
    let cases: &[(Vec<u8>, bool, ResponseError)] = &[
        (Answer::TooMany.encode(), false, refused(429, "Too Many Requests: rejected")),
        (Answer::Unauthenticated.encode(), true, refused(401, "Unauthorized: JWT authentication failed")),
        (b"HTTP/1.1 503 \x1b[31m\r\n\r\n".to_vec(), false, ResponseError::Malformed("its head cannot be read")),
        (ok, true, ResponseError::OtherMode { status: 200, expected: 101 }),
        (switched, false, ResponseError::OtherMode { status: 101, expected: 200 }),
        (
            b"HTTP/1.1 101 S\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n".to_vec(),
            true,
            ResponseError::Malformed("a 101 to another protocol"),
        ),
        (
            b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nRPING".to_vec(),
            false,
            ResponseError::Malformed("a 200 with a body"),
        ),
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec(),
            false,
            ResponseError::Malformed("a 200 with a body"),
        ),
        // In one piece as in many.
        (b"\nHTTP/1.1 200 OK\r\n\r\n".to_vec(), false, ResponseError::Malformed("it does not begin with HTTP/1.")),
        (b"SSH-2.0-x".to_vec(), false, ResponseError::Malformed("it does not begin with HTTP/1.")),
        (b"\x20\x88\x01".to_vec(), false, ResponseError::Malformed("it does not begin with HTTP/1.")),
        (
            [b"HTTP/1.1 200 OK\r\na: ".to_vec(), b"a".repeat(MAX_HEAD)].concat(),
            false,
            ResponseError::Malformed("a head of more than 64 KiB"),
        ),
    ];
    for (bytes, upgrade, expected) in cases {
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(80)]).into_owned();
        assert_eq!(answered(bytes, *upgrade, bytes.len()), Err(expected.clone()), "{shown:?}");
    }
}

#[test]
fn a_head_that_drips_in_is_looked_at_once() {
    let mut end = HeadEnd::default();
    let mut buffer = BytesMut::new();
    for byte in b"a\r\n\r" {
        buffer.extend_from_slice(&[*byte]);
        assert_eq!(end.find(&buffer), None);
        assert_eq!(end.seen, buffer.len(), "what was looked at is not looked at again");
    }
    buffer.extend_from_slice(b"\nrest");
    assert_eq!(end.find(&buffer), Some(5));
}

/// What mutations put into a handshake.
const PIECES: [&[u8]; 12] = [
    b"\r\n\r\n",
    b"\n",
    b"\0",
    b"content-length: 5\r\n",
    b"transfer-encoding: chunked\r\n",
    b"0\r\n\r\n",
    b"connection: upgrade\r\nupgrade: reverse-tunnel\r\n",
    b"x-envoy-reverse-tunnel-node-id: other\r\n",
    b"HTTP/1.1 101 S",
    b"\x20\x88\x01",
    b"\xff\xfe",
    b": ",
];

/// `bytes` with a few places overwritten, cut out, or with something put in.
fn damaged(bytes: &[u8], edits: &[(prop::sample::Index, u8, u8)]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for (at, kind, value) in edits {
        let at = at.index(bytes.len().max(1)).min(bytes.len());
        match kind % 3 {
            0 => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte = *value),
            1 => drop(bytes.drain(at..(at + usize::from(value % 40)).min(bytes.len()))),
            _ => drop(bytes.splice(at..at, PIECES[usize::from(*value) % PIECES.len()].iter().copied())),
        }
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Whatever comes, the verdict is the same in one piece and byte by byte.
    #[test]
    fn damaged_handshakes_are_judged_alike_however_they_are_cut(
        edits in prop::collection::vec(any::<(prop::sample::Index, u8, u8)>(), 0..6),
        upgrade in any::<bool>(),
    ) {
        let request = damaged(&RequestHead { upgrade, ..head() }.encode(), &edits);
        let (whole, dripped) = (read(&request, request.len().max(1)), read(&request, 1));
        // A field that is wrong may be seen as soon as it is there or with the head's end: only what is accepted is compared.
        let accepted = |outcome: Result<Option<(Request, Bytes)>, Answer>| {
            let (request, surplus) = outcome.ok().flatten()?;
            Some((format!("{:?}", request.identity(PREFIX)), surplus))
        };
        prop_assert_eq!(accepted(whole), accepted(dripped), "{:?}", String::from_utf8_lossy(&request));

        let answer = damaged(&Answer::Accepted { upgrade, tls_kept: true }.encode(), &edits);
        let (whole, dripped) = (answered(&answer, upgrade, answer.len().max(1)), answered(&answer, upgrade, 1));
        prop_assert_eq!(whole.ok().flatten(), dripped.ok().flatten(), "{:?}", String::from_utf8_lossy(&answer));
    }
}
