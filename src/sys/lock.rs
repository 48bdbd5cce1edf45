//! A lock on a file or directory that others may remove or rename meanwhile.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::sys::file::open_regular;

/// Longer than a start may take, which holds the lock of a state directory.
const LOCK_TIMEOUT: Duration = Duration::from_secs(60);
/// How often a lock is tried that another program holds.
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// How often a lock is tried. Other processes may be trying it at the same moment.
const TRIES: u32 = 4;

/// Opens `path` and waits until nobody else has locked it, but at most a minute. The lock lasts until [`unlock`], or until no
/// process has the file open.
pub(crate) fn open_locked(path: &Path, open: impl Fn() -> io::Result<File>) -> io::Result<File> {
    open_locked_within(LOCK_TIMEOUT, path, open)
}

/// Like [`open_locked`], with a timeout.
pub(crate) fn open_locked_within(
    timeout: Duration,
    path: &Path,
    open: impl Fn() -> io::Result<File>,
) -> io::Result<File> {
    let deadline = Instant::now() + timeout;
    loop {
        let file = open()?;
        let is_locked = loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break true,
                Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) if !is_at(&file, path)? => break false,
                Err(Errno::WOULDBLOCK) if Instant::now() < deadline => std::thread::sleep(POLL_INTERVAL),
                Err(Errno::WOULDBLOCK) => return Err(timed_out(&file, timeout)),
                Err(error) => return Err(error.into()),
            }
        };
        if is_locked && is_at(&file, path)? {
            return Ok(file);
        }
    }
}

/// Whether the open file is still the one at `path`. Whoever held the lock may have removed it, put another one in its place, or
/// renamed it: an image that was locked while it was created gets the lock of a VM.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let open = file.metadata()?;
    match fs::metadata(path) {
        Ok(current) => Ok((open.dev(), open.ino()) == (current.dev(), current.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether a process has locked a file. The check takes the lock for a moment; other processes may check at the same moment.
pub(crate) fn is_locked(path: &Path) -> io::Result<bool> {
    let file = match open_regular(path) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => return Ok(false),
        file => file?,
    };
    for _ in 0..TRIES {
        if flock(&file, FlockOperation::NonBlockingLockExclusive) != Err(Errno::WOULDBLOCK) {
            unlock(&file);
            return Ok(false);
        }
        std::thread::sleep(POLL_INTERVAL);
    }
    Ok(true)
}

/// Marks a file as in use for [`is_locked`], as long as a process has this descriptor or a duplicate open.
pub(crate) fn lock_shared(file: &File) {
    let _ = flock(file, FlockOperation::NonBlockingLockShared);
}

/// Releases a lock. Closing the file alone would leave the lock with a child that another thread has forked, until its `exec`
/// or its exit.
pub(crate) fn unlock(file: &File) {
    let _ = flock(file, FlockOperation::Unlock);
}

fn timed_out(file: &File, timeout: Duration) -> io::Error {
    let holder = holder(file).map_or("another process".to_owned(), |pid| format!("process {pid}"));
    io::Error::new(io::ErrorKind::TimedOut, format!("locked by {holder} for more than {timeout:?}"))
}

/// The process that holds the lock, which Linux lists. It may be one that has only inherited the lock.
fn holder(file: &File) -> Option<u32> {
    let inode = format!(":{}", file.metadata().ok()?.ino());
    let locks = fs::read_to_string("/proc/locks").ok()?;
    // A number, the kind of the lock, whether it is mandatory, the access, the process, the device and inode.
    let holds = |line: &&str| line.contains(" FLOCK ") && !line.contains("->") && line.contains(&format!("{inode} "));
    locks.lines().find(holds)?.split_ascii_whitespace().nth(4)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_is_not_released_is_an_error_that_names_its_holder() {
        let dir = tempfile::tempdir().unwrap();
        let open = || File::open(dir.path());
        let held = open_locked(dir.path(), open).unwrap();
        let error = open_locked_within(Duration::from_millis(20), dir.path(), open).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        if cfg!(target_os = "linux") {
            assert_eq!(error.to_string(), format!("locked by process {} for more than 20ms", std::process::id()));
        }
        unlock(&held);
        open_locked(dir.path(), open).unwrap();
    }

    /// The image that another start has created is in use by then.
    #[test]
    fn a_locked_file_that_was_renamed_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let opened = std::cell::Cell::new(0);
        let _held = open_locked(&from, || File::create(&from)).unwrap();
        let open = || {
            let file = File::create(&from);
            if opened.replace(opened.get() + 1) == 0 {
                fs::rename(&from, &to)?;
            }
            file
        };
        open_locked_within(Duration::from_secs(60), &from, open).unwrap();
        assert_eq!(opened.get(), 2);
    }

    /// As a child has it that another thread has forked.
    #[test]
    fn unlock_releases_a_lock_that_another_descriptor_shares() {
        let dir = tempfile::tempdir().unwrap();
        let open = || File::open(dir.path());
        let held = open_locked(dir.path(), open).unwrap();
        let _inherited = held.try_clone().unwrap();
        unlock(&held);
        open_locked_within(Duration::ZERO, dir.path(), open).unwrap();
    }
}
