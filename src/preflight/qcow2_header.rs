//! The header of qcow2 images.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::plan::limits::MAX_BACKING_FILE;
use crate::preflight::image_header::Content;

/// The longest header with extensions that is read: a cluster of the default size.
const MAX_HEADER_BYTES: usize = 64 * 1024;

/// The header of a qcow2 image that can be opened.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Qcow2 {
    /// The size of the disk, in bytes.
    pub length: u64,
    /// The backing file, as the image names it.
    pub backing_file: Option<String>,
    /// The format of the backing file, if the image names it.
    pub backing_format: Option<String>,
    /// The external data file, as the image names it.
    pub data_file: Option<String>,
    /// Whether the image is marked as corrupt. QEMU opens it only for reading.
    pub is_corrupt: bool,
}

impl Qcow2 {
    pub(crate) fn has_other_files(&self) -> bool {
        self.backing_file.is_some() || self.data_file.is_some()
    }
}

/// A big-endian number of `length` bytes; missing bytes are 0.
fn number(bytes: &[u8], at: usize, length: usize) -> u64 {
    (at..at + length).fold(0, |number, at| (number << 8) | u64::from(bytes.get(at).copied().unwrap_or_default()))
}

/// Reads a header of qcow or qcow2, which begins with `head`, and whose numbers are big-endian. The layout is from QEMU's
/// docs/interop/qcow2.txt, and what refused values are from block/qcow2.c (`qcow2_do_open`).
pub(super) fn qcow(file: &File, head: &[u8], file_length: u64) -> io::Result<Content> {
    const V2_BYTES: u64 = 72;
    const V3_BYTES: u64 = 104;
    const CORRUPT: u64 = 1 << 1;
    const EXTERNAL_DATA: u64 = 1 << 2;
    const COMPRESSION_TYPE: u64 = 1 << 3;
    const EXTENDED_L2: u64 = 1 << 4;
    /// Needs repair, and the four above.
    const KNOWN_FEATURES: u64 = 0b1_1111;
    /// An autoclear feature: the external data file is a raw image of the disk.
    const RAW_EXTERNAL_DATA: u64 = 1 << 1;

    let unusable = |reason| Ok(Content::UnusableQcow2(reason));
    let version = number(head, 4, 4);
    match version {
        _ if file_length < 8 => return unusable("truncated header"),
        1 => return Ok(Content::Foreign("qcow")),
        2 | 3 => {}
        _ => return unusable("unknown version"),
    }
    let min_header_bytes = if version == 2 { V2_BYTES } else { V3_BYTES };
    if file_length < min_header_bytes {
        return unusable("truncated header");
    }
    // Version 2 ends where the fields of version 3 begin.
    let (features, autoclear, refcount_order, header_bytes) = match version {
        2 => (0, 0, 4, V2_BYTES),
        _ => (number(head, 72, 8), number(head, 88, 8), number(head, 96, 4), number(head, 100, 4)),
    };
    let has = |feature| features & feature != 0;
    let cluster_bits = number(head, 20, 4);
    if !(if has(EXTENDED_L2) { 14 } else { 9 }..=21).contains(&cluster_bits) {
        return unusable("invalid cluster size");
    }
    let cluster_bytes = 1_u64 << cluster_bits;
    if header_bytes < min_header_bytes || header_bytes > cluster_bytes {
        return unusable("invalid header length");
    }
    if number(head, 32, 4) != 0 {
        return unusable("encrypted");
    }
    if has(!KNOWN_FEATURES) {
        return unusable("unknown incompatible feature");
    }
    // zlib and zstd. Only the latter has the feature.
    let compression = if header_bytes > V3_BYTES { number(head, 104, 1) } else { 0 };
    if compression > 1 || (compression == 1) != has(COMPRESSION_TYPE) {
        return unusable("invalid compression type");
    }
    if refcount_order > 6 {
        return unusable("invalid reference counts");
    }
    if autoclear & RAW_EXTERNAL_DATA != 0 && !has(EXTERNAL_DATA) {
        return unusable("raw external data without a data file");
    }
    let length = number(head, 24, 8);
    if let Err(reason) = check_tables(head, file_length, cluster_bits, has(EXTENDED_L2)) {
        return unusable(reason);
    }
    let (name_at, name_bytes) = (number(head, 8, 8), number(head, 16, 4));
    let mut backing_file = None;
    if name_at != 0 {
        let end = name_at.checked_add(name_bytes).filter(|&end| end <= file_length.min(cluster_bytes));
        if end.is_none() || name_bytes > MAX_BACKING_FILE as u64 {
            return unusable("invalid name of the backing file");
        }
        let mut name = vec![0; name_bytes as usize];
        file.read_exact_at(&mut name, name_at)?;
        backing_file = Some(String::from_utf8_lossy(&name).into_owned());
    }
    let end = if name_at == 0 { cluster_bytes } else { name_at };
    let mut header = vec![0; (end.min(file_length) as usize).min(MAX_HEADER_BYTES)];
    file.read_exact_at(&mut header, 0)?;
    let Some(Extensions { backing_format, data_file }) = Extensions::read(&header, header_bytes as usize, end) else {
        return unusable("invalid header extension");
    };
    if has(EXTERNAL_DATA) && data_file.is_none() {
        return unusable("external data without the name of a data file");
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Content::Qcow2(Qcow2 {
        length,
        backing_file,
        backing_format: backing_format.map(text),
        data_file: data_file.filter(|_| has(EXTERNAL_DATA)).map(text),
        is_corrupt: has(CORRUPT),
    }))
}

