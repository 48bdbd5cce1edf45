//! The header of an arm64 Image (Linux's Documentation/arch/arm64/booting.rst).

use crate::engine::KernelMemory;
use crate::preflight::little_endian;

/// The length of the header.
const HEADER_BYTES: usize = 64;
/// Bit 0 of the flags.
const BIG_ENDIAN: u64 = 1;
/// Bits 1 and 2 of the flags, and their value if the kernel has pages of 16 KiB.
const PAGE_SIZE: u64 = 0b110;
const PAGES_OF_16_KIB: u64 = 0b100;
/// The largest accepted values of the header's lengths, in bytes. No kernel needs as much.
const MAX_BYTES: u64 = 1 << 40;
/// The length of a PE file's signature and file header, which the optional header follows, and the length of a section header, in bytes.
const PE_HEADER: usize = 24;
const SECTION: usize = 40;

/// Why a file with another length than its headers say is rejected.
pub(super) const TRUNCATED: &str = "truncated";
pub(super) const TOO_LONG: &str = "longer than its header says";

/// The header of an arm64 Image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Image {
    /// The offset of the kernel in memory from a multiple of 2 MiB, in bytes.
    text_offset: u64,
    /// The memory that the kernel occupies, in bytes. The file is shorter: it does not contain the data that is zero at first (BSS).
    size: u64,
    /// Whether the kernel has pages of 16 KiB, which not every CPU has.
    pub has_pages_of_16_kib: bool,
}

impl Image {
    pub fn memory(&self) -> KernelMemory {
        KernelMemory::Image { text_offset: self.text_offset, size: self.size }
    }
}

/// Whether a file has the mark of an Image. If Linux is built with an EFI stub, as by all distributions, the file is a PE file, too.
pub(super) fn has_mark(head: &[u8]) -> bool {
    head.get(0x38..0x3c) == Some(b"ARM\x64")
}

/// Reads the header of an Image that begins with `head`. QEMU checks none of this: it starts the VM,
/// and the guest prints nothing.
pub(super) fn parse(head: &[u8], length: u64) -> Result<Image, &'static str> {
    if head.len() < HEADER_BYTES {
        return Err(TRUNCATED);
    }
    let [text_offset, size, flags] = [8, 16, 24].map(|at| little_endian(head, at, 8));
    if flags & BIG_ENDIAN != 0 {
        return Err("big-endian");
    }
    // Then the header does not say how much memory the kernel needs, and QEMU loads the kernel to another address.
    if size == 0 {
        return Err("no length in its header, as before Linux 3.17");
    }
    if size > MAX_BYTES || text_offset > MAX_BYTES {
        return Err("inconsistent header");
    }
    // QEMU loads the initrd behind the memory that the header declares.
    if length > size {
        return Err(TOO_LONG);
    }
    if length < HEADER_BYTES as u64 || length < pe_length(head) {
        return Err(TRUNCATED);
    }
    Ok(Image { text_offset, size, has_pages_of_16_kib: flags & PAGE_SIZE == PAGES_OF_16_KIB })
}

/// The least length of a PE file that begins with `head`, without signatures behind its sections; 0 if it is no PE file. The header of an
/// Image itself does not contain the length.
fn pe_length(head: &[u8]) -> u64 {
    if !head.starts_with(b"MZ") {
        return 0;
    }
    let pe = little_endian(head, 0x3c, 4) as usize;
    let header = head.get(pe..).unwrap_or_default();
    let [count, optional_length] = [6, 20].map(|at| little_endian(header, at, 2) as usize);
    let first = PE_HEADER + optional_length;
    let sections = header.get(first..).unwrap_or_default().chunks_exact(SECTION).take(count);
    let end = sections.map(|section| little_endian(section, 16, 4) + little_endian(section, 20, 4)).max();
    // Also a file that ends within these headers is truncated.
    end.unwrap_or(0).max(pe as u64 + (first + count * SECTION) as u64)
}
