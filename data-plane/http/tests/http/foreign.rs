//! Another implementation of HTTP/2 as the peer, on either side.

mod clients;
mod servers;

use bytes::Bytes;
use http::HeaderMap;

/// Bytes that are wrong wherever a piece is lost, doubled or out of its order.
pub(crate) fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8).collect()
}

/// Where two bodies differ, without printing megabytes.
pub(crate) fn assert_same(name: &str, seen: &[u8], expected: &[u8]) {
    let differs = seen.iter().zip(expected).position(|(seen, expected)| seen != expected);
    assert_eq!((seen.len(), differs), (expected.len(), None), "{name}: length, and where it differs");
}

/// Sends a body as the windows allow, in pieces of `piece` bytes at most, and ends the stream.
pub(crate) async fn send(
    body: &mut h2::SendStream<Bytes>,
    mut bytes: Bytes,
    piece: usize,
    trailers: Option<HeaderMap>,
) -> Result<(), h2::Error> {
    while !bytes.is_empty() {
        body.reserve_capacity(bytes.len().min(piece));
        let room = match std::future::poll_fn(|cx| body.poll_capacity(cx)).await {
            Some(room) => room?,
            None => return Err(h2::Reason::CANCEL.into()),
        };
        body.send_data(bytes.split_to(room.min(bytes.len())), false)?;
    }
    match trailers {
        Some(trailers) => body.send_trailers(trailers),
        None => body.send_data(Bytes::new(), true),
    }
}

/// Reads a body to its end, and gives the window back as it goes.
pub(crate) async fn receive(mut body: h2::RecvStream) -> Result<(Vec<u8>, Option<HeaderMap>), h2::Error> {
    let mut all = Vec::new();
    while let Some(piece) = body.data().await {
        let piece = piece?;
        body.flow_control().release_capacity(piece.len())?;
        all.extend_from_slice(&piece);
    }
    Ok((all, body.trailers().await?))
}
