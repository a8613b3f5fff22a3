//! culvert-tunnel
