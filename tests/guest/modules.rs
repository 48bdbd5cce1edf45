// The tests for both architectures. `main.rs` and `../guest_arm64/main.rs` include this file.

#[path = "../common/mod.rs"]
mod common;
#[cfg(target_os = "linux")]
#[path = "../common/log_lines.rs"]
mod log_lines;

mod boot;
mod clock;
mod command;
mod command_copy;
mod command_hostile;
mod command_sessions;
#[cfg(target_os = "linux")]
mod command_vsock;
mod console;
mod cpu;
mod crash_recovery;
mod devices;
#[cfg(target_os = "linux")]
mod disk_full;
mod exit_reasons;
mod firmware;
mod images_in_use;
mod internal_network;
#[cfg(target_os = "linux")]
mod namespaces;
mod network;
mod overlays;
mod owner;
mod ports;
#[cfg(target_os = "linux")]
mod root_dir;
#[cfg(target_os = "linux")]
mod sandbox;
mod scoped;
#[cfg(target_os = "linux")]
mod shares;
mod shutdown;
#[cfg(target_os = "linux")]
mod virtiofs;
#[cfg(target_os = "linux")]
mod vsock;
