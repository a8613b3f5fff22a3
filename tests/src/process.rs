//! Our own daemons and foreign peers as child processes: stderr kept in a file, ended when the handle is dropped.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal};
use tokio::process::{Child, Command};

use crate::Result;
use crate::wait::{PATIENCE, within};

/// A running child.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts `program`; stdout and stderr go to `folder/name.log`.
    pub fn start(name: &str, program: &Path, args: &[&str], folder: &Path) -> Result<Self> {
        let log = folder.join(format!("{name}.log"));
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&log)?;
        let child = Command::new(program)
            .args(args)
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        Ok(Self { name: name.to_owned(), child, log })
    }

    /// What it has printed so far.
    #[must_use]
    pub fn output(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Fails with its output when it has ended.
    pub fn check_alive(&mut self) -> Result {
        if let Some(status) = self.child.try_wait()? {
            bail!("{} ended with {status}:\n{}", self.name, self.output());
        }
        Ok(())
    }

    /// Waits for the file in which a daemon writes an address that it bound.
    pub async fn address(&mut self, file: &Path) -> Result<std::net::SocketAddr> {
        within(PATIENCE, &format!("{} writes {}", self.name, file.display()), async || {
            self.check_alive()?;
            let text = std::fs::read_to_string(file)?;
            text.trim().parse().with_context(|| format!("{text:?} is no address"))
        })
        .await
    }

    /// Its process id.
    pub fn id(&self) -> Result<u32> {
        self.child.id().with_context(|| format!("{} has ended already", self.name))
    }

    /// The most memory that it ever had resident, in KiB. The kernel counts by processor: it may say a little less the next time.
    pub fn peak(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id()?))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result {
        let pid = i32::try_from(self.id()?).ok().and_then(Pid::from_raw).context("not a process id")?;
        rustix::process::kill_process(pid, signal)?;
        Ok(())
    }

    /// Waits for its end.
    pub async fn exit(&mut self, deadline: Duration) -> Result<ExitStatus> {
        match tokio::time::timeout(deadline, self.child.wait()).await {
            Ok(status) => Ok(status?),
            Err(_) => bail!("{} was expected to end within {deadline:?} and still runs:\n{}", self.name, self.output()),
        }
    }

    /// SIGTERM, then an exit with status 0 within `deadline`.
    pub async fn terminate(&mut self, deadline: Duration) -> Result {
        self.signal(Signal::TERM)?;
        let status = self.exit(deadline).await?;
        ensure!(
            status.success(),
            "{} was expected to exit with 0 and exited with {status}:\n{}",
            self.name,
            self.output()
        );
        Ok(())
    }

    /// SIGKILL, and its end awaited.
    pub async fn kill(&mut self) -> Result {
        self.signal(Signal::KILL)?;
        self.exit(PATIENCE).await?;
        Ok(())
    }
}

/// The path of one of our binaries: `$CULVERT_BIN`, else the folder that this program was built into.
pub fn ours(name: &str) -> Result<PathBuf> {
    let folder = match std::env::var_os("CULVERT_BIN") {
        Some(folder) => PathBuf::from(folder),
        None => {
            let exe = std::env::current_exe()?;
            let folder = exe.parent().context("this program has no folder")?;
            if folder.ends_with("deps") {
                folder.parent().context("deps has no parent")?.to_owned()
            } else {
                folder.to_owned()
            }
        }
    };
    let path = folder.join(name);
    ensure!(path.exists(), "{} is not built; `cargo build --workspace` builds it", path.display());
    Ok(path)
}

/// The root of the repository.
#[must_use]
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or_else(|| Path::new(".")).to_owned()
}

/// Runs a program to its end and gives its output; fails when it fails or takes longer than `deadline`.
pub async fn run(program: &Path, args: &[&str], stdin: &str, deadline: Duration) -> Result<String> {
    use tokio::io::AsyncWriteExt;
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))?;
    if let Some(mut pipe) = child.stdin.take() {
        pipe.write_all(stdin.as_bytes()).await?;
    }
    let output = tokio::time::timeout(deadline, child.wait_with_output())
        .await
        .with_context(|| format!("{} {args:?} did not end within {deadline:?}", program.display()))??;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{} {args:?}: {}\n{out}{err}", program.display(), output.status);
    Ok(out.into_owned())
}
