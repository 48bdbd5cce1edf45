//! The header of an x86 bzImage.

use crate::plan::limits::PAGE;
use crate::preflight::little_endian;

/// Where hyperkit loads a relocatable kernel.
const BASE: u64 = 1024 * 1024;
/// The length of the header, which starts at 0x1f1, with what precedes it.
const HEADER_BYTES: usize = 0x264;
/// The length in the header is in blocks of this many bytes. The last block of memtest86+ is not full.
const BLOCK: u64 = 16;

/// The boot protocol's header of an x86 bzImage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BzImage {
    /// The length of the longest command line. hyperkit counts a NUL at its end (kexec.c); Linux does not (boot.rst).
    pub cmdline_size: usize,
    start: u64,
    /// The memory that the kernel needs to unpack itself.
    init_size: u64,
    pub initrd_max: u64,
    /// Whether the last block of the file is not full.
    pub lacks_padding: bool,
}

impl BzImage {
    /// The end of the memory that the kernel needs to unpack itself.
    pub fn end(&self) -> u64 {
        self.start.saturating_add(self.init_size)
    }
}

/// Whether a file has the mark of the boot protocol.
pub(super) fn has_mark(head: &[u8]) -> bool {
    head.get(0x202..0x206) == Some(b"HdrS")
}

/// Reads the header of a file that begins with `head`. Refuses what hyperkit's kexec refuses, except a last block that is not
/// full.
pub(super) fn parse(head: &[u8], length: u64) -> Result<BzImage, &'static str> {
    let Some(header) = head.get(..HEADER_BYTES) else { return Err("file too short") };
    let number = |at, length| little_endian(header, at, length);
    let setup = (number(0x1f1, 1) + 1) * 512;
    if number(0x1fe, 2) != 0xaa55 || !has_mark(header) {
        return Err("no boot header");
    }
    if number(0x206, 2) < 0x020a {
        return Err("boot protocol older than 2.10");
    }
    if header[0x1f1] == 0 || header[0x211] & 1 == 0 {
        return Err("zImage");
    }
    let full = setup + number(0x1f4, 4) * BLOCK;
    if length + BLOCK - 1 < full {
        return Err("truncated");
    }
    if length <= setup {
        return Err("nothing after its setup sectors");
    }
    let is_relocatable = header[0x234] != 0;
    let aligned = BASE.checked_next_multiple_of(number(0x230, 4)).unwrap_or(0);
    let start = if is_relocatable { aligned } else { number(0x258, 8) };
    let init_size = number(0x260, 4).next_multiple_of(PAGE);
    if start < BASE || length - setup > init_size {
        return Err("inconsistent header");
    }
    let (cmdline_size, initrd_max) = (number(0x238, 4) as usize, number(0x22c, 4));
    Ok(BzImage { cmdline_size, start, init_size, initrd_max, lacks_padding: length < full })
}
