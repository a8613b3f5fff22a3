//! How soon a connection is dialled again. **A server that accepts and closes, or that asks for other connections, cannot
//! make an agent storm it.**

use std::borrow::Cow;
use std::time::Duration;

use culvert_runtime::backoff::Backoff;

/// How long to wait after a tunnel that lived so long and brought so many bytes. After one that lasted, or was used,
/// hardly at all: the back-off begins when dialling fails. Any other is no success, else a server that accepts and closes
/// would be stormed.
pub(super) fn after_tunnel(backoff: &mut Backoff, served: &Served) -> Duration {
    if served.lived < LASTED && !served.used {
        return backoff.next_delay();
    }
    backoff.reset();
    AT_ONCE.mul_f64(fastrand::f64())
}

/// Keeps a server waiting that asks for one tunnel after the other.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// The last one that was replaced had hardly lived.
    hurried: bool,
}

impl Pace {
    /// How long to wait before a tunnel that lived so long is replaced. The first that hardly lived is replaced at once: its
    /// server may have begun to end as it was dialled.
    pub(super) fn pause(&mut self, lived: Duration, backoff: &mut Backoff) -> Duration {
        let before = std::mem::replace(&mut self.hurried, lived < LASTED);
        if !self.hurried {
            backoff.reset();
        }
        if before && self.hurried { backoff.next_delay() } else { Duration::ZERO }
    }
}

/// What became of a connection that was established.
#[derive(Debug)]
pub(super) struct Served {
    pub(super) lived: Duration,
    /// It brought a request.
    pub(super) used: bool,
    /// Why it ended.
    pub(super) end: Cow<'static, str>,
}

/// A connection that lived so long was a success.
const LASTED: Duration = Duration::from_secs(5);
/// So was one that brought a request. Where the requests are not counted: more bytes than a peer sends to open HTTP/2.
pub(super) const USED: u64 = 128;
/// The longest wait before the first attempt after a success: not all agents of a server are to come back in the same
/// millisecond.
const AT_ONCE: Duration = Duration::from_millis(100);
