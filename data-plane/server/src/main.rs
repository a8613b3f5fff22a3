//! culvert-proxy

fn main() {}
