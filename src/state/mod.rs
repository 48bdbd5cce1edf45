//! The state directory as files: names, lock, reading and writing. `guide/state_directory.md` describes each file.

pub(crate) mod tty_file;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::file_url::is_url;
use crate::config::record::{Home, Record};
use crate::config::{Console, HyperKit, Network};
use crate::error::{Error, Result};
use crate::sys::file::{check_file_size_limit, open_dir, read_at_most, remove_file};
use crate::sys::lock::{open_locked, open_locked_within, unlock};
use crate::sys::path::{canonical, clean};

pub(crate) const JSON_FILE: &str = "hyperkit.json";
/// The Go package's name. `runtime/discovery.rs` and `parse_arguments` recognise VMs of other programs by it.
pub(crate) const PID_FILE: &str = "hyperkit.pid";
pub(crate) const LOG_FILE: &str = "hyperkit.log";
pub(crate) const QMP_SOCKET: &str = "qmp.sock";
pub(crate) const EVENTS_SOCKET: &str = "events.sock";
pub(crate) const AGENT_SOCKET: &str = "agent.sock";
pub(crate) const VHOST_SOCKET: &str = "vhost.sock";
pub(crate) const LIFETIME_FIFO: &str = "vhost.line";
pub(crate) const VSOCK_SOCKET: &str = "v.sock";

/// A file that is renamed once it is written whole. Only a crash leaves it.
pub(crate) const UNFINISHED: &str = "hyperkit.new";

/// Far more than a call needs that reads the state directory under its lock.
const TRY_LOCK_TIMEOUT: Duration = Duration::from_millis(20);
/// hyperkit writes the pid alone, QEMU a newline after it.
const MAX_PID_BYTES: u64 = 32;
/// A state file has a few KiB; a longer one is something else.
const MAX_JSON_BYTES: u64 = 1024 * 1024;

/// A state directory, by its absolute path without symlinks.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct StateDir(PathBuf);

/// The directory to which relative paths lead if they begin with `parents` times `..`.
struct Base {
    dir: PathBuf,
    parents: usize,
}

impl Base {
    /// Makes a relative path absolute, if it is known where it leads.
    fn resolve(&self, path: &mut PathBuf) {
        if path.is_absolute() || path.as_os_str().is_empty() {
            return;
        }
        if self.parents == 0 {
            *path = self.dir.join(&*path);
        } else if let Ok(rest) = clean(path).strip_prefix("../".repeat(self.parents)) {
            *path = self.dir.join(rest);
        }
    }
}

/// The exclusive right to start a VM in the directory, and to clean it up.
///
/// A hypervisor inherits the lock until its `exec`. If the starter dies before that, the lock stays with the child until
/// the child can be recognized by its arguments.
#[must_use]
#[derive(Debug)]
pub(crate) struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        unlock(&self.0);
    }
}

impl StateDir {
    pub fn new(dir: &Path) -> Result<Self> {
        let absolute = std::path::absolute(dir).map_err(Error::io("make absolute", dir))?;
        Ok(Self(canonical(&absolute)))
    }

    /// The state directory of a description, if it names one.
    pub fn of(description: &HyperKit) -> Result<Option<Self>> {
        description.state_dir.as_deref().map(Self::new).transpose()
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn file(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.join(name)
    }

    /// Creates the directory if it is missing, and locks it, even if others remove it meanwhile.
    pub fn create_and_lock(&self) -> Result<Lock> {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700);
        let create = || builder.create(&self.0).and_then(|()| open_dir(&self.0));
        open_locked(&self.0, create).map(Lock).map_err(Error::io("create and lock", &self.0))
    }

    /// Waits for the lock. The directory itself is locked, so no lock file is left. `None` if there is no directory, or
    /// if it is removed meanwhile.
    pub fn lock(&self) -> Result<Option<Lock>> {
        match open_locked(&self.0, || open_dir(&self.0)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            locked => locked.map(|dir| Some(Lock(dir))).map_err(Error::io("lock", &self.0)),
        }
    }

