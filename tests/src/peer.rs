//! Foreign programs that judge us. In CI a missing one fails the test; elsewhere the test says that it was skipped and
//! how to get the peer.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, bail, ensure};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, ChildStdin, Command};

use crate::Result;
use crate::process::repository;
use crate::wait::eventually;

/// A foreign program.
#[derive(Debug, Clone, Copy)]
pub enum Peer {
    Envoy,
    Grpcurl,
    /// Judges HTTP/2 servers.
    H2spec,
    /// A Python that has gRPC's own library.
    Grpcio,
    /// The folder of Node's modules that has gRPC's own library.
    GrpcJs,
}

impl Peer {
    /// Below `.tools`.
    const fn installed(self) -> &'static str {
        match self {
            Self::Envoy => "bin/envoy",
            Self::Grpcurl => "bin/grpcurl",
            Self::H2spec => "bin/h2spec",
            Self::Grpcio => "python/bin/python",
            Self::GrpcJs => "grpc-js/node_modules",
        }
    }

    /// The variable that may name it.
    const fn variable(self) -> &'static str {
        match self {
            Self::Envoy => "ENVOY",
            Self::Grpcurl => "GRPCURL",
            Self::H2spec => "H2SPEC",
            Self::Grpcio => "GRPCIO_PYTHON",
            Self::GrpcJs => "GRPC_JS_MODULES",
        }
    }

    /// What it is called on `$PATH`; `None`: what is there need not be it.
    const fn program(self) -> Option<&'static str> {
        match self {
            Self::Envoy => Some("envoy"),
            Self::Grpcurl => Some("grpcurl"),
            Self::H2spec => Some("h2spec"),
            Self::Grpcio | Self::GrpcJs => None,
        }
    }

    /// The program's path: `$ENVOY` and the like, `.tools` (where scripts/peers puts it), or `$PATH`. `None`: it is
    /// not there and this is not CI, so the caller returns.
    pub fn find(self) -> Result<Option<PathBuf>> {
        let named = std::env::var_os(self.variable()).map(PathBuf::from);
        let own = repository().join(".tools").join(self.installed());
        let on_path = self.program().map(on_path).unwrap_or_default();
        let candidates = named.into_iter().chain([own]).chain(on_path).collect();
        first_of(self.installed(), candidates)
    }
}

/// A program of the machine, found on `$PATH`; missing as [`Peer::find`] has it.
pub fn find_program(name: &str) -> Result<Option<PathBuf>> {
    first_of(name, on_path(name))
}

fn on_path(program: &str) -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|folder| folder.join(program)).collect()
}

fn first_of(what: &str, candidates: Vec<PathBuf>) -> Result<Option<PathBuf>> {
    let found = candidates.into_iter().find(|candidate| candidate.exists());
    if found.is_none() {
        let how = format!("{what} is missing; `scripts/peers` installs it into .tools/, or says how to get it");
        if std::env::var_os("CI").is_some() {
            bail!("{how}");
        }
        eprintln!("SKIPPED: {how}");
    }
    Ok(found)
}

/// A foreign program that runs in a folder of its own, is told what to do on stdin and tells on stdout.
#[derive(Debug)]
pub struct Running {
    _child: Child,
    stdin: Option<ChildStdin>,
    folder: TempDir,
}

impl Running {
    /// Starts it.
    pub fn start(command: &mut Command) -> Result<Self> {
        let folder = TempDir::with_prefix("culvert-")?;
        let log = std::fs::File::create(folder.path().join("log"))?;
        let mut child = command
            .current_dir(folder.path())
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        Ok(Self { stdin: child.stdin.take(), _child: child, folder })
    }

    /// What it has printed so far.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Waits for the address that it writes to the file `address`.
    pub async fn address(&self) -> Result<SocketAddr> {
        eventually("the peer writes its address", async || {
            let text = std::fs::read_to_string(self.folder.path().join("address"))?;
            text.trim().parse().with_context(|| format!("{text:?} is no address; {}", self.log()))
        })
        .await
    }

    /// Writes a line to its stdin.
    pub async fn tell(&mut self, line: &str) -> Result {
        let stdin = self.stdin.as_mut().context("stdin is closed")?;
        stdin.write_all(format!("{line}\n").as_bytes()).await?;
        Ok(stdin.flush().await?)
    }

    /// Ends its stdin.
    pub fn hang_up(&mut self) {
        self.stdin = None;
    }

    /// Waits until it has printed a line that begins and goes on as given.
    pub async fn says(&self, begin: &str, more: &str) -> Result {
        eventually(&format!("the peer says {begin} {more}"), async || {
            let log = self.log();
            let said = log.lines().any(|line| line.starts_with(begin) && line.contains(more));
            ensure!(said, "it said\n{log}");
            Ok(())
        })
        .await
    }
}
