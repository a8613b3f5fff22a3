//! culvert-proxy
