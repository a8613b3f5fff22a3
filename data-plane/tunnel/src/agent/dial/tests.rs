use tokio::io::AsyncReadExt;

use super::*;
use crate::wire::Response;

fn frame(version: u8, flag: u8, kind: [u8; 2], payload: &str) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
    [&[0x20, 0x88, version, flag, kind[0], kind[1], length[0], length[1]], payload.as_bytes()].concat()
}

fn reply(payload: &str) -> Vec<u8> {
    frame(1, 2, [2, 0], payload)
}

/// A server that reads the init frame, sends `answer` in pieces of `piece` bytes, and closes if `closes`.
async fn against(answer: &[u8], piece: usize, closes: bool) -> Result<Established, DialError> {
    let init = Frame::Init(Init { cluster_name: "edge".into(), weight: 10, ..Init::default() }).encode().unwrap();
    let (ours, mut server) = tokio::io::duplex(100_000);
    let (expected, answer) = (init.clone(), answer.to_vec());
    let script = tokio::spawn(async move {
        let mut received = vec![0; expected.len()];
        server.read_exact(&mut received).await.unwrap();
        assert_eq!(received, expected, "the init frame");
        for piece in answer.chunks(piece) {
            server.write_all(piece).await.unwrap();
            tokio::task::yield_now().await;
        }
        if !closes {
            std::future::pending::<()>().await;
        }
    });
    let address = "127.0.0.1:1".parse().unwrap();
    let limit = Duration::from_secs(5);
    let outcome = tokio::time::timeout(limit, handshake(Io::memory(ours), &init, address)).await;
    if !closes {
        script.abort();
    }
    outcome.unwrap_or(Err(DialError::Timeout))
}

#[tokio::test]
async fn accepted_whatever_surrounds_the_status() {
    for answer in [
        reply(r#"{"status":1}"#),
        frame(9, 2, [0xff, 0xff], r#"{"status":1}"#),
        frame(0, 2, [0, 0], r#"{"status":1}"#),
        reply(r#"{"STATUS":1,"more":[{}],"caps":"?"}"#),
        reply(r#" { "status" : 1 } "#),
    ] {
        for piece in [1, 3, 1000] {
            let tunnel = against(&answer, piece, false).await;
            assert!(tunnel.is_ok(), "{:?} in pieces of {piece}: {tunnel:?}", String::from_utf8_lossy(&answer));
        }
    }
}

#[tokio::test]
async fn bytes_behind_the_reply_come_first() {
    let answer = [reply(r#"{"status":1}"#), b"GET / HTTP/1.1\r\n\r\n".to_vec()].concat();
    for piece in [1, 20, 25, 1000] {
        let mut tunnel = against(&answer, piece, true).await.unwrap();
        let mut request = Vec::new();
        tunnel.io.read_to_end(&mut request).await.unwrap();
        assert_eq!(request, b"GET / HTTP/1.1\r\n\r\n", "in pieces of {piece}");
    }
}

#[tokio::test]
async fn a_server_of_ours_names_the_connection() {
    let response = Response {
        status: Status::Success,
        caps: vec![CAPABILITY.into()],
        connection_id: Some("00ff".into()),
        ..Response::default()
    };
    let tunnel = against(&Frame::Response(response).encode().unwrap(), 7, false).await.unwrap();
    assert_eq!((tunnel.id.as_deref(), tunnel.capable), (Some("00ff"), true));
    let stock = against(&reply(r#"{"status":1}"#), 7, false).await.unwrap();
    assert_eq!((stock.id.as_deref(), stock.capable), (None, false), "MOSN's reply");
}

/// What MOSN's agent panics on or is poisoned by: never a tunnel, and each with its retry.
#[tokio::test(start_paused = true)]
async fn everything_else_is_an_error_and_is_tried_again() {
    let refused = |text: &str| format!("the server refused with status {text}");
    for (answer, closes, expected, retry) in [
        (reply(r#"{"status":0}"#), false, refused("0 (not accepted)"), Retry::Normal),
        (reply("{}"), false, refused("0 (not accepted)"), Retry::Normal),
        (reply("null"), false, refused("0 (not accepted)"), Retry::Normal),
        (reply(r#"{"status":2}"#), false, refused("2 (credential or cluster not allowed)"), Retry::Slow),
        (reply(r#"{"status":3}"#), false, refused("3 (credential policy unknown to the server)"), Retry::Slow),
        (reply(r#"{"status":4}"#), false, refused("4 (cluster unknown to the server)"), Retry::Normal),
        (reply(r#"{"status":99}"#), false, refused("99 (unknown status)"), Retry::Normal),
        (reply(r#"{"status":-1}"#), false, refused("-1 (unknown status)"), Retry::Normal),
        (
            reply(r#"{"status":0,"retry_after_ms":700}"#),
            false,
            refused("0 (not accepted)"),
            Retry::After(Duration::from_millis(700)),
        ),
        (
            reply(r#"{"status":2,"retry_after_ms":700}"#),
            false,
            refused("2 (credential or cluster not allowed)"),
            Retry::Slow,
        ),
        (frame(1, 1, [1, 0], "{}"), false, "the server answered with a frame of kind init".into(), Retry::Normal),
        (
            frame(1, 3, [1, 0], "{}"),
            false,
            "the server answered with a frame of kind graceful close".into(),
            Retry::Normal,
        ),
        (b"HTTP/1.1 400 Bad Request\r\n".to_vec(), false, "the answer is none: magic".into(), Retry::Normal),
        (b"\x20\x88\x01\x09\x02\x00\x00\x02{}".to_vec(), false, "the answer is none: unknown".into(), Retry::Normal),
        (reply("{]"), false, "the answer is none: init response frame".into(), Retry::Normal),
        (reply(r#"{"status":"1"}"#), false, "the answer is none: init response frame".into(), Retry::Normal),
        (
            b"\x20\x88\x01\x02\x02\x00\x00\x00".to_vec(),
            false,
            "the answer is none: payload of zero".into(),
            Retry::Normal,
        ),
        (Vec::new(), true, "the server closed the connection".into(), Retry::Normal),
        (reply(r#"{"status":1}"#)[..12].to_vec(), true, "the server closed the connection".into(), Retry::Normal),
        (Vec::new(), false, "connect, TLS and handshake took longer".into(), Retry::Normal),
        (
            reply(r#"{"status":1}"#)[..12].to_vec(),
            false,
            "connect, TLS and handshake took longer".into(),
            Retry::Normal,
        ),
    ] {
        for piece in [1, 1000] {
            let shown = String::from_utf8_lossy(&answer).into_owned();
            let error = against(&answer, piece, closes).await.expect_err(&shown);
            assert!(error.to_string().starts_with(&expected), "{shown:?}: {error}");
            assert_eq!(error.retry(), retry, "{shown:?}");
        }
    }
}
