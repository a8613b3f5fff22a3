//! Where resources come from: a directory of files.
//!
//! [`load`] reads a directory as one transaction: either everything in it is good and there is a new [`Directory`], or
//! every mistake of every file is reported and there is none. A [`Catalog`] then says what a node gets.
//!
//! **This crate watches nothing and serves nothing**: when to load, and who is told, is the server's business.

mod access;
mod catalog;
mod check;
mod directory;
mod file;
mod read;
mod references;
pub mod report;
mod selector;

pub use access::is_like;
pub use catalog::{Catalog, Placement};
pub use check::{Load, Options, load, load_files};
pub use directory::{Conflict, Directory};
pub use read::is_content;
pub use report::Finding;
pub use selector::Selector;
