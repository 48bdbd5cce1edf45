//! The boot source. Like hyperkit, the stand-in reads it last, after it has created all devices.

use std::fs::{self, File};
use std::path::Path;
use std::process::abort;

use crate::fail;
use crate::options::{Firmware, MIB, Options, PAGE};

/// hyperkit maps the memory beyond this size to addresses above 4 GiB, and loads nothing there.
const MAX_LOW_MEMORY: u64 = 3072 * MIB;
/// The address of the command line, and the lowest address of the kernel.
const CMDLINE: u64 = 0x4000;
const KERNEL: u64 = MIB;

pub fn load(options: &Options) {
    let low_memory = options.memory.min(MAX_LOW_MEMORY);
    let Firmware { kind, file, second, .. } = &options.firmware;
    match kind.as_str() {
        "bootrom" => bootrom(file),
        "multiboot" => {
            let modules = second.as_deref().unwrap_or_default();
            multiboot(file, modules, options.firmware.cmdline.as_deref(), low_memory);
        }
        _ => kexec(file, second.as_deref(), options.guest(), low_memory).unwrap_or_else(|| {
            eprintln!("kexec: failed to load kernel {file}");
            abort()
        }),
    }
}

fn kexec(kernel: &str, initrd: Option<&str>, cmdline: &str, low_memory: u64) -> Option<()> {
    let image = fs::read(kernel).ok()?;
    let number = |at: usize, length: usize| {
        image.get(at..at + length).map(|bytes| bytes.iter().rev().fold(0, |n, &byte| (n << 8) | u64::from(byte)))
    };
    let (length, setup_sectors) = (image.len() as u64, number(0x1f1, 1)?);
    let setup = (setup_sectors + 1) * 512;
    let is_bz_image = setup_sectors != 0
        && number(0x1fe, 2)? == 0xaa55
        && image.get(0x202..0x206)? == b"HdrS"
        && number(0x206, 2)? >= 0x020a
        && number(0x211, 1)? & 1 == 1
        && length >= setup + number(0x1f4, 4)? * 16
        && length > setup;
    let start = match number(0x234, 1)? {
        0 => number(0x258, 8)?,
        _ => KERNEL.checked_next_multiple_of(number(0x230, 4)?)?,
    };
    let (init_size, line) = (number(0x260, 4)?.next_multiple_of(PAGE), cmdline.len() as u64 + 1);
    let fits = start >= KERNEL && length <= setup + init_size && start.checked_add(init_size)? <= low_memory;
    if !is_bz_image || !fits || line > number(0x238, 4)? || CMDLINE + line > start {
        return None;
    }
    let Some(initrd) = initrd else { return Some(()) };
    let size = fs::metadata(initrd).ok().filter(|metadata| metadata.is_file())?.len();
    // hyperkit does not check whether the initrd overlaps the kernel.
    number(0x22c, 4)?.min(low_memory - 1).checked_sub(size).filter(|_| size > 0).map(drop)
}

fn bootrom(file: &str) {
    let length = fs::metadata(file).map_or(0, |metadata| metadata.len());
    if !(PAGE..=16 * MIB).contains(&length) || length % PAGE != 0 {
        fail(format!("Invalid bootrom size {length}"));
    }
}

/// Like hyperkit, crashes if the header makes it read or write beyond the file.
fn multiboot(kernel: &str, modules: &str, cmdline: Option<&str>, low_memory: u64) {
    const MAGIC: u32 = 0x1bad_b002;
    const HEADER: usize = 48;
    const HAS_ADDRESSES: u32 = 1 << 16;

    let refuse = |why: &str| -> ! { fail(format!("multiboot: {why}: {kernel}")) };
    let image = fs::read(kernel).unwrap_or_else(|_| refuse("failed to open"));
    let end = image.len().min(0x2000).saturating_sub(HEADER); // a header at the very end of the file is not found
    let word = |at: usize| u32::from_le_bytes([image[at], image[at + 1], image[at + 2], image[at + 3]]);
    let is_header = |&at: &usize| word(at) == MAGIC && MAGIC.wrapping_add(word(at + 4)).wrapping_add(word(at + 8)) == 0;
    let Some(header) = (0..end).step_by(4).find(is_header) else { refuse("failed to find multiboot header") };
    let flags = word(header + 4);
    if flags & 0xfffc != 0 {
        refuse("header has unsupported mandatory flags");
    }
    let image_length = u32::try_from(image.len()).unwrap_or_else(|_| abort());
    let (offset, address, size) = if flags & HAS_ADDRESSES != 0 {
        let [address_of_header, load, load_end] = [12, 16, 20].map(|field| word(header + field));
        let offset = (header as u32).wrapping_sub(address_of_header.wrapping_sub(load));
        (offset, load, if load_end == 0 { image_length.wrapping_sub(offset) } else { load_end.wrapping_sub(load) })
    } else {
        if !image.starts_with(b"\x7fELF") {
            refuse("invalid ELF magic");
        }
        if image[18..20] == [62, 0] {
            refuse("64-bit ELFs are not supported");
        }
        let (first, entry_size) = (word(28) as usize, usize::from(image[42]));
        let segments = (0..usize::from(image[44])).map(|index| first + index * entry_size);
        let loaded: Vec<_> = segments.filter(|&at| word(at) == 1).collect();
        let lowest = |field: usize| loaded.iter().map(|at| word(at + field)).min();
        let end = loaded.iter().map(|at| word(at + 12) + word(at + 16)).max();
        let (Some(offset), Some(low), Some(end)) = (lowest(4), lowest(12), end) else {
            refuse("failed to parse ELF file")
        };
        (offset, low, end - low)
    };
    let length_mapped = u64::from(image_length).next_multiple_of(PAGE);
    let mut at = u64::from(address);
    // Copies `length` bytes to the guest's memory.
    let mut load = |length: u64, align: u64| {
        if length > 0 && (at >= low_memory || at + length > low_memory) {
            refuse(&format!("{at:x}+{length:x} is beyond guest's memory"));
        }
        at = if length > 0 { (at + length).next_multiple_of(align) } else { at };
    };
    load(size.into(), PAGE);
    if u64::from(offset) + u64::from(size) > length_mapped {
        abort(); // a segmentation fault
    }
    let (mut lines, mut count) = (0, 0);
    let mut add_line = |file: &str, cmdline: Option<&str>| {
        lines += (file.len() + 1 + cmdline.map_or(0, |cmdline| cmdline.len() + 1)) as u64;
    };
    for module in modules.split(':').filter(|_| !modules.is_empty()) {
        let (file, cmdline) = module.split_once(';').map_or((module, None), |(file, rest)| (file, Some(rest)));
        match File::open(Path::new(file)).and_then(|file| file.metadata()) {
            Ok(module) if module.is_file() && module.len() > 0 => load(module.len(), PAGE),
            _ => refuse(&format!("failed to load '{file}'")),
        }
        add_line(file, cmdline);
        count += 1;
    }
    if cmdline.is_some() {
        add_line(kernel, cmdline);
    }
    load(lines, 4);
    load(28, 1); // information for the kernel
    load(16 * count, 1);
}
