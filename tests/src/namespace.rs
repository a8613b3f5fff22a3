//! Tests that break the network run in a network namespace of their own.

use std::process::Command;

use anyhow::{Context, bail, ensure};

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
