//! gRPC's framing of a stream's messages, both ways (gRPC over HTTP/2, "Length-Prefixed-Message"). **A stream that has nothing
//! to say holds no buffer, and what many streams are sent is handed to each transport by reference**: tonic's own codec
//! keeps 16 KB for each stream and copies every response whole.

use std::convert::Infallible;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use culvert_xds::Response;
use culvert_xds::server::Pieces;
use futures_util::Stream;
use http::HeaderMap;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame};
use pin_project_lite::pin_project;
use prost::Message;
use tonic::Status;

use crate::slow;

/// Largest request: 60,000 names are 5 MB.
pub(crate) const MAX_REQUEST: usize = 64 << 20;
/// What the requests of one connection that are not whole yet may take together.
const MAX_UNFINISHED: usize = 2 * MAX_REQUEST;
/// Most names and versions in one request.
const MAX_FIELDS: usize = 300_000;
/// A flag and a length.
const PREFIX: usize = 5;

/// What the unfinished requests of a connection take, in bytes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Unfinished(Arc<AtomicUsize>);

/// What one stream takes of it, until this is dropped.
#[derive(Debug, Default)]
struct Share {
    of: Unfinished,
    bytes: usize,
}

impl Share {
    /// The stream holds so many bytes from now on.
    fn set(&mut self, bytes: usize) -> Result<(), Status> {
        let before = std::mem::replace(&mut self.bytes, bytes);
        if bytes <= before {
            self.of.0.fetch_sub(before - bytes, Ordering::Relaxed);
            return Ok(());
        }
        let all = self.of.0.fetch_add(bytes - before, Ordering::Relaxed) + (bytes - before);
        if all > MAX_UNFINISHED {
            let reason =
                format!("unfinished requests of one connection take {all} bytes; at most {MAX_UNFINISHED} may");
            return Err(Status::resource_exhausted(reason));
        }
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.of.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// The requests of a stream.
#[derive(Debug)]
pub(crate) struct Requests<R, B> {
    body: B,
    /// What was read of a request that is not whole yet.
    read: BytesMut,
    share: Share,
    message: PhantomData<fn() -> R>,
}

impl<R, B> Requests<R, B>
where
    R: Message + Default,
    B: Body<Data = Bytes, Error: std::fmt::Display> + Unpin,
{
    pub(crate) fn new(body: B) -> Self {
        Self { body, read: BytesMut::new(), share: Share::default(), message: PhantomData }
    }

    /// What is not whole counts with that of the connection's other streams.
    pub(crate) fn within(self, of: Unfinished) -> Self {
        Self { share: Share { of, bytes: 0 }, ..self }
    }

    /// The next request; `None`: the client has ended the stream. May be dropped and called again.
    ///
    /// # Errors
    /// What came is no request, or a larger one than is taken, or the connection has too much of such; or the stream broke
    /// (CANCELLED).
    pub(crate) async fn next(&mut self) -> Result<Option<R>, Status> {
        loop {
            if let Some(message) = take(&mut self.read)? {
                if self.read.is_empty() {
                    self.read = BytesMut::new();
                }
                self.share.set(self.read.len())?;
                return decode(message).map(Some);
            }
            match self.body.frame().await {
                // The rest are trailers, which say nothing.
                Some(Ok(frame)) => {
                    let Ok(mut data) = frame.into_data() else { continue };
                    // Mostly a frame is a message, which is read where it lies.
                    let message = if self.read.is_empty() { take(&mut data)? } else { None };
                    self.share.set(self.read.len() + data.len())?;
                    self.read.extend_from_slice(&data);
                    if let Some(message) = message {
                        return decode(message).map(Some);
                    }
                }
                Some(Err(error)) => return Err(Status::cancelled(error.to_string())),
                None if self.read.is_empty() => return Ok(None),
                None => return Err(Status::internal("the stream ends within a request")),
            }
        }
    }
}

/// A whole message, if there is one.
fn take(read: &mut (impl Buf + AsRef<[u8]>)) -> Result<Option<Bytes>, Status> {
    let Some(prefix) = read.as_ref().first_chunk::<PREFIX>() else { return Ok(None) };
    let [flag, length @ ..] = *prefix;
    if flag != 0 {
        return Err(Status::internal(format!("a request with the flag {flag}: compression is not offered here")));
    }
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length > MAX_REQUEST {
        let reason = format!("a request of {length} bytes; at most {MAX_REQUEST} are taken");
        return Err(Status::out_of_range(reason));
    }
    if read.remaining() < PREFIX + length {
        return Ok(None);
    }
    read.advance(PREFIX);
    Ok(Some(read.copy_to_bytes(length)))
}

fn decode<R: Message + Default>(message: Bytes) -> Result<R, Status> {
    // Before it takes memory: a million short names are ten times as large decoded.
    if has_more_fields_than(MAX_FIELDS, &message) {
        return Err(Status::invalid_argument(format!("a request with more than {MAX_FIELDS} names and versions")));
    }
    R::decode(message).map_err(|error| Status::internal(error.to_string()))
}

/// Whether an encoded message has more top-level fields; what does not parse is left to the decoder.
fn has_more_fields_than(limit: usize, mut message: &[u8]) -> bool {
    let mut count = 0;
    while !message.is_empty() {
        count += 1;
        let Ok((tag, wire_type)) = prost::encoding::decode_key(&mut message) else { return false };
        let context = prost::encoding::DecodeContext::default();
        if prost::encoding::skip_field(wire_type, tag, &mut message, context).is_err() {
            return false;
        }
        if count > limit {
            return true;
        }
    }
    false
}

pin_project! {
    /// The responses of a stream as the body of its HTTP response: pieces of each, one by one as the transport takes them,
    /// then the status as trailers.
    pub(crate) struct Responses<S> {
        // Asked for the next response when the one before has left.
        #[pin]
        responses: Option<S>,
        pieces: Option<Pieces>,
        // How many pieces were taken, of all responses.
        taken: u64,
    }
}

impl<S> Responses<S> {
    pub(crate) fn new(responses: S) -> Self {
        Self { responses: Some(responses), pieces: None, taken: 0 }
    }
}

impl<S: Stream<Item = Result<Response, Status>>> Body for Responses<S> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let mut this = self.project();
        loop {
            if let Some(piece) = this.pieces.as_mut().and_then(Iterator::next) {
                *this.taken += 1;
                slow::note(Some(*this.taken));
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            *this.pieces = None;
            slow::note(None);
            let Some(responses) = this.responses.as_mut().as_pin_mut() else { return Poll::Ready(None) };
            let status = match ready!(responses.poll_next(cx)) {
                Some(Ok(response)) => match prefix(&response) {
                    Ok(prefix) => {
                        *this.pieces = Some(response.into_pieces(&prefix));
                        continue;
                    }
                    Err(status) => status,
                },
                Some(Err(status)) => status,
                None => Status::ok(""),
            };
            this.responses.set(None);
            return Poll::Ready(Some(Ok(Frame::trailers(trailers(&status)))));
        }
    }
}

fn prefix(response: &Response) -> Result<[u8; PREFIX], Status> {
    let length = u32::try_from(response.encoded_len())
        .map_err(|_| Status::resource_exhausted("a response of more than 4 GiB cannot be sent"))?;
    let [a, b, c, d] = length.to_be_bytes();
    Ok([0, a, b, c, d])
}

/// A status as a stream's last word.
pub(crate) fn trailers(status: &Status) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    if let Err(error) = status.add_header(&mut trailers) {
        tracing::warn!(%error, "a status cannot be told");
    }
    trailers
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::LazyLock;

