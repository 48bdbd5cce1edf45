//! A disk: an image, and how it is attached.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::error::ConfigError;

/// A disk of the VM: an image file, and how the guest sees it.
///
/// A Linux guest calls virtio-blk disks `/dev/vda`, `/dev/vdb` and so on, in the order of the description. It calls SATA disks
/// `/dev/sda` and so on, in an order of its own. A created disk is empty: the guest has to create a file system on it.
///
/// ```
/// use hyperkit::{Disk, HyperKit, QcowOptions};
///
/// let existing = Disk::raw("root.img");
/// let created_if_missing = Disk::raw("data.img").size_mib(4096);
/// let in_the_state_directory = Disk::in_state_dir(64);
/// let qcow2 = Disk::qcow2("cache.qcow2", QcowOptions::default()).size_mib(8192).ahci();
/// let probed = Disk::new("image").read_only();
/// let thrown_away_with_the_vm = Disk::raw("root.img").overlay();
/// assert_eq!(created_if_missing.size_mib, Some(4096));
/// assert_eq!(in_the_state_directory.path, None);
/// assert_eq!(HyperKit::new().disk("image").disks, [Disk::new("image")]);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Disk {
    /// The image file. If unset, it is in the state directory: `disk.img` for the first disk, `disk1.img` for the second, and
    /// so on, or `disk.qcow2`, `disk1.qcow2`, ….
    ///
    /// A file URL such as `file:///images/a%20b.qcow2?sync=os&buffered=1` stands for the file that it names, as in the Go package.
    /// Its option `sync` sets [`flush`](QcowOptions::flush). All other URLs are refused. Write `./` before a relative path that
    /// looks like a URL.
    pub path: Option<PathBuf>,
    /// The size in MiB. A start creates a missing image with this size, grows a smaller one, and refuses a larger one. If
    /// unset, the image must exist. With an [`overlay`](Self::overlay), it is the size of the overlay, and the image stays as it is.
    pub size_mib: Option<u64>,
    /// The format of the image file. If unset, it is probed: an existing image is qcow2 if it has a qcow2 header, and raw
    /// otherwise; a new one is qcow2 if its name ends in `.qcow2` or `.qcow`.
    pub format: Option<DiskFormat>,
    /// The device that the guest sees.
    pub interface: DiskInterface,
    /// Whether the disk is read-only for the guest.
    pub read_only: bool,
    /// Whether the guest's writes complete only when the host's disk has the data. Slower, and safe if the host loses power.
    pub sync: bool,
    /// The size of the disk's sectors. If unset, 512 bytes, or the engine's default.
    pub sector_size: Option<SectorSize>,
    /// Whether space that the guest discards (`fstrim`) is returned to the host. For raw images, hyperkit ignores this and
    /// decides by itself.
    pub trim: bool,
    /// Whether the guest writes to an overlay instead of the image, as [`overlay`](Self::overlay) describes.
    pub overlay: bool,
    /// Keys of `hyperkit.json` that this version does not know. They are written as they were read.
    pub(crate) unknown: serde_json::Map<String, serde_json::Value>,
}

/// The format of an image file; [`Disk`] has an example.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DiskFormat {
    /// The disk's bytes, without a header. The file is as large as the disk, but sparse: it uses space only for what was
    /// written.
    Raw,
    /// qcow2, QEMU's format, in which the file grows with its content. On hyperkit, this requires a build with qcow2 support.
    Qcow2(QcowOptions),
}

/// How hyperkit handles a qcow2 image. QEMU ignores all fields except [`tool`](Self#structfield.tool).
///
/// ```
/// use hyperkit::{Disk, FlushMode, QcowOptions};
///
/// let mut options = QcowOptions::default();
/// options.flush = FlushMode::Drive;
/// let disk = Disk::qcow2("/images/data.qcow2", options);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct QcowOptions {
    /// What a flush by the guest does.
    pub flush: FlushMode,
    /// The number of discarded sectors after which the image is compacted; 0 means never.
    pub compact_after: u64,
    /// The number of erased sectors that are kept for later use.
    pub keep_erased: u64,
    /// Whether hyperkit checks its invariants while it runs.
    pub runtime_asserts: bool,
    /// The address at which hyperkit serves statistics, for instance `tcp:9090`.
    pub stats: Option<String>,
    /// The program that creates and grows the image: a `qcow-tool` or a `qemu-img`. If unset, the first of `qemu-img`
    /// and `qcow-tool` on `PATH`.
    pub tool: Option<PathBuf>,
}

