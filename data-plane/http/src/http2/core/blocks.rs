//! Header blocks that came in whole: requests, responses and trailers. Each one is decoded, also those that nobody wants:
//! the table for the next one depends on it.

use super::streams::Stream;
use super::{Arrival, Broken, Core, Key, Phase};
use crate::buffers::{give_request, give_response, take_request, take_response};
use crate::http2::frame::{self, END_HEADERS, END_STREAM, code};
use crate::http2::hpack::{Decoder, HpackError};
use crate::http2::read_heads::{Refusal, RequestReader, ResponseReader, TrailersReader};
use crate::http2::write_heads;
use crate::{BodyKind, Fields, Method, ResponseHead};

/// More interim responses than this are an attack or a loop.
const MAX_INTERIM: u8 = 16;

impl Core {
    pub(super) fn block(&mut self, id: u32, ends: bool, block: &[u8]) -> Result<(), Broken> {
        if let Some(key) = self.streams.find(id) {
            return match self.streams.get(key).is_some_and(|stream| stream.receive.begun) {
                true => self.trailers(key, ends, block),
                false => self.response(key, ends, block),
            };
        }
        if self.config.server && id % 2 == 1 && id > self.highest {
            return self.request(id, ends, block);
        }
        if self.is_idle(id) {
            return Err(Broken::protocol("HEADERS on a stream that is not the sender's to open"));
        }
        decode(&mut self.decoder, block, |_, _| {})?;
        if !self.config.server || self.is_ignored(id) {
            return Ok(());
        }
        // Whoever leaves out no id has opened this one, and it has ended.
        let opened = self.floods.as_ref().map_or(0, super::Floods::streams);
        let known = opened >= u64::from(self.highest).div_ceil(2);
        let code = if known { code::STREAM_CLOSED } else { code::PROTOCOL_ERROR };
        Err(Broken { code, detail: "HEADERS on a stream that has ended" })
    }

    fn request(&mut self, id: u32, ends: bool, block: &[u8]) -> Result<(), Broken> {
        let mut head = take_request();
        let mut reader = RequestReader::new(&mut head, &self.config.head);
        decode(&mut self.decoder, block, |name, value| reader.field(name, value))?;
        let read = reader.finish(ends);
        self.highest = id;
        let ignored = matches!(self.phase, Phase::Ended(last) if id > last);
        let refused = self.streams.listed() >= self.config.max_streams;
        let length = match read {
            Ok(length) if !ignored && !refused => length,
            read => {
                give_request(head);
                if ignored {
                    return Ok(());
                }
                return match read {
                    Ok(_) => self.fault_of(id, code::REFUSED_STREAM, "more streams than allowed"),
                    Err(refusal) => self.refuse(id, ends, refusal),
                };
            }
        };
        let connect = head.method == Method::Connect;
        let kind = match length {
            _ if connect || ends => BodyKind::Empty,
            Some(length) => BodyKind::Length(length),
            None => BodyKind::Stream,
        };
        let (intake, window) = (i64::from(self.intake.stream), i64::from(self.peer.window));
        let (key, stream) = self.streams.insert(id);
        stream.held = true;
        stream.receive.begun = true;
        stream.receive.window = intake;
        stream.receive.left = length.filter(|_| !connect);
        stream.receive.ended = ends;
        stream.send.window = window;
        self.arrivals.push_back(Arrival::Request { key, head, kind });
        Ok(())
    }

    /// A request that goes no further.
    fn refuse(&mut self, id: u32, ends: bool, refusal: Refusal) -> Result<(), Broken> {
        let (status, detail) = match refusal {
            Refusal::Malformed(detail) => {
                self.arrivals.push_back(Arrival::Refused { status: 400, detail });
                return self.fault_of(id, code::PROTOCOL_ERROR, detail);
            }
            Refusal::Answer(status, detail) => (status, detail),
        };
        self.arrivals.push_back(Arrival::Refused { status, detail });
        let head = Fields::new();
        self.write_block(id, END_HEADERS | END_STREAM, |encoder, out| {
            write_heads::response(status, (&head, BodyKind::Stream, false), encoder, out);
        });
        if !ends {
            self.write_reset(id, code::NO_ERROR);
        }
        Ok(())
    }

