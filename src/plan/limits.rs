//! The limits that validation and messages share.
//!
//! Validation applies hyperkit's limits to every description, so that it boots on each engine. The numbers are from hyperkit's
//! argument parsing and device set-up.

use std::ops::RangeInclusive;

/// The longest name of a backing file in a qcow2 image, in bytes (docs/interop/qcow2.txt of QEMU).
pub(crate) const MAX_BACKING_FILE: usize = 1023;
pub(crate) const MAX_CPUS: u32 = 64;
/// 1 MiB and 4 KiB, in whole MiB.
pub(crate) const MIN_MEMORY_MIB: u64 = 2;
/// The bytes have to fit into 63 bits.
pub(crate) const MAX_MEMORY_MIB: u64 = i64::MAX as u64 >> 20;
/// The most memory that hyperkit has below 4 GiB, where a kernel is loaded.
pub(crate) const LOW_MEMORY_MIB: u64 = 3072;
/// The most memory that QEMU always has below 4 GiB. A VM with 2816 MiB or more has 2048 there (pc_q35_init in hw/i386/pc_q35.c).
pub(crate) const QEMU_LOW_MEMORY_MIB: u64 = 2048;
/// The size of a page of memory, in bytes.
pub(crate) const PAGE: u64 = 4096;
/// Context identifiers of guests on vsock; 0 to 2 are reserved.
pub(crate) const CIDS: RangeInclusive<u32> = 3..=0x7fff_ffff;
pub(crate) const MAX_VSOCK_PORTS: usize = 4;
pub(crate) const MAX_VSOCK_PORT: u32 = u32::MAX - 1;
/// hyperkit and the PC have two serial ports.
pub(crate) const MAX_SERIALS: usize = 2;
/// Slot 0 is the host bridge, slot 31 the LPC bridge with the serial ports.
pub(crate) const MAX_DEVICES: usize = 30;
/// The longest mount tag that hyperkit accepts, in bytes. QEMU accepts less: `engine/qemu/limits.rs`.
pub(crate) const MAX_TAG: usize = 256;
/// The longest tag of virtiofs, in bytes (the field `tag` of the virtio specification).
pub(crate) const MAX_VIRTIOFS_TAG: usize = 36;
/// The longest path of the directory of the vsock sockets, in bytes: the longest name in it must fit into a socket address.
pub(crate) const MAX_VSOCK_DIR: usize = 85;
/// The longest name of a tap interface, in bytes: hyperkit's path to it must fit into 80 bytes.
pub(crate) const MAX_TAP: usize = 74;
/// The longest path of a socket, in bytes. hyperkit truncates longer ones silently.
pub(crate) const MAX_SOCKET: usize = 103;
