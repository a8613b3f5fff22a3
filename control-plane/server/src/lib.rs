//! The control plane's process: a directory of resources in, xDS out.
//!
//! ```text
//! directory -> store -> Control (catalog, generation) -> Nodes (a session per node) -> streams
//! ```
//! **A stream holds no queue**: it has the latest generation's number and asks its session for the next response when its
//! transport has room. What differs between nodes is decided in [`culvert_store`], what a node is sent in
//! [`culvert_xds::server`]; this crate moves messages and tells people what happens.

pub mod args;

mod access;
mod admin;
mod canary;
mod connections;
mod control;
mod csds;
mod discovery;
mod export;
mod gathered;
mod grpc_bootstrap;
mod history;
mod identity;
mod inventory;
mod listen;
mod loads;
mod lrs;
mod messages;
mod metrics;
mod nodes;
mod operator;
mod polling;
mod reload;
mod rest;
mod revoked;
mod slow;
mod stream;
mod tls;
mod tokens;
mod wildcards;

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use culvert_api::culvert::control::v1::NodeSelector;
use culvert_api::document::{self, Syntax};
use culvert_runtime::files::Changes;
use culvert_runtime::log::LogControl;
use culvert_runtime::process::Signals;
use culvert_runtime::{drain, log, process};
use culvert_store::{Catalog, Directory, Load, load};
use culvert_xds::{NodeIdentity, Snapshot};

use access::Access;
use args::{Args, Mode};
use control::Control;
use export::Export;
use tls::Tls;
use tokens::Tokens;

/// What a drain may take before the process ends regardless.
const DRAIN: Duration = Duration::from_secs(10);

