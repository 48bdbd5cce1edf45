//! The limits that validation and messages share. The figures are hyperkit's own, from its argument parsing and device set-up.

pub(crate) const MAX_CPUS: u32 = 64;

/// 1 MiB and 4 KiB, in whole MiB.
pub(crate) const MIN_MEMORY: u64 = 2;

pub(crate) const CIDS: std::ops::RangeInclusive<u32> = 3..=0x7fff_ffff;

pub(crate) const MAX_PORTS: usize = 4;

pub(crate) const MAX_PORT: u32 = u32::MAX - 1;

pub(crate) const MAX_TAG: usize = 256;

/// Of the directory that holds the vsock sockets, so that the longest name in it still fits into a socket address.
pub(crate) const MAX_VSOCK_DIR: usize = 85;

/// Of a tap interface, so that hyperkit's path to it fits into 80 bytes.
pub(crate) const MAX_TAP: usize = 74;

/// What hyperkit keeps of a socket's path; the rest is cut without a word.
pub(crate) const MAX_SOCKET: usize = 103;
