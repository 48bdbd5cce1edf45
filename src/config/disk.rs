//! A disk: an image, and how it is attached.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::error::{Error, Result};

/// A disk of the machine: an image file, and how the guest sees it.
///
/// ```
/// use hyperkit::{Disk, Qcow};
///
/// let existing = Disk::raw("root.img");
/// let made_if_missing = Disk::raw("data.img").size(4096);
/// let in_the_state_directory = Disk::in_state_dir(64);
/// let qcow2 = Disk::qcow2("cache.qcow2", Qcow::default()).size(8192).ahci();
/// let whatever_it_is = Disk::new("image").read_only();
/// assert_eq!(made_if_missing.size, Some(4096));
/// assert_eq!(in_the_state_directory.path, None);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Disk {
    /// The image. Unset, it is `disk.img` (`disk.qcow2`) in the state directory; `disk1.img` if it is the second disk,
    /// and so on.
    pub path: Option<PathBuf>,
    /// The size in MiB: a missing image is made with it, a smaller one grown to it, and a larger one refused.
    pub size: Option<u64>,
    /// What is in the image file. Unset, an image that is there is qcow2 if its content says so, and raw otherwise,
    /// whatever its name; one to be made is qcow2 if its name ends in `.qcow2` or `.qcow`. Other formats count as raw.
    pub format: Option<Format>,
    /// What the guest sees it as.
    pub driver: Driver,
    /// Whether the guest may not write.
    pub read_only: bool,
    /// Whether each write is on the host's disk before the guest hears of it.
    pub sync: bool,
    /// The size of its sectors; unset, 512 bytes, or what the engine thinks right.
    pub sector_size: Option<SectorSize>,
    /// Whether room that the guest gives up is given back to the host (discard). For a raw image hyperkit decides that
    /// by itself.
    pub trim: bool,
    /// Keys of `hyperkit.json` that this version does not know; they survive.
    pub(crate) unknown: serde_json::Map<String, serde_json::Value>,
}

/// What is in an image file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// The disk's bytes as they are.
    Raw,
    /// qcow2, with what hyperkit is told about handling it; needs a hyperkit built with it.
    Qcow2(Qcow),
}

/// How hyperkit handles a qcow2 image; QEMU has no use for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Qcow {
    /// What a flush by the guest does.
    pub on_flush: OnFlush,
    /// The image is compacted after this many sectors were given up; 0 is never.
    pub compact_after: u64,
    /// How many erased sectors are kept for later use.
    pub keep_erased: u64,
    /// Whether hyperkit checks its own invariants while it runs.
    pub runtime_asserts: bool,
    /// Where it serves statistics, for instance `tcp:9090`.
    pub stats: Option<String>,
    /// The program that makes and grows the image: a `qcow-tool` or a `qemu-img`. Unset, the first of `qemu-img` and
    /// `qcow-tool` on `PATH`.
    pub tool: Option<PathBuf>,
}

/// What a flush by the guest does to a [`Qcow`] image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OnFlush {
    /// What hyperkit thinks right.
    #[default]
    Default,
    /// Nothing.
    None,
    /// What was written is with the host's operating system.
    Os,
    /// What was written is on the host's disk.
    Drive,
}

/// What the guest sees a disk as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Driver {
    /// virtio-blk: `/dev/vda`.
    #[default]
    VirtioBlk,
    /// A SATA disk on an AHCI controller of its own: `/dev/sda`.
    Ahci,
}

/// The sizes of a disk's sectors in bytes: powers of two from 512 to 1073741824, and the logical not above the physical.
///
/// ```
/// let size = hyperkit::SectorSize { logical: 512, physical: 4096 };
/// assert_eq!(size.to_string(), "512/4096");
/// assert_eq!("512/4096".parse(), Ok(size));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SectorSize {
    /// The unit in which the guest addresses it.
    pub logical: u32,
    /// The unit in which it is best written.
    pub physical: u32,
}

impl SectorSize {
    pub(crate) fn is_valid(self) -> bool {
        // hyperkit reads them as signed numbers.
        let valid = |size: u32| size.is_power_of_two() && (512..=1 << 30).contains(&size);
        valid(self.logical) && valid(self.physical) && self.logical <= self.physical
    }
}

impl fmt::Display for SectorSize {
    /// As hyperkit spells it: `512`, or `512/4096`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.logical == self.physical {
            true => write!(f, "{}", self.logical),
            false => write!(f, "{}/{}", self.logical, self.physical),
        }
    }
}

impl FromStr for SectorSize {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (logical, physical) = text.split_once('/').unwrap_or((text, text));
        Ok(Self { logical: logical.parse()?, physical: physical.parse()? })
    }
}

