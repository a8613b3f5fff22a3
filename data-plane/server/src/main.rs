//! culvert-proxy: the data plane's binary. Composes what the crates below it make: bootstrap, workers, listeners,
//! dynamic configuration, admin interface, life and end of the process.

mod admin;
mod ads;
mod apply;
mod bootstrap;
mod check;
mod config;
mod inventory;
mod lifecycle;
mod options;
mod overview;
mod remote_keys;
mod runtime_layers;
mod secrets;
mod start;
mod stats;
#[cfg(test)]
mod testing;
mod tls;

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use culvert_runtime::log::LogControl;

use crate::bootstrap::Started;
use crate::options::{Mode, Options};
use crate::start::StartError;

/// HTTP/2 allocates per frame and per stream; the HTTP/1 path hardly notices.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let options = Options::parse();
    let log = match culvert_runtime::log::init(options.log_level) {
        Ok(log) => log,
        Err(error) => return complain(&[error.to_string()], ExitCode::FAILURE),
    };
    for (target, level) in &options.component_log_level {
        log.set(target, *level);
    }
    culvert_runtime::process::refuse_huge_pages();
    culvert_runtime::process::install_panic_hook();
    let code = run(options, log.clone());
    log.flush(Duration::from_secs(1));
    code
}

fn run(options: Options, log: LogControl) -> ExitCode {
    for flag in options.ignored.given() {
        tracing::debug!(flag, "accepted and ignored: there is no hot restart here");
    }
    let started = match bootstrap::load(&options) {
        Ok(started) => started,
        Err(errors) => return complain(&errors, WRONG_CONFIGURATION.into()),
    };
    for warning in &started.warnings {
        tracing::warn!("{warning}");
    }
    let open_files = culvert_runtime::process::raise_open_files();
    tracing::debug!(?open_files, "limit on open files");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .thread_name("control")
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return complain(&[format!("cannot start the control runtime: {error}")], ExitCode::FAILURE),
    };
    let ended = runtime.block_on(act(options, started, log));
    // Tasks that hang in a lookup or a file must not hold the exit back.
    runtime.shutdown_timeout(Duration::from_millis(100));
    match ended {
        Ok(code) => code,
        Err(StartError::Configuration(errors)) => complain(&errors, WRONG_CONFIGURATION.into()),
        Err(error) => complain(&[error.to_string()], ExitCode::FAILURE),
    }
}

async fn act(options: Options, started: Started, log: LogControl) -> Result<ExitCode, StartError> {
    match options.mode {
        Mode::Serve => Box::pin(start::serve(options, started, log)).await,
        Mode::Validate => {
            start::validate(&started).await?;
            // Nothing is left to do if stdout is closed.
            drop(writeln!(std::io::stdout(), "OK"));
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Every mistake on a line of its own, on stderr whatever the log level is.
fn complain(errors: &[String], code: ExitCode) -> ExitCode {
    let mut stderr = std::io::stderr().lock();
    for error in errors {
        // There is nowhere else to complain.
        drop(writeln!(stderr, "{error}"));
    }
    code
}

/// Exit code of a wrong configuration.
const WRONG_CONFIGURATION: u8 = 2;
/// xDS, DNS, admin and timers: little work, none of it on the workers.
const CONTROL_THREADS: usize = 2;
