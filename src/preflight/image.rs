//! Creating and growing disk images.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{CWD, OFlags, RenameFlags, renameat_with};
use rustix::io::Errno;

use crate::config::disk::{Disk, DiskFormat, bytes};
use crate::error::{ConfigError, Error, Result};
use crate::preflight::image_format::{found_format, needs_growth};
use crate::preflight::image_header::{Content, Image};
use crate::preflight::image_lock::lock_disk;
use crate::preflight::qcow2_header::Qcow2;
use crate::sys::file::check_file_size_limit;
use crate::sys::find_program::first_program;
use crate::sys::lock::{open_locked, unlock};

/// The step in which sparse files grow on APFS, which refuses to grow a file by much more than the free space at once.
const APFS_STEP_BYTES: u64 = 1024 * 1024 * 1024;

/// Creates a raw disk image of exactly `size_mib` MiB at `path`, and the directories above it.
///
/// The file is sparse: it uses no space before something is written to it. It appears whole or not at all.
/// [`Disk::create`] also creates qcow2 images. A start creates missing images by itself, if their disks have a size.
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
/// [`Error::DiskExists`] if there is a file at `path`, which is not changed; [`ConfigError::InvalidDiskSize`];
/// [`Error::Io`].
pub fn create_disk_image(path: impl AsRef<Path>, size_mib: u64) -> Result<()> {
    Disk::raw(path.as_ref()).size_mib(size_mib).create()
}

impl Disk {
    /// Creates the image at [`path`](Self#structfield.path) with [`size_mib`](Self#structfield.size_mib), and the
    /// directories above it. It appears whole or not at all. A raw image is sparse; qcow2 images are created by `qemu-img` or
    /// `qcow-tool`.
    ///
    /// A start does this if the image is missing.
    ///
    /// ```
    /// use hyperkit::Disk;
    ///
    /// let dir = tempfile::tempdir()?;
    /// let disk = Disk::raw(dir.path().join("data.img")).size_mib(64);
    /// disk.create()?;
    /// disk.size_mib(128).grow()?;
    /// assert_eq!(dir.path().join("data.img").metadata()?.len(), 128 * 1024 * 1024);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::DiskExists`] if there is a file, which is not changed; [`ConfigError::MissingDiskPath`] without a path,
    /// [`ConfigError::DiskSizeMissing`] without a size, [`ConfigError::InvalidDiskSize`]; [`ConfigError::DiskHasOverlay`]; for qcow2
    /// [`ConfigError::ToolNotFound`] and [`Error::ImageToolFailed`]; [`Error::Io`].
    pub fn create(&self) -> Result<()> {
        let disk = self.without_url(|disk| Ok(disk.format_by_name()))?;
        let (path, size_mib) = disk.path_and_size()?;
        create(path, &disk.format_by_name(), size_mib)
    }

    /// Grows the image to [`size_mib`](Self#structfield.size_mib). It does not change an image of this size.
    ///
    /// A start does this if the image is smaller. [`create`](Self::create) has an example. The guest has to grow its
    /// partitions and file systems by itself.
    ///
    /// # Errors
    /// [`ConfigError::DiskShrinks`] if the image is larger, and is not changed; [`Error::DiskInUse`] if a VM uses it;
    /// [`ConfigError::NotFound`] if it does not exist; otherwise those of [`create`](Self::create).
    #[doc(alias = "resize")]
    pub fn grow(&self) -> Result<()> {
        let disk = self.without_url(|disk| found_format(disk, disk.path.as_deref().unwrap_or(Path::new(""))))?;
        let (path, size_mib) = disk.path_and_size()?;
        let format = found_format(&disk, path)?;
        match needs_growth(path, Some(&format), size_mib)? {
            None => return Err(ConfigError::NotFound { field: "disks", path: path.to_owned() }.into()),
            Some(false) => return Ok(()),
            Some(true) => {}
        }
        let _locks = lock_disk(&Self { format: Some(format.clone()), ..Self::new(path) }, path)?;
        grow(path, &format, size_mib)
    }

    fn path_and_size(&self) -> Result<(&Path, u64), ConfigError> {
        let path = self.path.as_deref().ok_or(ConfigError::MissingDiskPath)?;
        if self.overlay {
            return Err(ConfigError::DiskHasOverlay { path: path.to_owned() });
        }
        Ok((path, self.size_mib.ok_or_else(|| ConfigError::DiskSizeMissing { path: path.to_owned() })?))
    }
}

