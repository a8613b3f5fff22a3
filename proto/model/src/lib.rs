//! Validated configuration. An API message becomes a trusted value here or nowhere.
//!
//! One file per resource: the value's type first, then how it is parsed out of the message. Parsing never stops at the
//! first mistake: every refusal and every field that is set and not honoured is reported with its path.
//!
//! **This crate does no I/O**: it opens no file, resolves no name and knows no clock. What a value refers to by name
//! (a cluster, a route configuration, a secret) is resolved when a snapshot is published.

pub mod access_log;
pub mod agent;
pub mod bootstrap;
mod bystander;
pub mod cluster;
pub mod control;
mod coverage;
pub mod endpoint;
pub mod extension;
pub mod http;
pub mod listener;
pub mod matcher;
pub mod metadata;
pub mod on_demand;
pub mod report;
pub mod resource;
pub mod route;
pub mod runtime;
mod scalar;
pub mod scope;
pub mod secret;
pub mod source;
pub mod tls;
pub mod tunnel;

#[cfg(test)]
mod testing;

use std::sync::Arc;

pub use resource::{Resource, parse_any};

/// The name of a resource: cheap to clone, compared by content.
pub type Name = Arc<str>;
