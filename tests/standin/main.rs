//! Tests of VMs on the stand-in for hyperkit (`tests/standin-hyperkit`), which runs no guest.

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/log_lines.rs"]
mod log_lines;
#[cfg(target_os = "linux")]
#[path = "../../src/vm/command/protocol.rs"]
#[allow(dead_code, reason = "the tests use a part")]
mod protocol;

mod arm64_kernels;
mod attaching;
mod backing_files;
mod boot_limits;
#[cfg(target_os = "linux")]
mod cannot_tell;
#[cfg(target_os = "linux")]
mod command;
#[cfg(target_os = "linux")]
mod command_processes;
mod concurrent_starts;
mod console_dialogue;
mod console_lines;
mod console_log;
mod console_stream;
mod corrupt_state;
mod crash_recovery;
mod defining;
mod disk_images;
mod engine_choice;
mod exit_reasons;
#[cfg(target_os = "linux")]
mod exit_window;
mod exited;
mod file_size_limit;
mod file_urls;
mod firmware_files;
mod hyperkit_facts;
mod hypervisor_output;
mod image_formats;
mod images_in_use;
#[cfg(target_os = "linux")]
mod leaks;
mod life_cycle;
mod limits;
mod listing;
mod model;
mod moved;
#[cfg(target_os = "linux")]
mod namespaces;
mod network;
mod overlays;
mod own_files;
mod process_identity;
mod qemu_options;
mod reattach;
mod remove;
mod replaced;
mod scoped;
mod scoped_output;
#[cfg(target_os = "linux")]
mod shared_dirs;
mod shutdown;
mod starter;
mod starting;
mod state_directory;
mod stdio;
mod strangers;
mod templates;
mod unsupported;
mod validation;
#[cfg(target_os = "linux")]
mod virtiofs;
mod vmlinux;
mod vsock;
mod wrappers;