/// What a flush by the guest does to a qcow2 image on hyperkit; see [`QcowOptions`], which has an example.
///
/// A guest flushes (`fsync`) data that must not be lost. The default is therefore [`Os`](Self::Os), as in Docker Desktop. The Go
/// package has no default: it writes [`Unset`](Self::Unset), with which a flush does nothing. This crate keeps `Unset` in
/// descriptions and arguments that the Go package has written, and logs a warning when such a VM is started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FlushMode {
    /// A flush does nothing, because hyperkit gets no mode. Data that the guest has flushed is lost if the host crashes.
    Unset,
    /// A flush does nothing, as with `Unset`; hyperkit gets the mode `none`.
    None,
    /// The data is passed to the host's disk (`fsync`). It survives a crash of the host, but perhaps not a
    /// loss of power, because the disk has a cache.
    #[default]
    Os,
    /// The disk also empties its own cache (`F_FULLFSYNC`). This is slower, and the data survives a loss of power.
    Drive,
}

/// The kind of device that the guest sees; see [`Disk`], which has an example.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DiskInterface {
    /// virtio-blk: `/dev/vda`.
    #[default]
    VirtioBlk,
    /// A SATA disk, each on a separate AHCI controller: `/dev/sda`. For guests without a virtio driver.
    Ahci,
}

/// The sizes of a disk's sectors, in bytes. Both are powers of two from 512 to 1073741824, and the logical size is at most
/// the physical size.
///
/// ```
/// let size = hyperkit::SectorSize { logical: 512, physical: 4096 };
/// assert_eq!(size.to_string(), "512/4096");
/// assert_eq!("512/4096".parse(), Ok(size));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SectorSize {
    /// The unit in which the guest addresses the disk, in bytes.
    pub logical: u32,
    /// The unit in which writes are fastest, in bytes.
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
    /// Prints the form that hyperkit reads: `512`, or `512/4096`.
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

impl FlushMode {
    const ALL: [Self; 4] = [Self::Unset, Self::None, Self::Os, Self::Drive];

    /// The word of hyperkit and the Go package.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Unset => "",
            Self::None => "none",
            Self::Os => "os",
            Self::Drive => "drive",
        }
    }

    pub(crate) fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.word() == word)
    }
}

