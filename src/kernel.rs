//! Kernel files: whether hyperkit boots them, and whether they fit into the machine's memory.

use std::fs::Metadata;
use std::io::{self, Read};
use std::path::Path;

use crate::check::open;
use crate::error::{Error, Result};

const MIB: u64 = 1024 * 1024;
pub(crate) const PAGE: u64 = 4096;
/// Where hyperkit puts a kernel that can be anywhere, and up to where there is memory below 4 GiB.
const BASE: u64 = MIB;
const MAX_LOW_MEMORY: u64 = 3072 * MIB;

/// What the boot protocol's header at 0x1f1 of an x86 bzImage says.
pub(crate) struct BzImage {
    /// The longest command line, with its NUL.
    pub cmdline_size: usize,
    start: u64,
    /// What it takes while it unpacks itself.
    init_size: u64,
    initrd_max: u64,
}

/// Reads the header, and refuses what kexec refuses.
pub(crate) fn bz_image(path: &Path) -> Result<BzImage> {
    let (mut file, metadata) = open("kernel", path, Metadata::is_file)?;
    let no = |reason| Err(Error::NotABzImage { path: path.to_owned(), reason });
    let mut header = [0; 0x264];
    if let Err(source) = file.read_exact(&mut header) {
        return match source.kind() {
            io::ErrorKind::UnexpectedEof => no("it is too short"),
            _ => Err(Error::Inaccessible { field: "kernel", path: path.to_owned(), source }),
        };
    }
    let number =
        |at: usize, bytes: usize| header[at..at + bytes].iter().rev().fold(0, |n, &byte| (n << 8) | u64::from(byte));
    let setup = (number(0x1f1, 1) + 1) * 512;
    if number(0x1fe, 2) != 0xaa55 || &header[0x202..0x206] != b"HdrS" {
        return no("it has no boot header");
    }
    if number(0x206, 2) < 0x020a {
        return no("its boot protocol is older than 2.10");
    }
    if header[0x1f1] == 0 || header[0x211] & 1 == 0 {
        return no("it is a zImage");
    }
    if metadata.len() < setup + number(0x1f4, 4) * 16 {
        return no("its end is missing");
    }
    let is_relocatable = header[0x234] != 0;
    let aligned = BASE.checked_next_multiple_of(number(0x230, 4)).unwrap_or(0);
    let start = if is_relocatable { aligned } else { number(0x258, 8) };
    let init_size = number(0x260, 4).next_multiple_of(PAGE);
    if start < BASE || metadata.len() - setup > init_size {
        return no("its header is not true of it");
    }
    Ok(BzImage { cmdline_size: number(0x238, 4) as usize, start, init_size, initrd_max: number(0x22c, 4) })
}

impl BzImage {
    /// Refuses it, or its initrd of so many bytes, if `memory` MiB are not enough for both. hyperkit puts the initrd as
    /// high as it can be, and does not look whether that is onto the kernel.
    pub(crate) fn fits(&self, memory: u64, kernel: &Path, initrd: Option<(&std::path::PathBuf, u64)>) -> Result<()> {
        let low_memory = memory.saturating_mul(MIB).min(MAX_LOW_MEMORY);
        let end = self.start.saturating_add(self.init_size);
        let refuse = |field, path: &Path, needed: u64| {
            Err(Error::DoesNotFit { field, path: path.to_owned(), needed: needed.div_ceil(MIB) })
        };
        if end > low_memory {
            return refuse("kernel", kernel, end);
        }
        let Some((path, size)) = initrd else { return Ok(()) };
        let top = self.initrd_max.min(low_memory - 1);
        match top.checked_sub(size).map(|start| start / PAGE * PAGE) {
            Some(start) if start >= end => Ok(()),
            _ => refuse("initrd", path, end.saturating_add(size.next_multiple_of(PAGE) + PAGE)),
        }
    }
}

/// The header of the Multiboot specification in the first 8 KiB, and what hyperkit wants of it.
pub(crate) fn multiboot(path: &Path) -> Result<()> {
    const MAGIC: u32 = 0x1bad_b002;
    const SEARCHED: u64 = 0x2000;
    /// Modules on pages, and the memory's size: what hyperkit does of what a kernel can demand.
    const KNOWN: u32 = 0b11;
    const HAS_ADDRESSES: u32 = 1 << 16;

    let (file, _) = open("multiboot", path, Metadata::is_file)?;
    let no = |reason| Err(Error::NotMultiboot { path: path.to_owned(), reason });
    let mut head = Vec::new();
    let read = file.take(SEARCHED).read_to_end(&mut head);
    read.map_err(|source| Error::Inaccessible { field: "multiboot", path: path.to_owned(), source })?;
    // The header has 12 words, and hyperkit overlooks one with nothing behind it.
    let before_the_last = &head[..head.len().saturating_sub(1)];
    let words: Vec<_> =
        before_the_last.chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]])).collect();
    let headers = words.windows(12).filter(|words| words[0] == MAGIC);
    let Some(header) =
        headers.into_iter().find(|words| words[..3].iter().fold(0_u32, |sum, &word| sum.wrapping_add(word)) == 0)
    else {
        return no("it has no multiboot header");
    };
    let flags = header[1];
    if flags & 0xffff & !KNOWN != 0 {
        return no("it wants more than hyperkit can do");
    }
    if flags & HAS_ADDRESSES == 0 && !head.starts_with(b"\x7fELF") {
        return no("it is no ELF file and does not say where it goes");
    }
    const ELF_MACHINE: usize = 18;
    const X86_64: u8 = 62;
    if flags & HAS_ADDRESSES == 0 && head.get(ELF_MACHINE) == Some(&X86_64) {
        return no("it is a 64-bit ELF file");
    }
    Ok(())
}
