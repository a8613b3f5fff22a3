//! culvert-control: see `culvert-control --help` and docs/control-plane.md.

use std::process::ExitCode;

use clap::Parser;
use culvert_control::args::Args;

/// Gives back what large requests took.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    culvert_control::run(&Args::parse())
}
