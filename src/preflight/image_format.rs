//! The format of disk images, and what a start has to do to them.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use crate::config::disk::{Disk, DiskFormat, QcowOptions, bytes};
use crate::error::ConfigError;

type Result<T> = std::result::Result<T, ConfigError>;

const MIB: u64 = 1024 * 1024;
/// The Go package of 2017 makes images this many bytes too long per MiB. They count as being of the requested size.
const GO_EXCESS_BYTES: u64 = 100;

/// What an image file contains.
#[derive(Debug, PartialEq)]
pub(crate) struct ImageHeader {
    pub is_qcow2: bool,
    /// Whether a qcow2 image has a backing file or an external data file.
    pub has_external_data: bool,
    /// The size of the disk, in bytes.
    pub length: u64,
}

impl ImageHeader {
    pub(crate) fn read(path: &Path) -> io::Result<Self> {
        let metadata = path.metadata()?;
        let mut header = Vec::new();
        // Opening a FIFO would block.
        if metadata.is_file() {
            File::open(path)?.take(80).read_to_end(&mut header)?;
        }
        Ok(Self::parse(&header, metadata.len()))
    }

    /// The header of qcow2 is big-endian: magic, version, at 8 the offset of the backing file's name, at 20 the bits of a
    /// cluster, at 24 the size, and from version 3 on at 72 incompatible features, of which bit 2 is an external data
    /// file.
    fn parse(header: &[u8], length: u64) -> Self {
        let u64_at =
            |at: usize| header.get(at..at + 8).map_or(0, |bytes| bytes.iter().fold(0, |n, &b| (n << 8) | u64::from(b)));
        let version = u64_at(0) & 0xffff_ffff;
        let cluster_bits = u64_at(16) & 0xffff_ffff;
        // qcow2 has no other cluster sizes.
        if u64_at(0) >> 32 != 0x5146_49fb || version < 2 || header.len() < 72 || !(9..=21).contains(&cluster_bits) {
            return Self { is_qcow2: false, has_external_data: false, length };
        }
        let has_external_data = u64_at(8) != 0 || (version >= 3 && u64_at(72) & 4 != 0);
        Self { is_qcow2: true, has_external_data, length: u64_at(24) }
    }
}

/// What a start has to do to an image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum DiskAction {
    Nothing,
    Create { size_mib: u64 },
    Grow { size_mib: u64 },
}

impl DiskAction {
    /// For a disk whose image is, or should be, at `path`.
    pub(crate) fn plan(disk: &Disk, path: &Path) -> Result<Self> {
        let Some(size_mib) = disk.size_mib else { return Ok(Self::Nothing) };
        Ok(match needs_growth(path, size_mib)? {
            None => Self::Create { size_mib },
            Some(true) => Self::Grow { size_mib },
            Some(false) => Self::Nothing,
        })
    }
}

/// Whether an image is smaller than `size_mib`; `None` if it does not exist. A larger image is an error.
pub(crate) fn needs_growth(path: &Path, size_mib: u64) -> Result<Option<bool>> {
    let invalid = || ConfigError::InvalidDiskSize { path: path.to_owned(), value: size_mib };
    let wanted = bytes(size_mib).ok_or_else(invalid)?;
    let length = match ImageHeader::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        header => header.map_err(|error| ConfigError::inaccessible("disks", path, &error))?.length,
    };
    // The size of a block device is fixed.
    if !path.is_file() {
        return Ok(Some(false));
    }
    if length > wanted.saturating_add(size_mib.saturating_mul(GO_EXCESS_BYTES)) {
        return Err(ConfigError::DiskShrinks { path: path.to_owned(), from: length.div_ceil(MIB), to: size_mib });
    }
    Ok(Some(length < wanted))
}

/// The format of the image at `path`: the one that the disk sets, or else that of the content. If there is no file, the name
/// decides.
pub(crate) fn found_format(disk: &Disk, path: &Path) -> Result<DiskFormat> {
    // Other checks report a file that cannot be read.
    let Ok(header) = ImageHeader::read(path) else { return Ok(disk.format_by_name()) };
    match &disk.format {
        Some(DiskFormat::Qcow2(_)) if !header.is_qcow2 => Err(ConfigError::NotQcow2 { path: path.to_owned() }),
        Some(format) => {
            if header.is_qcow2 && *format == DiskFormat::Raw {
                log::warn!(target: "hyperkit", "{} looks like qcow2 and is attached as raw", path.display());
            }
            Ok(format.clone())
        }
        None if header.has_external_data => Err(ConfigError::DiskHasBackingFile { path: path.to_owned() }),
        None if header.is_qcow2 => Ok(DiskFormat::Qcow2(QcowOptions::default())),
        None => Ok(DiskFormat::Raw),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn truncated_qcow2_header_is_raw() {
        let mut header = [0; 80];
        header[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
        header[23] = 16;
        header[31] = 1;
        assert_eq!(ImageHeader::parse(&header, 9), ImageHeader { is_qcow2: true, has_external_data: false, length: 1 });
        header[79] = 4;
        assert!(ImageHeader::parse(&header, 9).has_external_data);
        header[7] = 2;
        assert!(!ImageHeader::parse(&header, 9).has_external_data, "version 2 has no features");
        header[7] = 3;
        header[79] = 0;
        header[15] = 1;
        assert!(ImageHeader::parse(&header, 9).has_external_data);
        for end in 0..72 {
            let raw = ImageHeader { is_qcow2: false, has_external_data: false, length: 9 };
            assert_eq!(ImageHeader::parse(&header[..end], 9), raw);
        }
        header[23] = 22;
        assert!(!ImageHeader::parse(&header, 9).is_qcow2, "clusters of 4 MiB are too large");
        header[23] = 16;
        header[7] = 1;
        assert!(!ImageHeader::parse(&header, 9).is_qcow2, "version 1 is another format");
    }
}
