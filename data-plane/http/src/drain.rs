//! The wish that a connection ends, remembered once it was uttered.

use std::pin::Pin;
use std::task::Context;
use std::time::Duration;

/// How long a connection that is idle when draining begins still waits for a request, which is then answered with
/// `connection: close`: closing at once would race with it.
pub(crate) const GRACE: Duration = Duration::from_millis(500);

pub(crate) struct Drain<'a, F> {
    wish: Pin<&'a mut F>,
    begun: bool,
}

impl<'a, F: Future<Output = ()>> Drain<'a, F> {
    pub(crate) fn new(wish: Pin<&'a mut F>) -> Self {
        Self { wish, begun: false }
    }

    /// Whether draining has begun; if not, the task is woken when it does.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> bool {
        self.begun = self.begun || self.wish.as_mut().poll(cx).is_ready();
        self.begun
    }
}
