//! The hypervisor's output: a file, whose lines are passed on to the `log` facade.
//!
//! The hypervisor writes to the file itself, so that nothing is lost and nothing blocks when the starter has exited.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::OFlags;

use crate::error::{Error, Result, escape_control};
use crate::state::{LOG_FILE, StateDir};
use crate::sys::file::{inode, remove_file};
use crate::sys::lock::lock_shared;

/// A longer line is logged in pieces, so that output without newlines needs no memory.
const MAX_LINE_BYTES: usize = 8 * 1024;

/// The file to which a hypervisor writes, and how much of it was passed on.
#[derive(Debug)]
pub(crate) struct Output {
    file: File,
    path: PathBuf,
    /// Whether there is no state directory. The file's name is then removed once the hypervisor has opened it.
    is_temporary: bool,
    passed_on: u64,
}

impl Output {
    /// Creates `hyperkit.log`, or without a state directory a temporary file that is removed by
    /// [`remove_temporary`](Self::remove_temporary).
    pub fn create(state: Option<&StateDir>) -> Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        loop {
            let path = match state {
                Some(state) => state.file(LOG_FILE),
                None => {
                    let name = format!("hyperkit-{}-{}.log", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
                    std::env::temp_dir().join(name)
                }
            };
            if state.is_some() {
                remove_file(&path)?;
            }
            match OpenOptions::new().read(true).append(true).create_new(true).mode(0o600).open(&path) {
                // Another program's file, or that of a killed starter that had the same process ID.
                Err(error) if state.is_none() && error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Error::io("create", &path)(error)),
                Ok(file) => return Ok(Self { file, path, is_temporary: state.is_none(), passed_on: 0 }),
            }
        }
    }

    /// Removes the name of a temporary file, if it still has one; the file lasts as long as it is open.
    pub fn remove_temporary(&self) -> Result<()> {
        let is_ours = |file: &Metadata| inode(&self.path) == Some((file.dev(), file.ino()));
        match self.is_temporary && self.file.metadata().is_ok_and(|file| is_ours(&file)) {
            true => remove_file(&self.path),
            false => Ok(()),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn is_temporary(&self) -> bool {
        self.is_temporary
    }

    /// A descriptor for the hypervisor. It is opened separately and locks the file: programs that do not see the hypervisor's
    /// process see the lock.
    pub fn writer(&self) -> Result<Stdio> {
        let opened = OpenOptions::new().append(true).custom_flags(OFlags::NOFOLLOW.bits() as i32).open(&self.path);
        let id = |file: &File| file.metadata().ok().map(|metadata| (metadata.dev(), metadata.ino()));
        let is_ours = |file: &File| id(file).is_some_and(|theirs| Some(theirs) == id(&self.file));
        match opened.ok().filter(is_ours) {
            Some(file) => {
                lock_shared(&file);
                Ok(file.into())
            }
            // A temporary file has no name any more.
            None => Ok(self.try_clone()?.file.into()),
        }
    }

    /// The same file, read from its beginning.
    pub fn try_clone(&self) -> Result<Self> {
        let file = self.file.try_clone().map_err(Error::io("duplicate the descriptor of", &self.path))?;
        Ok(Self { file, path: self.path.clone(), is_temporary: self.is_temporary, passed_on: 0 })
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    /// Logs the lines that were written since the last call, and at the exit also a last line without newline. Each
    /// record carries the state directory.
    pub fn pass_on(&mut self, state: Option<&StateDir>, has_exited: bool) {
        let mut buffer = [0; MAX_LINE_BYTES];
        // The offset is kept here: the hypervisor's writes move the shared one.
        while let Ok(length @ 1..) = self.file.read_at(&mut buffer, self.passed_on) {
            let read = &buffer[..length];
            let complete = match read.iter().rposition(|&byte| byte == b'\n') {
                Some(newline) => newline + 1,
                None if has_exited || length == buffer.len() => length,
                None => return,
            };
            for line in read[..complete].split_inclusive(|&byte| byte == b'\n') {
                // Counted first, so that a logger that panics gets no line twice.
                self.passed_on += line.len() as u64;
                let line = String::from_utf8_lossy(line);
                let line = escape_control(line.trim_end_matches(['\r', '\n']));
                match state {
                    Some(state) => log::info!(target: "hyperkit", "{}: {line}", state.path().display()),
                    None => log::info!(target: "hyperkit", "{line}"),
                }
            }
        }
    }
}
