//! The state directory: what is in it, who may change it, and what is cleared away.
//! Each file has its line in `guide/state_directory.md`.

pub(crate) mod json;

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, FileType, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::check::canonical;
use crate::config::HyperKit;
use crate::engine::{hyperkit, vhost_vsock::wait_until_gone};
use crate::error::{Error, Result};
use crate::image;
use crate::lock::open_locked;
use crate::process::{Process, Seen, look_at_all};
use crate::serial::{ALL_LOGS, ALL_TTYS};
use crate::vsock::is_listening_place;

pub(crate) const JSON_FILE: &str = "hyperkit.json";
pub(crate) const PID_FILE: &str = "hyperkit.pid";
pub(crate) const LOG_FILE: &str = "hyperkit.log";
pub(crate) const QMP_SOCKET: &str = "qmp.sock";
pub(crate) const EVENTS_SOCKET: &str = "events.sock";
pub(crate) const VHOST_SOCKET: &str = "vhost.sock";
pub(crate) const VHOST_LINE: &str = "vhost.line";
pub(crate) const VSOCK_SOCKET: &str = "v.sock";

/// A file on its way to be another; left behind only by a crash.
const UNFINISHED: &str = "hyperkit.new";

/// hyperkit writes the pid alone, QEMU a newline behind it.
const LONGEST_PID_FILE: u64 = 32;
/// A state file is a few KiB; what is longer than this is none.
const LONGEST_JSON: u64 = 16 * 1024 * 1024;

/// A state directory, under its one name without symlinks.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct StateDir(PathBuf);

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

    /// The machine that runs in this directory, going by the pid file and by what was recorded.
    pub fn running(&self, recorded: Option<&HyperKit>) -> Option<Process> {
        let recorded_pid = recorded.and_then(|machine| machine.pid);
        let in_file = self.pid();
        let is_ours =
            |seen: &Seen| self.is_named_by(seen) && recorded.is_none_or(|machine| fits(machine, in_file, seen));
        [in_file, recorded_pid.filter(|_| in_file != recorded_pid)]
            .into_iter()
            .flatten()
            .find_map(|pid| Process::find(pid, is_ours))
            .or_else(|| {
                // A starter may have died before its machine wrote a pid file, or the state file is unreadable: then
                // there is only the command line. In an empty directory there has been nothing.
                let may_be = |seen: &Seen| match recorded {
                    Some(machine) => seen.has_arguments(&machine.arguments),
                    None => self.is_named_by(seen),
                };
                let is_worth_it = match recorded {
                    Some(machine) => recorded_pid.is_none() && !machine.arguments.is_empty(),
                    None => fs::read_dir(&self.0).is_ok_and(|mut entries| entries.next().is_some()),
                };
                let seen = is_worth_it.then(look_at_all)?.into_iter().find(may_be)?;
                Process::find(seen.pid, is_ours)
            })
    }

    /// Whether a process was told to write our pid file.
    fn is_named_by(&self, seen: &Seen) -> bool {
        pid_files(&seen.command).any(|file| {
            // The Go package passes on a relative path as it is.
            let file = Path::new(file);
            let path =
                if file.is_absolute() { file.to_owned() } else { seen.directory().unwrap_or_default().join(file) };
            path.file_name() == Some(OsStr::new(PID_FILE))
                && path.parent().is_some_and(|dir| dir == self.0 || canonical(dir) == self.0)
        })
    }

    /// Makes room for a new machine: nothing there is older than it, but for the state file and disks.
    pub fn prepare(&self, lock: &Lock) -> Result<()> {
        self.clear(lock)?;
        ALL_LOGS.iter().map(|name| self.file(name)).try_for_each(remove_file)
    }

    /// Removes what leads to a machine that no longer runs; what it has said stays.
    pub fn clear(&self, _: &Lock) -> Result<()> {
        // Until then it might make its sockets anew.
        wait_until_gone(&self.file(VHOST_LINE));
        let files = [PID_FILE, UNFINISHED, VHOST_LINE].into_iter().chain(ALL_TTYS);
        let stale = files.map(str::to_owned).chain(self.sockets()?);
        stale.map(|name| self.file(&name)).try_for_each(remove_file)
    }

    /// Clears up after a machine that has ended, unless another was started since.
    pub fn clear_if_idle(&self) -> Result<()> {
        let Some(lock) = self.lock()? else { return Ok(()) };
        match self.running(self.load().ok().as_ref()) {
            Some(_) => Ok(()),
            None => self.clear(&lock),
        }
    }

    /// Sockets, and links to sockets, of a machine that no longer runs.
    fn sockets(&self) -> Result<Vec<String>> {
        let failed = |error| Error::io("list", &self.0)(error);
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.0).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if let (Some(name), Ok(kind)) = (entry.file_name().to_str(), entry.file_type()) {
                if is_machine_socket(name, kind) {
                    found.push(name.to_owned());
                }
            }
        }
        Ok(found)
    }

    /// Removes what the machine and this crate have put into the directory, and the directory if that was all.
    pub fn remove(&self, made_disks: &[String], lock: Lock) -> Result<()> {
        self.clear(&lock)?;
        let files = [LOG_FILE].into_iter().chain(ALL_LOGS).map(OsString::from);
        // With each what a crash has left of its making.
        let disks = made_disks.iter().filter(|name| !name.contains('/'));
        let disks = disks.flat_map(|name| [OsString::from(name), image::unfinished_name(name)]);
        // The state file last: until then a removal that was cut short can be done again.
        let names = disks.chain(files).chain([JSON_FILE.into()]);
        names.map(|name| self.file(&name)).try_for_each(remove_file)?;
        match fs::remove_dir(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
            removed => removed.map_err(Error::io("remove", &self.0)),
        }
    }
}

