//! Multiboot kernels: whether hyperkit can boot them, and whether they fit into the guest's memory.

use std::fs::Metadata;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::config::MultibootModule;
use crate::error::ConfigError;
use crate::plan::limits::PAGE;
use crate::preflight::image_header::{compression, unpacking};
use crate::preflight::little_endian as number;
use crate::sys::file::open;

type Result<T> = std::result::Result<T, ConfigError>;

const MIB: u64 = 1024 * 1024;

/// The position of the header in the first bytes of a file.
pub(super) fn multiboot_header(head: &[u8]) -> Option<usize> {
    const MAGIC: u64 = 0x1bad_b002;
    const HEADER: usize = 48;
    let word = |at: usize| number(head, at, 4);
    let is_header = |&at: &usize| word(at) == MAGIC && (MAGIC + word(at + 4) + word(at + 8)) & 0xffff_ffff == 0;
    // hyperkit and QEMU overlook a header at the very end.
    (0..head.len().saturating_sub(HEADER)).step_by(4).find(is_header)
}

/// Reads the header of the Multiboot specification, which is in the first 8 KiB. Refuses what hyperkit refuses. Returns
/// where the kernel ends in memory. `is_copied_whole` is whether the engine copies the segments of an ELF file as one piece.
pub(crate) fn multiboot_end(path: &Path, is_copied_whole: bool) -> Result<u64> {
    const SEARCHED: u64 = 0x2000;
    /// The features that hyperkit offers of those a kernel can require: page-aligned modules, and the size of memory.
    const KNOWN: u64 = 0b11;
    const HAS_ADDRESSES: u64 = 1 << 16;

    let (file, metadata) = open("multiboot", path, Metadata::is_file)?;
    let no = |reason| Err(ConfigError::NotMultiboot { path: path.to_owned(), reason });
    let mut head = Vec::new();
    let read = (&file).take(SEARCHED).read_to_end(&mut head);
    read.map_err(|error| ConfigError::inaccessible("multiboot", path, &error))?;
    let word = |at: usize| number(&head, at, 4);
    let Some(at) = multiboot_header(&head) else {
        return match compression(&head) {
            Some(format) => {
                let unpack = unpacking(format);
                Err(ConfigError::CompressedKernel { field: "multiboot", path: path.to_owned(), format, unpack })
            }
            None => no("no multiboot header"),
        };
    };
    let flags = word(at + 4);
    if flags & 0xffff & !KNOWN != 0 {
        return no("requires features that hyperkit lacks");
    }
    if flags & HAS_ADDRESSES != 0 {
        let [header, load, load_end] = [12, 16, 20].map(|field| word(at + field));
        // The part of the kernel before the header is as long in the file as in memory.
        let offset = (at as u64 + load).checked_sub(header).filter(|&offset| offset <= metadata.len());
        let length = match (offset, load_end) {
            (Some(offset), 0) => Some(metadata.len() - offset),
            (Some(offset), end) => end.checked_sub(load).filter(|length| offset + length <= metadata.len()),
            (None, _) => None,
        };
        return length.map_or_else(|| no("its load addresses are outside of the file"), |length| Ok(load + length));
    }
    if !head.starts_with(b"\x7fELF") {
        return no("neither an ELF file nor a header with load addresses");
    }
    const X86_64: u64 = 62;
    if number(&head, 18, 2) == X86_64 {
        return no("64-bit ELF file");
    }
    // The program headers, of which those of type 1 are loaded: file offset at 4, address at 12, length at 16.
    let (first, size, count) = (word(28), number(&head, 42, 2), number(&head, 44, 2));
    let (mut end, mut first_address, mut first_offset) = (None, u64::MAX, u64::MAX);
    for index in 0..count {
        let mut segment = [0; 32];
        if file.read_exact_at(&mut segment, first + index * size).is_err() {
            return no("truncated");
        }
        let [kind, offset, address, length] = [0, 4, 12, 16].map(|field| number(&segment, field, 4));
        if kind == 1 && offset + length > metadata.len() {
            return no("truncated");
        }
        if kind == 1 {
            end = end.max(Some(address + length));
            (first_address, first_offset) = (first_address.min(address), first_offset.min(offset));
        }
    }
    // multiboot_parse_elf in hyperkit's multiboot.c: it would read beyond the end of the file.
    if is_copied_whole && end.is_some_and(|end| first_offset + (end - first_address) > metadata.len()) {
        return no("its segments are further apart in memory than in the file");
    }
    end.map_or_else(|| no("no loadable segment"), Ok)
}

/// A module of a multiboot kernel, with its length in bytes.
pub(crate) type Module<'a> = (&'a MultibootModule, u64);

/// Refuses a multiboot kernel that ends at `end`, its modules, or what hyperkit puts after them, if they do not fit
/// into the memory: the engine uses the first `max_mib` for it.
pub(crate) fn check_multiboot_fits(
    memory_mib: u64,
    max_mib: u64,
    kernel: &Path,
    end: u64,
    modules: &[Module<'_>],
    cmdline: &str,
) -> Result<()> {
    let mut end = end;
    let low_memory = memory_mib.min(max_mib).saturating_mul(MIB);
    let refuse = |path: &Path, end: u64| {
        let (path, needed) = (path.to_owned(), end.div_ceil(MIB));
        Err(ConfigError::DoesNotFit { field: "multiboot", path, needed, max: max_mib })
    };
    let mut last = kernel;
    let lengths = modules.iter().map(|(module, length)| (module.path.as_path(), *length));
    for (path, length) in [(kernel, 0)].into_iter().chain(lengths) {
        end = end.next_multiple_of(PAGE).saturating_add(length);
        if end > low_memory {
            return refuse(path, end);
        }
        last = path;
    }
    // multiboot() in hyperkit's multiboot.c: the command lines, each after the path of its file and with its NUL; 28 bytes of
    // information; 16 bytes for each module.
    let line = |path: &Path, cmdline: &str| (path.as_os_str().len() + 1 + cmdline.len() + 1) as u64;
    let kernel_line = if cmdline.is_empty() { 0 } else { line(kernel, cmdline) };
    let lines: u64 = modules.iter().map(|(module, _)| line(&module.path, &module.cmdline)).sum();
    end = end.next_multiple_of(PAGE) + (lines + kernel_line).next_multiple_of(4) + 28 + 16 * modules.len() as u64;
    if end > low_memory { refuse(last, end) } else { Ok(()) }
}
