//! Tests that run programs: the examples, the README's programs and an embedder's.

#[path = "../common/mod.rs"]
mod common;

mod architecture;
mod ctl;
mod embedder;
mod engine_lookup;
#[cfg(target_os = "linux")]
mod exec; // needs the host's C compiler to build Linux programs
#[cfg(target_os = "linux")]
mod exec_host; // runs the host's programs
#[cfg(target_os = "linux")]
mod exec_installed;
#[cfg(target_os = "linux")]
mod exec_kernels;
#[cfg(target_os = "linux")]
mod exec_runner;
mod foreground;
mod howto;
mod pty;
mod readme;
mod setup;
mod terminal;
mod usage;
