//! The site of configs/: control plane, cloud and edge, with free ports and a development CA put in.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Context, ensure};
use tempfile::TempDir;

use crate::Result;
use crate::backend::Backend;
use crate::ca::Authority;
use crate::client::{Answer, get};
use crate::process::{Daemon, ours, repository};
use crate::wait::{PATIENCE, eventually};

/// The ports that the files in configs/ name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Port {
    Control,
    ControlAdmin,
    CloudAdmin,
    EdgeAdmin,
    Gateway,
    Tunnel,
    Backend1,
    Backend2,
    EnvoyAdmin,
    EnvoyGateway,
}

const PORTS: [(Port, u16); 10] = [
    (Port::Control, 18000),
    (Port::ControlAdmin, 18001),
    (Port::CloudAdmin, 19000),
    (Port::EdgeAdmin, 19001),
    (Port::Gateway, 10000),
    (Port::Tunnel, 10443),
    (Port::Backend1, 10081),
    (Port::Backend2, 10082),
    (Port::EnvoyAdmin, 19002),
    (Port::EnvoyGateway, 10100),
];

/// A folder laid out like configs/, ready to be run.
#[derive(Debug)]
pub struct Site {
    folder: TempDir,
    ports: BTreeMap<Port, u16>,
}

impl Site {
    /// Copies configs/ to a folder of its own, puts free ports in, makes the CA, the certificates and the token.
    pub fn lay_out() -> Result<Self> {
        let site = Self { folder: TempDir::with_prefix("culvert-")?, ports: free_ports()? };
        copy(&repository().join("configs"), site.folder(), &|text| site.substitute(text))?;
        let certs = site.folder().join("certs");
        std::fs::create_dir_all(&certs)?;
        let authority = Authority::new("Culvert development CA")?;
        authority.write(&certs)?;
        authority.issue(&certs, "cloud", &["cloud.culvert.test", "localhost", "127.0.0.1"])?;
        authority.issue(&certs, "edge", &["spiffe://culvert.test/agent/site/edge-1"])?;
        std::fs::write(certs.join("site.token"), "a development token, not for production")?;
        Ok(site)
    }

    /// The folder in which everything runs.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A loopback address of the site.
    #[must_use]
    pub fn address(&self, port: Port) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.ports.get(&port).copied().unwrap_or_default()))
    }

    fn substitute(&self, text: &str) -> String {
        PORTS.iter().fold(text.to_owned(), |text, (port, default)| {
            text.replace(&format!("port_value: {default}"), &format!("port_value: {}", self.address(*port).port()))
        })
    }

    /// Starts the control plane on the site's directory.
    pub fn start_control(&self) -> Result<Daemon> {
        self.start_control_with(&[])
    }

    /// The same with further flags.
    pub fn start_control_with(&self, flags: &[&str]) -> Result<Daemon> {
        let (listen, admin) = (self.address(Port::Control).to_string(), self.address(Port::ControlAdmin).to_string());
        let args = [&["--config", "control", "--listen", &listen, "--admin", &admin], flags].concat();
        Daemon::start("control", &ours("culvert-control")?, &args, self.folder())
    }

    /// Starts a proxy: `cloud` or `edge`.
    pub fn start_proxy(&self, name: &str) -> Result<Daemon> {
        let state = format!("state-{name}");
        std::fs::create_dir_all(self.folder().join(&state))?;
        let args = ["-c", &format!("{name}.yaml"), "--concurrency", "2", "--state-dir", &state];
        Daemon::start(name, &ours("culvert-proxy")?, &args, self.folder())
    }

    /// Waits until a daemon's admin interface says that it is ready.
    pub async fn ready(&self, daemon: &mut Daemon, admin: Port) -> Result {
        eventually("the daemon says that it is ready", async || {
            daemon.check_alive()?;
            let answer = get(self.address(admin), "/ready").await?;
            ensure!(answer.status == 200, "/ready says {}: {}", answer.status, answer.text());
            Ok(())
        })
        .await
        .with_context(|| daemon.output())
    }

    /// A backend of the edge, by its number.
    pub async fn start_backend(&self, number: u8) -> Result<Backend> {
        let port = if number == 1 { Port::Backend1 } else { Port::Backend2 };
        Backend::listen(&format!("backend-{number}"), self.address(port)).await
    }

    /// Waits until a request through a gateway is answered by `backend`.
    pub async fn answered_by(&self, gateway: Port, backend: &str) -> Result<Answer> {
        eventually(&format!("{backend} answers through {gateway:?}"), async || {
            let answer = get(self.address(gateway), "/").await?;
            ensure!(
                answer.status == 200 && answer.text().trim() == backend,
                "expected 200 from {backend}, saw {} {:?}",
                answer.status,
                answer.text()
            );
            Ok(answer)
        })
        .await
    }

    /// Edits a file of the control plane's directory and replaces it atomically, as editors do.
    pub fn edit(&self, file: &str, edit: impl FnOnce(&str) -> String) -> Result {
        let path = self.folder().join("control").join(file);
        let text = std::fs::read_to_string(&path)?;
        let new = path.with_extension("yaml.new");
        std::fs::write(&new, edit(&text))?;
        std::fs::rename(new, path)?;
        Ok(())
    }

    /// Points the edge's routes at a backend.
    pub fn route_to(&self, backend: &str) -> Result {
        self.edit("edge/routes.yaml", |text| text.replace("backend-1", backend).replace("backend-2", backend))
    }
}