    /// Like [`lock`](Self::lock), but waits only a moment. `None` also if another program or thread keeps the lock.
    pub fn try_lock(&self) -> Result<Option<Lock>> {
        match open_locked_within(TRY_LOCK_TIMEOUT, &self.0, || open_dir(&self.0)) {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::TimedOut) => Ok(None),
            locked => locked.map(|dir| Some(Lock(dir))).map_err(Error::io("lock", &self.0)),
        }
    }

    /// Reads `hyperkit.json`: the description as it was started, with the record. Its state directory is this one, even if the
    /// directory was moved since.
    pub fn load(&self) -> Result<HyperKit> {
        let path = self.file(JSON_FILE);
        let json = read_at_most(&path, MAX_JSON_BYTES).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Error::StateNotFound { path: path.clone() },
            _ => Error::io("read", &path)(error),
        })?;
        let mut description: HyperKit =
            serde_json::from_slice(&json).map_err(|source| Error::DamagedState { path, source: source.into() })?;
        let before = description.state_dir.replace(self.0.clone());
        if let Some(base) = before.as_deref().and_then(|dir| self.base_of(dir)) {
            description.paths_mut().for_each(|path| base.resolve(path));
            // A name without directories is searched on `PATH`.
            description.programs_mut().filter(|path| path.components().count() > 1).for_each(|path| base.resolve(path));
            if let Network::VpnKit(socket) = &mut description.network {
                base.resolve(socket);
            }
        }
        // If the directory was moved or copied, so were the files in it, such as its disks.
        if let Some(before) = before.filter(|dir| *dir != self.0) {
            for path in description.paths_mut() {
                if let Ok(rest) = path.strip_prefix(&before) {
                    *path = self.0.join(rest);
                }
            }
        }
        let disks = description.disks.iter().filter_map(|disk| disk.path.clone());
        let relative_disks = disks.filter(|path| path.is_relative() && !is_url(path)).collect();
        description.record.home = Home { dir: Some(self.0.clone()), relative_disks, ..Home::default() };
        Ok(description)
    }

    /// The working directory of a program that recorded this relative path of the state directory. All other paths that the
    /// program recorded are relative to the same directory. `None` if the state directory has another path by now.
    fn base_of(&self, relative: &Path) -> Option<Base> {
        let mut relative = clean(relative);
        if relative == Path::new(".") {
            relative = PathBuf::new();
        }
        let mut parents = 0;
        while let Ok(rest) = relative.strip_prefix("..") {
            (relative, parents) = (rest.to_owned(), parents + 1);
        }
        if relative.is_absolute() || !self.0.ends_with(&relative) {
            return None;
        }
        let dir = self.0.ancestors().nth(relative.components().count())?.to_owned();
        Some(Base { dir, parents })
    }

    /// [`load`](Self::load) for a directory in which a missing or damaged file means that nothing is recorded. If a file cannot
    /// be read, what it records is not known: [`Error::CannotTell`].
    pub fn load_if_recorded(&self) -> Result<Option<HyperKit>> {
        match self.load() {
            Ok(description) => Ok(Some(description)),
            Err(Error::StateNotFound { .. } | Error::DamagedState { .. }) => Ok(None),
            Err(Error::Io { source, .. }) if is_not_a_state_file(&source) => Ok(None),
            Err(Error::Io { source, .. }) => Err(Error::cannot_tell(Some(self.path()))(source)),
            Err(error) => Err(error),
        }
    }

    /// The record of [`load_if_recorded`](Self::load_if_recorded).
    pub fn load_whole_record(&self) -> Result<Option<Record>> {
        Ok(self.load_if_recorded()?.map(|description| description.record))
    }

    /// Reads only the record, which is faster, for a call that only finds out whether a VM runs. The rest of the file may be
    /// damaged, so a caller must not change or delete anything because of this record.
    pub fn load_record(&self) -> Result<Option<Record>> {
        let path = self.file(JSON_FILE);
        match read_at_most(&path, MAX_JSON_BYTES) {
            Ok(json) => {
                let record: Option<Record> = serde_json::from_slice(&json).ok();
                // An empty record may be all that is left of a damaged file.
                let is_whole =
                    |record: &Record| !record.arguments.is_empty() || serde_json::from_slice::<HyperKit>(&json).is_ok();
                Ok(record.filter(is_whole))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound || is_not_a_state_file(&error) => Ok(None),
            Err(error) => Err(Error::cannot_tell(Some(self.path()))(error)),
        }
    }

    /// The description of the VM that was last started or defined here, or `description` if nothing is recorded. An unset
    /// console is a pty, as for everything that starts in the background: `run` records what it uses.
    pub fn recorded_or(&self, description: &HyperKit) -> Result<HyperKit> {
        let mut recorded = self.load_if_recorded()?.unwrap_or_else(|| description.clone());
        if recorded.serials.is_none() {
            recorded.console.get_or_insert(Console::Pty);
        }
        Ok(recorded)
    }

    /// The content of `hyperkit.json`; `None` if there is no such file.
    pub fn read_json(&self) -> Result<Option<Vec<u8>>> {
        let path = self.file(JSON_FILE);
        match read_at_most(&path, MAX_JSON_BYTES) {
            Ok(json) => Ok(Some(json)),
            Err(error) if error.kind() == io::ErrorKind::NotFound || is_not_a_state_file(&error) => Ok(None),
            Err(error) => Err(Error::io("read", path)(error)),
        }
    }

    pub fn save(&self, description: &HyperKit) -> Result<()> {
        self.write(JSON_FILE, description.to_string().as_bytes())
    }

    /// Writes a file whole or not at all. The caller holds the lock, so there is at most one unfinished file.
    pub fn write(&self, name: &str, content: &[u8]) -> Result<()> {
        let (unfinished, path) = (self.file(UNFINISHED), self.file(name));
        // A link that was put there may lead to somebody else's file.
        remove_file(&unfinished)?;
        let mut open = OpenOptions::new();
        open.write(true).create_new(true).mode(0o600);
        let written = check_file_size_limit(content.len() as u64)
            .and_then(|()| open.open(&unfinished))
            .and_then(|mut file| file.write_all(content))
            .and_then(|()| fs::rename(&unfinished, &path));
        written.map_err(|error| {
            let _ = fs::remove_file(&unfinished);
            Error::io("write", &path)(error)
        })
    }

    /// The pid in the pid file. `None` if there is no such file, or if it holds no pid.
    pub fn pid(&self) -> Result<Option<u32>> {
        let path = self.file(PID_FILE);
        match read_at_most(&path, MAX_PID_BYTES) {
            Ok(content) => Ok(std::str::from_utf8(&content).ok().and_then(|pid| pid.trim_ascii_end().parse().ok())),
            Err(error) if error.kind() == io::ErrorKind::NotFound || is_not_a_state_file(&error) => Ok(None),
            Err(error) => Err(Error::io("read", path)(error)),
        }
    }
}

/// Whether a file in the state directory is of another kind or size than the files of this crate and of engines.
fn is_not_a_state_file(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::NotADirectory)
}
