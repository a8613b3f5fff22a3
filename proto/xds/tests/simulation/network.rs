//! A connection between one client and the server: two queues that keep order and lose everything at once.

use std::collections::VecDeque;

use bytes::Bytes;
use culvert_xds::StreamId;

/// One stream. Messages travel encoded, so that every run also proves the encodings.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) stream: StreamId,
    /// Which of the server's sessions it is attached to, once the first request arrived.
    pub(crate) session: Option<usize>,
    pub(crate) up: VecDeque<Bytes>,
    /// With the moment of sending, counted in messages.
    pub(crate) down: VecDeque<(u64, Bytes)>,
}

impl Connection {
    pub(crate) fn new(stream: StreamId) -> Self {
        Self { stream, session: None, up: VecDeque::new(), down: VecDeque::new() }
    }
}

/// A seeded source of choices (SplitMix64).
#[derive(Debug)]
pub(crate) struct Choices(u64);

impl Choices {
    pub(crate) fn new(seed: u64) -> Self {
        // Mixed: seeds that are a step apart would make the same choices, one choice apart.
        Self(mixed(seed.wrapping_add(0x1234_5678_9abc_def1)))
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        usize::try_from(mixed(self.0) % limit.max(1) as u64).unwrap_or(0)
    }

    pub(crate) fn percent(&mut self, chance: usize) -> bool {
        self.below(100) < chance
    }
}

fn mixed(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
