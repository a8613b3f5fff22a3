//! What a client may make a connection hold, and how much work a few bytes of it are.

use std::rc::Rc;
use std::time::Duration;

use culvert_http::ServerOptions;
use tokio::io::AsyncWriteExt;

use crate::http2_codes::{code, setting, window};
use crate::http2_wire::{
    DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, SETTINGS, begin, frame, frames, literals, request,
};
use crate::peers::{Echo, on_worker, read_quiet, serving};

fn get(method: &str) -> Vec<u8> {
    literals(&[(":method", method), (":scheme", "http"), (":authority", "h"), (":path", "/")])
}

/// Whoever reads no answers is not read either, once there are many: also where no body is held back by a window.
#[test]
fn a_client_that_reads_nothing_cannot_make_answers_pile_up() {
    for (name, method) in [("answered", "GET"), ("answered without a body", "HEAD"), ("refused", "get")] {
        on_worker(async {
            // What waits in the pipe comes at once when the client reads, and is no fault of it.
            let options = ServerOptions { max_concurrent_streams: 1_000_000, ..ServerOptions::default() };
            let mut client = serving(&Rc::new(Echo), options);
            begin(&mut client).await;
            let block = get(method);
            let (mut taken, mut stream) = (0, 1);
            while taken < 32 << 20 {
                let mut batch = Vec::new();
                for _ in 0..90 {
                    batch.extend(frame(HEADERS, END_HEADERS | END_STREAM, stream, &block));
                    stream += 2;
                }
                let written = tokio::time::timeout(Duration::from_secs(1), client.write_all(&batch)).await;
                match written {
                    Ok(Ok(())) => taken += batch.len(),
                    Ok(Err(_)) | Err(_) => break,
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            // A mebibyte is in the pipe each way, and answers are a third as long as what they answer.
            assert!(taken <= 16 << 20, "{name}: {taken} bytes of requests were taken");
            // It goes on once the client reads.
            let (answers, closed) = read_quiet(&mut client, Duration::from_millis(100)).await;
            assert!(answers.len() > 1 << 20 && !closed, "{name}: {} bytes of answers, closed {closed}", answers.len());
        });
    }
}

/// Thousands of windows in one frame, beside streams that each of them changes.
#[test]
fn a_frame_of_many_settings_is_cheap() {
    let begun = std::time::SystemTime::now();
    on_worker(async {
        let options = ServerOptions { max_concurrent_streams: 5000, ..ServerOptions::default() };
        let mut client = serving(&Rc::new(Echo), options);
        begin(&mut client).await;
        for stream in 0..5000 {
            client.write_all(&frame(HEADERS, END_HEADERS, stream * 2 + 1, &request(&[]))).await.unwrap();
        }
        let one = setting(4, 70_000).split_off(9);
        let many = frame(SETTINGS, 0, 0, &one.repeat(2730));
        for _ in 0..200 {
            client.write_all(&many).await.unwrap();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let (answers, closed) = read_quiet(&mut client, Duration::from_millis(10)).await;
        let acks = frames(&answers).iter().filter(|frame| frame.0 == SETTINGS && frame.1 == 1).count();
        assert!(!closed && acks == 201, "{acks} were acknowledged, closed {closed}");
    });
    let took = begun.elapsed().unwrap();
    assert!(took < Duration::from_secs(20), "{took:?}");
}

/// A byte that stands for four thousand, thousands of times: the connection ends before they are made.
#[test]
fn a_compression_bomb_is_refused_at_once() {
    let begun = std::time::SystemTime::now();
    let large = |name: &[u8]| [&[0x40, 1][..], name, &[0x7f, 0x81, 0x1e], &[b'v'; 3968]].concat();
    for (name, bombs, expected) in [("a few", 30, None), ("many", 15_000, Some(9))] {
        on_worker(async {
            let mut client = serving(&Rc::new(Echo), ServerOptions::default());
            begin(&mut client).await;
            for round in 0..20_u32 {
                let block = [request(&[]), large(b"n"), vec![0xbe; bombs]].concat();
                let cut = block.len().min(16_000);
                let (first, rest) = block.split_at(cut);
                let flags = if rest.is_empty() { END_HEADERS | END_STREAM } else { END_STREAM };
                let mut bytes = frame(HEADERS, flags, round * 2 + 1, first);
                if !rest.is_empty() {
                    bytes.extend(frame(9, END_HEADERS, round * 2 + 1, rest));
                }
                if client.write_all(&bytes).await.is_err() {
                    break;
                }
            }
            let (answer, _) = read_quiet(&mut client, Duration::from_secs(2)).await;
            let answer = frames(&answer);
            assert_eq!(code(&answer, GOAWAY), expected, "{name}: {answer:?}");
            if expected.is_none() {
                let answered = answer.iter().filter(|frame| frame.0 == HEADERS).count();
                assert_eq!(answered, 20, "{name}: each is answered by 431");
            }
        });
    }
    let took = begun.elapsed().unwrap();
    assert!(took < Duration::from_secs(10), "{took:?}");
}

/// A stream that is given up while its window is shut leaves nothing behind.
#[test]
fn streams_that_wait_for_a_window_may_be_given_up() {
    on_worker(async {
        let mut client = serving(&Rc::new(Echo), ServerOptions::default());
        begin(&mut client).await;
        client.write_all(&setting(4, 0)).await.unwrap();
        for round in 0..200 {
            let id = round * 2 + 1;
            let open = [frame(HEADERS, END_HEADERS, id, &request(&[])), frame(DATA, END_STREAM, id, b"some text")];
            client.write_all(&open.concat()).await.unwrap();
            tokio::time::sleep(Duration::from_secs(3)).await;
            client.write_all(&frame(3, 0, id, &8_u32.to_be_bytes())).await.unwrap();
        }
        let last = [frame(HEADERS, END_HEADERS, 401, &request(&[])), frame(DATA, END_STREAM, 401, b"some text")];
        client.write_all(&[last.concat(), window(401, 9)].concat()).await.unwrap();
        let (answer, closed) = read_quiet(&mut client, Duration::from_secs(1)).await;
        let body: Vec<u8> = frames(&answer)
            .into_iter()
            .filter(|frame| frame.0 == DATA && frame.2 == 401)
            .flat_map(|frame| frame.3)
            .collect();
        assert!(!closed && body == b"some text", "{:?}, closed {closed}", body.escape_ascii().to_string());
    });
}
