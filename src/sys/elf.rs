//! ELF, the format of programs and of kernels on Linux: the parts of a file, and the shared libraries that a program is linked
//! with.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Sizes and values from elf.h, for 64-bit files.
const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
pub(crate) const PT_LOAD: u64 = 1;
const PT_DYNAMIC: u64 = 2;
pub(crate) const PT_NOTE: u64 = 4;
const DYNAMIC_ENTRY: usize = 16;
const DT_NEEDED: u64 = 1;
const DT_STRTAB: u64 = 5;
/// A longer list of libraries and tables is not read. QEMU's has some 1,300 bytes.
const MAX_DYNAMIC_BYTES: u64 = 64 * 1024;
/// A longer name is truncated.
const MAX_NAME_BYTES: usize = 256;

/// The header of an ELF file. Of 32-bit files and those of the other byte order, only the first four fields are meaningful.
pub(crate) struct Header {
    pub is_64_bit: bool,
    pub is_little_endian: bool,
    /// Executable, shared library, core dump and so on.
    pub kind: u64,
    pub machine: u64,
    pub flags: u64,
    first_segment: u64,
    segment_size: u64,
    pub segment_count: u64,
}

impl Header {
    /// Parses the header of a file that begins with `head`. `None` if it is no ELF file.
    pub(crate) fn parse(head: &[u8]) -> Option<Self> {
        let is_elf = head.starts_with(b"\x7fELF") && [1, 2].contains(head.get(4)?) && [1, 2].contains(head.get(5)?);
        let at = |at, length| number(head, at, length).filter(|_| is_elf);
        Some(Self {
            is_64_bit: at(4, 1)? == 2,
            is_little_endian: at(5, 1)? == 1,
            kind: at(16, 2)?,
            machine: at(18, 2)?,
            flags: at(48, 4)?,
            first_segment: at(32, 8)?,
            segment_size: at(54, 2)?,
            segment_count: at(56, 2)?,
        })
    }

    /// Reads the headers of the segments of a 64-bit little-endian file. `None` if the file does not contain them.
    pub(crate) fn segments(&self, file: &File) -> Option<Vec<Segment>> {
        if self.segment_count > 0 && self.segment_size != PROGRAM_HEADER as u64 {
            return None;
        }
        let headers = read(file, self.first_segment, usize::try_from(self.segment_count).ok()? * PROGRAM_HEADER)?;
        headers.chunks_exact(PROGRAM_HEADER).map(Segment::parse).collect()
    }
}

/// The file names of the shared libraries that a program is linked with. `None` if the file does not name them: a script, a program
/// without shared libraries, a file that cannot be read, or one for a CPU with 32 bits or another byte order.
pub(crate) fn needed_libraries(program: &Path) -> Option<Vec<String>> {
    let file = File::open(program).ok()?;
    let header = Header::parse(&read(&file, 0, HEADER)?).filter(|it| it.is_64_bit && it.is_little_endian)?;
    let segments = header.segments(&file)?;
    let dynamic = segments.iter().find(|segment| segment.kind == PT_DYNAMIC)?;
    let dynamic = read(&file, dynamic.offset, usize::try_from(dynamic.size.min(MAX_DYNAMIC_BYTES)).ok()?)?;
    let entries: Vec<_> = dynamic
        .chunks_exact(DYNAMIC_ENTRY)
        .filter_map(|entry| Some((number(entry, 0, 8)?, number(entry, 8, 8)?)))
        .collect();
    let strings = entries.iter().find(|(tag, _)| *tag == DT_STRTAB)?.1;
    // The table's address is an address in memory.
    let strings = segments.iter().find_map(|segment| segment.offset_of(strings))?;
    let needed = entries.iter().filter(|(tag, _)| *tag == DT_NEEDED);
    needed.map(|(_, at)| read_name(&file, strings.checked_add(*at)?)).collect()
}

/// A part of the file that is loaded into memory, or described by a program header.
pub(crate) struct Segment {
    pub kind: u64,
    pub offset: u64,
    address: u64,
    /// The address at which a kernel is loaded.
    pub physical: u64,
    /// The length in the file.
    pub size: u64,
    pub memory_size: u64,
    pub alignment: u64,
}

