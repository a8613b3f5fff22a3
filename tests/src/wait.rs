//! Waiting for a condition, with a deadline.

use std::time::Duration;

use anyhow::Context;
use tokio::time::Instant;

use crate::Result;

/// How long a condition may take on a loaded machine before a test gives up. A bound, never a measurement.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Asks again and again until `probe` succeeds; after [`PATIENCE`] fails with what it said last.
pub async fn eventually<T>(what: &str, probe: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    within(PATIENCE, what, probe).await
}

/// [`eventually`] with a deadline of one's own.
pub async fn within<T>(deadline: Duration, what: &str, mut probe: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    let end = Instant::now() + deadline;
    let mut error = anyhow::anyhow!("the probe itself did not answer");
    loop {
        match tokio::time::timeout_at(end, probe()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(seen)) => error = seen,
            // What it said last tells more than that it was cut short.
            Err(_) => {}
        }
        if Instant::now() >= end {
            return Err(error.context(format!("not within {deadline:?}: {what}")));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Awaits something that must come within [`PATIENCE`].
pub async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> Result<T> {
    tokio::time::timeout(PATIENCE, future).await.with_context(|| format!("not in time: {what}"))
}
