//! Frames that come in. Each is judged where it is read.

use bytes::{Buf, Bytes, BytesMut};
use std::collections::VecDeque;
use tokio::time::Instant;

use super::control::check_priority;
use super::{Broken, Core, Failure, Key, Phase, RECENT};
use crate::buffers::{give_out, take_out};
use crate::http2::frame::{self, FrameHead, MAX_STREAM, code};
use crate::http2::{GOOD_STREAMS, MAX_LOCAL_RESETS};

/// What is read of a frame or header block that is not there whole.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    /// Bytes of a payload that nobody wants.
    skip: usize,
    data: Option<Payload>,
    block: Option<Box<Block>>,
}

/// DATA whose rest is still to come.
#[derive(Debug)]
struct Payload {
    key: Key,
    left: usize,
    padding: usize,
    ends: bool,
}

/// A header block that goes on in the next frame.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) stream: u32,
    pub(super) ends_stream: bool,
    pub(super) bytes: Vec<u8>,
    since: Instant,
}

impl Incoming {
    pub(super) fn open_block(&self) -> Option<Instant> {
        self.block.as_ref().map(|block| block.since)
    }
}

/// From so many bytes on a piece of DATA is not copied.
const SHARED: usize = 8 * 1024;
/// Small pieces become one up to this.
const JOIN: usize = 16 * 1024;
/// The least that a header block may have on the wire, whatever its limit is when it is decoded.
const LEAST_BLOCK: usize = 128 * 1024;

impl Core {
    /// Takes all frames that are there off the front. Afterwards the caller looks at what has come of it.
    pub(in crate::http2) fn receive(&mut self, input: &mut BytesMut) {
        if matches!(self.phase, Phase::Broken(_) | Phase::Closed) {
            return input.clear();
        }
        if let Err(broken) = self.read_frames(input) {
            tracing::debug!(detail = broken.detail, "an HTTP/2 connection is broken off");
            self.break_off(broken);
            input.clear();
        }
    }

    fn read_frames(&mut self, input: &mut BytesMut) -> Result<(), Broken> {
        loop {
            if self.incoming.data.is_some() {
                self.data_goes_on(input)?;
            }
            let skipped = self.incoming.skip.min(input.len());
            if skipped > 0 {
                input.advance(skipped);
                self.incoming.skip -= skipped;
            }
            if self.incoming.data.is_some() || self.incoming.skip > 0 {
                return Ok(());
            }
            let Some(head) = FrameHead::read(input) else { return Ok(()) };
            if head.length > self.config.max_frame {
                return Err(Broken::size("a frame that is too large"));
            }
            let needed = match head.kind {
                frame::DATA => usize::from(head.is_padded()),
                frame::HEADERS..=frame::CONTINUATION if head.length > self.most_block() => {
                    return Err(Broken::size("a frame that is too large"));
                }
                frame::HEADERS..=frame::CONTINUATION => head.length,
                _ => 0,
            };
            // A payload that is shorter than its own padding's length is found out below.
            let needed = FrameHead::LENGTH + needed.min(head.length);
            if input.len() < needed {
                return Ok(());
            }
            self.judge(head)?;
            let payload = input.get(FrameHead::LENGTH..needed).unwrap_or_default();
            let rest = self.frame(head, payload)?;
            input.advance(needed);
            self.incoming.skip += rest;
        }
    }

    /// What a frame's head alone tells.
    fn judge(&mut self, head: FrameHead) -> Result<(), Broken> {
        if let Some(block) = &self.incoming.block
            && (head.kind != frame::CONTINUATION || head.stream != block.stream)
        {
            return Err(Broken::protocol("a header block is interrupted"));
        }
        if !self.peer.settled && head.kind != frame::SETTINGS {
            return Err(Broken::protocol("no SETTINGS at the beginning"));
        }
        match &mut self.floods {
            Some(floods) => floods.judge(head, self.highest).map_err(Broken::flood),
            None => Ok(()),
        }
    }