/// Whether a process is the one that was recorded; another may have been started since, if it wrote the pid file.
/// The clock may have been set since the start, so the time only decides where the pid file does not.
fn fits(recorded: &HyperKit, in_file: Option<u32>, seen: &Seen) -> bool {
    if recorded.pid != Some(seen.pid) {
        return true;
    }
    let same_time = || recorded.pid_started.is_none_or(|started| seen.began_at(started));
    seen.has_arguments(&recorded.arguments) && (in_file == Some(seen.pid) || same_time())
}

/// What stands behind QEMU's `-pidfile` or hyperkit's `-F`, which may share its dash with other letters, and be one word
/// with the file.
fn pid_files(command: &[OsString]) -> impl Iterator<Item = &OsStr> {
    command.iter().enumerate().filter_map(|(at, word)| {
        let file = match word.to_str()? {
            "-pidfile" => "",
            letters => letters.strip_prefix('-')?.trim_start_matches(hyperkit::SWITCHES).strip_prefix('F')?,
        };
        if file.is_empty() { command.get(at + 1).map(OsString::as_os_str) } else { Some(OsStr::new(file)) }
    })
}

/// The names that QEMU, vhost-device-vsock and hyperkit give the sockets they make here.
fn is_machine_socket(name: &str, kind: FileType) -> bool {
    let hex = |text: &str| text.len() == 8 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    match name.split_once('.') {
        Some(("guest", port)) => kind.is_symlink() && hex(port),
        Some((cid, port)) if hex(cid) => kind.is_socket() && hex(port),
        _ if kind.is_socket() && is_listening_place(name) => true,
        _ => kind.is_socket() && ["connect", QMP_SOCKET, EVENTS_SOCKET, VHOST_SOCKET, VSOCK_SOCKET].contains(&name),
    }
}

pub(crate) fn remove_file(path: impl AsRef<Path>) -> Result<()> {
    match fs::remove_file(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(Error::io("remove", path)),
    }
}

/// A regular file's content, if it has no more than `limit` bytes: what is in the directory may be anything.
pub(crate) fn read_at_most(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let metadata = path.metadata()?;
    if !metadata.is_file() || metadata.len() > limit {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a file of a reasonable size"));
    }
    fs::read(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    const OURS: [&str; 7] =
        ["00000003.00000946", "connect", "events.sock", "qmp.sock", "v.sock", "v.sock_5555", "vhost.sock"];
    const LINK: &str = "guest.00000946";

    #[test]
    fn a_socket_is_the_machines_by_its_kind_and_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path()).unwrap();
        for name in OURS.iter().chain(&[LINK]) {
            File::create(state.file(name)).unwrap();
        }
        symlink("elsewhere", state.file("guest.readme")).unwrap();
        for name in ["other.00000946", "00000003.log", "0000003.00000946", "0000000G.00000946", "v.sock_x", "x.sock"] {
            drop(UnixListener::bind(state.file(name)).unwrap());
        }
        assert_eq!(state.sockets().unwrap(), [""; 0]);

        for name in OURS.iter().chain(&[LINK]) {
            fs::remove_file(state.file(name)).unwrap();
        }
        OURS.iter().for_each(|name| drop(UnixListener::bind(state.file(name)).unwrap()));
        symlink("00000003.00000946", state.file(LINK)).unwrap();
        let mut found = state.sockets().unwrap();
        found.sort();
        let mut all = [&OURS[..], &[LINK]].concat();
        all.sort_unstable();
        assert_eq!(found, all);
    }

    #[test]
    fn what_is_there_may_be_anything() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "12345").unwrap();
        assert_eq!(read_at_most(&file, 5).unwrap(), b"12345");
        assert_eq!(read_at_most(&file, 6).unwrap(), b"12345");
        assert_eq!(read_at_most(&file, 4).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(read_at_most(dir.path(), LONGEST_JSON).unwrap_err().kind(), io::ErrorKind::InvalidData);
        remove_file(&file).unwrap();
        remove_file(&file).unwrap();
        assert!(matches!(remove_file(dir.path()), Err(Error::Io { action: "remove", .. })));
    }
}