    use culvert_api::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
    use culvert_api::type_url;
    use culvert_xds::{Resource, Session, SessionConfig, Snapshot, StreamId, StreamKind, Variant};
    use futures_util::StreamExt;
    use http_body_util::StreamBody;
    use tonic::Code;

    use super::*;

    /// What comes of these bytes, however they are cut.
    async fn read(bytes: &[u8], cut: usize) -> Result<Vec<String>, Code> {
        let frames = bytes.chunks(cut).map(|chunk| Ok::<_, Infallible>(Frame::data(Bytes::copy_from_slice(chunk))));
        let frames: Vec<_> = frames.collect();
        let mut requests = Requests::<DiscoveryRequest, _>::new(StreamBody::new(futures_util::stream::iter(frames)));
        let mut types = Vec::new();
        while let Some(request) = requests.next().await.map_err(|status| status.code())? {
            assert!(!requests.read.is_empty() || requests.read.capacity() == 0, "nothing is kept between requests");
            types.push(request.type_url);
        }
        Ok(types)
    }

    fn framed(flag: u8, type_url: &str) -> Vec<u8> {
        let message = DiscoveryRequest { type_url: type_url.to_owned(), ..Default::default() }.encode_to_vec();
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        [&[flag], &length[..], &message].concat()
    }

