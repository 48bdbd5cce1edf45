//! Creates overlays: empty qcow2 images that refer to another image, their base.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use crate::config::disk::DiskFormat;
use crate::error::{Error, Result};
use crate::sys::file::{check_file_size_limit, remove_file};

/// The default of `qemu-img`.
const CLUSTER_BITS: u32 = 16;
const CLUSTER_BYTES: u64 = 1 << CLUSTER_BITS;
/// The bytes of the disk to which one entry of the L1 table leads: the entry names an L2 table, which fills one cluster.
const BYTES_PER_L1_ENTRY: u64 = CLUSTER_BYTES * (CLUSTER_BYTES / 8);
/// The longest L1 table that QEMU opens, in bytes (`QCOW_MAX_L1_SIZE` in block/qcow2.h).
const MAX_L1_BYTES: u64 = 32 * 1024 * 1024;
/// The longest overlay, in bytes.
pub(crate) const MAX_OVERLAY_BYTES: u64 = MAX_L1_BYTES / 8 * BYTES_PER_L1_ENTRY;

/// The clusters of the file, in this order: the header, a table of reference counts, the counts themselves, and the L1 table.
const COUNTS_TABLE_AT: u64 = CLUSTER_BYTES;
const COUNTS_AT: u64 = 2 * CLUSTER_BYTES;
const L1_AT: u64 = 3 * CLUSTER_BYTES;

/// Creates an overlay of `length` bytes at `overlay`. It is an error if a file exists there, even a symlink.
///
/// The path of the base must be absolute, so that QEMU does not take a part of it for a protocol. The overlay's header contains the
/// format of the base, so that QEMU does not probe it: a guest may have written the header of another format to the base.
pub(crate) fn create(overlay: &Path, base: &Path, base_format: &DiskFormat, length: u64) -> Result<()> {
    let failed = |error| Error::io("create the overlay", overlay)(error);
    let l1_entries = length.div_ceil(BYTES_PER_L1_ENTRY).max(1);
    let l1_clusters = (l1_entries * 8).div_ceil(CLUSTER_BYTES);
    let file_length = L1_AT + l1_clusters * CLUSTER_BYTES;
    // 16 bits for each cluster. One cluster of counts is enough for the longest overlay.
    let counts = [0, 1].repeat((file_length / CLUSTER_BYTES) as usize);
    check_file_size_limit(file_length).map_err(failed)?;
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(overlay).map_err(failed)?;
    // The tables are sparse: zeros mean that the overlay has no cluster of its own.
    let written = file
        .set_len(file_length)
        .and_then(|()| file.write_all_at(&header(base, base_format, length, l1_entries)?, 0))
        .and_then(|()| file.write_all_at(&COUNTS_AT.to_be_bytes(), COUNTS_TABLE_AT))
        .and_then(|()| file.write_all_at(&counts, COUNTS_AT));
    written.map_err(|error| {
        let _ = remove_file(overlay);
        failed(error)
    })
}

/// The header of version 3 with the name and the format of the base. The layout is from QEMU's docs/interop/qcow2.txt.
fn header(base: &Path, base_format: &DiskFormat, length: u64, l1_entries: u64) -> io::Result<Vec<u8>> {
    const HEADER_BYTES: u32 = 104;
    const BACKING_FORMAT: u32 = 0xe279_2aca;
    let name = base.as_os_str().as_encoded_bytes();
    let format: &[u8] = if *base_format == DiskFormat::Raw { b"raw" } else { b"qcow2" };
    let number = |number: u64| u32::try_from(number).map_err(io::Error::other).map(u32::to_be_bytes);

    let mut extensions = [BACKING_FORMAT.to_be_bytes(), number(format.len() as u64)?].concat();
    extensions.extend(format);
    extensions.resize(8 + 8, 0); // content is padded to 8 bytes
    extensions.extend([0; 8]); // the last extension
    let name_at = u64::from(HEADER_BYTES) + extensions.len() as u64;

    let mut header = b"QFI\xfb\0\0\0\x03".to_vec();
    header.extend(name_at.to_be_bytes());
    header.extend(number(name.len() as u64)?);
    header.extend(CLUSTER_BITS.to_be_bytes());
    header.extend(length.to_be_bytes());
    header.extend([0; 4]); // no encryption
    header.extend(number(l1_entries)?);
    header.extend(L1_AT.to_be_bytes());
    header.extend(COUNTS_TABLE_AT.to_be_bytes());
    header.extend(1_u32.to_be_bytes()); // clusters of that table
    header.extend([0; 12]); // no snapshots
    header.extend([0; 24]); // no features
    header.extend(4_u32.to_be_bytes()); // counts of 2^4 bits
    header.extend(HEADER_BYTES.to_be_bytes());
    Ok([&header, &extensions, name].concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::disk::QcowOptions;
    use crate::preflight::image_header::{Content, Image};
    use crate::preflight::qcow2_header::Qcow2;

    #[test]
    fn overlay_has_base_format_and_length() {
        let dir = tempfile::tempdir().unwrap();
        for (index, (format, word, length)) in [
            (DiskFormat::Raw, "raw", 512),
            (DiskFormat::Qcow2(QcowOptions::default()), "qcow2", BYTES_PER_L1_ENTRY + 512),
            (DiskFormat::Raw, "raw", MAX_OVERLAY_BYTES),
        ]
        .into_iter()
        .enumerate()
        {
            let overlay = dir.path().join(index.to_string());
            create(&overlay, Path::new("/a b:%,json:{}"), &format, length).unwrap();
            let expected = Qcow2 {
                length,
                backing_file: Some("/a b:%,json:{}".to_owned()),
                backing_format: Some(word.to_owned()),
                ..Qcow2::default()
            };
            assert_eq!(Image::read(&overlay).unwrap().content, Content::Qcow2(expected));
        }
    }

    #[test]
    fn existing_file_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        std::fs::write(&file, "content").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        for overlay in [&file, &link] {
            assert!(create(overlay, Path::new("/base"), &DiskFormat::Raw, 512).is_err());
        }
        assert_eq!(std::fs::read(&file).unwrap(), b"content");
    }
}
