//! culvert-proxy: the data plane's binary.

mod apply;
mod inventory;
mod tls;

fn main() {}