    /// One frame, of DATA and unknown ones the beginning; how many bytes of its rest to skip.
    fn frame(&mut self, head: FrameHead, payload: &[u8]) -> Result<usize, Broken> {
        match head.kind {
            frame::DATA => return self.data(head, payload),
            frame::HEADERS => self.headers(head, payload)?,
            frame::CONTINUATION => self.continuation(head, payload)?,
            frame::PRIORITY => check_priority(head, payload)?,
            frame::RST_STREAM => self.reset_by_peer(head, payload)?,
            frame::SETTINGS => self.settings(head, payload)?,
            frame::PING => self.pinged(head, payload)?,
            frame::GOAWAY => self.goaway(head, payload)?,
            frame::WINDOW_UPDATE => self.window_update(head, payload)?,
            frame::PUSH_PROMISE => return Err(Broken::protocol("a PUSH_PROMISE")),
            _ => return Ok(head.length),
        }
        Ok(0)
    }

    /// Whether the peer names a stream that was never opened.
    pub(super) fn is_idle(&self, id: u32) -> bool {
        let ours = id % 2 == 1;
        if self.config.server { !ours || id > self.highest } else { !ours || id >= self.next }
    }

    /// Bytes that a header block may have on the wire.
    fn most_block(&self) -> usize {
        LEAST_BLOCK.max(self.config.head.bytes.saturating_mul(2))
    }

    fn data(&mut self, head: FrameHead, payload: &[u8]) -> Result<usize, Broken> {
        let padding = payload.first().map_or(0, |&padding| usize::from(padding));
        let taken = payload.len() + padding;
        if head.stream == 0 || head.is_padded() && taken > head.length || head.is_padded() && payload.is_empty() {
            return Err(Broken::protocol("malformed DATA"));
        }
        self.intake.window -= i64::try_from(head.length).unwrap_or(i64::MAX);
        if self.intake.window < 0 {
            return Err(Broken { code: code::FLOW_CONTROL_ERROR, detail: "more DATA than was allowed" });
        }
        let unread = head.length - payload.len();
        let Some(key) = self.streams.find(head.stream) else {
            if self.is_idle(head.stream) {
                return Err(Broken::protocol("DATA on a stream that never was"));
            }
            self.give_back(head.length);
            if self.config.server && !self.is_ignored(head.stream) {
                self.fault_of(head.stream, code::STREAM_CLOSED, "DATA on a stream that has ended")?;
            }
            return Ok(unread);
        };
        let left = head.length - taken;
        if let Err((code, detail)) = self.accept_data(key, head.length, left) {
            self.give_back(head.length);
            self.fault(key, code, detail)?;
            return Ok(unread);
        }
        self.used_up(key, taken);
        self.incoming.data = Some(Payload { key, left, padding, ends: head.ends_stream() });
        Ok(0)
    }

    /// Whether a stream may have so many bytes more, `left` of them of its body.
    fn accept_data(&mut self, key: Key, length: usize, left: usize) -> Result<(), (u32, &'static str)> {
        let Some(stream) = self.streams.get(key) else { return Ok(()) };
        let receive = &mut stream.receive;
        if receive.ended {
            return Err((code::STREAM_CLOSED, "DATA behind the end of its stream"));
        }
        if !receive.begun {
            return Err((code::PROTOCOL_ERROR, "a body without a head"));
        }
        receive.window -= i64::try_from(length).unwrap_or(i64::MAX);
        if receive.window < 0 {
            return Err((code::FLOW_CONTROL_ERROR, "more DATA than was allowed"));
        }
        if let Some(owed) = &mut receive.left {
            let after = owed.checked_sub(left as u64);
            *owed = after.ok_or((code::PROTOCOL_ERROR, "more body than its length"))?;
        }
        Ok(())
    }

    /// What has come of a DATA frame's payload.
    fn data_goes_on(&mut self, input: &mut BytesMut) -> Result<(), Broken> {
        let Some(mut payload) = self.incoming.data.take() else { return Ok(()) };
        let count = payload.left.min(input.len());
        payload.left -= count;
        match self.streams.get(payload.key).filter(|stream| stream.listed) {
            Some(stream) if count > 0 => {
                let receive = &mut stream.receive;
                receive.waiting += count;
                if count >= SHARED {
                    receive.pieces.push_back(input.split_to(count).freeze());
                } else {
                    join(&mut receive.pieces, input.get(..count).unwrap_or_default());
                    input.advance(count);
                }
                self.wakes.extend(receive.reader.take());
            }
            Some(_) => {}
            None => {
                input.advance(count);
                self.give_back(count);
            }
        }
        if payload.left > 0 {
            self.incoming.data = Some(payload);
            return Ok(());
        }
        self.incoming.skip += payload.padding;
        if payload.ends { self.received_all(payload.key) } else { Ok(()) }
    }

