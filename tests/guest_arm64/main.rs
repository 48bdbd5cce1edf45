//! Tests that boot a real guest for arm64 in QEMU: those of the program `guest`, and some more. They fail without QEMU, and without the
//! guest that `examples/setup.sh --arch arm64 --tests` makes.

include!("../guest/modules.rs");

// Only for arm64:

/// The host's programs run in guests of the host's architecture only.
#[cfg(all(target_os = "linux", target_arch = "aarch64"))]
#[path = "../guest/host_root.rs"]
mod host_root;
mod kernels;
mod memory;
mod portable;
