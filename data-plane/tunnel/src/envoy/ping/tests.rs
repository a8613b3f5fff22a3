use std::future::pending;

use tokio::io::DuplexStream;
use tokio::sync::{Notify, oneshot};

use super::*;

const PINGS: Pings = Pings { interval: Duration::from_secs(2), threshold: 3 };

/// Of an agent's only tunnel.
async fn echo(io: &mut Io, first: Bytes) -> Result<Bytes, IdleError> {
    super::echo(io, first, &Patience::default(), || ()).await
}

fn pair() -> (Io, DuplexStream) {
    let (ours, theirs) = tokio::io::duplex(256 * 1024);
    (Io::memory(ours), theirs)
}

async fn read(peer: &mut DuplexStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    timeout(Duration::from_secs(60), peer.read_exact(&mut bytes)).await.expect("nothing came").unwrap();
    bytes
}

#[test]
fn pings_are_taken_whole_and_from_the_front_only() {
    for (bytes, pings, rest, may) in [
        ("", 0, "", true),
        ("R", 0, "R", true),
        ("RPIN", 0, "RPIN", true),
        ("RPING", 1, "", true),
        ("RPINGRPINGRP", 2, "RP", true),
        ("RPINGPRI", 1, "PRI", false),
        ("PRIRPING", 0, "PRIRPING", false),
        ("RPX", 0, "RPX", false),
        ("rping", 0, "rping", false),
    ] {
        let mut buffer = BytesMut::from(bytes);
        assert_eq!(take_pings(&mut buffer), pings, "{bytes:?}");
        assert_eq!(buffer, rest, "{bytes:?}");
        assert_eq!(may_become_ping(&buffer), may, "{bytes:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_pings_until_the_tunnel_is_wanted() {
    let (mut io, mut peer) = pair();
    let (want, wanted) = oneshot::channel::<()>();
    let start = Instant::now();
    let idle = tokio::spawn(async move { (idle(&mut io, PINGS, async { drop(wanted.await) }, |_| {}).await, io) });
    for turn in 1..=5 {
        assert_eq!(read(&mut peer, 5).await, RPING);
        let after = start.elapsed();
        let (least, most) = (PINGS.interval.mul_f64(0.79) * turn, PINGS.interval * turn);
        assert!(after >= least && after <= most, "ping {turn} came after {after:?}");
        // In two pieces.
        peer.write_all(b"RP").await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
        peer.write_all(b"ING").await.unwrap();
    }
    want.send(()).unwrap();
    let (result, _io) = idle.await.unwrap();
    assert!(result.is_ok(), "saw {result:?}");
}

#[tokio::test(start_paused = true)]
async fn a_wanted_tunnel_waits_for_the_answer_that_is_under_way() {
    let (mut io, mut peer) = pair();
    let (want, wanted) = oneshot::channel::<()>();
    let idle = tokio::spawn(async move { (idle(&mut io, PINGS, async { drop(wanted.await) }, |_| {}).await, io) });
    read(&mut peer, 5).await;
    want.send(()).unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!idle.is_finished(), "the answer would be taken for HTTP/2");
    peer.write_all(RPING).await.unwrap();
    let (result, _io) = idle.await.unwrap();
    assert!(result.is_ok(), "saw {result:?}");
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_that_is_wanted_at_once_is_never_pinged() {
    let (mut io, peer) = pair();
    assert!(idle(&mut io, PINGS, std::future::ready(()), |_| {}).await.is_ok());
    drop(io);
    let mut rest = Vec::new();
    let mut peer = peer;
    peer.read_to_end(&mut rest).await.unwrap();
    assert!(rest.is_empty(), "saw {rest:?}");
}

#[tokio::test(start_paused = true)]
async fn a_silent_agent_is_dead_after_the_threshold() {
    for threshold in 1..=4 {
        for answers in 0..3 {
            let (mut io, mut peer) = pair();
            let pings = Pings { threshold, ..PINGS };
            let idle = tokio::spawn(async move { idle(&mut io, pings, pending(), |_| {}).await });
            let mut heard = Instant::now();
            for _ in 0..answers {
                read(&mut peer, 5).await;
                peer.write_all(RPING).await.unwrap();
                heard = Instant::now();
            }
            let result = idle.await.unwrap();
            assert!(matches!(result, Err(IdleError::Silent(_))), "saw {result:?}");
            let after = heard.elapsed();
            // One ping has its interval to be answered, also where one interval of silence is too much.
            let (least, most) = (PINGS.interval * threshold - PINGS.interval / 10, PINGS.interval * threshold.max(2));
            let limits = least..=most;
            assert!(limits.contains(&after), "threshold {threshold}, {answers} answers: after {after:?}");
        }
    }
}

/// Answers that are always as late as they may be are answers.
#[tokio::test(start_paused = true)]
async fn an_agent_that_is_slow_lives() {
    for threshold in [1, 3] {
        let (mut io, mut peer) = pair();
        let idle = tokio::spawn(async move { idle(&mut io, Pings { threshold, ..PINGS }, pending(), |_| {}).await });
        for _ in 0..20 {
            read(&mut peer, 5).await;
            tokio::time::sleep(PINGS.interval.mul_f64(0.7)).await;
            peer.write_all(RPING).await.unwrap();
        }
        assert!(!idle.is_finished(), "threshold {threshold}: {:?}", idle.await);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_no_answer_ends_an_idle_tunnel() {
    for (bytes, expected) in [
        ("HTTP/1.1 400 Bad Request\r\n", "Poisoned"),
        ("RPING", "Unexpected"),
        ("PRI", "Unexpected"),
        ("GET / HTTP/1.1\r\n", "Unexpected"),
        ("\0\0\x12\x04", "Unexpected"),
    ] {
        let (mut io, mut peer) = pair();
        peer.write_all(bytes.as_bytes()).await.unwrap();
        let result = idle(&mut io, PINGS, pending(), |_| {}).await;
        assert_eq!(format!("{:?}", result.unwrap_err()), expected, "{bytes:?}");
    }
    let (mut io, peer) = pair();
    drop(peer);
    let result = idle(&mut io, PINGS, pending(), |_| {}).await;
    assert!(matches!(result, Err(IdleError::Closed)), "saw {result:?}");
}

#[tokio::test(start_paused = true)]
async fn an_agent_echoes_until_the_first_other_byte() {
    for other in ["PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "\x16\x03\x01", "RPX"] {
        for split in 0..=other.len() {
            let (mut io, mut peer) = pair();
            let echo = tokio::spawn(async move { (echo(&mut io, Bytes::from_static(b"RPINGRP")).await, io) });
            assert_eq!(read(&mut peer, 5).await, RPING, "came with the handshake's answer");
            peer.write_all(b"INGRPING").await.unwrap();
            assert_eq!(read(&mut peer, 10).await, b"RPINGRPING", "coalesced");
            peer.write_all(&other.as_bytes()[..split]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(1)).await;
            // What was handed over stands in front of what is still to be read.
            if !echo.is_finished() {
                peer.write_all(&other.as_bytes()[split..]).await.unwrap();
            }
            let (first, _io) = echo.await.unwrap();
            let first = first.unwrap();
            assert!(other.as_bytes().starts_with(&first) && !first.is_empty(), "saw {first:?} of {other:?} at {split}");
        }
    }
}

/// The trap that Envoy 1.40 falls into: what came with the answer is looked at before anything is read.
#[tokio::test(start_paused = true)]
async fn what_came_with_the_answer_is_processed_at_once() {
    let (mut io, _peer) = pair();
    let first = timeout(Duration::from_millis(1), echo(&mut io, Bytes::from_static(b"RPINGPRI * HTTP/2.0"))).await;
    assert_eq!(first.expect("waits for more bytes").unwrap(), "PRI * HTTP/2.0");
}

#[tokio::test(start_paused = true)]
async fn an_agent_notices_that_pings_stay_away() {
    let (mut io, mut peer) = pair();
    let echo = tokio::spawn(async move { echo(&mut io, Bytes::new()).await });
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_secs(2)).await;
        peer.write_all(RPING).await.unwrap();
        read(&mut peer, 5).await;
    }
    let start = Instant::now();
    let result = echo.await.unwrap();
    assert!(matches!(result, Err(IdleError::Missed(_))), "saw {result:?}");
    assert_eq!(start.elapsed().as_secs(), 5, "2.4 intervals, and at least as long");
}

/// How long, in ms, each tunnel is kept by an agent that replaces what is doubted, at a server that pings so often, until one was
/// pinged three times.
async fn kept(interval: Duration, patience: &Patience) -> Vec<u128> {
    let mut kept = Vec::new();
    while kept.len() < 10 {
        let (mut io, mut peer) = pair();
        let start = Instant::now();
        let pinged = async {
            for _ in 0..3 {
                tokio::time::sleep(interval).await;
                peer.write_all(RPING).await.unwrap();
                read(&mut peer, 5).await;
            }
        };
        let doubted = Notify::new();
        let replaced = tokio::select! {
            result = super::echo(&mut io, Bytes::new(), patience, || doubted.notify_one()) => panic!("saw {result:?}"),
            () = doubted.notified() => true,
            () = pinged => false,
        };
        kept.push(start.elapsed().as_millis());
        if !replaced {
            break;
        }
    }
    kept
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_never_was_pinged_doubts_in_time_for_another_tunnel_which_waits_twice_as_long() {
    let kept = kept(Duration::from_secs(1_000_000), &Patience::default()).await;
    let expected = [5, 10, 20, 40, 80, 160, 320, 640, 900, 900].map(|silence| silence * 600);
    assert_eq!(kept, expected, "three fifths of the silence, in ms");
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_never_was_pinged_and_has_no_other_tunnel_knows_that_the_server_is_gone() {
    let (mut io, _peer) = pair();
    let patience = Patience::default();
    for _ in 0..3 {
        let start = Instant::now();
        let result = super::echo(&mut io, Bytes::new(), &patience, || ()).await;
        assert!(matches!(result, Err(IdleError::Missed(_))), "saw {result:?}");
        assert_eq!(start.elapsed(), FIRST_SILENCE, "as soon each time");
    }
}

#[tokio::test(start_paused = true)]
async fn how_often_a_server_pings_is_known_to_its_next_tunnel() {
    let patience = Patience::default();
    // As every Envoy does where nothing is configured: nothing is doubted.
    assert_eq!(kept(Duration::from_millis(2450), &patience).await, [7350]);
    assert_eq!(patience.get(), Duration::from_millis(5880));
    // The longest interval that an Envoy can be given, as if the server were configured anew.
    let doubted = [1, 2, 4, 8, 16, 32, 64].map(|times| times * 5880 * 3 / 5);
    let (last, before) = (900_000, doubted.as_slice());
    let seen = kept(Duration::from_secs(300), &patience).await;
    assert_eq!(seen.split_last(), Some((&last, before)));
    assert_eq!(patience.get(), Duration::from_secs(720));
    assert_eq!(kept(Duration::from_secs(300), &patience).await, [900_000]);
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_pings_is_no_service() {
    let (mut io, mut peer) = pair();
    let echo = tokio::spawn(async move { echo(&mut io, Bytes::new()).await });
    let flood = tokio::spawn(async move {
        let mut sink = vec![0; 65_536];
        loop {
            if peer.write_all(&RPING.repeat(200)).await.is_err() || peer.read(&mut sink).await.unwrap_or(0) == 0 {
                return;
            }
        }
    });
    let result = timeout(Duration::from_secs(10), echo).await.expect("serves the flood").unwrap();
    assert!(matches!(result, Err(IdleError::Flood)), "saw {result:?}");
    flood.await.unwrap();
}
