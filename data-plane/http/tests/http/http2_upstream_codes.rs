//! What a server may not send, the error that answers it, and what becomes of the exchange.

use std::time::Duration;

use culvert_http::{
    BodyKind, Chunk, ClientExchange, Http2Client, Http2ClientOptions, Io, Method, RequestHead, ResponseHead,
    StreamError,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use crate::http2_codes::{
    COMPRESSION, Error, FLOW_CONTROL, FRAME_SIZE, PING, PROTOCOL, PUSH_PROMISE, STREAM_CLOSED, code, judge, setting,
    window,
};
use crate::http2_wire::{
    DATA, END_HEADERS, END_STREAM, Frame, GOAWAY, HEADERS, PREFACE, RST_STREAM, SETTINGS, frame, frames, literals,
};
use crate::peers::{on_worker, read_quiet};

/// A client, and the end that its server has, which has sent nothing yet.
async fn connect() -> (Http2Client, DuplexStream) {
    let (near, far) = duplex(1 << 20);
    let options = Http2ClientOptions {
        initial_stream_window: 65_535,
        initial_connection_window: 65_535 * 2,
        ..Http2ClientOptions::default()
    };
    let (client, driver) = Http2Client::connect(Io::memory(near), &options);
    tokio::task::spawn_local(async move {
        // Tests look at the streams.
        driver.await.ok();
    });
    (client, far)
}

/// A stream whose request is on its way.
async fn asked(client: &Http2Client) -> ClientExchange {
    let mut request = RequestHead::new();
    request.authority.push('h');
    request.path.push('/');
    let mut exchange = client.exchange();
    exchange.send_head(&request, BodyKind::Empty).await.expect("a stream");
    exchange.split().0.flush().await.expect("a head");
    exchange
}

/// Asks, and reads the answer to its end: status and body.
async fn ask(client: &Http2Client) -> Result<(u16, Vec<u8>), StreamError> {
    let mut request = RequestHead::new();
    request.method = Method::Get;
    request.authority.push('h');
    request.path.push('/');
    let mut exchange = client.exchange();
    exchange.send_head(&request, BodyKind::Empty).await?;
    let (mut sink, mut source) = exchange.split();
    sink.finish(None).await?;
    let mut head = ResponseHead::new(0);
    loop {
        source.head(&mut head).await?;
        if !head.is_informational() {
            break;
        }
    }
    let mut body = Vec::new();
    while let Some(piece) = source.chunk().await? {
        body.extend_from_slice(&piece);
    }
    Ok((head.status, body))
}

/// What comes of an exchange to which a server answers `bytes`, what the client sent, and whether it closed.
async fn play(bytes: &[u8]) -> (Result<(u16, Vec<u8>), StreamError>, Vec<Frame>, bool) {
    let (client, mut server) = connect().await;
    let serving = async {
        let mut preface = vec![0; PREFACE.len()];
        server.read_exact(&mut preface).await.expect("a preface");
        let (mut sent, _) = read_quiet(&mut server, Duration::from_millis(10)).await;
        server.write_all(bytes).await.expect("open");
        let (more, closed) = read_quiet(&mut server, Duration::from_secs(2)).await;
        sent.extend(more);
        (frames(&sent), closed)
    };
    let (answer, (sent, closed)) = tokio::join!(tokio::time::timeout(Duration::from_secs(30), ask(&client)), serving);
    (answer.expect("an end of the exchange"), sent, closed)
}

fn head(flags: u8, fields: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | flags, 1, &literals(fields))
}

const OK: (&str, &str) = (":status", "200");