    #[tokio::test]
    async fn requests_are_read_however_they_are_cut_and_bad_framing_has_a_code() {
        let (one, two) = (framed(0, "one"), framed(0, "two"));
        let both = [one.clone(), two].concat();
        let names = |names: &[&str]| Ok(names.iter().map(ToString::to_string).collect());
        for (what, bytes, expected) in [
            ("nothing", Vec::new(), names(&[])),
            ("an empty message", vec![0; 5], names(&[""])),
            ("two messages", both.clone(), names(&["one", "two"])),
            ("half a prefix", one[..3].to_vec(), Err(Code::Internal)),
            ("half a message", one[..7].to_vec(), Err(Code::Internal)),
            ("a flag of compression", framed(1, "one"), Err(Code::Internal)),
            ("a length of 4 GiB", vec![0, 255, 255, 255, 255], Err(Code::OutOfRange)),
            ("what is no message", vec![0, 0, 0, 0, 2, 255, 255], Err(Code::Internal)),
        ] {
            for cut in 1..=both.len() {
                assert_eq!(read(&bytes, cut).await, expected, "{what}, cut into pieces of {cut}");
            }
        }
    }

    /// A stream that has sent so much of a request of 64 MiB, in pieces of 1 MiB, and goes on when it is told to.
    fn slow(
        mebibytes: usize,
        of: Unfinished,
    ) -> Requests<DiscoveryRequest, impl Body<Data = Bytes, Error = Infallible> + Unpin> {
        let length = u32::try_from(MAX_REQUEST).unwrap().to_be_bytes();
        let prefix = Bytes::from([&[0][..], &length].concat());
        // The same bytes, over and over: what they take is what is made of them.
        let piece = Bytes::from(vec![0; 1 << 20]);
        let pieces = std::iter::once(prefix).chain(std::iter::repeat_n(piece, mebibytes));
        let frames = futures_util::stream::iter(pieces.map(|piece| Ok(Frame::data(piece))));
        Requests::new(StreamBody::new(frames.chain(futures_util::stream::pending()))).within(of)
    }

    #[tokio::test]
    async fn unfinished_requests_of_a_connection_have_a_bound_together() {
        let of = Unfinished::default();
        let (mut first, mut second, mut third) = (slow(63, of.clone()), slow(63, of.clone()), slow(63, of.clone()));
        for waiting in [&mut first, &mut second] {
            assert!(futures_util::poll!(std::pin::pin!(waiting.next())).is_pending(), "it is waited for the rest");
        }
        let refused = futures_util::poll!(std::pin::pin!(third.next()));
        assert_eq!(refused.map_err(|status| status.code()), Poll::Ready(Err(Code::ResourceExhausted)));
        drop((second, third));
        assert_eq!(of.0.load(Ordering::Relaxed), (63 << 20) + PREFIX, "who is gone takes nothing");
        let mut fourth = slow(63, of.clone());
        assert!(futures_util::poll!(std::pin::pin!(fourth.next())).is_pending(), "there is room again");
        let mut alone = slow(63, Unfinished::default());
        assert!(futures_util::poll!(std::pin::pin!(alone.next())).is_pending(), "another connection has its own");
    }

