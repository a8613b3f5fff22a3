//! The command line: Envoy's flags where Envoy has them.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use culvert_runtime::log::Level;

use crate::config::{DataErrors, DeletionGuard};

/// The data plane of Culvert: an L4/L7 proxy that takes its configuration over xDS, and both ends of its reverse tunnels.
#[derive(Debug, Clone, Parser)]
#[command(name = "culvert-proxy", version, after_help = EXAMPLES)]
pub(crate) struct Options {
    /// Bootstrap: envoy.config.bootstrap.v3.Bootstrap as YAML or JSON
    #[arg(short = 'c', long, value_name = "FILE", required_unless_present = "config_yaml")]
    pub config_path: Option<PathBuf>,

    /// More of the bootstrap as YAML text: scalars replace those of the file, lists are appended
    #[arg(long, value_name = "YAML")]
    pub config_yaml: Option<String>,

    /// Worker threads [default: the cores this process may use]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub concurrency: Option<u16>,

    /// Name of this node towards the control plane, in place of node.id
    #[arg(long, value_name = "ID")]
    pub service_node: Option<String>,

    /// Cluster of this node towards the control plane, in place of node.cluster
    #[arg(long, value_name = "NAME")]
    pub service_cluster: Option<String>,

    /// Zone of this node, in place of node.locality.zone
    #[arg(long, value_name = "ZONE")]
    pub service_zone: Option<String>,

    /// serve, or only validate the bootstrap: print every mistake in it and exit with 0 or 2
    #[arg(long, value_enum, default_value = "serve")]
    pub mode: Mode,

    /// trace, debug, info, warning, error, critical or off
    #[arg(short = 'l', long, value_name = "LEVEL", default_value = "info")]
    pub log_level: Level,

    /// Levels of single parts: culvert_proxy:debug,culvert_http:trace
    #[arg(long, value_name = "TARGET:LEVEL", value_delimiter = ',', value_parser = component_level)]
    pub component_log_level: Vec<(String, Level)>,

    /// File to write the address of the admin interface to
    #[arg(long, value_name = "FILE")]
    pub admin_address_path: Option<PathBuf>,

    /// File with the bearer token without which the admin interface answers nothing but /ready; read for each request
    #[arg(long, value_name = "FILE")]
    pub admin_token_file: Option<PathBuf>,

    /// Where accepted configuration is kept for the next cold start; without it a start needs the control plane
    #[arg(long, value_name = "DIR", env = "STATE_DIRECTORY")]
    pub state_dir: Option<PathBuf>,

    /// How long resources are kept when a control plane that has just come (back) has none of them any more; 0: not at all
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub deletion_guard_s: u32,

    /// The percentage of a type's resources that must be about to vanish for that
    #[arg(long, value_name = "PERCENT", default_value_t = 100, value_parser = clap::value_parser!(u8).range(1..=100))]
    pub deletion_guard_percent: u8,

    /// What the control plane says not to exist, or that this node may not have it, is given up, and so is what is refused in its
    /// new content; without this what is in force stays (gRFC A88)
    #[arg(long)]
    pub fail_on_data_errors: bool,

    /// Clusters of grpc_services whose control plane says what does not exist (resource_errors, or delta): what it does not
    /// deliver within 30 s is unavailable, where others have 15 s and it does not exist (gRFC A88)
    #[arg(long, value_name = "CLUSTER", value_delimiter = ',')]
    pub resource_timer_is_transient_error: Vec<String>,

    /// How long requests in flight may take to finish after SIGTERM, and connections of replaced listeners
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub drain_time_s: u32,

    /// Takes the place of another culvert-proxy of the same user: shares its addresses with it, but for the admin
    /// interface's, and for 10 s requests wait for agents that have their tunnels to it. SIGTERM it when this one is ready
    #[arg(long)]
    pub successor: bool,

    #[command(flatten)]
    pub ignored: Ignored,
}

