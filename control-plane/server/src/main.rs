//! culvert-control: see `culvert-control --help` and docs/control-plane.md.

use std::process::ExitCode;

use clap::Parser;
use culvert_control::args::Args;

fn main() -> ExitCode {
    culvert_control::run(&Args::parse())
}
