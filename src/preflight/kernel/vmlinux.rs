//! An ELF file as a kernel, which QEMU enters by the PVH protocol.
//!
//! QEMU's function is `load_elfboot` in hw/i386/x86.c. Its loader of ELF files (include/hw/elf_ops.h) overlooks most faults: tried
//! with QEMU 7.2, it boots a core dump, divides by an alignment of 0, and jumps to an address outside of the kernel.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::preflight::little_endian;
use crate::preflight::multiboot::multiboot_header;
use crate::sys::elf::{self, Header, Segment};

/// Values from elf.h.
const EM_386: u64 = 3;
const EM_X86_64: u64 = 62;
const EM_AARCH64: u64 = 183;
const ET_REL: u64 = 1;
const ET_CORE: u64 = 4;
const EXECUTABLES: [u64; 2] = [2, 3];
/// QEMU takes a file with these flags for another format, and refuses it.
const REFUSED_FLAGS: u64 = 0x0001_0004;
/// Firmware uses the memory below.
const LOWEST: u64 = 1024 * 1024;
/// XEN_ELFNOTE_PHYS32_ENTRY, from Xen's elfnote.h.
const PVH_NOTE: u64 = 18;
const PVH_NOTE_OWNER: &[u8] = b"Xen\0";
/// The lengths of name and content, and the type.
const NOTE_HEADER: usize = 12;
/// A kernel has some 5 segments. More would take long to read.
const MAX_SEGMENTS: u64 = 100;
/// Of longer notes, only the beginning is read. Those of Linux have some 500 bytes.
const MAX_NOTE_BYTES: u64 = 64 * 1024;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Vmlinux {
    /// The address at which the kernel ends in memory.
    pub end: u64,
    pub pvh_entry: Option<u32>,
}

/// Reads the headers of a file of this length that begins with `head`.
pub(super) fn parse(file: &File, length: u64, head: &[u8], header: &Header) -> Result<Vmlinux, &'static str> {
    check_kind(header)?;
    // QEMU looks for this header first.
    if multiboot_header(head).is_some() {
        return Err("a multiboot kernel, which the field `multiboot` boots");
    }
    if header.segment_count > MAX_SEGMENTS {
        return Err("too many segments");
    }
    let segments = header.segments(file).ok_or("truncated")?;
    let is_cut = |segment: &Segment| segment.offset.checked_add(segment.size).is_none_or(|end| end > length);
    let mut read = segments.iter().filter(|it| it.size > 0 && [elf::PT_LOAD, elf::PT_NOTE].contains(&it.kind));
    if read.any(is_cut) {
        return Err("truncated");
    }
    let mut loaded: Vec<&Segment> =
        segments.iter().filter(|it| it.kind == elf::PT_LOAD && it.memory_size > 0).collect();
    loaded.sort_by_key(|segment| segment.physical);
    let mut end = 0;
    for (index, segment) in loaded.iter().enumerate() {
        let segment_end = segment.physical.checked_add(segment.memory_size).ok_or("inconsistent header")?;
        if segment.size > segment.memory_size {
            return Err("inconsistent header");
        }
        if segment.physical < LOWEST {
            return Err("its segments are below 1 MiB, where the firmware is");
        }
        if loaded.get(index + 1).is_some_and(|next| next.physical < segment.physical + segment.size) {
            return Err("its segments overlap");
        }
        end = end.max(segment_end);
    }
    if loaded.is_empty() {
        return Err("no loadable segment");
    }
    let mut pvh_entry = None;
    for notes in segments.iter().filter(|segment| segment.kind == elf::PT_NOTE && segment.size > 0) {
        if notes.alignment == 0 {
            return Err("inconsistent header");
        }
        let mut bytes = vec![0; notes.size.min(MAX_NOTE_BYTES) as usize];
        file.read_exact_at(&mut bytes, notes.offset).map_err(|_| "truncated")?;
        // QEMU uses the last of several.
        if let Some(note) = find_note(&bytes, notes.alignment) {
            pvh_entry = note.pvh_entry();
        }
    }
    let is_code = |entry: u64| loaded.iter().any(|it| (it.physical..it.physical + it.size).contains(&entry));
    if pvh_entry.is_some_and(|entry| !is_code(entry.into())) {
        return Err("its PVH entry is outside of its segments");
    }
    Ok(Vmlinux { end, pvh_entry })
}

fn check_kind(header: &Header) -> Result<(), &'static str> {
    // QEMU treats any ELF file as a bare-metal program, and passes no device tree to it. It loads a vmlinux to its virtual addresses, where
    // there is no memory, so the guest prints nothing (arm_setup_direct_kernel_boot in hw/arm/boot.c).
    if header.machine == EM_AARCH64 {
        return Err("for arm64, where QEMU boots only an Image");
    }
    if !header.is_little_endian || ![EM_386, EM_X86_64].contains(&header.machine) {
        return Err("for another architecture");
    }
    if !header.is_64_bit || header.machine == EM_386 {
        return Err("32-bit");
    }
    match header.kind {
        ET_REL => return Err("an object file or a module"),
        ET_CORE => return Err("a core dump"),
        kind if !EXECUTABLES.contains(&kind) => return Err("not an executable"),
        _ => {}
    }
    if header.flags & REFUSED_FLAGS != 0 {
        return Err("inconsistent header");
    }
    Ok(())
}

/// A note in an ELF file: who defines its type, and its content.
struct Note<'a> {
    owner: &'a [u8],
    content: &'a [u8],
}

impl Note<'_> {
    fn pvh_entry(&self) -> Option<u32> {
        let entry = self.content.first_chunk().filter(|_| self.owner == PVH_NOTE_OWNER)?;
        Some(u32::from_le_bytes(*entry))
    }
}

/// Finds the note of PVH's type as QEMU does, which aligns as the segment says, and overlooks who defines the type
/// (get_elf_note_type in include/hw/elf_ops.h).
fn find_note(notes: &[u8], alignment: u64) -> Option<Note<'_>> {
    let aligned =
        |length: u64| length.checked_next_multiple_of(alignment).and_then(|length| usize::try_from(length).ok());
    let mut rest = notes;
    loop {
        let (header, after) = rest.split_at_checked(NOTE_HEADER)?;
        let [owner_length, length, kind] = [0, 4, 8].map(|at| little_endian(header, at, 4));
        let content = after.get(aligned(owner_length)?..)?;
        if kind == PVH_NOTE {
            let owner = after.get(..owner_length as usize)?;
            return Some(Note { owner, content: content.get(..length as usize)? });
        }
        rest = content.get(aligned(length)?..)?;
    }
}
