//! Tests against the stand-in for hyperkit (`tests/standin-hyperkit`).

#[path = "../common/mod.rs"]
mod common;

mod boot_limits;
mod concurrent_starts;
mod console_log;
mod console_stream;
mod corrupt_state;
mod crash_recovery;
mod disk_images;
mod exit_reasons;
mod hypervisor_output;
mod images_in_use;
#[cfg(target_os = "linux")]
mod leaks;
mod life_cycle;
mod limits;
mod model;
mod network;
mod process_identity;
mod reattach;
mod remove;
mod shutdown;
mod state_directory;
mod unsupported;
mod validation;
mod vsock;
