//! A disk image: how it is described, and how it is made.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, OFlags, RenameFlags, renameat_with};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::lock::open_locked;

/// A disk of the machine: an image file, attached as virtio-blk.
///
/// ```
/// use hyperkit::Disk;
///
/// let existing = Disk::raw("root.img");
/// let made_if_missing = Disk::raw("data.img").size(4096);
/// let in_the_state_directory = Disk::in_state_dir(64);
/// assert_eq!(made_if_missing.size, Some(4096));
/// assert_eq!(in_the_state_directory.path, None);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Disk {
    /// The image. Unset, it is `disk.img` in the state directory (`disk1.img` if it is the second disk, and so on).
    #[serde(with = "crate::state::json::path")]
    pub path: Option<PathBuf>,
    /// The size to make it with if it is missing, in MiB.
    #[serde(with = "crate::state::json::count")]
    pub size: Option<u64>,
    /// Keys of `hyperkit.json` that this version does not know; they survive.
    #[serde(flatten)]
    pub(crate) unknown: serde_json::Map<String, serde_json::Value>,
}

impl Disk {
    /// A raw image at `path`, which has to be there already unless a [`size`](Self::size) is given.
    #[must_use]
    pub fn raw(path: impl Into<PathBuf>) -> Self {
        Self { path: Some(path.into()), ..Self::default() }
    }

    /// A raw image of `mebibytes` MiB in the state directory, made if missing.
    #[must_use]
    pub fn in_state_dir(mebibytes: u64) -> Self {
        Self::default().size(mebibytes)
    }

    /// Has the image made with `mebibytes` MiB if it is missing; an existing one is left as it is.
    #[must_use]
    pub fn size(mut self, mebibytes: u64) -> Self {
        self.size = Some(mebibytes);
        self
    }

    /// Where the image of the `index`th disk is: at its path, or else in the state directory.
    pub(crate) fn place(&self, index: usize, state_dir: Option<&Path>) -> Result<PathBuf> {
        match (&self.path, self.size, state_dir) {
            (Some(path), ..) => Ok(path.clone()),
            (None, Some(_), Some(dir)) if index == 0 => Ok(dir.join("disk.img")),
            (None, Some(_), Some(dir)) => Ok(dir.join(format!("disk{index}.img"))),
            _ => Err(Error::DiskPlaceMissing),
        }
    }
}

/// `mebibytes` in bytes, if a file can be that long.
pub(crate) fn bytes(mebibytes: u64) -> Option<u64> {
    mebibytes.checked_mul(1024 * 1024).filter(|&bytes| bytes > 0 && i64::try_from(bytes).is_ok())
}

/// Makes a raw disk image of exactly `mebibytes` MiB at `path`, and the directories above it.
///
/// The file is sparse: it takes no room before something is written to it. It appears whole or not at all.
///
/// ```
/// let dir = tempfile::tempdir()?;
/// let path = dir.path().join("images/data.img");
/// hyperkit::create_disk_image(&path, 64)?;
/// assert_eq!(path.metadata()?.len(), 64 * 1024 * 1024);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`Error::DiskExists`] if there is something at `path`, which is not touched; [`Error::InvalidDiskSize`];
/// [`Error::Io`] if the system refuses.
pub fn create_disk_image(path: impl AsRef<Path>, mebibytes: u64) -> Result<()> {
    let path = path.as_ref();
    let length = bytes(mebibytes).ok_or_else(|| Error::InvalidDiskSize { path: path.to_owned(), value: mebibytes })?;
    if path.symlink_metadata().is_ok() {
        return Err(Error::DiskExists { path: path.to_owned() });
    }
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        let made = DirBuilder::new().recursive(true).mode(0o777).create(parent);
        made.map_err(Error::io("make the directory", parent))?;
    }
    // Made beside its place and moved there, so that a crash never leaves a disk of the wrong size. What a crash leaves
    // instead takes no room, and the next maker goes on with it.
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".new");
    let unfinished = path.with_file_name(name);
    let mut open = OpenOptions::new();
    open.write(true).create(true).truncate(false).mode(0o600).custom_flags(OFlags::NOFOLLOW.bits() as i32);
    let file = open_locked(&unfinished, || open.open(&unfinished)).map_err(Error::io("make the disk image", path))?;
    let made = file.set_len(0).and_then(|()| file.set_len(length)).map_err(Error::io("make the disk image", path));
    let made = made.and_then(|()| move_into_place(&unfinished, path));
    if made.is_err() {
        let _ = fs::remove_file(&unfinished);
    }
    made
}

/// Renames without replacing anything, also where the file system cannot do that in one step.
fn move_into_place(from: &Path, to: &Path) -> Result<()> {
    let moved = match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS | rustix::io::Errno::NOTSUP) => {
            fs::hard_link(from, to).and_then(|()| fs::remove_file(from))
        }
        moved => moved.map_err(io::Error::from),
    };
    moved.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => Error::DiskExists { path: to.to_owned() },
        _ => Error::io("make the disk image", to)(error),
    })
}
