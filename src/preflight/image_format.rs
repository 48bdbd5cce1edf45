//! What an image file says about itself, and what has to be done to it.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use crate::config::disk::bytes;
use crate::config::disk::{Disk, Format, Qcow};
use crate::error::{Error, Result};

pub(crate) const MIB: u64 = 1024 * 1024;

/// The Go package of 2017 makes images this much too long for each MiB: they have the size they were asked for.
const GO_EXCESS: u64 = 100;

/// What an image file says about itself.
#[derive(Debug, PartialEq)]
pub(crate) struct Content {
    pub is_qcow2: bool,
    /// A qcow2 image of which more is in other files.
    pub rests_on_others: bool,
    /// The size of the disk in it, in bytes.
    pub length: u64,
}

impl Content {
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        let metadata = path.metadata()?;
        let mut header = Vec::new();
        // To open a pipe, for one, would block.
        if metadata.is_file() {
            File::open(path)?.take(80).read_to_end(&mut header)?;
        }
        Ok(Self::parse(&header, metadata.len()))
    }

    /// The header of qcow2: magic, version, offset of the backing file's name, …, bits of a cluster at 20, size at 24, and from version 3 on
    /// incompatible features at 72, bit 2 of which is an external data file.
    fn parse(header: &[u8], length: u64) -> Self {
        let u64_at =
            |at: usize| header.get(at..at + 8).map_or(0, |bytes| bytes.iter().fold(0, |n, &b| (n << 8) | u64::from(b)));
        let version = u64_at(0) & 0xffff_ffff;
        let cluster_bits = u64_at(16) & 0xffff_ffff;
        // Of clusters of any other size it cannot be.
        if u64_at(0) >> 32 != 0x5146_49fb || version < 2 || header.len() < 72 || !(9..=21).contains(&cluster_bits) {
            return Self { is_qcow2: false, rests_on_others: false, length };
        }
        let rests_on_others = u64_at(8) != 0 || (version >= 3 && u64_at(72) & 4 != 0);
        Self { is_qcow2: true, rests_on_others, length: u64_at(24) }
    }
}

/// What has to be done to a disk's image before the machine starts.
#[derive(Debug, PartialEq)]
pub(crate) enum Work {
    Nothing,
    Make { mebibytes: u64 },
    Grow { mebibytes: u64 },
}

impl Work {
    /// Of a disk whose image is, or should be, at `path`.
    pub(crate) fn on(disk: &Disk, path: &Path) -> Result<Self> {
        let Some(mebibytes) = disk.size else { return Ok(Self::Nothing) };
        match growth(path, mebibytes) {
            Err(Error::NotFound { .. }) => Ok(Self::Make { mebibytes }),
            Ok(true) => Ok(Self::Grow { mebibytes }),
            grows => grows.map(|_| Self::Nothing),
        }
    }
}

/// Whether an image has less than `mebibytes`. To have more is an error.
pub(crate) fn growth(path: &Path, mebibytes: u64) -> Result<bool> {
    let wanted = bytes(mebibytes).ok_or_else(|| Error::InvalidDiskSize { path: path.to_owned(), value: mebibytes })?;
    let length = match Content::of(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Error::NotFound { field: "disks", path: path.to_owned() });
        }
        content => content.map_err(Error::io("read", path))?.length,
    };
    // A block device has the size it has.
    if !path.is_file() {
        return Ok(false);
    }
    if length > wanted.saturating_add(mebibytes.saturating_mul(GO_EXCESS)) {
        return Err(Error::DiskShrinks { path: path.to_owned(), from: length.div_ceil(MIB), to: mebibytes });
    }
    Ok(length < wanted)
}

/// What is in the image at `path`: what was said, or else its content, or if there is none its name.
pub(crate) fn found_format(disk: &Disk, path: &Path) -> Result<Format> {
    // What is wrong with a file that cannot be read, the checks say.
    let Ok(content) = Content::of(path) else { return Ok(disk.format_by_name()) };
    match &disk.format {
        Some(Format::Qcow2(_)) if !content.is_qcow2 => Err(Error::NotAQcow2 { path: path.to_owned() }),
        Some(said) => {
            if content.is_qcow2 && *said == Format::Raw {
                log::warn!(target: "hyperkit", "{} looks like qcow2 and is attached as raw", path.display());
            }
            Ok(said.clone())
        }
        None if content.rests_on_others => Err(Error::DiskRestsOnOthers { path: path.to_owned() }),
        None if content.is_qcow2 => Ok(Format::Qcow2(Qcow::default())),
        None => Ok(Format::Raw),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_beginning_of_a_file_is_something() {
        let mut header = [0; 80];
        header[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
        header[23] = 16;
        header[31] = 1;
        assert_eq!(Content::parse(&header, 9), Content { is_qcow2: true, rests_on_others: false, length: 1 });
        header[79] = 4;
        assert!(Content::parse(&header, 9).rests_on_others);
        header[7] = 2;
        assert!(!Content::parse(&header, 9).rests_on_others, "version 2 has no features");
        header[7] = 3;
        header[79] = 0;
        header[15] = 1;
        assert!(Content::parse(&header, 9).rests_on_others);
        for end in 0..72 {
            let raw = Content { is_qcow2: false, rests_on_others: false, length: 9 };
            assert_eq!(Content::parse(&header[..end], 9), raw);
        }
        header[23] = 22;
        assert!(!Content::parse(&header, 9).is_qcow2, "clusters of 4 MiB are too large");
        header[23] = 16;
        header[7] = 1;
        assert!(!Content::parse(&header, 9).is_qcow2, "version 1 is another format");
    }
}