impl OnFlush {
    const ALL: [Self; 4] = [Self::Default, Self::None, Self::Os, Self::Drive];

    /// As hyperkit and the Go package spell it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Default => "",
            Self::None => "none",
            Self::Os => "os",
            Self::Drive => "drive",
        }
    }

    pub(crate) fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.word() == word)
    }
}

impl Driver {
    /// As hyperkit and the Go package spell it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::VirtioBlk => "virtio-blk",
            Self::Ahci => "ahci-hd",
        }
    }

    pub(crate) fn from_word(word: &str) -> Option<Self> {
        [Self::VirtioBlk, Self::Ahci].into_iter().find(|known| known.word() == word)
    }
}

impl Disk {
    /// An image at `path`, whose content or else its name says whether it is raw or qcow2.
    ///
    /// Who lets a guest write to a raw image had better say that it is [`raw`](Self::raw): the guest could make it look
    /// like another. (An image that is found to be qcow2 and to rest on other files is refused.) Once the machine was
    /// started, its description says which it is.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: Some(path.into()), ..Self::default() }
    }

    /// A raw image at `path`, which has to be there already unless a [`size`](Self::size) is given.
    #[must_use]
    pub fn raw(path: impl Into<PathBuf>) -> Self {
        Self { format: Some(Format::Raw), ..Self::new(path) }
    }

    /// A qcow2 image at `path`, which has to be there already unless a [`size`](Self::size) is given.
    #[must_use]
    pub fn qcow2(path: impl Into<PathBuf>, qcow: Qcow) -> Self {
        Self { format: Some(Format::Qcow2(qcow)), ..Self::new(path) }
    }

    /// A raw image of `mebibytes` MiB in the state directory, made if missing.
    #[must_use]
    pub fn in_state_dir(mebibytes: u64) -> Self {
        Self { format: Some(Format::Raw), ..Self::default() }.size(mebibytes)
    }

    /// Has the image made with `mebibytes` MiB if it is missing, and grown to them if it has less.
    #[must_use]
    pub fn size(mut self, mebibytes: u64) -> Self {
        self.size = Some(mebibytes);
        self
    }

    /// Sets [`format`](Self#structfield.format), what is in the image file.
    #[must_use]
    pub fn format(mut self, format: Format) -> Self {
        self.format = Some(format);
        self
    }

    /// Attaches it as a SATA disk, not as virtio-blk.
    #[must_use]
    pub fn ahci(mut self) -> Self {
        self.driver = Driver::Ahci;
        self
    }

    /// Keeps the guest from writing.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// Has each write on the host's disk before the guest hears of it.
    #[must_use]
    pub fn sync(mut self) -> Self {
        self.sync = true;
        self
    }

    /// Sets [`sector_size`](Self#structfield.sector_size), in bytes.
    #[must_use]
    pub fn sector_size(mut self, logical: u32, physical: u32) -> Self {
        self.sector_size = Some(SectorSize { logical, physical });
        self
    }

    /// Gives room that the guest gives up back to the host.
    #[must_use]
    pub fn trim(mut self) -> Self {
        self.trim = true;
        self
    }

    /// The format as far as it can be told without looking at the image.
    pub(crate) fn format_by_name(&self) -> Format {
        let by_name = || match self.path.as_deref().and_then(Path::extension) {
            Some(extension) if extension == "qcow2" || extension == "qcow" => Format::Qcow2(Qcow::default()),
            _ => Format::Raw,
        };
        self.format.clone().unwrap_or_else(by_name)
    }

    /// Where the image of the `index`th disk is: at its path, or else in the state directory.
    pub(crate) fn place(&self, index: usize, state_dir: Option<&Path>) -> Result<PathBuf> {
        let extension = if matches!(self.format, Some(Format::Qcow2(_))) { "qcow2" } else { "img" };
        match (&self.path, self.size, state_dir) {
            (Some(path), ..) => Ok(path.clone()),
            (None, Some(_), Some(dir)) if index == 0 => Ok(dir.join(format!("disk.{extension}"))),
            (None, Some(_), Some(dir)) => Ok(dir.join(format!("disk{index}.{extension}"))),
            _ => Err(Error::DiskPlaceMissing),
        }
    }
}

/// `mebibytes` in bytes, if a file can be that long.
pub(crate) fn bytes(mebibytes: u64) -> Option<u64> {
    mebibytes.checked_mul(1024 * 1024).filter(|&bytes| bytes > 0 && i64::try_from(bytes).is_ok())
}