    /// The peer's direction of a stream has ended.
    pub(super) fn received_all(&mut self, key: Key) -> Result<(), Broken> {
        let Some(stream) = self.streams.get(key).filter(|stream| stream.listed) else { return Ok(()) };
        if stream.receive.left.is_some_and(|left| left > 0) {
            return self.fault(key, code::PROTOCOL_ERROR, "less body than its length");
        }
        stream.receive.ended = true;
        self.wakes.extend(stream.receive.reader.take());
        self.settle(key);
        Ok(())
    }

    fn headers(&mut self, head: FrameHead, payload: &[u8]) -> Result<(), Broken> {
        const MALFORMED: Broken = Broken::protocol("malformed HEADERS");
        let mut block = payload;
        let mut padding = 0;
        if head.is_padded() {
            let (&length, rest) = block.split_first().ok_or(MALFORMED)?;
            (padding, block) = (usize::from(length), rest);
        }
        if head.has_priority() {
            let (priority, rest) = block.split_first_chunk::<5>().ok_or(MALFORMED)?;
            if frame::number(priority).is_some_and(|on| on & MAX_STREAM == head.stream) {
                return Err(Broken::protocol("a stream that depends on itself"));
            }
            block = rest;
        }
        let block = block.len().checked_sub(padding).and_then(|length| block.get(..length)).ok_or(MALFORMED)?;
        if head.ends_block() {
            return self.block(head.stream, head.ends_stream(), block);
        }
        let mut bytes = take_out();
        bytes.extend_from_slice(block);
        let block = Block { stream: head.stream, ends_stream: head.ends_stream(), bytes, since: Instant::now() };
        self.incoming.block = Some(Box::new(block));
        Ok(())
    }

    fn continuation(&mut self, head: FrameHead, payload: &[u8]) -> Result<(), Broken> {
        let most = self.most_block();
        let Some(mut block) = self.incoming.block.take() else {
            return Err(Broken::protocol("a CONTINUATION of nothing"));
        };
        if block.bytes.len() + payload.len() > most {
            return Err(Broken::flood("a header block that is too long"));
        }
        block.bytes.extend_from_slice(payload);
        if !head.ends_block() {
            self.incoming.block = Some(block);
            return Ok(());
        }
        self.block(block.stream, block.ends_stream, &block.bytes)?;
        give_out(block.bytes);
        Ok(())
    }

    /// The peer broke the protocol on a stream, which is reset.
    pub(super) fn fault(&mut self, key: Key, code: u32, detail: &'static str) -> Result<(), Broken> {
        self.fault_of(key.id, code, detail)?;
        self.shut(key, if code == code::FLOW_CONTROL_ERROR { Failure::Overflow } else { Failure::Broken(detail) });
        Ok(())
    }

    /// As [`Self::fault`], of a stream that has no record.
    pub(super) fn fault_of(&mut self, id: u32, code: u32, detail: &'static str) -> Result<(), Broken> {
        tracing::debug!(stream = id, detail, "a stream is reset");
        self.local_resets += GOOD_STREAMS;
        if self.local_resets > MAX_LOCAL_RESETS * GOOD_STREAMS {
            return Err(Broken::flood("too many errors on streams"));
        }
        self.write_reset(id, code);
        Ok(())
    }

    /// Whether the peer may not know yet that we take no notice of a stream.
    pub(super) fn is_ignored(&self, id: u32) -> bool {
        matches!(self.phase, Phase::Ended(last) if id > last) || self.recent.contains(&id)
    }

    pub(super) fn write_reset(&mut self, id: u32, code: u32) {
        frame::write_reset(self.out.bytes(), id, code);
        self.replies += 1;
        self.dirty = true;
        if self.recent.len() >= RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(id);
    }
}

/// Appends a copy of a piece: to the last one, if that is small and nobody else's.
pub(super) fn join(pieces: &mut VecDeque<Bytes>, piece: &[u8]) {
    let Some(last) = pieces.pop_back_if(|last| last.len() + piece.len() <= JOIN) else {
        return pieces.push_back(Bytes::copy_from_slice(piece));
    };
    match last.try_into_mut() {
        Ok(mut last) => {
            last.extend_from_slice(piece);
            pieces.push_back(last.freeze());
        }
        Err(last) => {
            pieces.push_back(last);
            pieces.push_back(Bytes::copy_from_slice(piece));
        }
    }
}
