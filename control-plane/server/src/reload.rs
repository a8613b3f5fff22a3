//! When the directory is read again: when it changed and was quiet for a while, and at once on SIGHUP.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use culvert_runtime::files::{Changes, FileWatcher};
use culvert_runtime::process::{Signal, Signals};

use crate::control::Control;

/// How long nothing may change before a change counts as finished.
const QUIET: Duration = Duration::from_millis(50);

/// Follows a directory from its content of this moment on.
pub(crate) fn watch(folder: &Path) -> Changes {
    FileWatcher::new().watch([folder.to_owned()], QUIET)
}

/// Reads the directory as it changes, until the process is told to end.
pub(crate) async fn until_terminated(control: &Arc<Control>, mut signals: Signals, mut changes: Option<Changes>) {
    loop {
        let signal = tokio::select! {
            signal = signals.next() => Some(signal),
            () = changed(changes.as_mut()) => None,
        };
        match signal {
            Some(Signal::Terminate) => return,
            Some(Signal::ReopenLogs) => {}
            Some(Signal::Reload) | None => read(control).await,
        }
    }
}

async fn read(control: &Arc<Control>) {
    let control = Arc::clone(control);
    // A panic was logged by the hook; what was in force stays.
    drop(tokio::task::spawn_blocking(move || control.reload()).await);
}

async fn changed(changes: Option<&mut Changes>) {
    match changes {
        Some(changes) => changes.changed().await,
        None => std::future::pending().await,
    }
}