impl DiskInterface {
    /// The word of hyperkit and the Go package.
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
    /// Describes an image at `path`, whose format is probed.
    ///
    /// Use [`Disk::raw`](Self::raw) for images that the guest can write to. With probing, a guest could write a qcow2 header
    /// to a raw disk and so reach files of the host at the next start. (A start refuses a probed qcow2 image that refers to
    /// other files.) [`Vm::description`](crate::Vm::description) has the format that was found.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: Some(path.into()), ..Self::default() }
    }

    /// Describes a raw image at `path`, which must exist unless [`size_mib`](Self::size_mib) is set.
    #[must_use]
    pub fn raw(path: impl Into<PathBuf>) -> Self {
        Self { format: Some(DiskFormat::Raw), ..Self::new(path) }
    }

    /// Describes a qcow2 image at `path`, which must exist unless [`size_mib`](Self::size_mib) is set.
    #[must_use]
    pub fn qcow2(path: impl Into<PathBuf>, options: QcowOptions) -> Self {
        Self { format: Some(DiskFormat::Qcow2(options)), ..Self::new(path) }
    }

    /// Describes a raw image of `size_mib` MiB in the state directory. A start creates it if it is missing.
    #[must_use]
    pub fn in_state_dir(size_mib: u64) -> Self {
        Self { format: Some(DiskFormat::Raw), ..Self::default() }.size_mib(size_mib)
    }

    /// Sets [`size_mib`](Self#structfield.size_mib): the size in MiB. A start creates the image if it is missing.
    #[must_use]
    pub fn size_mib(mut self, size_mib: u64) -> Self {
        self.size_mib = Some(size_mib);
        self
    }

    /// Sets [`format`](Self#structfield.format): the format of the image file.
    #[must_use]
    pub fn format(mut self, format: DiskFormat) -> Self {
        self.format = Some(format);
        self
    }

    /// Sets [`interface`](Self#structfield.interface) to [`Ahci`](DiskInterface::Ahci): the guest sees a SATA disk.
    #[must_use]
    pub fn ahci(mut self) -> Self {
        self.interface = DiskInterface::Ahci;
        self
    }

    /// Sets [`read_only`](Self#structfield.read_only): the guest can only read the disk.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// Sets [`sync`](Self#structfield.sync): writes complete only when the host's disk has the data.
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

    /// Sets [`trim`](Self#structfield.trim): discarded space is returned to the host.
    #[must_use]
    pub fn trim(mut self) -> Self {
        self.trim = true;
        self
    }

    /// Sets [`overlay`](Self#structfield.overlay): the disk begins with the content of the image, and what the guest writes is
    /// thrown away with the VM. QEMU only.
    ///
    /// The guest's writes go to a file in the state directory, the overlay, which refers to the image as its *base*. Each start
    /// creates an empty overlay. It is deleted when the VM has ended, at the latest by the next start or by
    /// [`remove`](crate::HyperKit::remove): the guide's page [`state_directory`](crate::guide::state_directory#cleanup) says when.
    ///
    /// The image must exist, and need not be writable. The crate never creates, grows or writes it. If a size is set, only the overlay
    /// has this size. Any number of VMs can use one base at once. A start is refused while a VM or `qemu-img`
    /// writes to the base, and so is a start of a VM that would write to a base in use. Do not change the base with other
    /// programs, either: the guest would read a mixture of the old and the new content.
    ///
    /// If the format of the image is unset, it is probed, as for any disk. A probed base that has a backing file is refused.
    ///
    /// ```
    /// # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
    /// # let _here = here::alone();
    /// use hyperkit::{Disk, Disks, HyperKit, create_disk_image};
    ///
    /// create_disk_image("base.img", 64)?;
    /// let template = HyperKit::new().kernel("vmlinuz").initrd("initrd.img").disk(Disk::raw("base.img").overlay());
    /// let first = template.clone().state_dir("vm").start("console=ttyS0")?;
    /// let second = template.state_dir("vm2").start("console=ttyS0")?; // at the same time
    /// second.kill()?;
    /// second.remove(Disks::Delete)?; // keeps base.img
    /// # Ok::<(), hyperkit::Error>(())
    /// ```
    #[doc(alias = "snapshot")]
    #[doc(alias = "ephemeral")]
    #[must_use]
    pub fn overlay(mut self) -> Self {
        self.overlay = true;
        self
    }

    /// Whether the VM only reads the image at the path.
    pub(crate) fn only_reads_image(&self) -> bool {
        self.read_only || self.overlay
    }

    /// The format that is set, or else the one that the name of the image suggests. Does not look at the image.
    pub(crate) fn format_by_name(&self) -> DiskFormat {
        let by_name = || match self.path.as_deref().and_then(Path::extension) {
            Some(extension) if extension == "qcow2" || extension == "qcow" => DiskFormat::Qcow2(QcowOptions::default()),
            _ => DiskFormat::Raw,
        };
        self.format.clone().unwrap_or_else(by_name)
    }

    /// The path of the file that the engine attaches for the `index`th disk: the overlay or the image.
    pub(crate) fn attached_path(&self, index: usize, state_dir: Option<&Path>) -> Result<PathBuf, ConfigError> {
        match (self.overlay, state_dir) {
            (false, _) => self.image_path(index, state_dir),
            (true, Some(dir)) => Ok(overlay_path(dir, index)),
            (true, None) => Err(ConfigError::StateDirRequired { field: "disks" }),
        }
    }

    /// The path of the image of the `index`th disk: the one that is set, or the default one in the state directory.
    pub(crate) fn image_path(&self, index: usize, state_dir: Option<&Path>) -> Result<PathBuf, ConfigError> {
        let extension = if matches!(self.format, Some(DiskFormat::Qcow2(_))) { "qcow2" } else { "img" };
        match (&self.path, self.size_mib, state_dir) {
            (Some(path), ..) => Ok(path.clone()),
            (None, Some(_), Some(dir)) => Ok(default_path(dir, index, extension)),
            _ => Err(ConfigError::MissingDiskPath),
        }
    }
}

/// The path of the overlay of the `index`th disk. The name is not one that a user would give to an image: a start deletes the file.
pub(crate) fn overlay_path(state_dir: &Path, index: usize) -> PathBuf {
    state_dir.join(format!("{OVERLAY}{index}"))
}

/// Whether a file has a name that [`overlay_path`] gives.
pub(crate) fn is_overlay_name(name: &str) -> bool {
    let digits = name.strip_prefix(OVERLAY).filter(|digits| !digits.is_empty());
    digits.is_some_and(|digits| digits.bytes().all(|digit| digit.is_ascii_digit()))
}

impl<P: Into<PathBuf>> From<P> for Disk {
    /// The same as [`Disk::new`].
    fn from(path: P) -> Self {
        Self::new(path)
    }
}

const OVERLAY: &str = "hyperkit.overlay";

/// The default path of the image of the `index`th disk.
pub(crate) fn default_path(state_dir: &Path, index: usize, extension: &str) -> PathBuf {
    match index {
        0 => state_dir.join(format!("disk.{extension}")),
        _ => state_dir.join(format!("disk{index}.{extension}")),
    }
}

/// Whether an image has a name that [`default_path`] gives.
pub(super) fn is_default_name(name: &str) -> bool {
    let stem = name.strip_suffix(".img").or_else(|| name.strip_suffix(".qcow2"));
    stem.and_then(|stem| stem.strip_prefix("disk")).is_some_and(|n| n.bytes().all(|digit| digit.is_ascii_digit()))
}

/// `mib` in bytes, if a file can be that long.
pub(crate) fn bytes(mib: u64) -> Option<u64> {
    mib.checked_mul(1024 * 1024).filter(|&bytes| bytes > 0 && i64::try_from(bytes).is_ok())
}