/// Runs the process to its end. Exit codes: 0 a clean end, 1 a failure, 2 a mistake in the configuration.
#[must_use]
pub fn run(args: &Args) -> ExitCode {
    if let Err(mistake) = args.check() {
        say(&format!("error: {mistake}\n"));
        return ExitCode::from(2);
    }
    if args.mode == Mode::GrpcBootstrap {
        let first = load(&args.config, args.options(), &Directory::default());
        if first.directory.is_none() {
            say(&report(args, &first));
            return ExitCode::from(2);
        }
        let written = placed(args, first).and_then(|(node, snapshot)| grpc_bootstrap::text(args, &node, &snapshot));
        say(&written.as_ref().map_or_else(|error| format!("error: {error:#}\n"), Clone::clone));
        return if written.is_ok() { ExitCode::SUCCESS } else { ExitCode::from(2) };
    }
    let credentials = match Credentials::read(args) {
        Ok(credentials) => credentials,
        Err(mistake) => {
            say(&format!("error: {mistake:#}\n"));
            return ExitCode::from(2);
        }
    };
    // Before the first reading: no change is missed.
    let changes = (args.mode == Mode::Serve && args.watch).then(|| reload::watch(&args.config));
    let first = load(&args.config, args.options(), &Directory::default());
    if args.mode == Mode::Validate || first.directory.is_none() {
        say(&report(args, &first));
        return if first.directory.is_some() { ExitCode::SUCCESS } else { ExitCode::from(2) };
    }
    if args.mode == Mode::Export {
        let exported = export(args, first);
        say(&exported.as_ref().map_or_else(|error| format!("error: {error:#}\n"), Clone::clone));
        return if exported.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let log = match log::init(args.log_level) {
        Ok(log) => log,
        Err(error) => {
            say(&format!("error: {error}\n"));
            return ExitCode::FAILURE;
        }
    };
    process::install_panic_hook();
    process::raise_open_files();
    let result = serve(args, credentials, first, changes);
    if let Err(error) = &result {
        tracing::error!("{error:#}");
    }
    finish(&log);
    if result.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Serves until SIGTERM or SIGINT.
fn serve(args: &Args, credentials: Credentials, first: Load, changes: Option<Changes>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start threads")?;
    let result = runtime.block_on(async {
        // Before anybody can find us: a signal must never meet the default action.
        let signals = Signals::new().context("cannot handle signals")?;
        let (trigger, watch) = drain::channel();
        let Credentials { grpc, rest, tokens } = credentials;
        let control = Arc::new(Control::new(args, Access::new(args, tokens), first));
        let running = listen::start(args, (grpc, rest), &control, &watch).await?;
        let canaries = tokio::spawn(canary::watch(Arc::clone(&control), canary::Limits::new(args)));
        reload::until_terminated(&control, signals, changes).await;
        canaries.abort();
        tracing::info!("draining");
        control.stop();
        trigger.start(DRAIN);
        running.stopped(DRAIN).await;
        anyhow::Ok(())
    });
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

/// What the command line's files prove, and to whom.
struct Credentials {
    grpc: Option<Arc<Tls>>,
    rest: Option<Arc<Tls>>,
    tokens: Option<Arc<Tokens>>,
}

impl Credentials {
    fn read(args: &Args) -> anyhow::Result<Self> {
        Ok(Self {
            grpc: Tls::new(args, tls::GRPC)?.map(Arc::new),
            rest: Tls::new(args, tls::REST)?.map(Arc::new),
            tokens: args.tokens.as_deref().map(Tokens::new).transpose()?.map(Arc::new),
        })
    }
}

/// Writes a node's files; what there is to say of it.
fn export(args: &Args, load: Load) -> anyhow::Result<String> {
    let to = args.export_to.as_ref().context("--export-to is missing")?;
    let (identity, snapshot) = placed(args, load)?;
    std::fs::create_dir_all(to).with_context(|| format!("--export-to: cannot make {}", to.display()))?;
    let folder = to.canonicalize().with_context(|| format!("--export-to {}", to.display()))?;
    let shown = folder.to_str().context("--export-to: its path is not UTF-8")?;
    let export = Export::new(&identity, &snapshot, shown, args.export_secrets);
    export.write(&folder)?;
    let warnings: String = export.warnings.iter().map(|warning| format!("warning: {warning}\n")).collect();
    Ok(format!("{warnings}{shown}: {} files, version {}\n", export.files.len(), export.version))
}

/// The node of `--export-node`, and what it gets.
fn placed(args: &Args, load: Load) -> anyhow::Result<(NodeIdentity, Arc<Snapshot>)> {
    let identity = described_node(args)?;
    let mut catalog = Catalog::new(load.directory.unwrap_or_default());
    let placement = catalog.place(&identity, &Snapshot::default());
    Ok((identity, Arc::clone(&placement.snapshot)))
}

/// The node of `--export-node`.
fn described_node(args: &Args) -> anyhow::Result<NodeIdentity> {
    let described = args.export_node.as_ref().context("--export-node is missing")?;
    let node = document::load::<NodeSelector>(described.as_bytes(), Syntax::Yaml).map_err(|problems| {
        let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
        anyhow::anyhow!("--export-node: {}", problems.join("; "))
    })?;
    operator::identity(&node.message).map_err(|status| anyhow::anyhow!("--export-node: {}", status.message()))
}

/// Everything that was found in the directory, for people.
fn report(args: &Args, load: &Load) -> String {
    let mut text = String::new();
    for warning in &load.warnings {
        text.push_str(&format!("warning: {warning}\n"));
    }
    for error in &load.errors {
        text.push_str(&format!("error: {error}\n"));
    }
    match &load.directory {
        Some(directory) => {
            let (folder, files, resources) = (args.config.display(), load.files, directory.len());
            text.push_str(&format!("{folder}: {resources} resources in {files} files are good\n"));
        }
        None => text.push_str(&format!("{}: refused with {} errors\n", args.config.display(), load.errors.len())),
    }
    text
}

/// To standard output, whether somebody reads it or not.
fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
        tracing::debug!("standard output is closed");
    }
}

fn finish(log: &LogControl) {
    log.flush(Duration::from_secs(1));
}
