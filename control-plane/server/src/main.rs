//! culvert-control

fn main() {}
