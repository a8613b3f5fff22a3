//! Frames that carry neither heads nor bodies.

use super::{ALIVE, Broken, Core, Failure, GOING, Phase};
use crate::http2::MAX_PENDING_RESETS;
use crate::http2::frame::{self, DEFAULT_FRAME, FrameHead, MAX_FRAME, MAX_STREAM, code, setting};

const TOO_LARGE: Broken = Broken { code: code::FLOW_CONTROL_ERROR, detail: "a window that is too large" };

impl Core {
    pub(super) fn reset_by_peer(&mut self, head: FrameHead, payload: &[u8]) -> Result<(), Broken> {
        let code = exactly_a_number(payload)?;
        if head.stream == 0 || self.is_idle(head.stream) {
            return Err(Broken::protocol("RST_STREAM of a stream that never was"));
        }
        let Some(key) = self.streams.find(head.stream) else { return Ok(()) };
        if head.stream > self.seen {
            self.pending_resets += 1;
            if self.config.server && self.pending_resets > MAX_PENDING_RESETS {
                return Err(Broken::flood("too many resets of requests that nobody has seen"));
            }
        }
        let failure = if code == code::REFUSED_STREAM { Failure::Refused } else { Failure::Reset(code) };
        self.shut(key, failure);
        Ok(())
    }

    pub(super) fn settings(&mut self, head: FrameHead, payload: &[u8]) -> Result<(), Broken> {
        if head.stream != 0 || head.is_ack() && !self.peer.settled {
            return Err(Broken::protocol("misplaced SETTINGS"));
        }
        if !payload.len().is_multiple_of(6) || head.is_ack() && !payload.is_empty() {
            return Err(Broken::size("malformed SETTINGS"));
        }
        if head.is_ack() {
            self.agreed();
            return Ok(());
        }
        let first = !std::mem::replace(&mut self.peer.settled, true);
        if first {
            self.peer.max_streams = usize::MAX;
        }
        // Each window changes all streams: those that are changed again in the same frame only cost work.
        let mut window = None;
        for (which, value) in frame::settings(payload) {
            match which {
                setting::INITIAL_WINDOW_SIZE if value > MAX_STREAM => return Err(TOO_LARGE),
                setting::INITIAL_WINDOW_SIZE => window = Some(value),
                _ => self.setting(which, value)?,
            }
        }
        if let Some(window) = window {
            self.peer_window(window)?;
        }
        frame::write_settings_ack(self.out.bytes());
        self.replies += 1;
        self.dirty = true;
        self.wakes.append(&mut self.openers);
        Ok(())
    }

    /// The peer keeps to the window that we have asked for.
    fn agreed(&mut self) {
        let Some(window) = self.intake.agreed.take() else { return };
        let more = i64::from(window) - i64::from(self.intake.stream);
        self.intake.stream = window;
        for place in 0..self.streams.listed() {
            if let Some(stream) = self.streams.nth(place).and_then(|key| self.streams.get(key)) {
                stream.receive.window += more;
            }
        }
    }

    fn setting(&mut self, which: u16, value: u32) -> Result<(), Broken> {
        match which {
            setting::HEADER_TABLE_SIZE => self.encoder.peer_allows(value),
            setting::ENABLE_PUSH if value > 1 || value == 1 && !self.config.server => {
                return Err(Broken::protocol("ENABLE_PUSH out of its range"));
            }
            setting::MAX_CONCURRENT_STREAMS => self.peer.max_streams = value as usize,
            setting::MAX_FRAME_SIZE => {
                let value = value as usize;
                if !(DEFAULT_FRAME..=MAX_FRAME).contains(&value) {
                    return Err(Broken::protocol("MAX_FRAME_SIZE out of its range"));
                }
                self.peer.max_frame = value;
            }
            setting::ENABLE_CONNECT_PROTOCOL => {
                if value > 1 || value == 0 && self.peer.extended_connect {
                    return Err(Broken::protocol("ENABLE_CONNECT_PROTOCOL out of its range"));
                }
                self.peer.extended_connect = value == 1;
            }
            _ => {}
        }
        Ok(())
    }

