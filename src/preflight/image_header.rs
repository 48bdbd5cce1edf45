//! What an image file contains, by its first and last bytes.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;

use crate::preflight::qcow2_header::{Qcow2, qcow};

/// The bytes at the start of a file that are enough to recognize it.
const HEAD_BYTES: u64 = 4096;

/// An image file: its content and its length in bytes.
#[derive(Debug, PartialEq)]
pub(crate) struct Image {
    pub content: Content,
    pub file_length: u64,
}

#[derive(Debug, PartialEq)]
pub(crate) enum Content {
    /// The bytes of a disk, or anything that is not recognized.
    Raw,
    Qcow2(Qcow2),
    /// Has the magic of qcow2, but no engine can open it; with the reason.
    UnusableQcow2(&'static str),
    /// A format that no engine reads, with its name in `qemu-img` or the name of its program.
    Foreign(&'static str),
}

impl Image {
    pub(crate) fn read(path: &Path) -> io::Result<Self> {
        let metadata = path.metadata()?;
        // Opening a FIFO would block.
        if !metadata.is_file() && !metadata.file_type().is_block_device() {
            return Ok(Self { content: Content::Raw, file_length: metadata.len() });
        }
        let mut file = File::open(path)?;
        let file_length = match metadata.is_file() {
            true => metadata.len(),
            // Other systems do not tell the length of a device in this way.
            false => Some(file.seek(SeekFrom::End(0))?).filter(|&length| length > 0).unwrap_or(u64::MAX),
        };
        file.rewind()?;
        let mut head = Vec::new();
        (&file).take(HEAD_BYTES).read_to_end(&mut head)?;
        let content = match head.starts_with(b"QFI\xfb") {
            true => qcow(&file, &head, file_length)?,
            false => {
                let mut tail = [0; 512];
                let start = file_length.checked_sub(512).filter(|_| file_length < u64::MAX);
                if let Some(start) = start {
                    file.read_exact_at(&mut tail, start)?;
                }
                foreign(&head, &tail).map_or(Content::Raw, Content::Foreign)
            }
        };
        Ok(Self { content, file_length })
    }

    pub(crate) fn is_qcow2(&self) -> bool {
        matches!(self.content, Content::Qcow2(_) | Content::UnusableQcow2(_))
    }
}

/// The format of a file that begins with `head` and ends with the 512 bytes of `tail`, if it is known and is not the content of
/// a disk. Partition tables, ISO images, file systems and LUKS volumes are content.
fn foreign(head: &[u8], tail: &[u8; 512]) -> Option<&'static str> {
    /// Offset, magic, name. From the probe functions in QEMU's block/, and from the manual pages of the programs.
    const MAGICS: &[(usize, &[u8], &str)] = &[
        (0, b"KDMV", "vmdk"),
        (0, b"COWD", "vmdk"),
        (64, b"\x7f\x10\xda\xbe", "vdi"),
        (0, b"vhdxfile", "vhdx"),
        (0, b"conectix", "vpc"),
        (0, b"QED\0", "qed"),
        (0, b"WithoutFreeSpace", "parallels"),
        (0, b"WithouFreSpacExt", "parallels"),
        (0, b"Bochs Virtual HD Image", "bochs"),
        (0, b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop", "cloop"),
        (0, b"sprs", "sparseimage"),
        (0, b"\x3a\xff\x26\xed", "Android sparse image"),
        (0, b"\x1f\x8b", "gzip"),
        (0, b"\xfd7zXZ\0", "xz"),
        (0, b"\x28\xb5\x2f\xfd", "zstd"),
        (0, b"\x04\x22\x4d\x18", "lz4"),
        (0, b"\x02\x21\x4c\x18", "lz4"),
        (0, b"LZIP", "lzip"),
        (0, b"\x89LZO\0\r\n\x1a\n", "lzop"),
        (0, b"\x1f\x9d", "compress"),
        (0, b"7z\xbc\xaf\x27\x1c", "7z"),
        (0, b"PK\x03\x04", "zip"),
        (0, b"Rar!\x1a\x07", "rar"),
    ];
    let has = |at: usize, magic: &[u8]| head.get(at..).is_some_and(|rest| rest.starts_with(magic));
    if let Some((.., name)) = MAGICS.iter().find(|(at, magic, _)| has(*at, magic)) {
        return Some(name);
    }
    // `BZh`, the size of blocks, and the magic of the first block or of the end.
    if has(0, b"BZh") && (has(4, b"1AY&SY") || has(4, b"\x17\x72\x45\x38\x50\x90")) {
        return Some("bzip2");
    }
    // Properties, a dictionary of a power of two, and an unknown length, as `xz --format=lzma` writes them.
    if has(0, b"\x5d\0\0") && has(5, &[0xff; 8]) {
        return Some("lzma");
    }
    if has(257, b"ustar") {
        let first_name = head[..100].split(|&byte| byte == 0).next().unwrap_or_default();
        return Some(if first_name.to_ascii_lowercase().ends_with(b".ovf") { "ova" } else { "tar" });
    }
    if is_vmdk_descriptor(head) {
        return Some("vmdk");
    }
    // A VHD of fixed size is the disk's content with a footer. Old versions of Virtual PC write 511 bytes.
    if tail.starts_with(b"conectix") || tail[1..].starts_with(b"conectix") {
        return Some("vpc");
    }
    tail.starts_with(b"koly\0\0\0\x04").then_some("dmg")
}

/// The format of a file that begins with `head`, if it is the output of a program that compresses a single file.
pub(crate) fn compression(head: &[u8]) -> Option<&'static str> {
    let compressed = ["gzip", "xz", "zstd", "lz4", "lzip", "lzop", "compress", "bzip2", "lzma"];
    foreign(head, &[0; 512]).filter(|format| compressed.contains(format))
}

/// The command that unpacks a file of this format from its standard input.
pub(crate) fn unpacking(format: &str) -> String {
    match format {
        "compress" => "gzip -dc".to_owned(),
        "lzma" => "xz --format=lzma -dc".to_owned(),
        format => format!("{format} -dc"),
    }
}

/// Whether this is the text file that names the parts of a VMDK image: comments and blank lines, and then its version.
fn is_vmdk_descriptor(head: &[u8]) -> bool {
    let is_comment = |line: &&[u8]| line.first().is_none_or(|&first| first == b'#');
    let mut lines = head.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii);
    head.to_ascii_lowercase().starts_with(b"# disk descriptorfile")
        || (head.starts_with(b"#")
            && lines.find(|line| !is_comment(line)).is_some_and(|line| line.starts_with(b"version=")))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The content of a file with these bytes.
    pub fn parse(bytes: &[u8]) -> Content {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        io::Write::write_all(&mut file, bytes).unwrap();
        Image::read(file.path()).unwrap().content
    }

    #[test]
    fn contents_of_disks_are_raw() {
        let sector = |at: usize, magic: &[u8]| {
            let mut image = vec![0; 64 * 1024];
            image[at..at + magic.len()].copy_from_slice(magic);
            image
        };
        for raw in [
            sector(510, b"\x55\xaa"),
            sector(512, b"EFI PART"),
            sector(0x8001, b"CD001"),
            sector(1080, b"\x53\xef"),
            sector(0, b"LUKS\xba\xbe\0\x02"),
            sector(0, b"hsqs"),
            sector(0, b"#!/bin/sh\n"),
            sector(0, b"BZh"),
            sector(100, b"KDMV"),
            vec![0; 600],
            Vec::new(),
        ] {
            assert_eq!(parse(&raw), Content::Raw);
        }
    }
}
