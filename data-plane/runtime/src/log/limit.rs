//! Keeps peers from filling the log: metrics count everything, lines are written so many a second.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// At most 20 lines a second of one kind, which anybody can cause.
#[derive(Debug)]
pub struct LogLimit {
    what: &'static str,
    window: Mutex<Option<Window>>,
}

#[derive(Debug)]
struct Window {
    began: Instant,
    lines: u64,
}

impl LogLimit {
    /// `what` the lines tell, in the plural.
    #[must_use]
    pub const fn new(what: &'static str) -> Self {
        Self { what, window: Mutex::new(None) }
    }

    /// Whether a line may be written now. The first one after some were left out says how many.
    pub fn allows(&self) -> bool {
        let now = Instant::now();
        let mut window = self.window.lock();
        let left_out = match &mut *window {
            Some(window) if now.duration_since(window.began) < Duration::from_secs(1) => {
                window.lines += 1;
                return window.lines <= LINES;
            }
            Some(window) => window.lines.saturating_sub(LINES),
            None => 0,
        };
        *window = Some(Window { began: now, lines: 1 });
        drop(window);
        if left_out > 0 {
            tracing::info!(left_out, "{} were not logged one by one", self.what);
        }
        true
    }
}

const LINES: u64 = 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn so_many_lines_a_second() {
        let limit = LogLimit::new("tests");
        let second = || (0..100).filter(|_| limit.allows()).count();
        assert_eq!(second(), 20, "in the first second");
        tokio::time::sleep(Duration::from_millis(999)).await;
        assert_eq!(second(), 0, "still in the first second");
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(second(), 20, "in the second one");
    }
}