#[test]
fn a_server_that_breaks_the_protocol_is_told_so() {
    use Error::{Connection, Stream};
    let on = |stream, bytes: &[u8]| frame(HEADERS, END_HEADERS | END_STREAM, stream, bytes);
    let ok = || head(0, &[OK]);
    let most = 0x7fff_ffff;
    for (name, bytes, expected) in [
        ("8.4 PUSH_PROMISE", frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2]), Connection(PROTOCOL)),
        ("6.5.2 ENABLE_PUSH", setting(2, 1), Connection(PROTOCOL)),
        ("5.1.1 HEADERS on an even stream", on(2, &literals(&[OK])), Connection(PROTOCOL)),
        ("5.1.1 HEADERS on an idle stream", on(7, &literals(&[OK])), Connection(PROTOCOL)),
        ("6.1 DATA on an idle stream", frame(DATA, 0, 7, b"x"), Connection(PROTOCOL)),
        ("6.4 RST_STREAM on an idle stream", frame(RST_STREAM, 0, 7, &[0; 4]), Connection(PROTOCOL)),
        ("6.7 PING of 9 bytes", frame(PING, 0, 0, &[0; 9]), Connection(FRAME_SIZE)),
        (
            "4.2 a frame of more than 16 KiB",
            [ok(), frame(DATA, 0, 1, &vec![0; 16_385])].concat(),
            Connection(FRAME_SIZE),
        ),
        ("4.3 a block that cannot be decoded", on(1, &[0x80]), Connection(COMPRESSION)),
        ("6.9.1 a window for all beyond 2^31-1", window(0, most), Connection(FLOW_CONTROL)),
        ("6.9 a window of 0 for a stream", window(1, 0), Stream(PROTOCOL)),
        ("8.1 a body without a head", frame(DATA, END_STREAM, 1, b"x"), Stream(PROTOCOL)),
        ("8.3.2 no status", head(END_STREAM, &[("x-a", "b")]), Stream(PROTOCOL)),
        ("8.3.2 a status twice", head(END_STREAM, &[OK, OK]), Stream(PROTOCOL)),
        ("8.3.2 a status of four digits", head(END_STREAM, &[(":status", "2000")]), Stream(PROTOCOL)),
        ("8.3 a request's pseudo-header", head(END_STREAM, &[OK, (":path", "/")]), Stream(PROTOCOL)),
        ("8.3 a pseudo-header behind a field", head(END_STREAM, &[("x-a", "b"), OK]), Stream(PROTOCOL)),
        ("8.2 an upper-case name", head(END_STREAM, &[OK, ("X-A", "b")]), Stream(PROTOCOL)),
        ("8.2.1 LF in a value", head(END_STREAM, &[OK, ("x-a", "b\nc")]), Stream(PROTOCOL)),
        ("8.2.2 connection", head(END_STREAM, &[OK, ("connection", "close")]), Stream(PROTOCOL)),
        ("8.2.2 transfer-encoding", head(END_STREAM, &[OK, ("transfer-encoding", "chunked")]), Stream(PROTOCOL)),
        ("8.1 an interim response that ends the stream", head(END_STREAM, &[(":status", "103")]), Stream(PROTOCOL)),
        ("8.1 trailers that do not end the stream", [ok(), head(0, &[("x-t", "1")])].concat(), Stream(PROTOCOL)),
        ("8.1 trailers with a status", [ok(), head(END_STREAM, &[OK])].concat(), Stream(PROTOCOL)),
        (
            "8.1.1 less body than its length",
            [head(0, &[OK, ("content-length", "5")]), frame(DATA, END_STREAM, 1, b"abc")].concat(),
            Stream(PROTOCOL),
        ),
        (
            "8.1.1 more body than its length",
            [head(0, &[OK, ("content-length", "5")]), frame(DATA, 0, 1, b"abcdefg")].concat(),
            Stream(PROTOCOL),
        ),
    ] {
        on_worker(async {
            let (answer, sent, closed) = play(&[setting(3, 100), bytes].concat()).await;
            judge(name, &sent, closed, expected);
            assert!(answer.is_err(), "{name}: the exchange has {answer:?}");
        });
    }
}

#[test]
fn settings_come_first() {
    on_worker(async {
        let (answer, sent, closed) = play(&frame(PING, 0, 0, &[0; 8])).await;
        judge("PING", &sent, closed, Error::Connection(PROTOCOL));
        assert!(answer.is_err(), "{answer:?}");
    });
}

/// More than it may send while nobody reads.
#[test]
fn windows_are_kept_to() {
    for (name, streams, frames_each, expected) in
        [("a stream's", 1, 5, Error::Stream(FLOW_CONTROL)), ("all streams'", 4, 3, Error::Connection(FLOW_CONTROL))]
    {
        on_worker(async {
            let (client, mut server) = connect().await;
            server.write_all(&[setting(3, 100), frame(SETTINGS, 1, 0, b"")].concat()).await.expect("open");
            let mut exchanges = Vec::new();
            for _ in 0..streams {
                exchanges.push(asked(&client).await);
            }
            let bodies = (0..streams).map(|at| at * 2 + 1).flat_map(|id| {
                let head = frame(HEADERS, END_HEADERS, id, &literals(&[OK]));
                let body = frame(DATA, 0, id, &[0; 16_384]).repeat(frames_each);
                [head, body].concat()
            });
            server.write_all(&bodies.collect::<Vec<u8>>()).await.expect("open");
            let (sent, closed) = read_quiet(&mut server, Duration::from_secs(2)).await;
            judge(name, &frames(sent.get(PREFACE.len()..).unwrap_or_default()), closed, expected);
        });
    }
}

