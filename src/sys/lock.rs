//! A lock on a file or directory that others may remove or rename meanwhile.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

/// Opens `path` and waits until no other program has locked it. The lock lasts as long as the file is open.
pub(crate) fn open_locked(path: &Path, open: impl Fn() -> io::Result<File>) -> io::Result<File> {
    loop {
        let file = open()?;
        rustix::io::retry_on_intr(|| flock(&file, FlockOperation::LockExclusive))?;
        // The program that held the lock may have removed or replaced the file.
        let locked = file.metadata()?;
        match fs::metadata(path) {
            Ok(current) if (locked.dev(), locked.ino()) == (current.dev(), current.ino()) => return Ok(file),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
}
