//! What an image file contains, by its first and last bytes.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The bytes at the start of a file that are enough to recognize it.
const HEAD_BYTES: u64 = 4096;
/// The longest header with extensions that is read: a cluster of the default size.
const MAX_HEADER_BYTES: usize = 64 * 1024;

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

/// The header of a qcow2 image that can be opened.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Qcow2 {
    /// The size of the disk, in bytes.
    pub length: u64,
    /// The backing file, as the image names it.
    pub backing_file: Option<String>,
    /// Whether the image says that the backing file is raw.
    pub is_backing_raw: bool,
    /// The external data file, as the image names it.
    pub data_file: Option<String>,
    /// Whether the image is marked as corrupt. QEMU opens such an image only for reading.
    pub is_corrupt: bool,
}

impl Qcow2 {
    pub(crate) fn has_other_files(&self) -> bool {
        self.backing_file.is_some() || self.data_file.is_some()
    }
}

impl Image {
    pub(crate) fn read(path: &Path) -> io::Result<Self> {
        let metadata = path.metadata()?;
        let file_length = metadata.len();
        // Opening a FIFO would block.
        if !metadata.is_file() {
            return Ok(Self { content: Content::Raw, file_length });
        }
        let file = File::open(path)?;
        let mut head = Vec::new();
        (&file).take(HEAD_BYTES).read_to_end(&mut head)?;
        let content = match head.starts_with(b"QFI\xfb") {
            true => qcow(&file, &head, file_length)?,
            false => {
                let mut tail = [0; 512];
                let start = file_length.checked_sub(512);
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

/// A big-endian number of `length` bytes; missing bytes are 0.
fn number(bytes: &[u8], at: usize, length: usize) -> u64 {
    (at..at + length).fold(0, |number, at| (number << 8) | u64::from(bytes.get(at).copied().unwrap_or_default()))
}

/// Reads a header of qcow or qcow2, whose numbers are big-endian. The layout is from QEMU's docs/interop/qcow2.txt, and the
/// refused values are from block/qcow2.c (`qcow2_do_open`).
fn qcow(file: &File, head: &[u8], file_length: u64) -> io::Result<Content> {
    const V2_BYTES: u64 = 72;
    const V3_BYTES: u64 = 104;
    const CORRUPT: u64 = 1 << 1;
    const EXTERNAL_DATA: u64 = 1 << 2;
    /// Needs repair, corrupt, external data file, compression type, extended L2 entries.
    const KNOWN_FEATURES: u64 = 0b1_1111;
    const MAX_NAME_BYTES: u64 = 1023;
    const BACKING_FORMAT: u64 = 0xe279_2aca;
    const DATA_FILE: u64 = 0x4441_5441;

    let unusable = |reason| Ok(Content::UnusableQcow2(reason));
    let version = number(head, 4, 4);
    match version {
        _ if file_length < 8 => return unusable("truncated header"),
        1 => return Ok(Content::Foreign("qcow")),
        2 | 3 => {}
        _ => return unusable("unknown version"),
    }
    if file_length < if version == 2 { V2_BYTES } else { V3_BYTES } {
        return unusable("truncated header");
    }
    // Version 2 ends where the fields of version 3 begin.
    let (features, refcount_order, header_bytes) = match version {
        2 => (0, 4, V2_BYTES),
        // Some programs leave the header's length at 0.
        _ => (
            number(head, 72, 8),
            number(head, 96, 4),
            Some(number(head, 100, 4)).filter(|&n| n != 0).unwrap_or(V3_BYTES),
        ),
    };
    let cluster_bits = number(head, 20, 4);
    if !(9..=21).contains(&cluster_bits) {
        return unusable("invalid cluster size");
    }
    let cluster_bytes = 1_u64 << cluster_bits;
    if header_bytes < if version == 2 { V2_BYTES } else { V3_BYTES } || header_bytes > cluster_bytes {
        return unusable("invalid header length");
    }
    if number(head, 32, 4) != 0 {
        return unusable("encrypted");
    }
    if features & !KNOWN_FEATURES != 0 {
        return unusable("unknown incompatible feature");
    }
    if refcount_order > 6 {
        return unusable("invalid reference counts");
    }
    // The tables of clusters and of reference counts. QEMU opens an image without them, and marks it as corrupt when the guest
    // writes. Missing entries at the end are zeros.
    let (clusters_at, counts_at) = (number(head, 40, 8), number(head, 48, 8));
    if clusters_at > file_length || (counts_at != 0 && counts_at >= file_length) {
        return unusable("truncated");
    }
    let (name_at, name_bytes) = (number(head, 8, 8), number(head, 16, 4));
    let mut backing_file = None;
    if name_at != 0 {
        let end = name_at.checked_add(name_bytes).filter(|&end| end <= file_length.min(cluster_bytes));
        if end.is_none() || name_bytes > MAX_NAME_BYTES {
            return unusable("invalid name of the backing file");
        }
        let mut name = vec![0; name_bytes as usize];
        file.read_exact_at(&mut name, name_at)?;
        backing_file = Some(String::from_utf8_lossy(&name).into_owned());
    }
    // Extensions: type, length, content; padded to 8 bytes. A type of 0 is the last.
    let end = if name_at == 0 { cluster_bytes } else { name_at };
    let mut header = vec![0; (end.min(file_length) as usize).min(MAX_HEADER_BYTES)];
    file.read_exact_at(&mut header, 0)?;
    let extension = |wanted: u64| {
        let mut at = header_bytes as usize;
        loop {
            let (kind, length) = (number(&header, at, 4), number(&header, at + 4, 4) as usize);
            let content = header.get(at + 8..(at + 8).checked_add(length)?)?;
            if kind == 0 || kind == wanted {
                return (kind != 0).then_some(content);
            }
            at += 8 + length.next_multiple_of(8);
        }
    };
    let data_file = (features & EXTERNAL_DATA != 0).then(|| extension(DATA_FILE).unwrap_or_default());
    Ok(Content::Qcow2(Qcow2 {
        length: number(head, 24, 8),
        backing_file,
        is_backing_raw: extension(BACKING_FORMAT) == Some(b"raw"),
        data_file: data_file.map(|name| String::from_utf8_lossy(name).into_owned()),
        is_corrupt: features & CORRUPT != 0,
    }))
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

/// Whether a file that begins with `head` is the output of a program that compresses a single file.
pub(crate) fn is_compressed(head: &[u8]) -> bool {
    let compressed = ["gzip", "xz", "zstd", "lz4", "lzip", "lzop", "compress", "bzip2", "lzma"];
    foreign(head, &[0; 512]).is_some_and(|format| compressed.contains(&format))
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
mod tests {
    use super::*;

    fn parse(bytes: &[u8]) -> Content {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        io::Write::write_all(&mut file, bytes).unwrap();
        Image::read(file.path()).unwrap().content
    }

    /// A header of version 3 with a disk of one byte.
    fn header() -> [u8; 112] {
        let mut header = [0; 112];
        header[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
        (header[23], header[31], header[99], header[103]) = (16, 1, 4, 104);
        header
    }

    #[test]
    fn header_of_qcow2_is_read() {
        let one = |change: &dyn Fn(&mut Qcow2)| {
            let mut expected = Qcow2 { length: 1, ..Qcow2::default() };
            change(&mut expected);
            Content::Qcow2(expected)
        };
        assert_eq!(parse(&header()), one(&|_| {}));
        let with = |at: usize, value: u8| {
            let mut header = header();
            header[at] = value;
            header
        };
        assert_eq!(parse(&with(79, 4)), one(&|image| image.data_file = Some(String::new())));
        assert_eq!(parse(&with(79, 2)), one(&|image| image.is_corrupt = true));
        let mut version_2 = with(7, 2);
        version_2[79] = 4;
        assert_eq!(parse(&version_2), one(&|_| {}), "version 2 has no features");
        assert_eq!(parse(&with(7, 1)), Content::Foreign("qcow"));
        for (at, value, reason) in [
            (7, 4, "unknown version"),
            (7, 0, "unknown version"),
            (23, 22, "invalid cluster size"),
            (23, 8, "invalid cluster size"),
            (35, 1, "encrypted"),
            (79, 0x20, "unknown incompatible feature"),
            (72, 0x80, "unknown incompatible feature"),
            (99, 7, "invalid reference counts"),
            (103, 100, "invalid header length"),
            (8, 1, "invalid name of the backing file"),
        ] {
            assert_eq!(parse(&with(at, value)), Content::UnusableQcow2(reason), "{at}");
        }
    }

    #[test]
    fn truncated_qcow2_header_is_unusable() {
        for end in 4..104 {
            assert_eq!(parse(&header()[..end]), Content::UnusableQcow2("truncated header"), "{end}");
        }
        for end in 0..4 {
            assert_eq!(parse(&header()[..end]), Content::Raw);
        }
    }

    #[test]
    fn names_of_other_files_are_read() {
        let extension = |kind: u32, content: &[u8]| {
            let mut extension = [kind.to_be_bytes(), (content.len() as u32).to_be_bytes()].concat();
            extension.extend(content);
            extension.resize(extension.len().next_multiple_of(8), 0);
            extension
        };
        let mut start = header()[..104].to_vec();
        start[79] = 4;
        let extensions =
            [extension(7, b"x"), extension(0xe279_2aca, b"raw"), extension(0x4441_5441, b"data"), vec![0; 8]];
        let mut image = [start, extensions.concat()].concat();
        (image[15], image[19]) = (image.len() as u8, 4);
        image.extend(b"base");
        let expected = Qcow2 {
            length: 1,
            backing_file: Some("base".to_owned()),
            is_backing_raw: true,
            data_file: Some("data".to_owned()),
            is_corrupt: false,
        };
        assert_eq!(parse(&image), Content::Qcow2(expected));
        image.pop();
        assert_eq!(parse(&image), Content::UnusableQcow2("invalid name of the backing file"));
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