impl Segment {
    fn parse(header: &[u8]) -> Option<Self> {
        Some(Self {
            kind: number(header, 0, 4)?,
            offset: number(header, 8, 8)?,
            address: number(header, 16, 8)?,
            physical: number(header, 24, 8)?,
            size: number(header, 32, 8)?,
            memory_size: number(header, 40, 8)?,
            alignment: number(header, 48, 8)?,
        })
    }

    /// The offset in the file of an address that this segment loads.
    fn offset_of(&self, address: u64) -> Option<u64> {
        let within = address.checked_sub(self.address).filter(|within| self.kind == PT_LOAD && *within < self.size)?;
        self.offset.checked_add(within)
    }
}

fn read(file: &File, at: u64, length: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, at).ok().map(|()| bytes)
}

/// The text up to a NUL.
fn read_name(file: &File, at: u64) -> Option<String> {
    let mut name = [0; MAX_NAME_BYTES];
    let length = file.read_at(&mut name, at).ok()?;
    Some(String::from_utf8_lossy(name[..length].split(|&byte| byte == 0).next()?).into_owned())
}

fn number(bytes: &[u8], at: usize, length: usize) -> Option<u64> {
    bytes.get(at..at + length).map(|bytes| bytes.iter().rev().fold(0, |number, &byte| (number << 8) | u64::from(byte)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// A program that is linked with `libc.so.6` and `libz.so.1`.
    fn program() -> Vec<u8> {
        let mut file = b"\x7fELF\x02\x01".to_vec();
        file.resize(1024, 0);
        let mut put = |at: usize, length: usize, value: u64| {
            file[at..at + length].copy_from_slice(&value.to_le_bytes()[..length])
        };
        put(32, 8, 64);
        put(54, 2, 56);
        put(56, 2, 2);
        // Loads everything to 0x1000.
        [(64, 4, 1), (72, 8, 0), (80, 8, 0x1000), (96, 8, 1024)]
            .into_iter()
            .for_each(|(at, n, value)| put(at, n, value));
        [(120, 4, 2), (128, 8, 256), (152, 8, 64)].into_iter().for_each(|(at, n, value)| put(at, n, value));
        for (index, (tag, value)) in [(1, 1), (1, 11), (5, 0x1000 + 512), (0, 0)].into_iter().enumerate() {
            put(256 + 16 * index, 8, tag);
            put(264 + 16 * index, 8, value);
        }
        file[512..532].copy_from_slice(b"\0libc.so.6\0libz.so.1");
        file
    }

    fn needed(content: &[u8]) -> Option<Vec<String>> {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("program"), content).unwrap();
        needed_libraries(&dir.path().join("program"))
    }

    #[test]
    fn libraries_of_a_program_are_found() {
        assert_eq!(needed(&program()).unwrap(), ["libc.so.6", "libz.so.1"]);
    }

    #[test]
    fn other_files_have_no_list_of_libraries() {
        assert_eq!(needed(b"#!/bin/sh\nexec qemu-system-x86_64 \"$@\"\n"), None);
        assert_eq!(needed(b""), None);
        assert_eq!(needed_libraries(Path::new("/no/such")), None);
        let mut without_libraries = program();
        without_libraries[120] = 4; // another kind of program header
        assert_eq!(needed(&without_libraries), None);
    }

    /// Each byte is damaged in turn, and the file is cut at each length.
    #[test]
    fn damaged_program_does_not_panic() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("program");
        for at in 0..532 {
            for value in [0, 0x7f, 0xff] {
                let mut damaged = program();
                damaged[at] = value;
                fs::write(&path, &damaged).unwrap();
                needed_libraries(&path);
            }
            fs::write(&path, &program()[..at]).unwrap();
            let libraries = needed_libraries(&path).unwrap_or_default();
            assert!(libraries.iter().all(|name| "libc.so.6libz.so.1".contains(name.as_str())), "{at}: {libraries:?}");
        }
    }
}
