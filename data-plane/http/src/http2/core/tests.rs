//! Both roles against each other over a link that cuts the bytes anywhere: whatever bodies, windows, resets and pings come
//! together, each stream ends as it was meant to, and at the end nothing is left over.
//!
//! `CULVERT_HTTP2_SIM_SEEDS` says how many seeds are tried (150), `SEED` which one alone.

use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use smallvec::SmallVec;

use super::{Arrival, Core, Failure, Key, Piece, Unopened};
use crate::client::Http2ClientOptions;
use crate::http2::frame::code;
use crate::http2::outbox::Outbox;
use crate::http2::preface::PREFACE;
use crate::server::ServerOptions;
use crate::{BodyKind, Chunk, Fields, Method, RequestHead};

#[test]
fn any_seed_ends_well() {
    let alone = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
    let count = std::env::var("CULVERT_HTTP2_SIM_SEEDS").ok().and_then(|count| count.parse().ok()).unwrap_or(150);
    match alone {
        Some(seed) => Simulation::new(seed).run(),
        None => (0..count).for_each(|seed| Simulation::new(seed).run()),
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    fn one_of<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// One direction of a stream, as it was meant: a function of the seed, so that both ends know it.
#[derive(Clone, Copy)]
struct Plan {
    length: usize,
    announced: bool,
    trailers: bool,
}

/// A stream as one end has it.
struct Side {
    key: Key,
    id: u32,
    plan: Plan,
    expected: Plan,
    begun: bool,
    sent: usize,
    finished: bool,
    got: usize,
    ended: bool,
    reset: bool,
    failed: Option<Failure>,
    released: bool,
}

struct End {
    core: Core,
    writing: Outbox,
    input: BytesMut,
    /// Bytes on their way to this end.
    wire: Vec<u8>,
    sides: Vec<Side>,
}

struct Simulation {
    seed: u64,
    random: Random,
    most: usize,
    /// Client, server.
    ends: [End; 2],
}

fn byte(id: u32, at: usize) -> u8 {
    (id as usize ^ at ^ (at >> 8) ^ (at >> 16)) as u8
}

fn trailers() -> Fields {
    let mut fields = Fields::new();
    fields.push(b"x-sum", b"1");
    fields
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let windows = [1, 100, 16_384, 65_535, 300_000];
        let smallest = random.one_of(&windows);
        let mut window = || random.one_of(&windows).max(smallest);
        let (client_windows, server_windows) = ((window(), window()), (window(), window()));
        let mut frame = || random.one_of(&[16_384, 65_536, 1 << 20]);
        let client = Http2ClientOptions {
            initial_stream_window: client_windows.0,
            initial_connection_window: client_windows.1,
            max_frame_size: frame(),
            ..Http2ClientOptions::default()
        };
        let server = ServerOptions {
            initial_stream_window: server_windows.0,
            initial_connection_window: server_windows.1,
            max_frame_size: frame(),
            max_concurrent_streams: random.one_of(&[1, 3, 100]),
            ..ServerOptions::default()
        };
        let end = |core| End {
            core,
            writing: Outbox::default(),
            input: BytesMut::new(),
            wire: Vec::new(),
            sides: Vec::new(),
        };
        let most = if smallest < 1000 { 500 } else { 60_000 };
        let mut client = Core::client(&client);
        // The preface is taken off before there is a core.
        client.out.bytes().drain(..PREFACE.len());
        Self { seed, random, most, ends: [end(client), end(Core::server(&server))] }
    }

    fn plan(&self, id: u32, answer: bool) -> Plan {
        let mut random = Random(self.seed ^ u64::from(id) << 32 ^ u64::from(answer) << 63);
        let most = random.one_of(&[0, 1, 1000, self.most]).min(self.most);
        Plan { length: random.below(most + 1), announced: random.below(2) == 0, trailers: random.below(3) == 0 }
    }

    fn run(mut self) {
        self.pump(usize::MAX);
        let steps = 200 + self.random.below(2000);
        for _ in 0..steps {
            let end = self.random.below(2);
            match self.random.below(40) {
                0..6 => self.open(),
                6..14 => self.transfer(end),
                14..26 => self.write(end),
                26..36 => self.read(end),
                36 if self.random.below(4) == 0 => self.reset(end),
                37 => self.ends[end].core.ping(),
                38 if self.random.below(8) == 0 => {
                    let more = 1000 + self.random.below(100_000) as u32;
                    let target = self.ends[end].core.intake.target;
                    self.ends[end].core.grow(self.ends[end].core.intake.stream.max(more), target.max(2 * more));
                }
                _ => self.let_go(end),
            }
            self.accept();
        }
        let leaves = self.random.below(3) == 0;
        if leaves {
            self.ends[1].core.end();
        }
        self.finish(leaves);
    }

    /// Bytes from one end to the other, cut anywhere.
    fn transfer(&mut self, to: usize) {
        let [client, server] = &mut self.ends;
        let (from, to) = if to == 0 { (server, client) } else { (client, server) };
        if from.writing.is_empty() {
            from.core.fill(&mut from.writing);
        }
        let mut slices = SmallVec::new();
        from.writing.slices(&mut slices);
        let most = self.random.one_of(&[10, 1000, 100_000]);
        let taken: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).take(most).collect();
        drop(slices);
        to.wire.extend(&taken);
        from.writing.advance(taken.len());
        let count = if self.random.below(2) == 0 { to.wire.len() } else { self.random.below(to.wire.len() + 1) };
        to.input.extend_from_slice(&to.wire[..count]);
        to.wire.drain(..count);
        to.core.receive(&mut to.input);
        assert_eq!(to.core.broken(), None, "seed {}: broken off", self.seed);
        assert_eq!(from.core.broken(), None, "seed {}: broken off", self.seed);
    }

    fn pump(&mut self, rounds: usize) {
        let quiet = |end: &End| end.writing.is_empty() && end.core.out.is_empty() && end.wire.is_empty();
        for _ in 0..rounds {
            self.transfer(0);
            self.transfer(1);
            if self.ends.iter().all(quiet) {
                return;
            }
        }
    }

    fn open(&mut self) {
        let id = self.ends[0].core.next;
        let (plan, expected) = (self.plan(id, false), self.plan(id, true));
        let mut head = RequestHead::new();
        head.method = Method::Post;
        head.authority.push('h');
        head.path = format!("/{id}");
        let body = if plan.announced { BodyKind::Length(plan.length as u64) } else { BodyKind::Stream };
        let ends = plan.length == 0 && plan.announced && !plan.trailers;
        let cx = Context::from_waker(Waker::noop());
        match self.ends[0].core.open(&head, body, ends, 0, &cx) {
            Ok(key) => {
                let side = Side::new(key, plan, expected);
                self.ends[0].sides.push(Side { finished: ends, ..side });
            }
            Err(Unopened::Full) => {}
            Err(Unopened::Closed) => panic!("seed {}: closed", self.seed),
        }
    }

    fn accept(&mut self) {
        let mut arrivals = std::collections::VecDeque::new();
        self.ends[1].core.take_arrivals(&mut arrivals);
        for arrival in arrivals {
            let Arrival::Request { key, head, .. } = arrival else { panic!("seed {}: refused", self.seed) };
            assert_eq!(head.path, format!("/{}", key.id), "seed {}: heads mixed up", self.seed);
            let side = Side::new(key, self.plan(key.id, true), self.plan(key.id, false));
            self.ends[1].sides.push(side);
        }
    }

    fn any_side(&mut self, end: usize) -> Option<usize> {
        let count = self.ends[end].sides.len();
        let from = count.saturating_sub(8);
        (count > 0).then(|| from + self.random.below(count - from))
    }

    fn write(&mut self, end: usize) {
        let Some(at) = self.any_side(end) else { return };
        let most = self.random.one_of(&[1, 100, 5000, 70_000]);
        let owned = self.random.below(2) == 0;
        self.write_side(end, at, most, owned);
    }

    fn write_side(&mut self, end: usize, at: usize, most: usize, owned: bool) {
        let End { core, sides, .. } = &mut self.ends[end];
        let Some(side) = sides.get_mut(at).filter(|side| !side.is_over() && !side.finished) else { return };
        let cx = Context::from_waker(Waker::noop());
        if !side.begun {
            side.begun = true;
            if end == 1 {
                let length = BodyKind::Length(side.plan.length as u64);
                let body = if side.plan.announced { length } else { BodyKind::Stream };
                side.failed = core.respond(side.key, 200, (&Fields::new(), body, false), false).err();
            }
            return;
        }
        let left = side.plan.length - side.sent;
        if left > 0 {
            let bytes: Vec<u8> = (side.sent..side.sent + left.min(most)).map(|at| byte(side.id, at)).collect();
            let mut chunk =
                if owned { Chunk::Owned(Bytes::from(bytes.clone())) } else { Chunk::Borrowed(bytes.as_slice()) };
            if let Poll::Ready(Err(failure)) = core.poll_send(side.key, &mut chunk, &cx) {
                side.failed = Some(failure);
            }
            side.sent += bytes.len() - chunk.len();
            return;
        }
        let fields = trailers();
        match core.finish(side.key, side.plan.trailers.then_some(&fields)) {
            Ok(_) => side.finished = true,
            Err(failure) => side.failed = Some(failure),
        }
    }

    fn read(&mut self, end: usize) {
        if let Some(at) = self.any_side(end) {
            self.read_side(end, at);
        }
    }

    fn read_side(&mut self, end: usize, at: usize) {
        let seed = self.seed;
        let End { core, sides, .. } = &mut self.ends[end];
        let Some(side) = sides.get_mut(at).filter(|side| !side.is_over() && !side.ended) else { return };
        let cx = Context::from_waker(Waker::noop());
        // A client's head comes first.
        if let Poll::Ready(Ok((head, _))) = core.poll_head(side.key, &cx) {
            assert_eq!((end, head.status), (0, 200), "seed {seed}: stream {}'s head", side.id);
        }
        let piece = match core.poll_piece(side.key, &cx) {
            Poll::Pending => return,
            Poll::Ready(Ok(piece)) => piece,
            Poll::Ready(Err(failure)) => return side.failed = Some(failure),
        };
        match piece {
            Piece::Data(data) => {
                let good = data.iter().enumerate().all(|(at, &seen)| seen == byte(side.id, side.got + at));
                assert!(good, "seed {seed}: other bytes than were sent on {}", side.id);
                side.got += data.len();
            }
            Piece::End(trailers) => {
                let seen = (side.got, trailers.is_some_and(|trailers| trailers.contains(b"x-sum")));
                assert_eq!(seen, (side.expected.length, side.expected.trailers), "seed {seed}: {}'s end", side.id);
                side.ended = true;
            }
        }
    }

    fn reset(&mut self, end: usize) {
        if let Some(at) = self.any_side(end)
            && let End { core, sides, .. } = &mut self.ends[end]
            && let Some(side) = sides.get_mut(at).filter(|side| !side.is_over())
        {
            core.reset(side.key, code::CANCEL);
            side.reset = true;
        }
    }

    /// Streams that are over are let go of.
    fn let_go(&mut self, end: usize) {
        let End { core, sides, .. } = &mut self.ends[end];
        for side in sides.iter_mut().filter(|side| side.is_over() && !side.released) {
            core.release(side.key);
            side.released = true;
        }
    }

    /// Nothing new begins, and everything is brought to its end.
    fn finish(mut self, leaves: bool) {
        let seed = self.seed;
        for round in 0.. {
            assert!(round < 20_000, "seed {seed}: it does not end");
            self.accept();
            for end in 0..2 {
                for at in 0..self.ends[end].sides.len() {
                    self.write_side(end, at, 100_000, true);
                    self.read_side(end, at);
                }
                self.let_go(end);
            }
            self.pump(4);
            let over = |end: &End| end.sides.iter().all(|side| side.released);
            let quiet = |end: &End| end.writing.is_empty() && end.core.out.is_empty() && end.wire.is_empty();
            if self.ends.iter().all(|end| over(end) && quiet(end)) && self.ends[1].core.arrivals.is_empty() {
                break;
            }
        }
        let [client, server] = &self.ends;
        for side in &client.sides {
            let other = server.sides.iter().find(|other| other.id == side.id);
            let reset = side.reset || other.is_some_and(|other| other.reset);
            let outcomes = [Some(side), other].map(|side| side.and_then(|side| side.failed));
            assert!(reset || outcomes == [None, None], "seed {seed}: {} failed by {outcomes:?}", side.id);
            for failed in outcomes.into_iter().flatten() {
                let by_reset = matches!(failed, Failure::Reset(code::CANCEL) | Failure::Broken(_));
                assert!(by_reset, "seed {seed}: {} failed by {failed:?}", side.id);
            }
        }
        for (near, far) in [(client, server), (server, client)] {
            assert_eq!(near.core.window, far.core.intake.window, "seed {seed}: the window of all");
            let Core { intake, streams, ring, queued, .. } = &near.core;
            assert_eq!(intake.window + intake.used, i64::from(intake.target), "seed {seed}: windows are given back");
            assert_eq!((streams.listed(), ring.len(), *queued), (0, 0, 0), "seed {seed}: something is left");
            assert!(streams.is_unused(), "seed {seed}: a record is left");
        }
        assert_eq!((server.core.is_done(), client.core.is_open()), (leaves, !leaves), "seed {seed}: GOAWAY");
    }
}

impl Side {
    fn new(key: Key, plan: Plan, expected: Plan) -> Self {
        Self {
            key,
            id: key.id,
            plan,
            expected,
            begun: false,
            sent: 0,
            finished: false,
            got: 0,
            ended: false,
            reset: false,
            failed: None,
            released: false,
        }
    }

    fn is_over(&self) -> bool {
        self.released || self.reset || self.failed.is_some() || self.finished && self.ended
    }
}
