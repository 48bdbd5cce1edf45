//! Guides for users of this crate.
//!
//! - [`howto`]: how do I …, each answered by a program.
//! - [`agent`]: the program in the guest that executes commands, and how to put it into an image.
//! - [`host_programs`]: the host's programs in a guest: what works, and what the guest can read.
//! - [`tests_in_a_vm`]: `cargo test`, cargo-nextest and `go test` in a VM, with the example `exec`.
//! - [`engines`]: what hyperkit and QEMU can do, and which of them runs a VM.
//! - [`crash_recovery`]: what happens when a program, a hypervisor or the host ends unexpectedly.
//! - [`state_directory`]: the files in a state directory, and who may touch what.
//! - [`embedding`]: threads, signals, dropping, several programs, async runtimes, logging.
//! - [`security`]: what a guest can do to its host, what the crate does about it, and what is left to you.
//! - [`from_go`]: for users of the Go package.

#[doc = include_str!("agent.md")]
pub mod agent {}

#[doc = include_str!("host_programs.md")]
pub mod host_programs {}

#[doc = include_str!("tests_in_a_vm.md")]
pub mod tests_in_a_vm {}

#[doc = include_str!("engines.md")]
pub mod engines {}

#[doc = include_str!("crash_recovery.md")]
pub mod crash_recovery {}

#[doc = include_str!("state_directory.md")]
pub mod state_directory {}

#[doc = include_str!("embedding.md")]
pub mod embedding {}

#[doc = include_str!("security.md")]
pub mod security {}

#[doc = include_str!("from_go.md")]
pub mod from_go {}

pub mod howto;