pub(crate) fn create(path: &Path, format: &DiskFormat, size_mib: u64) -> Result<()> {
    let invalid = || ConfigError::InvalidDiskSize { path: path.to_owned(), value: size_mib };
    let length = bytes(size_mib).ok_or_else(invalid)?;
    let tool = tool_for(format)?;
    let failed = |error| Error::io("create the disk image", path)(error);
    if tool.is_none() {
        check_file_size_limit(length).map_err(failed)?;
    }
    if path.symlink_metadata().is_ok() {
        return Err(Error::DiskExists { path: path.to_owned() });
    }
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        let created = DirBuilder::new().recursive(true).mode(0o777).create(parent);
        created.map_err(Error::io("create the directory", parent))?;
    }
    // The image is created under another name and then renamed, so that a crash never leaves a disk of the wrong size. The
    // file that a crash leaves instead uses no space, and the next call continues with it.
    let unfinished = path.with_file_name(unfinished_name(path.file_name().unwrap_or_default()));
    let mut open = OpenOptions::new();
    open.write(true).create(true).truncate(false).mode(0o600).custom_flags(OFlags::NOFOLLOW.bits() as i32);
    let file = open_locked(&unfinished, || open.open(&unfinished)).map_err(failed)?;
    // Somebody else's file may have been put there, as a hard link. It is not truncated.
    if file.metadata().map_err(failed)?.nlink() != 1 {
        fs::remove_file(&unfinished).map_err(failed)?;
        unlock(&file);
        return create(path, format, size_mib);
    }
    let created = file.set_len(0).map_err(failed).and_then(|()| match tool {
        // The lock is on the tool's standard input, too: if this program is killed, the next one waits until the tool has ended.
        Some(tool) => {
            let locked = file.try_clone().map_err(failed)?;
            run_tool(&tool, "create", &unfinished, size_mib, locked.into())
        }
        None => lengthen(&file, 0, length).map_err(failed),
    });
    let created = created.and_then(|()| rename_without_replacing(&unfinished, path));
    if created.is_err() {
        let _ = fs::remove_file(&unfinished);
    }
    unlock(&file);
    created
}

/// The name of an image while it is created.
pub(crate) fn unfinished_name(name: impl AsRef<OsStr>) -> OsString {
    [OsStr::new("."), name.as_ref(), OsStr::new(".new")].into_iter().collect()
}

/// Grows an image that is known to be smaller.
pub(crate) fn grow(path: &Path, format: &DiskFormat, size_mib: u64) -> Result<()> {
    if let Some(tool) = tool_for(format)? {
        return run_tool(&tool, "resize", path, size_mib, Stdio::null());
    }
    let grown = OpenOptions::new().write(true).open(path).and_then(|file| {
        let before = file.metadata()?.len();
        let length = bytes(size_mib).unwrap_or(before);
        check_file_size_limit(length)?;
        lengthen(&file, before, length).inspect_err(|_| {
            let _ = file.set_len(before);
        })
    });
    grown.map_err(Error::io("grow", path))
}

fn lengthen(file: &File, from: u64, to: u64) -> io::Result<()> {
    let step = if cfg!(target_os = "macos") { APFS_STEP_BYTES } else { u64::MAX };
    steps(from, to, step).try_for_each(|length| file.set_len(length))
}

/// The lengths between `from` and `to`, in steps. The last one is `to`.
fn steps(from: u64, to: u64, step: u64) -> impl Iterator<Item = u64> {
    std::iter::successors(Some(from), move |&at| (at < to).then(|| at.saturating_add(step).min(to))).skip(1)
}

/// The program that creates and grows images of this format; `None` for raw images.
pub(crate) fn tool_for(format: &DiskFormat) -> Result<Option<PathBuf>, ConfigError> {
    let DiskFormat::Qcow2(options) = format else { return Ok(None) };
    let wanted: Vec<&Path> = match &options.tool {
        Some(tool) => vec![tool],
        None => vec![Path::new("qemu-img"), Path::new("qcow-tool")],
    };
    first_program(&wanted).map(Some).map_err(|searched| ConfigError::ToolNotFound { field: "disks", searched })
}

/// Runs `create` or `resize` of the tool.
fn run_tool(tool: &Path, command: &str, image: &Path, size_mib: u64, stdin: Stdio) -> Result<()> {
    // In an absolute path, a name that starts with a dash or looks like a protocol to qemu-img does no harm.
    let image = std::path::absolute(image).map_err(Error::io("make absolute", image))?;
    let mut process = Command::new(tool);
    if tool.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"qcow-tool")) {
        process.args([OsStr::new(command), image.as_os_str()]).args(["--size", &format!("{size_mib}MiB")]);
    } else {
        process.args([command, "-q", "-f", "qcow2"]).arg(&image).arg(format!("{size_mib}M"));
    }
    let failed = |error| Error::io("run", tool)(error);
    let mut child = process.stdin(stdin).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().map_err(failed)?;
    let mut stderr = Vec::new();
    let read = child.stderr.take().map_or(Ok(0), |mut output| output.read_to_end(&mut stderr));
    let is_done = match child.wait() {
        Ok(status) => status.success(),
        // If SIGCHLD is ignored, the system has reaped the tool, and its exit status is lost. The image tells.
        Err(error) if error.raw_os_error() == Some(Errno::CHILD.raw_os_error()) => {
            let wanted = bytes(size_mib).unwrap_or(u64::MAX);
            Image::read(&image)
                .is_ok_and(|image| matches!(image.content, Content::Qcow2(Qcow2 { length, .. }) if length >= wanted))
        }
        Err(error) => return Err(failed(error)),
    };
    read.map_err(failed)?;
    if is_done {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&stderr).trim().to_owned();
    Err(Error::ImageToolFailed { tool: tool.to_owned(), path: image, stderr })
}

/// Renames without replacing a file, also if the file system cannot do that in one step.
fn rename_without_replacing(from: &Path, to: &Path) -> Result<()> {
    let renamed = match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
            fs::hard_link(from, to).and_then(|()| fs::remove_file(from))
        }
        renamed => renamed.map_err(io::Error::from),
    };
    renamed.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => Error::DiskExists { path: to.to_owned() },
        _ => Error::io("create the disk image", to)(error),
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
