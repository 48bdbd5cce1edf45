//! The state directory of a run.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use tempfile::{Builder, TempDir};

use crate::vms::exec_dir;

const PREFIX: &str = "exec-";

/// A new state directory, where `ctl list` finds it. Dropping it deletes it, and the directories above it if they are empty.
pub struct RunDir {
    dir: Option<TempDir>,
    parent: PathBuf,
}

impl RunDir {
    pub fn new() -> Result<Self, String> {
        let parent = exec_dir();
        remove_empty(&parent);
        match create(&parent) {
            Ok(dir) => Ok(Self { dir: Some(dir), parent }),
            Err(error) => Err(format!(
                "cannot create a state directory in {}: {error}; set XDG_STATE_HOME to another directory",
                parent.display()
            )),
        }
    }

    pub fn path(&self) -> &Path {
        self.dir.as_ref().map_or(&self.parent, TempDir::path)
    }
}

/// Deletes the directories of runs that were killed before they had written anything there, so that `ctl list` does not show them.
fn remove_empty(parent: &Path) {
    let owner = rustix::process::getuid().as_raw();
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let is_run = entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes());
        let is_own = entry.metadata().is_ok_and(|metadata| metadata.is_dir() && metadata.uid() == owner);
        let Some(dir) = (is_run && is_own).then(|| File::open(entry.path()).ok()).flatten() else { continue };
        // A start locks its state directory. One that waits for this lock creates the directory again.
        if flock(&dir, FlockOperation::NonBlockingLockExclusive).is_ok() {
            let _ = fs::remove_dir(entry.path()); // which keeps one that is not empty
        }
    }
}

fn create(parent: &Path) -> io::Result<TempDir> {
    loop {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
        match Builder::new().prefix(PREFIX).tempdir_in(parent) {
            // Another run has ended, and has deleted the directory again.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Ok(dir) if fs::metadata(parent)?.uid() != rustix::process::getuid().as_raw() => {
                drop(dir);
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it belongs to another user"));
            }
            created => return created,
        }
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        self.dir = None;
        // Fails if other runs are there.
        let _ =
            fs::remove_dir(&self.parent).and_then(|()| fs::remove_dir(self.parent.parent().unwrap_or(&self.parent)));
    }
}