/// The whole site, running.
#[derive(Debug)]
pub struct Running {
    pub site: Site,
    pub backends: [Backend; 2],
    pub control: Daemon,
    pub cloud: Daemon,
    pub edge: Daemon,
}

impl Running {
    /// Starts everything and waits until the first request came back through the tunnel.
    pub async fn start() -> Result<Self> {
        let site = Site::lay_out()?;
        let backends = [site.start_backend(1).await?, site.start_backend(2).await?];
        let mut control = site.start_control()?;
        site.ready(&mut control, Port::ControlAdmin).await?;
        let mut cloud = site.start_proxy("cloud")?;
        let mut edge = site.start_proxy("edge")?;
        site.ready(&mut cloud, Port::CloudAdmin).await?;
        site.ready(&mut edge, Port::EdgeAdmin).await?;
        let running = Self { site, backends, control, cloud, edge };
        running.site.answered_by(Port::Gateway, "backend-1").await.with_context(|| running.logs())?;
        Ok(running)
    }

    /// What all daemons have printed.
    #[must_use]
    pub fn logs(&self) -> String {
        format!("control:\n{}\ncloud:\n{}\nedge:\n{}", self.control.output(), self.cloud.output(), self.edge.output())
    }

    /// Ends everything in order, each with exit code 0.
    pub async fn stop(mut self) -> Result {
        for daemon in [&mut self.edge, &mut self.cloud, &mut self.control] {
            daemon.terminate(PATIENCE).await?;
        }
        Ok(())
    }
}

/// Ports outside the range from which the kernel gives ports to outgoing connections, and each given once per process,
/// so that nobody takes one between now and the daemon's bind.
fn free_ports() -> Result<BTreeMap<Port, u16>> {
    static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| AtomicU16::new(random_below(RANGE)));
    let free = || {
        (0..RANGE).find_map(|_| {
            let port = FIRST + NEXT.fetch_add(1, Ordering::Relaxed) % RANGE;
            TcpListener::bind(("127.0.0.1", port)).is_ok().then_some(port)
        })
    };
    PORTS.iter().map(|(port, _)| Ok((*port, free().context("no free port between 20000 and 32000")?))).collect()
}

const FIRST: u16 = 20_000;
const RANGE: u16 = 12_000;

fn random_below(bound: u16) -> u16 {
    use std::hash::{BuildHasher, Hasher};
    let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
    u16::try_from(random % u64::from(bound)).unwrap_or(0)
}

fn copy(from: &Path, to: &Path, edit: &dyn Fn(&str) -> String) -> Result {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let (source, name): (PathBuf, _) = entry.map(|entry| (entry.path(), entry.file_name()))?;
        let target = to.join(name);
        if source.is_dir() {
            copy(&source, &target, edit)?;
        } else {
            std::fs::write(target, edit(&std::fs::read_to_string(source)?))?;
        }
    }
    Ok(())
}
