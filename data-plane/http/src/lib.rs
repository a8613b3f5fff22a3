//! culvert-http