    /// All streams' windows change by the difference (RFC 9113, 6.9.2).
    fn peer_window(&mut self, value: u32) -> Result<(), Broken> {
        let more = i64::from(value) - i64::from(self.peer.window);
        self.peer.window = value;
        for place in 0..self.streams.listed() {
            let Some(key) = self.streams.nth(place) else { break };
            self.open_window(key, more).map_err(|()| TOO_LARGE)?;
        }
        Ok(())
    }

    pub(super) fn pinged(&mut self, head: FrameHead, payload: &[u8]) -> Result<(), Broken> {
        let payload: &[u8; 8] = payload.try_into().map_err(|_| Broken::size("a PING that is not eight bytes long"))?;
        if head.stream != 0 {
            return Err(Broken::protocol("a PING on a stream"));
        }
        if !head.is_ack() {
            frame::write_ping(self.out.bytes(), frame::ACK, payload);
            self.replies += 1;
            self.dirty = true;
        } else if payload == ALIVE {
            self.pong = true;
        } else if payload == GOING && self.phase == Phase::Ending {
            self.say_last();
        }
        Ok(())
    }

    pub(super) fn goaway(&mut self, head: FrameHead, payload: &[u8]) -> Result<(), Broken> {
        let (Some(last), Some(code)) = (frame::number(payload), payload.get(4..).and_then(frame::number)) else {
            return Err(Broken::size("a GOAWAY that is too short"));
        };
        if head.stream != 0 {
            return Err(Broken::protocol("a GOAWAY on a stream"));
        }
        self.leaving = true;
        self.dirty = true;
        self.peer.goaway = Some((last & MAX_STREAM, code));
        self.wakes.append(&mut self.openers);
        let mut place = 0;
        while let Some(key) = self.streams.nth(place) {
            if !self.config.server && key.id > last & MAX_STREAM {
                self.shut(key, Failure::Refused);
            } else {
                place += 1;
            }
        }
        Ok(())
    }

    pub(super) fn window_update(&mut self, head: FrameHead, payload: &[u8]) -> Result<(), Broken> {
        let more = exactly_a_number(payload)? & MAX_STREAM;
        if head.stream == 0 {
            self.window += i64::from(more);
            return match self.window <= i64::from(MAX_STREAM) {
                true if more > 0 => Ok(()),
                true => Err(Broken::protocol("a window that opens by nothing")),
                false => Err(Broken { code: code::FLOW_CONTROL_ERROR, detail: "a window that is too large" }),
            };
        }
        if self.is_idle(head.stream) {
            return Err(Broken::protocol("WINDOW_UPDATE of a stream that never was"));
        }
        let Some(key) = self.streams.find(head.stream) else { return Ok(()) };
        if more == 0 {
            return self.fault(key, code::PROTOCOL_ERROR, "a window that opens by nothing");
        }
        match self.open_window(key, i64::from(more)) {
            Ok(()) => Ok(()),
            Err(()) => self.fault(key, code::FLOW_CONTROL_ERROR, "a window that is too large"),
        }
    }
}

fn exactly_a_number(payload: &[u8]) -> Result<u32, Broken> {
    frame::number(payload).filter(|_| payload.len() == 4).ok_or(Broken::size("a frame that is not four bytes long"))
}

/// What it asks for is ignored (RFC 9113, 5.3.2).
pub(super) fn check_priority(head: FrameHead, payload: &[u8]) -> Result<(), Broken> {
    if payload.len() != 5 {
        return Err(Broken::size("a PRIORITY that is not five bytes long"));
    }
    let on_itself = frame::number(payload).is_some_and(|on| on & MAX_STREAM == head.stream);
    if head.stream == 0 || on_itself {
        return Err(Broken::protocol("a malformed PRIORITY"));
    }
    Ok(())
}
