//! The format of disk images, and what a start has to do to them.

use std::io;
use std::path::Path;

use crate::config::disk::{Disk, DiskFormat, QcowOptions, bytes};
use crate::error::ConfigError;
use crate::preflight::image_header::{Content, Image};
use crate::preflight::overlay::MAX_OVERLAY_BYTES;
use crate::preflight::qcow2_header::Qcow2;

type Result<T> = std::result::Result<T, ConfigError>;

const MIB: u64 = 1024 * 1024;
const SECTOR: u64 = 512;
/// The Go package of 2017 makes images this many bytes too long per MiB. They count as being of the requested size.
const GO_EXCESS_BYTES: u64 = 100;

/// What a start has to do to an image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum DiskAction {
    Nothing,
    Create {
        size_mib: u64,
    },
    Grow {
        size_mib: u64,
    },
    /// Create an overlay of the image, of this length in bytes.
    CreateOverlay {
        length: u64,
    },
}

impl DiskAction {
    /// For a disk whose image is, or should be, at `path`.
    pub(crate) fn plan(disk: &Disk, path: &Path) -> Result<Self> {
        if disk.overlay {
            return Ok(Self::CreateOverlay { length: overlay_length(disk, path)? });
        }
        let Some(size_mib) = disk.size_mib else { return Ok(Self::Nothing) };
        Ok(match needs_growth(path, disk.format.as_ref(), size_mib)? {
            None => Self::Create { size_mib },
            Some(true) => Self::Grow { size_mib },
            Some(false) => Self::Nothing,
        })
    }
}

/// The length of an overlay: that of the image, or the disk's size if that is more.
fn overlay_length(disk: &Disk, path: &Path) -> Result<u64> {
    let image = Image::read(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => ConfigError::NotFound { field: "disks", path: path.to_owned() },
        _ => ConfigError::inaccessible("disks", path, &error),
    })?;
    let own = match image.content {
        Content::Qcow2(header) if disk.format != Some(DiskFormat::Raw) => header.length,
        _ => image.file_length,
    };
    let wanted = disk.size_mib.map(|size_mib| {
        needs_growth(path, disk.format.as_ref(), size_mib)?; // refuses a size below that of the image
        Ok(bytes(size_mib).unwrap_or_default())
    });
    let length = own.max(wanted.transpose()?.unwrap_or_default());
    // In a qcow2 image, QEMU ignores a part of a sector at the end.
    let rounded = length.checked_next_multiple_of(SECTOR).filter(|&length| length <= MAX_OVERLAY_BYTES);
    rounded.ok_or_else(|| ConfigError::InvalidDiskSize { path: path.to_owned(), value: length / MIB })
}

/// Whether an image is smaller than `size_mib`; `None` if it does not exist. A larger image is an error. An image that
/// [`found_format`] refuses must not be changed.
pub(crate) fn needs_growth(path: &Path, format: Option<&DiskFormat>, size_mib: u64) -> Result<Option<bool>> {
    let invalid = || ConfigError::InvalidDiskSize { path: path.to_owned(), value: size_mib };
    let wanted = bytes(size_mib).ok_or_else(invalid)?;
    let image = match Image::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        image => image.map_err(|error| ConfigError::inaccessible("disks", path, &error))?,
    };
    // The size of a block device is fixed.
    if !path.is_file() {
        return Ok(Some(false));
    }
    let length = match (format, image.content) {
        (Some(DiskFormat::Raw), _) | (None, Content::Raw) => image.file_length,
        (_, Content::Qcow2(Qcow2 { is_corrupt: true, .. })) => return Ok(Some(false)),
        (None, Content::Qcow2(header)) if header.has_other_files() => return Ok(Some(false)),
        (_, Content::Qcow2(header)) => header.length,
        _ => return Ok(Some(false)),
    };
    if length > wanted.saturating_add(size_mib.saturating_mul(GO_EXCESS_BYTES)) {
        return Err(ConfigError::DiskShrinks { path: path.to_owned(), from: length.div_ceil(MIB), to: size_mib });
    }
    Ok(Some(length < wanted))
}

/// The format of the image at `path`: the one that the disk sets, or else that of the content. If there is no file, the name
/// decides. Refuses an image that no engine can use in this format.
pub(crate) fn found_format(disk: &Disk, path: &Path) -> Result<DiskFormat> {
    // Other checks report a file that cannot be read.
    let Ok(image) = Image::read(path) else { return Ok(disk.format_by_name()) };
    if disk.format == Some(DiskFormat::Raw) {
        if image.is_qcow2() {
            log::warn!(target: "hyperkit", "{} looks like qcow2 and is attached as raw", path.display());
        }
        return Ok(DiskFormat::Raw);
    }
    let path = path.to_owned();
    match (&disk.format, image.content) {
        (_, Content::UnusableQcow2(reason)) => Err(ConfigError::InvalidQcow2 { path, reason }),
        (_, Content::Qcow2(Qcow2 { is_corrupt: true, .. })) if !disk.only_reads_image() => {
            Err(ConfigError::InvalidQcow2 { path, reason: "marked as corrupt" })
        }
        (Some(format), Content::Qcow2(_)) => Ok(format.clone()),
        (Some(_), _) => Err(ConfigError::NotQcow2 { path }),
        (None, Content::Qcow2(header)) if header.has_other_files() => Err(ConfigError::DiskHasBackingFile { path }),
        (None, Content::Qcow2(_)) => Ok(DiskFormat::Qcow2(QcowOptions::default())),
        (None, Content::Foreign(format)) => Err(ConfigError::ForeignImage { path, format }),
        (None, Content::Raw) => Ok(DiskFormat::Raw),
    }
}
