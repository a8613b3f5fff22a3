//! Foreign programs that judge us. In CI a missing one fails the test; elsewhere the test says that it was skipped and
//! how to get the peer.

use std::path::PathBuf;

use anyhow::bail;

use crate::Result;
use crate::process::repository;

/// A foreign program.
#[derive(Debug, Clone, Copy)]
pub enum Peer {
    Envoy,
    Grpcurl,
    /// Judges HTTP/2 servers.
    H2spec,
}

impl Peer {
    const fn variable(self) -> &'static str {
        match self {
            Self::Envoy => "ENVOY",
            Self::Grpcurl => "GRPCURL",
            Self::H2spec => "H2SPEC",
        }
    }

    const fn program(self) -> &'static str {
        match self {
            Self::Envoy => "envoy",
            Self::Grpcurl => "grpcurl",
            Self::H2spec => "h2spec",
        }
    }

    /// The program's path: `$ENVOY` and the like, `.tools/bin` (where scripts/peers puts it), or `$PATH`. `None`: it is
    /// not there and this is not CI, so the caller returns.
    pub fn find(self) -> Result<Option<PathBuf>> {
        let program = self.program();
        let named = std::env::var_os(self.variable()).map(PathBuf::from);
        let path = std::env::var_os("PATH").unwrap_or_default();
        let found = named
            .into_iter()
            .chain([repository().join(".tools/bin").join(program)])
            .chain(std::env::split_paths(&path).map(|folder| folder.join(program)))
            .find(|candidate| candidate.is_file());
        if found.is_none() {
            let how = format!("{program} is missing; `scripts/peers` installs it into .tools/");
            if std::env::var_os("CI").is_some() {
                bail!("{how}");
            }
            eprintln!("SKIPPED: {how}");
        }
        Ok(found)
    }
}