    fn response(&mut self, key: Key, ends: bool, block: &[u8]) -> Result<(), Broken> {
        let mut head = take_response();
        let mut reader = ResponseReader::new(&mut head, self.config.head.bytes);
        decode(&mut self.decoder, block, |name, value| reader.field(name, value))?;
        let read = reader.finish();
        let Some(stream) = self.streams.get(key) else { return Ok(()) };
        let accepted = read.and_then(|length| accept_response(stream, &head, length, ends));
        if let Err(detail) = accepted {
            give_response(head);
            return self.fault(key, code::PROTOCOL_ERROR, detail);
        }
        stream.receive.heads.push_back(head);
        self.wakes.extend(stream.receive.reader.take());
        if ends { self.received_all(key) } else { Ok(()) }
    }

    fn trailers(&mut self, key: Key, ends: bool, block: &[u8]) -> Result<(), Broken> {
        let mut reader = TrailersReader::default();
        let most = self.config.head.bytes;
        decode(&mut self.decoder, block, |name, value| reader.field(name, value, most))?;
        if self.config.server && reader.count() > self.config.head.fields {
            return Err(Broken::flood("too many trailers"));
        }
        let Some(stream) = self.streams.get(key) else { return Ok(()) };
        if stream.receive.ended {
            return self.fault(key, code::STREAM_CLOSED, "HEADERS behind the end of their stream");
        }
        if !ends {
            return self.fault(key, code::PROTOCOL_ERROR, "trailers that do not end their stream");
        }
        match reader.finish(most) {
            Ok(trailers) => {
                stream.receive.trailers = Some(Box::new(trailers));
                self.received_all(key)
            }
            Err(detail) => self.fault(key, code::PROTOCOL_ERROR, detail),
        }
    }

    /// Appends a header block in as many frames as it needs.
    pub(super) fn write_block(
        &mut self,
        id: u32,
        flags: u8,
        write: impl FnOnce(&mut crate::http2::hpack::Encoder, &mut Vec<u8>),
    ) {
        let out = self.out.bytes();
        let start = out.len();
        out.extend_from_slice(&[0; frame::FrameHead::LENGTH]);
        write(&mut self.encoder, out);
        let length = out.len() - start - frame::FrameHead::LENGTH;
        let most = self.peer.max_frame;
        let (first, rest) = if length <= most {
            (frame::head(length, frame::HEADERS, flags, id), Vec::new())
        } else {
            let rest = out.split_off(start + frame::FrameHead::LENGTH + most);
            (frame::head(most, frame::HEADERS, flags & !END_HEADERS, id), rest)
        };
        if let Some(place) = out.get_mut(start..).and_then(<[u8]>::first_chunk_mut) {
            *place = first;
        }
        let mut pieces = rest.chunks(most).peekable();
        while let Some(piece) = pieces.next() {
            let flags = if pieces.peek().is_none() { END_HEADERS } else { 0 };
            out.extend_from_slice(&frame::head(piece.len(), frame::CONTINUATION, flags, id));
            out.extend_from_slice(piece);
        }
        self.dirty = true;
    }
}

/// What a response's head says of what comes behind it.
fn accept_response(
    stream: &mut Stream,
    head: &ResponseHead,
    length: Option<u64>,
    ends: bool,
) -> Result<(), &'static str> {
    let receive = &mut stream.receive;
    if head.is_informational() {
        receive.interim += 1;
        return match (ends, receive.interim > MAX_INTERIM) {
            (true, _) => Err("an interim response that ends its stream"),
            (_, true) => Err("more than 16 interim responses"),
            _ => Ok(()),
        };
    }
    receive.begun = true;
    receive.left = match head.status {
        200..300 if receive.connect => None,
        204 | 304 => Some(0),
        _ if receive.asked_head => Some(0),
        _ => length,
    };
    Ok(())
}

fn decode(decoder: &mut Decoder, block: &[u8], emit: impl FnMut(&[u8], &[u8])) -> Result<(), Broken> {
    decoder.decode(block, emit).map_err(|error: HpackError| {
        tracing::debug!(%error, "a header block cannot be decoded");
        Broken { code: code::COMPRESSION_ERROR, detail: "a header block that cannot be decoded" }
    })
}
