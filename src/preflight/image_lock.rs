//! Whether a disk image is in use, and keeping other starts away from it.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use crate::config::disk::{Disk, DiskFormat, QcowOptions};
use crate::engine;
use crate::error::{Error, Result};
use crate::preflight::backing_files::used_files;
use crate::sys::file::inode;
use crate::sys::lock::unlock;

/// Refuses an image that a VM uses, unless both only read it. While the returned lock is held, this refuses the image to every
/// other start.
///
/// It always takes the lock for a moment, which makes another start with this image fail in that moment. So `check` does not
/// call it.
pub(crate) fn lock_image(path: &Path, format: &DiskFormat, read_only: bool) -> Result<Option<ImageLock>> {
    let file = match OpenOptions::new().read(true).write(!read_only).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None), // it is to be created
        Err(error) => return Err(Error::io("open", path)(error)),
    };
    if !path.is_file() {
        return Ok(None);
    }
    let lock = ImageLock { file, is_raw: *format == DiskFormat::Raw };
    if !try_lock(&lock.file, read_only).map_err(Error::cannot_tell(Some(path)))? {
        return Err(Error::DiskInUse { path: path.to_owned() });
    }
    if !lock.is_raw {
        refuse_unlocked_use(path, read_only)?;
    }
    Ok(Some(lock))
}

/// Locks the existing image of a disk, which is at `path`, with [`lock_image`], and the files that the image uses: backing files
/// as read-only.
pub(crate) fn lock_disk(disk: &Disk, path: &Path) -> Result<Vec<ImageLock>> {
    let (format, read_only) = (&disk.format_by_name(), disk.only_reads_image());
    // The image of an overlay is a backing file. Its lock is kept until the hypervisor runs, as for a qcow2 image.
    let qcow2 = DiskFormat::Qcow2(QcowOptions::default());
    let lock_format = if disk.overlay { &qcow2 } else { format };
    let mut locks = Vec::from_iter(lock_image(path, lock_format, read_only)?);
    match format {
        // The image may be the backing file of a qcow2 image.
        DiskFormat::Raw if !read_only && !locks.is_empty() => refuse_unlocked_use(path, read_only)?,
        DiskFormat::Raw => {}
        DiskFormat::Qcow2(_) => {
            for file in used_files(path)? {
                locks.extend(lock_image(&file.path, format, read_only || !file.is_written)?);
            }
        }
    }
    Ok(locks)
}

/// hyperkit does not lock qcow2 images, nor the files that they use.
fn refuse_unlocked_use(path: &Path, read_only: bool) -> Result<()> {
    let id = inode(path);
    let is_image = |other: &Path| id.is_some() && inode(other) == id;
    let conflicts = |other: &Path, is_read: bool| {
        let is_used = |path: &Path, is_read: bool| !(read_only && is_read) && is_image(path);
        let files = used_files(other).unwrap_or_default();
        is_used(other, is_read) || files.iter().any(|file| is_used(&file.path, is_read || !file.is_written))
    };
    match engine::uses_image(&conflicts).map_err(Error::cannot_tell(Some(path)))? {
        true => Err(Error::DiskInUse { path: path.to_owned() }),
        false => Ok(()),
    }
}

/// The lock of an image, which keeps other starts away.
#[must_use]
#[derive(Debug)]
pub(crate) struct ImageLock {
    file: File,
    is_raw: bool,
}

impl ImageLock {
    /// Whether to keep this lock until the hypervisor runs. hyperkit locks raw images by itself, and must be able to.
    pub fn outlasts_spawn(&self) -> bool {
        !self.is_raw
    }
}

impl Drop for ImageLock {
    fn drop(&mut self) {
        unlock(&self.file);
    }
}

/// Takes the flock of an image, unless another program has locked it: hyperkit uses flock, QEMU locks byte ranges by fcntl.
/// Returns whether it was taken.
fn try_lock(file: &File, read_only: bool) -> io::Result<bool> {
    let lock = match read_only {
        true => FlockOperation::NonBlockingLockShared,
        false => FlockOperation::NonBlockingLockExclusive,
    };
    Ok(!is_refused(rustix::io::retry_on_intr(|| flock(file, lock)))? && !is_locked_by_qemu(file, lock)?)
}

/// Whether a lock is refused because another program has it. A file system without locks, such as NFS without a lock daemon,
/// counts as not locked.
fn is_refused(tried: rustix::io::Result<()>) -> io::Result<bool> {
    use rustix::io::Errno;
    match tried {
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::NOLCK) => Ok(false),
        Err(Errno::AGAIN | Errno::ACCESS) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// All of QEMU's locks are shared, so they do not conflict with a reader's. A writer holds the one on byte 101.
#[cfg(target_os = "linux")]
fn is_locked_by_qemu(file: &File, lock: FlockOperation) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;

    use rustix::fs::{fcntl_lock, major, minor};

    const WRITER: u64 = 101;
    let tried = fcntl_lock(file, lock);
    let _ = fcntl_lock(file, FlockOperation::Unlock);
    if is_refused(tried)? {
        return Ok(true);
    }
    let (metadata, locks) = (file.metadata()?, std::fs::read_to_string("/proc/locks")?);
    let id = format!("{:02x}:{:02x}:{}", major(metadata.dev()), minor(metadata.dev()), metadata.ino());
    Ok(locks.lines().any(|line| match line.split_ascii_whitespace().rev().collect::<Vec<_>>()[..] {
        [end, start, file, ..] => {
            let number = |text: &str| text.parse::<u64>().ok();
            file == id && start != "0" && number(start) <= Some(WRITER) && number(end) >= Some(WRITER)
        }
        _ => false,
    }))
}

/// On other systems QEMU takes no locks, and our own flock would conflict with a lock by fcntl, as on BSD.
#[cfg(not(target_os = "linux"))]
fn is_locked_by_qemu(_: &File, _: FlockOperation) -> io::Result<bool> {
    Ok(false)
}
