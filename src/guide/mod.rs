//! Pages for who builds on this crate.
//!
//! - [`state_directory`]: what is in it, file by file, and who may touch what.
//! - [`embedding`]: threads, signals, dropping, other programs of yours, async runtimes.
//! - [`from_go`]: for people who come from the Go package.

#[doc = include_str!("state_directory.md")]
pub mod state_directory {}

#[doc = include_str!("embedding.md")]
pub mod embedding {}

#[doc = include_str!("from_go.md")]
pub mod from_go {}
