//! Whether a disk image is in use, and keeping other starts away from it.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use crate::config::disk::Format;
use crate::engine;
use crate::error::{Error, Result};

/// Refuses an image that a machine uses, unless both only read. As long as what this returns is held, no other start gets
/// past here with the image.
///
/// It can disturb a machine that starts at the same moment with the same image, of which one has to lose anyway; so it is
/// no part of a check.
pub(crate) fn refuse_if_in_use(path: &Path, format: &Format, read_only: bool) -> Result<Option<Held>> {
    let in_use = || Error::DiskInUse { path: path.to_owned() };
    // Whether an image can be read at all, the checks have said.
    let Ok(file) = OpenOptions::new().read(true).write(!read_only).open(path) else { return Ok(None) };
    if !path.is_file() {
        return Ok(None);
    }
    let held = Held(file);
    if is_locked(&held.0, read_only) {
        return Err(in_use());
    }
    if *format == Format::Raw {
        // hyperkit locks it itself.
        return Ok(None);
    }
    if engine::hyperkit::uses_qcow2(path, read_only) { Err(in_use()) } else { Ok(Some(held)) }
}

/// An image that is kept from other starts until this goes.
#[must_use]
pub(crate) struct Held(File);

impl Drop for Held {
    fn drop(&mut self) {
        // To close the file would leave the lock with a child that another thread has forked in between, until its `exec`.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

/// Whether somebody has locked an image: hyperkit takes flock, QEMU byte ranges by fcntl. Otherwise we have the flock.
fn is_locked(file: &File, read_only: bool) -> bool {
    let lock = match read_only {
        true => FlockOperation::NonBlockingLockShared,
        false => FlockOperation::NonBlockingLockExclusive,
    };
    is_refused(flock(file, lock)) || qemu_has_locked(file, lock)
}

/// Whether a lock is somebody else's. A file system without locks gives other errors, and tells nothing.
fn is_refused(tried: rustix::io::Result<()>) -> bool {
    matches!(tried, Err(rustix::io::Errno::AGAIN | rustix::io::Errno::ACCESS))
}

/// QEMU's locks are all shared, so that a reader conflicts with none: who writes holds the one on byte 101.
#[cfg(target_os = "linux")]
fn qemu_has_locked(file: &File, lock: FlockOperation) -> bool {
    use rustix::fs::{fcntl_lock, major, minor};

    const WRITER: u64 = 101;
    let tried = fcntl_lock(file, lock);
    let _ = fcntl_lock(file, FlockOperation::Unlock);
    if is_refused(tried) {
        return true;
    }
    let Ok((metadata, locks)) = file.metadata().and_then(|found| Ok((found, fs::read_to_string("/proc/locks")?)))
    else {
        return false;
    };
    let id = format!("{:02x}:{:02x}:{}", major(metadata.dev()), minor(metadata.dev()), metadata.ino());
    locks.lines().any(|line| match line.split_ascii_whitespace().rev().collect::<Vec<_>>()[..] {
        [end, start, file, ..] => {
            let number = |text: &str| text.parse::<u64>().ok();
            file == id && start != "0" && number(start) <= Some(WRITER) && number(end) >= Some(WRITER)
        }
        _ => false,
    })
}

/// Elsewhere QEMU takes no locks, and our own flock would be in the way of a lock by fcntl, as on BSD.
#[cfg(not(target_os = "linux"))]
fn qemu_has_locked(_: &File, _: FlockOperation) -> bool {
    false
}
