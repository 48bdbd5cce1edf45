//! Tests that boot a real guest for x86-64 in QEMU. They fail without QEMU, and without the guest that
//! `examples/setup.sh --arch amd64 --tests` makes.
//!
//! The program `guest_arm64` runs the same tests with guests for arm64, except the modules that are named below.

include!("modules.rs");

// Only for x86-64:

/// The disk image of Debian is one for x86-64. One for arm64 would show nothing more about the agent: its unit and its program are
/// the same.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod command_systemd;
/// The host's programs run in guests of the host's architecture only.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod host_root;
/// Multiboot is a protocol of x86. The module `kernels` of `guest_arm64` tests that it is refused.
mod multiboot;
/// QEMU boots ELF kernels by PVH, a protocol of x86. The module `kernels` of `guest_arm64` boots the formats of arm64.
mod vmlinux;
