//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{ArgAction, Parser, ValueEnum};
use culvert_runtime::log::Level;
use culvert_store::Options;

/// Serves a directory of xDS resources to proxies and gRPC clients.
#[derive(Debug, Clone, Parser)]
#[command(name = "culvert-control", version)]
pub struct Args {
    /// The directory: every .yaml, .yml and .json file below it.
    #[arg(long, value_name = "DIR")]
    pub config: PathBuf,

    /// Where xDS, CSDS, reflection and health are served over gRPC.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:18000")]
    pub listen: SocketAddr,

    /// Where /ready, /metrics, /config_dump, /nodes and /config are served over HTTP; a loopback address.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:18001")]
    pub admin: SocketAddr,

    /// Follow changes of the directory. SIGHUP reads it in any case.
    #[arg(long, default_value_t = true, action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub watch: bool,

    /// References to nothing are errors, not warnings.
    #[arg(long)]
    pub strict: bool,

    /// Serve, or only say what is wrong with the directory (exit code 2 if anything is).
    #[arg(long, value_enum, default_value_t = Mode::Serve)]
    pub mode: Mode,

    /// Certificate chain for --listen, PEM.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,

    /// Private key for --listen, PEM.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,

    /// Certificates of those who sign clients' certificates, PEM: clients must then have one.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_client_ca: Option<PathBuf>,

    /// Whom a client's certificate lets it be: a URI or DNS name of the certificate, in which {id} stands for the node's id,
    /// {cluster} for its cluster and * for anything without / or dot. May be given more than once; who matches none is
    /// refused. Without it a certificate lets its holder be any node.
    #[arg(long, value_name = "NAME", requires = "tls_client_ca")]
    pub client_identity: Vec<String>,

    /// Who may call the operators' service: a URI or DNS name of the certificate, with * for anything without / or dot. May be
    /// given more than once. Without it, and without --tls-client-ca, everybody on this machine may.
    #[arg(long, value_name = "NAME", requires = "tls_client_ca")]
    pub operator_identity: Vec<String>,

    /// A changed directory goes to so many connected nodes first, and to all once they have accepted it; if one refuses it,
    /// or does not answer, they get back what they had. 0: to all at once.
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    pub canary_nodes: usize,

    /// Seconds for which those nodes must have accepted everything before it goes to all.
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    pub canary_quiet: u64,

    /// Seconds within which they must have answered.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub canary_timeout: u64,

    /// Seconds (more or less a tenth) after which a connection is told to come back, maybe to another replica. 0: never.
    #[arg(long, value_name = "SECONDS", default_value_t = 1800)]
    pub max_connection_age: u64,

    /// Writes the address that --listen got to a file (for port 0).
    #[arg(long, value_name = "FILE")]
    pub listen_address_path: Option<PathBuf>,

    /// Writes the address that --admin got to a file (for port 0).
    #[arg(long, value_name = "FILE")]
    pub admin_address_path: Option<PathBuf>,

    /// trace, debug, info, warning, error or off.
    #[arg(short, long, value_name = "LEVEL", default_value = "info")]
    pub log_level: Level,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    Serve,
    Validate,
}

impl Args {
    /// What the directory is checked for.
    #[must_use]
    pub fn options(&self) -> Options {
        Options { strict: self.strict, may_serve_secrets: self.tls_cert.is_some() || self.listen.ip().is_loopback() }
    }

    /// Mistakes that single arguments do not show.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.admin.ip().is_loopback() {
            return Ok(());
        }
        Err(format!("--admin {}: the admin pages have no access control; use a loopback address", self.admin))
    }
}
