//! A lock on a file or directory that may be removed or moved away while one waits for it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

/// Opens `path` and waits until nobody else has it locked. The lock lasts as long as the file is open.
pub(crate) fn open_locked(path: &Path, open: impl Fn() -> io::Result<File>) -> io::Result<File> {
    loop {
        let file = open()?;
        rustix::io::retry_on_intr(|| flock(&file, FlockOperation::LockExclusive))?;
        // Whoever had it may have put something else in its place, or nothing.
        let locked = file.metadata()?;
        match fs::metadata(path) {
            Ok(current) if (locked.dev(), locked.ino()) == (current.dev(), current.ino()) => return Ok(file),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
}