/// RFC 9113, 8.1: a server that has answered all it wants may give up the rest of the request without an error.
#[test]
fn a_whole_answer_counts_whatever_becomes_of_the_request() {
    on_worker(async {
        let (client, mut server) = connect().await;
        server.write_all(&setting(3, 100)).await.expect("open");
        let mut request = RequestHead::new();
        request.method = Method::Post;
        request.authority.push('h');
        request.path.push('/');
        let mut exchange = client.exchange();
        exchange.send_head(&request, BodyKind::Stream).await.expect("a stream");
        let (mut sink, mut source) = exchange.split();
        sink.data(Chunk::Borrowed(b"some")).await.expect("room");
        let answer = [head(0, &[OK]), frame(DATA, END_STREAM, 1, b"enough"), frame(RST_STREAM, 0, 1, &[0; 4])];
        server.write_all(&answer.concat()).await.expect("open");
        tokio::time::sleep(Duration::from_millis(10)).await;
        let mut response = ResponseHead::new(0);
        source.head(&mut response).await.expect("a head");
        let mut body = Vec::new();
        while let Some(piece) = source.chunk().await.expect("a body") {
            body.extend_from_slice(&piece);
        }
        assert_eq!((response.status, &body[..]), (200, &b"enough"[..]));
    });
}

/// Streams above the one that a GOAWAY names were not looked at; the others are finished (RFC 9113, 6.8).
#[test]
fn a_goaway_divides_the_streams() {
    on_worker(async {
        let (client, mut server) = connect().await;
        server.write_all(&setting(3, 100)).await.expect("open");
        let serving = async {
            read_quiet(&mut server, Duration::from_millis(10)).await;
            let goaway = frame(GOAWAY, 0, 0, &[&1_u32.to_be_bytes()[..], &[0; 4]].concat());
            server.write_all(&[goaway, head(END_STREAM, &[OK])].concat()).await.expect("open");
        };
        let (first, second, ()) = tokio::join!(ask(&client), ask(&client), serving);
        assert_eq!(first.expect("the first is served").0, 200);
        let error = second.expect_err("the second is not");
        assert!(error.untouched, "{error:?}");
        let error = ask(&client).await.expect_err("nothing behind a GOAWAY");
        assert!(error.untouched, "{error:?}");
    });
}

/// What is on its way of a stream that was given up is no error, and its bytes are given back to the others.
#[test]
fn frames_of_a_stream_that_we_reset_are_ignored() {
    on_worker(async {
        let (client, mut server) = connect().await;
        server.write_all(&[setting(3, 100), frame(SETTINGS, 1, 0, b"")].concat()).await.expect("open");
        for round in 0..50_u32 {
            drop(asked(&client).await);
            let id = round * 2 + 1;
            let late = [
                frame(HEADERS, END_HEADERS, id, &literals(&[OK, ("x-a", "b")])),
                frame(DATA, 0, id, &[0; 16_384]),
                frame(DATA, END_STREAM, id, b"x"),
            ];
            server.write_all(&late.concat()).await.expect("open");
            let (sent, closed) = read_quiet(&mut server, Duration::from_millis(10)).await;
            assert!(!closed, "round {round}");
            drop(sent);
        }
        assert!(client.is_open(), "closed for what it had caused itself");
    });
}

/// DATA behind the end of its stream.
#[test]
fn a_stream_that_has_ended_takes_no_more() {
    on_worker(async {
        let behind = [head(END_STREAM, &[OK]), frame(DATA, 0, 1, b"x")].concat();
        let (answer, sent, _) = play(&[setting(3, 100), behind].concat()).await;
        assert_eq!(answer.expect("an answer").0, 200);
        let seen = code(&sent, GOAWAY).or_else(|| code(&sent, RST_STREAM));
        assert!(matches!(seen, None | Some(STREAM_CLOSED)), "{seen:?}");
    });
}
