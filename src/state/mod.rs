//! The state directory: what is in it, who may change it, and what is cleared away.
//! Each file has its line in `guide/state_directory.md`.

pub(crate) mod tty_file;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::config::HyperKit;
use crate::error::{Error, Result};
use crate::sys::file::read_at_most;
use crate::sys::lock::open_locked;
use crate::sys::path::canonical;

pub(crate) const JSON_FILE: &str = "hyperkit.json";
pub(crate) const PID_FILE: &str = "hyperkit.pid";
pub(crate) const LOG_FILE: &str = "hyperkit.log";
pub(crate) const QMP_SOCKET: &str = "qmp.sock";
pub(crate) const EVENTS_SOCKET: &str = "events.sock";
pub(crate) const VHOST_SOCKET: &str = "vhost.sock";
pub(crate) const VHOST_LINE: &str = "vhost.line";
pub(crate) const VSOCK_SOCKET: &str = "v.sock";

/// A file on its way to be another; left behind only by a crash.
pub(crate) const UNFINISHED: &str = "hyperkit.new";

/// hyperkit writes the pid alone, QEMU a newline behind it.
const LONGEST_PID_FILE: u64 = 32;
/// A state file is a few KiB; what is longer than this is none.
const LONGEST_JSON: u64 = 16 * 1024 * 1024;

/// A state directory, under its one name without symlinks.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct StateDir(pub(crate) PathBuf);

/// While this lives, no one else starts or clears away a machine in the directory.
///
/// A program that is being started inherits it until its `exec`: a starter that dies in between leaves the lock
/// with its child until that can be recognized by its arguments.
#[must_use]
pub(crate) struct Lock(#[expect(dead_code, reason = "holds the lock")] File);

impl StateDir {
    pub fn new(dir: &Path) -> Result<Self> {
        let absolute = std::path::absolute(dir).map_err(Error::io("make absolute", dir))?;
        Ok(Self(canonical(&absolute)))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn file(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.join(name)
    }

    /// Makes the directory if it is not there, and locks it: whoever removes it in between does no harm.
    pub fn create_and_lock(&self) -> Result<Lock> {
        let mut make = DirBuilder::new();
        make.recursive(true).mode(0o700);
        let made = || make.create(&self.0).and_then(|()| File::open(&self.0));
        open_locked(&self.0, made).map(Lock).map_err(Error::io("make and lock", &self.0))
    }

    /// Waits for whoever else has the lock. Nothing is made for it: what is locked is the directory itself. There is
    /// none where there is no directory, or where it is removed in the meantime.
    pub fn lock(&self) -> Result<Option<Lock>> {
        match open_locked(&self.0, || File::open(&self.0)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            locked => locked.map(|dir| Some(Lock(dir))).map_err(Error::io("lock", &self.0)),
        }
    }

    /// What `hyperkit.json` says, with the directory as it is called now.
    pub fn load(&self) -> Result<HyperKit> {
        let path = self.file(JSON_FILE);
        let json = read_at_most(&path, LONGEST_JSON).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Error::NoState { path: path.clone() },
            _ => Error::io("read", &path)(error),
        })?;
        let mut machine: HyperKit =
            serde_json::from_slice(&json).map_err(|source| Error::DamagedState { path, source: source.into() })?;
        // What was in a directory that was moved or copied is with it: above all its disks.
        if let Some(before) = machine.state_dir.replace(self.0.clone()).filter(|dir| *dir != self.0) {
            for path in machine.paths_mut() {
                if let Ok(rest) = path.strip_prefix(&before) {
                    *path = self.0.join(rest);
                }
            }
        }
        Ok(machine)
    }

    pub fn save(&self, machine: &HyperKit) -> Result<()> {
        self.write(JSON_FILE, machine.to_string().as_bytes())
    }

    /// Writes a file whole or not at all. The lock is held, so there is one unfinished file at most.
    pub fn write(&self, name: &str, content: &[u8]) -> Result<()> {
        let (unfinished, path) = (self.file(UNFINISHED), self.file(name));
        let written = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&unfinished)
            .and_then(|mut file| file.write_all(content))
            .and_then(|()| fs::rename(&unfinished, &path));
        written.map_err(|error| {
            let _ = fs::remove_file(&unfinished);
            Error::io("write", &path)(error)
        })
    }

    /// The pid in the pid file, if there is one.
    pub fn pid(&self) -> Option<u32> {
        let content = read_at_most(&self.file(PID_FILE), LONGEST_PID_FILE).ok()?;
        std::str::from_utf8(&content).ok()?.trim_ascii_end().parse().ok()
    }
}
