//! The crate from outside: raw bytes in, raw bytes out, in memory and with the clock paused.

mod lifecycle;
mod peers;
mod proxying;
mod upstream_faults;
mod vectors;
