//! Tests that break the network run in a network namespace of their own.

use std::process::Command;

use anyhow::{Context, bail, ensure};
use tokio::time::Instant;

use crate::Result;

/// Runs the test of that name once more, in a network namespace of its own, and says whether this is that run. Where
/// namespaces cannot be made the test says so and is skipped; in CI it fails.
pub fn entered(test: &str) -> Result<bool> {
    const INSIDE: &str = "CULVERT_TEST_NAMESPACE";
    if std::env::var_os(INSIDE).is_some() {
        return Ok(true);
    }
    let unshare = || {
        let mut command = Command::new("unshare");
        command.args(["--net", "--map-root-user"]);
        command
    };
    let possible = unshare().arg("true").output();
    if !possible.as_ref().is_ok_and(|output| output.status.success()) {
        let why = format!("no network namespace can be made here: {possible:?}");
        if std::env::var_os("CI").is_some() {
            bail!("{why}");
        }
        eprintln!("SKIPPED: {why}");
        return Ok(false);
    }
    let this = std::env::current_exe()?;
    let output = unshare().arg(this).args(["--exact", test, "--nocapture"]).env(INSIDE, "1").output();
    let output = output.context("unshare cannot be run")?;
    let text = String::from_utf8_lossy(&output.stdout);
    eprint!("{text}");
    ensure!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    ensure!(text.contains("1 passed"), "the test was not run: {text}");
    Ok(false)
}

/// A cable of a test's own: an address that only what is under test uses, and that can be taken away with no word to anybody.
/// Only within [`entered`].
#[derive(Debug)]
pub struct Cable(());

impl Cable {
    pub const ADDRESS: &str = "10.9.0.1";

    /// Brings loopback up, and the cable on it.
    pub fn plugged() -> Result<Self> {
        ip(&["link", "set", "lo", "up"])?;
        let cable = Self(());
        cable.plug()?;
        Ok(cable)
    }

    /// Puts the address back.
    pub fn plug(&self) -> Result {
        ip(&["addr", "add", &format!("{}/32", Self::ADDRESS), "dev", "lo"])
    }

    /// Takes the address away; when that was.
    pub fn cut(&self) -> Result<Instant> {
        ip(&["addr", "del", &format!("{}/32", Self::ADDRESS), "dev", "lo"])?;
        Ok(Instant::now())
    }

    /// Who dials the cable's address comes from this one from now on, as from another outside of a NAT: what came from
    /// `before` is lost both ways, without a word.
    pub fn outside(&self, before: Option<&str>, address: &str) -> Result<Instant> {
        ip(&["addr", "add", &format!("{address}/32"), "dev", "lo"])?;
        self.comes_from(address)?;
        if let Some(before) = before {
            ip(&["addr", "del", &format!("{before}/32"), "dev", "lo"])?;
        }
        Ok(Instant::now())
    }

    /// Takes that away again.
    pub fn inside(&self, outside: &str) -> Result {
        self.comes_from(Self::ADDRESS)?;
        ip(&["addr", "del", &format!("{outside}/32"), "dev", "lo"])
    }

    fn comes_from(&self, source: &str) -> Result {
        let route = ["route", "change", "table", "local", "local", Self::ADDRESS, "dev", "lo", "proto", "kernel"];
        ip(&[&route[..], &["scope", "host", "src", source]].concat())
    }
}

fn ip(words: &[&str]) -> Result {
    let output = Command::new("ip").args(words).output().context("ip is missing")?;
    ensure!(output.status.success(), "ip {words:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
