//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{ArgAction, Parser, ValueEnum};
use culvert_runtime::log::Level;
use culvert_store::{Options, Selector};

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

    /// Where discovery is served to clients that poll (REST, proto3 JSON); TLS and tokens are those of --listen. Without it
    /// only --admin does.
    #[arg(long, value_name = "ADDRESS")]
    pub rest: Option<SocketAddr>,

    /// Writes the address that --rest got to a file (for port 0).
    #[arg(long, value_name = "FILE", requires = "rest")]
    pub rest_address_path: Option<PathBuf>,

    /// Seconds of the longest `refresh_delay` of clients that poll: a change of clusters and of what leads to them reaches those
    /// in steps of at least twice as long. 0: at once.
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(..=3600))]
    pub rest_refresh: u64,

    /// Follow changes of the directory. SIGHUP reads it in any case.
    #[arg(long, default_value_t = true, action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub watch: bool,

    /// References to nothing are errors, not warnings.
    #[arg(long)]
    pub strict: bool,

    /// Serve, or only say what is wrong with the directory (exit code 2 if anything is), or write a node's files, or print the
    /// bootstrap (JSON) of a gRPC client or server whose control plane is at --listen.
    #[arg(long, value_enum, default_value_t = Mode::Serve)]
    pub mode: Mode,

    /// The node to export, or whose bootstrap is printed: YAML or JSON with id, cluster, metadata and identities.
    #[arg(long, value_name = "NODE")]
    pub export_node: Option<String>,

    /// The folder to export to; files refer to each other by its absolute path.
    #[arg(long, value_name = "DIR")]
    pub export_to: Option<PathBuf>,

    /// Export secrets too, in clear.
    #[arg(long)]
    pub export_secrets: bool,

    /// What that bootstrap says of the control plane: that what it sends may change the authority of requests
    /// (trusted_xds_server, gRFC A81), that a resource of which it says that something is wrong is no longer used
    /// (fail_on_data_errors, A88). May be given more than once.
    #[arg(long, value_name = "FEATURE", value_parser = ["trusted_xds_server", "fail_on_data_errors"])]
    pub grpc_server_feature: Vec<String>,

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
    #[arg(long, value_name = "NAME")]
    pub client_identity: Vec<String>,

    /// Whose bearer token is which: lines of a name and the token's SHA-256 in hexadecimal. A client then needs a token or a
    /// certificate; the name is one of its certificate's names wherever those count. Read again when it changes.
    #[arg(long, value_name = "FILE")]
    pub tokens: Option<PathBuf>,

    /// Serve plaintext beyond this machine, without TLS: anybody on the way reads and changes what is sent.
    #[arg(long)]
    pub allow_plaintext: bool,

    /// Streams that one certificate or token may have open: of discovery, of reports, and those that tell how nodes are.
    #[arg(long, value_name = "NUMBER", default_value_t = 1000)]
    pub max_streams_per_identity: usize,

    /// Seconds for which a node may wait for its first response while many come at once; then it is told to come back
    /// (RESOURCE_EXHAUSTED).
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub admission_wait: u64,

    /// Who may call the operators' service: a URI or DNS name of the certificate, with * for anything without / or dot. May be
    /// given more than once. Without it, and without --tls-client-ca, everybody on this machine may.
    #[arg(long, value_name = "NAME")]
    pub operator_identity: Vec<String>,

    /// A changed directory goes to so many connected nodes first, and to all once they have accepted it; if one refuses it,
    /// or does not answer, they get back what they had. 0: to all at once.
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    pub canary_nodes: usize,

    /// A changed directory goes first to the connected nodes that this selects (as `selector` in a file), or to --canary-nodes
    /// of them.
    #[arg(long, value_name = "SELECTOR", value_parser = Selector::from_text)]
    pub canary_selector: Option<Selector>,

    /// Seconds for which those nodes must have accepted everything before it goes to all.
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    pub canary_quiet: u64,

    /// Seconds within which they must have answered.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub canary_timeout: u64,

    /// Nodes (as `selector` in a file; `{}`: all) of which a first request without names asks for nothing, where of others it asks
    /// for everything. Of gRPC's clients it never does.
    #[arg(long, value_name = "SELECTOR", value_parser = Selector::from_text)]
    pub no_legacy_wildcard: Option<Selector>,

    /// Seconds between the load reports that nodes are asked for (LRS).
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub load_report_interval: u64,

    /// Ask for the load of each endpoint too.
    #[arg(long)]
    pub load_report_endpoints: bool,

    /// Seconds after which a stream is reset whose client takes nothing more of a response.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub send_timeout: u64,

    /// Seconds (more or less a tenth) after which a connection is told to come back, maybe to another replica. 0: never.
    #[arg(long, value_name = "SECONDS", default_value_t = 1800, value_parser = clap::value_parser!(u64).range(..=31_536_000))]
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
    /// Writes what the node of --export-node would be sent to the files of --export-to.
    Export,
    /// Prints the bootstrap of a gRPC client or server that is the node of --export-node.
    GrpcBootstrap,
}

impl Args {
    /// What the directory is checked for.
    #[must_use]
    pub fn options(&self) -> Options {
        let local = self.addresses().all(|(_, address)| address.ip().is_loopback());
        Options { strict: self.strict, may_serve_secrets: self.tls_cert.is_some() || local }
    }

    /// Where nodes are served.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = (&'static str, SocketAddr)> {
        std::iter::once(("--listen", self.listen)).chain(self.rest.map(|rest| ("--rest", rest)))
    }

    /// Mistakes that single arguments do not show.
    pub(crate) fn check(&self) -> Result<(), String> {
        if !self.admin.ip().is_loopback() {
            return Err(format!(
                "--admin {}: the admin pages have no access control; use a loopback address",
                self.admin
            ));
        }
        let proves = self.tls_client_ca.is_some() || self.tokens.is_some();
        for (flag, rules) in
            [("--client-identity", &self.client_identity), ("--operator-identity", &self.operator_identity)]
        {
            if !rules.is_empty() && !proves {
                return Err(format!("{flag}: clients prove nothing; use --tls-client-ca or --tokens"));
            }
        }
        let exports = (self.mode == Mode::Export, self.export_node.is_some() && self.export_to.is_some());
        if exports == (true, false) {
            return Err("--mode export: say what with --export-node and where with --export-to".to_owned());
        }
        if self.mode == Mode::GrpcBootstrap && (self.listen.ip().is_unspecified() || self.listen.port() == 0) {
            return Err(format!("--listen {}: say where clients find the control plane", self.listen));
        }
        let mut beyond = self.addresses().filter(|(_, address)| !address.ip().is_loopback());
        match beyond.next().filter(|_| self.mode == Mode::Serve && self.tls_cert.is_none() && !self.allow_plaintext) {
            Some((flag, address)) => Err(format!(
                "{flag} {address}: plaintext beyond this machine; use --tls-cert and --tls-key, a loopback address, or \
                 --allow-plaintext"
            )),
            None => Ok(()),
        }
    }
}
