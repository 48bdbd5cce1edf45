//! Guides for users of this crate.
//!
//! - [`state_directory`]: the files in a state directory, and who may touch what.
//! - [`embedding`]: threads, signals, dropping, several programs, async runtimes, logging.
//! - [`from_go`]: for users of the Go package.

#[doc = include_str!("state_directory.md")]
pub mod state_directory {}

#[doc = include_str!("embedding.md")]
pub mod embedding {}

#[doc = include_str!("from_go.md")]
pub mod from_go {}