    #[tokio::test]
    async fn what_was_read_is_not_counted_any_more() {
        let of = Unfinished::default();
        let bytes = [framed(0, "one"), framed(0, "two")].concat();
        let frames = bytes.chunks(3).map(|chunk| Ok::<_, Infallible>(Frame::data(Bytes::copy_from_slice(chunk))));
        let frames: Vec<_> = frames.collect();
        let mut requests = Requests::<DiscoveryRequest, _>::new(StreamBody::new(futures_util::stream::iter(frames)));
        requests = requests.within(of.clone());
        for _ in 0..2 {
            requests.next().await.unwrap().expect("a request");
            assert_eq!(of.0.load(Ordering::Relaxed), requests.read.len(), "what is held is counted, and nothing else");
        }
        assert_eq!(of.0.load(Ordering::Relaxed), 0);
    }

    /// The response of a node that asks for all of 200 resources of 1 MB.
    fn response(variant: Variant) -> Response {
        static SNAPSHOT: LazyLock<Arc<Snapshot>> = LazyLock::new(|| {
            let mut builder = Snapshot::builder();
            for number in 0..200 {
                let value = vec![0; 1 << 20];
                builder.insert(Arc::new(Resource::new(&type_url::CLUSTER.into(), format!("c{number}"), &value)));
            }
            Arc::new(builder.build())
        });
        let snapshot = Arc::clone(&SNAPSHOT);
        let mut session = Session::new(SessionConfig::default(), Arc::default(), snapshot);
        session.open(StreamId(0), StreamKind { variant, type_url: None }).unwrap();
        let type_url = type_url::CLUSTER.to_owned();
        match variant {
            Variant::Sotw => {
                let request = DiscoveryRequest { type_url, ..Default::default() };
                session.on_request(StreamId(0), &request).unwrap()
            }
            Variant::Delta => {
                let request = DeltaDiscoveryRequest { type_url, ..Default::default() };
                session.on_delta_request(StreamId(0), &request).unwrap()
            }
        };
        session.poll_stream(StreamId(0), std::time::Duration::ZERO).unwrap()
    }

    #[tokio::test]
    async fn a_response_of_200_megabytes_is_handed_on_without_a_copy() {
        for variant in [Variant::Sotw, Variant::Delta] {
            // Each transport takes the same bytes: what is copied is at another address in each.
            let mut seen = Vec::new();
            for _ in 0..2 {
                let responses = futures_util::stream::iter([Ok(response(variant))]);
                let mut body = std::pin::pin!(Responses::new(responses));
                let (mut length, mut pieces) = (0, BTreeMap::new());
                while let Some(frame) = body.frame().await {
                    let Ok(piece) = frame.unwrap().into_data() else { break };
                    assert!(!piece.is_empty(), "an empty frame");
                    length += piece.len();
                    pieces.insert(piece.as_ptr().addr(), piece);
                }
                assert!(length > 200 << 20, "{variant:?}: the whole has {length} bytes");
                seen.push(pieces);
            }
            let own = seen[0].iter().filter(|(address, _)| !seen[1].contains_key(*address));
            let copied: usize = own.map(|(_, piece)| piece.len()).sum();
            assert!(copied < 64 << 10, "{variant:?}: {copied} bytes of a stream's own");
        }
    }

    #[tokio::test]
    async fn the_status_of_a_stream_is_its_trailers() {
        for (last, code) in [(None, "0"), (Some(Status::permission_denied("no")), "7")] {
            let responses = futures_util::stream::iter(last.map(Err::<Response, _>));
            let mut body = std::pin::pin!(Responses::new(responses));
            let frame = body.frame().await.expect("trailers").unwrap();
            assert_eq!(frame.into_trailers().expect("trailers")["grpc-status"], code);
            assert!(body.frame().await.is_none(), "nothing after the trailers");
        }
    }
}