/// Flags of Envoy's that mean nothing here: there is no hot restart by shared memory.
#[derive(Debug, Clone, Parser)]
pub(crate) struct Ignored {
    /// Accepted and ignored
    #[arg(long, hide = true)]
    use_dynamic_base_id: bool,
    /// Accepted and ignored
    #[arg(long, hide = true)]
    disable_hot_restart: bool,
    /// Accepted and ignored
    #[arg(long, value_name = "N", hide = true)]
    base_id: Option<u32>,
    /// Accepted and ignored
    #[arg(long, value_name = "N", hide = true)]
    restart_epoch: Option<u32>,
    /// Accepted and ignored
    #[arg(long, value_name = "SECONDS", hide = true)]
    parent_shutdown_time_s: Option<u32>,
}

impl Ignored {
    /// Those that were given.
    #[must_use]
    pub(crate) fn given(&self) -> Vec<&'static str> {
        let flags = [
            ("--use-dynamic-base-id", self.use_dynamic_base_id),
            ("--disable-hot-restart", self.disable_hot_restart),
            ("--base-id", self.base_id.is_some()),
            ("--restart-epoch", self.restart_epoch.is_some()),
            ("--parent-shutdown-time-s", self.parent_shutdown_time_s.is_some()),
        ];
        flags.into_iter().filter_map(|(flag, given)| given.then_some(flag)).collect()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    Serve,
    Validate,
}

impl Options {
    pub(crate) fn deletion_guard(&self) -> DeletionGuard {
        DeletionGuard { hold: Duration::from_secs(self.deletion_guard_s.into()), percent: self.deletion_guard_percent }
    }

    pub(crate) fn data_errors(&self) -> DataErrors {
        DataErrors { fail: self.fail_on_data_errors, transient_timer: self.resource_timer_is_transient_error.clone() }
    }

    /// Worker threads: as asked for, else one for each core that the process may use.
    #[must_use]
    pub(crate) fn workers(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        self.concurrency.map_or_else(cores, usize::from)
    }
}

fn component_level(text: &str) -> Result<(String, Level), String> {
    let (target, level) = text.rsplit_once(':').ok_or_else(|| format!("'{text}' is not TARGET:LEVEL"))?;
    let level = level.parse::<Level>().map_err(|error| error.to_string())?;
    Ok((target.to_owned(), level))
}

const EXAMPLES: &str = "\
Examples:
  culvert-proxy -c configs/cloud.yaml --state-dir /var/lib/culvert
  culvert-proxy -c bootstrap.yaml --mode validate
  culvert-proxy -c bootstrap.json --concurrency 2 --service-node edge-7 -l debug
  culvert-proxy -c base.yaml --config-yaml 'admin: {address: {socket_address: {address: 127.0.0.1, port_value: 0}}}' \\
      --admin-address-path /run/culvert/admin

Signals: SIGTERM and SIGINT finish what is in flight and exit (a second one: at once), SIGHUP reads certificate and
credential files again, SIGUSR1 opens log files again. Exit codes: 0 done, 1 failed, 2 the configuration is wrong.";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn envoys_flags_are_taken() {
        let line = "culvert-proxy -c f.json --concurrency 1 --use-dynamic-base-id -l error --disable-hot-restart \
                    --base-id 3 --drain-time-s 5 --parent-shutdown-time-s 9 --service-node n --service-cluster c";
        let options = Options::try_parse_from(line.split_whitespace()).unwrap();
        assert_eq!(options.workers(), 1, "--concurrency 1");
        assert_eq!(options.log_level, Level::Error, "-l error");
        assert_eq!(options.drain_time_s, 5, "--drain-time-s 5");
        let ignored = ["--use-dynamic-base-id", "--disable-hot-restart", "--base-id", "--parent-shutdown-time-s"];
        assert_eq!(options.ignored.given(), ignored, "flags without meaning here");
    }

    #[test]
    fn a_bootstrap_must_come_from_somewhere() {
        assert!(Options::try_parse_from(["culvert-proxy"]).is_err(), "neither a file nor text");
        assert!(Options::try_parse_from(["culvert-proxy", "--config-yaml", "{}"]).is_ok(), "text alone will do");
        let loud = Options::try_parse_from(["culvert-proxy", "-c", "f", "-l", "loud"]).unwrap_err().to_string();
        assert!(loud.contains("warning"), "an unknown level is answered with those that exist, got {loud}");
    }
}