/// Refuses tables that do not fit the image: those of clusters (L1), of reference counts and of snapshots.
fn check_tables(head: &[u8], file_length: u64, cluster_bits: u64, has_extended_l2: bool) -> Result<(), &'static str> {
    const MIB: u64 = 1024 * 1024;
    const ENTRY_BYTES: u64 = 8;
    const SNAPSHOT_BYTES: u64 = 40;
    const MAX_SNAPSHOTS: u64 = 65536;

    let cluster_bytes = 1_u64 << cluster_bits;
    let is_valid = |at: u64, bytes: u64, max_bytes: u64| {
        bytes <= max_bytes && at % cluster_bytes == 0 && i64::try_from(at.saturating_add(bytes)).is_ok()
    };
    let (clusters, clusters_at) = (number(head, 36, 4), number(head, 40, 8));
    let (counts_at, counts_clusters) = (number(head, 48, 8), number(head, 56, 4));
    let (snapshots, snapshots_at) = (number(head, 60, 4), number(head, 64, 8));
    if counts_clusters == 0 || !is_valid(counts_at, counts_clusters * cluster_bytes, 8 * MIB) {
        return Err("invalid table of reference counts");
    }
    if !is_valid(snapshots_at, snapshots * SNAPSHOT_BYTES, MAX_SNAPSHOTS * SNAPSHOT_BYTES) {
        return Err("invalid table of snapshots");
    }
    // An entry stands for a cluster of entries of 8 or 16 bytes, each of which stands for a cluster of the disk.
    let entry_stands_for = 1_u64 << (2 * cluster_bits - if has_extended_l2 { 4 } else { 3 });
    if clusters < number(head, 24, 8).div_ceil(entry_stands_for)
        || !is_valid(clusters_at, clusters * ENTRY_BYTES, 32 * MIB)
    {
        return Err("invalid table of clusters");
    }
    // QEMU opens an image without these tables, and marks it as corrupt when the guest writes. Missing entries at the end are
    // zeros.
    match clusters_at > file_length || (counts_at != 0 && counts_at >= file_length) {
        true => Err("truncated"),
        false => Ok(()),
    }
}

/// The extensions of a header that say something about other files.
#[derive(Default)]
struct Extensions<'a> {
    backing_format: Option<&'a [u8]>,
    data_file: Option<&'a [u8]>,
}

impl<'a> Extensions<'a> {
    /// Reads extensions: type, length, content; padded to 8 bytes. A type of 0 is the last. `None` if one reaches beyond the
    /// header.
    fn read(header: &'a [u8], start: usize, end: u64) -> Option<Self> {
        const BACKING_FORMAT: u64 = 0xe279_2aca;
        const MAX_FORMAT_BYTES: usize = 15;
        const DATA_FILE: u64 = 0x4441_5441;

        let (mut extensions, mut at) = (Self::default(), start);
        while (at as u64) < end {
            let (kind, length) = (number(header, at, 4), number(header, at + 4, 4) as usize);
            at += 8;
            if kind == 0 {
                break;
            }
            if (at + length) as u64 > end {
                return None;
            }
            let content = header.get(at..at + length)?;
            match kind {
                BACKING_FORMAT if length > MAX_FORMAT_BYTES => return None,
                BACKING_FORMAT => extensions.backing_format = Some(content),
                DATA_FILE => extensions.data_file = Some(content),
                _ => {}
            }
            at += length.next_multiple_of(8);
        }
        Some(extensions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preflight::image_header::tests::parse;

    /// A header of version 3 with a disk of one byte.
    fn header() -> [u8; 112] {
        let mut header = [0; 112];
        header[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
        (header[23], header[31], header[99], header[103]) = (16, 1, 4, 104);
        // One entry of the table of clusters, and one cluster of reference counts.
        (header[39], header[59]) = (1, 1);
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
            (103, 0, "invalid header length"),
            (79, 0x08, "invalid compression type"),
            (79, 0x04, "external data without the name of a data file"),
            (95, 0x02, "raw external data without a data file"),
            (39, 0, "invalid table of clusters"),
            (36, 1, "invalid table of clusters"),
            (24, 1, "invalid table of clusters"),
            (47, 1, "invalid table of clusters"),
            (59, 0, "invalid table of reference counts"),
            (58, 1, "invalid table of reference counts"),
            (55, 1, "invalid table of reference counts"),
            (60, 1, "invalid table of snapshots"),
            (71, 1, "invalid table of snapshots"),
            (45, 1, "truncated"),
            (53, 1, "truncated"),
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
            backing_format: Some("raw".to_owned()),
            data_file: Some("data".to_owned()),
            is_corrupt: false,
        };
        assert_eq!(parse(&image), Content::Qcow2(expected));
        image.pop();
        assert_eq!(parse(&image), Content::UnusableQcow2("invalid name of the backing file"));
        let mut too_long = header();
        (too_long[107], too_long[108]) = (7, 1);
        assert_eq!(parse(&too_long), Content::UnusableQcow2("invalid header extension"));
    }
}
