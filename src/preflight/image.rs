//! Disk images as files: what is in them, whether somebody uses them, how they are made and grown.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{CWD, OFlags, RenameFlags, renameat_with};

use crate::config::disk::bytes;
use crate::config::disk::{Disk, Format};
use crate::error::{Error, Result};
use crate::preflight::image_format::{MIB, found_format, growth};
use crate::preflight::image_lock::refuse_if_in_use;
use crate::sys::find_program::first_program;
use crate::sys::lock::open_locked;

/// The step in which sparse files grow on APFS, which refuses to let a file grow by much more than there is room at once.
const APFS_STEP: u64 = 1024 * MIB;

/// Makes a raw disk image of exactly `mebibytes` MiB at `path`, and the directories above it.
///
/// The file is sparse: it takes no room before something is written to it. It appears whole or not at all.
/// [`Disk::create`] makes qcow2 images, too.
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
    create(path.as_ref(), &Format::Raw, mebibytes)
}

impl Disk {
    /// Makes the image at [`path`](Self#structfield.path) with [`size`](Self#structfield.size), and the directories above
    /// it: raw and sparse, or qcow2 with `qemu-img` or `qcow-tool`, whichever is there. It appears whole or not at all.
    ///
    /// The start of a machine does so for a disk that is missing.
    ///
    /// ```
    /// use hyperkit::Disk;
    ///
    /// let dir = tempfile::tempdir()?;
    /// let disk = Disk::raw(dir.path().join("data.img")).size(64);
    /// disk.create()?;
    /// disk.size(128).grow()?;
    /// assert_eq!(dir.path().join("data.img").metadata()?.len(), 128 * 1024 * 1024);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::DiskPlaceMissing`] without a path and [`Error::DiskSizeMissing`] without a size;
    /// [`Error::DiskExists`] if there is something already, which is not touched; [`Error::InvalidDiskSize`];
    /// [`Error::ToolNotFound`] and [`Error::ToolFailed`] for qcow2; [`Error::Io`].
    pub fn create(&self) -> Result<()> {
        let (path, mebibytes) = self.path_and_size()?;
        create(path, &self.format_by_name(), mebibytes)
    }

    /// Grows the image to [`size`](Self#structfield.size). One that has this size already is left alone.
    ///
    /// The start of a machine does so for a disk that is smaller than described.
    ///
    /// # Errors
    /// [`Error::DiskShrinks`] if the image is larger, and nothing is done; [`Error::DiskInUse`] if a machine uses it;
    /// otherwise those of [`create`](Self::create).
    pub fn grow(&self) -> Result<()> {
        let (path, mebibytes) = self.path_and_size()?;
        if !growth(path, mebibytes)? {
            return Ok(());
        }
        let format = found_format(self, path)?;
        let _held = refuse_if_in_use(path, &format, false)?;
        grow(path, &format, mebibytes)
    }

    fn path_and_size(&self) -> Result<(&Path, u64)> {
        let path = self.path.as_deref().ok_or(Error::DiskPlaceMissing)?;
        Ok((path, self.size.ok_or_else(|| Error::DiskSizeMissing { path: path.to_owned() })?))
    }
}

pub(crate) fn create(path: &Path, format: &Format, mebibytes: u64) -> Result<()> {
    let length = bytes(mebibytes).ok_or_else(|| Error::InvalidDiskSize { path: path.to_owned(), value: mebibytes })?;
    let tool = tool_for(format)?;
    if path.symlink_metadata().is_ok() {
        return Err(Error::DiskExists { path: path.to_owned() });
    }
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        let made = DirBuilder::new().recursive(true).mode(0o777).create(parent);
        made.map_err(Error::io("make the directory", parent))?;
    }
    // Made beside its place and moved there, so that a crash never leaves a disk of the wrong size. What a crash leaves
    // instead takes no room, and the next maker goes on with it.
    let unfinished = path.with_file_name(unfinished_name(path.file_name().unwrap_or_default()));
    let mut open = OpenOptions::new();
    open.write(true).create(true).truncate(false).mode(0o600).custom_flags(OFlags::NOFOLLOW.bits() as i32);
    let file = open_locked(&unfinished, || open.open(&unfinished)).map_err(Error::io("make the disk image", path))?;
    let failed = |error| Error::io("make the disk image", path)(error);
    let made = file.set_len(0).map_err(failed).and_then(|()| match tool {
        Some(tool) => run(&tool, "create", &unfinished, mebibytes),
        None => lengthen(&file, 0, length).map_err(failed),
    });
    let made = made.and_then(|()| move_into_place(&unfinished, path));
    if made.is_err() {
        let _ = fs::remove_file(&unfinished);
    }
    made
}

/// What an image is called while it is made.
pub(crate) fn unfinished_name(name: impl AsRef<OsStr>) -> OsString {
    [OsStr::new("."), name.as_ref(), OsStr::new(".new")].into_iter().collect()
}

/// Grows an image that is known to be smaller.
pub(crate) fn grow(path: &Path, format: &Format, mebibytes: u64) -> Result<()> {
    if let Some(tool) = tool_for(format)? {
        return run(&tool, "resize", path, mebibytes);
    }
    let grown = OpenOptions::new().write(true).open(path).and_then(|file| {
        let before = file.metadata()?.len();
        lengthen(&file, before, bytes(mebibytes).unwrap_or(before)).inspect_err(|_| {
            let _ = file.set_len(before);
        })
    });
    grown.map_err(Error::io("grow", path))
}

fn lengthen(file: &File, from: u64, to: u64) -> io::Result<()> {
    let step = if cfg!(target_os = "macos") { APFS_STEP } else { u64::MAX };
    steps(from, to, step).try_for_each(|length| file.set_len(length))
}

/// The lengths on the way, the last of them `to`.
fn steps(from: u64, to: u64, step: u64) -> impl Iterator<Item = u64> {
    std::iter::successors(Some(from), move |&at| (at < to).then(|| at.saturating_add(step).min(to))).skip(1)
}

/// The program that makes and grows images of this format, where that takes one.
pub(crate) fn tool_for(format: &Format) -> Result<Option<PathBuf>> {
    let Format::Qcow2(qcow) = format else { return Ok(None) };
    let wanted: Vec<&Path> = match &qcow.tool {
        Some(tool) => vec![tool],
        None => vec![Path::new("qemu-img"), Path::new("qcow-tool")],
    };
    first_program(&wanted).map(Some).map_err(|looked| Error::ToolNotFound { field: "disks", looked })
}

/// `create` or `resize` in the language of the tool.
fn run(tool: &Path, verb: &str, image: &Path, mebibytes: u64) -> Result<()> {
    // A name that starts with a dash, or looks like a protocol to qemu-img, is none in an absolute path.
    let image = std::path::absolute(image).map_err(Error::io("make absolute", image))?;
    let mut command = Command::new(tool);
    if tool.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"qcow-tool")) {
        command.args([OsStr::new(verb), image.as_os_str()]).args(["--size", &format!("{mebibytes}MiB")]);
    } else {
        command.args([verb, "-q", "-f", "qcow2"]).arg(&image).arg(format!("{mebibytes}M"));
    }
    let output = command.stdin(Stdio::null()).output().map_err(Error::io("run", tool))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Error::ToolFailed { tool: tool.to_owned(), path: image, said })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_grows_in_steps() {
        assert_eq!(steps(0, 5, 2).collect::<Vec<_>>(), [2, 4, 5]);
        assert_eq!(steps(4, 5, u64::MAX).collect::<Vec<_>>(), [5]);
        assert_eq!(steps(5, 5, 2).count(), 0);
    }
}
