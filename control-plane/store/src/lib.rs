//! culvert-store
