//! Tests that boot a real guest in QEMU. They fail without QEMU, and without the guest that `examples/setup.sh --tests`
//! makes.

#[path = "../common/mod.rs"]
mod common;

mod boot;
mod console;
mod crash_recovery;
mod devices;
mod exit_reasons;
mod firmware;
mod images_in_use;
#[cfg(target_os = "linux")]
mod namespaces;
mod owner;
mod ports;
mod scoped;
mod shutdown;
#[cfg(target_os = "linux")]
mod vsock;
