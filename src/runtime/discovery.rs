//! Finds the hypervisor of a state directory among the running processes.

use std::cell::OnceCell;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, fcntl_lock, flock};
use rustix::io::Errno;

use crate::config::record::Record;
use crate::engine::pid_file;
use crate::error::{Error, Result};
use crate::process::{Process, ProcessInfo, identity, is_in_another_pid_namespace, list_all, query};
use crate::state::{JSON_FILE, LOG_FILE, Lock, PID_FILE, StateDir};
use crate::sys::file::{inode, inode_and_change_time, open_dir, open_regular};
use crate::sys::lock::{is_locked, unlock};
use crate::sys::path::canonical;

/// The processes that may be hypervisors. They are listed once, and only if pid file and record do not lead to one.
#[derive(Default)]
pub(crate) struct Hypervisors(OnceCell<Vec<Listed>>);

/// The files that identify a directory below an overlay. The directory itself has another inode there.
const SHOWN_FILES: [&str; 3] = [PID_FILE, JSON_FILE, LOG_FILE];

struct Listed {
    process: ProcessInfo,
    /// Device and inode of the directory with the process's pid file, and the files there. `None` if the process does not have
    /// the command line of a hypervisor.
    dir: Option<((u64, u64), ShownFiles)>,
}

/// Inode and change time of each of [`SHOWN_FILES`].
type ShownFiles = [Option<(u64, i64, i64)>; SHOWN_FILES.len()];

fn shown_files(dir: &Path) -> ShownFiles {
    SHOWN_FILES.map(|name| inode_and_change_time(&dir.join(name)))
}

fn share_a_file(ours: &ShownFiles, theirs: &ShownFiles) -> bool {
    ours.iter().zip(theirs).any(|(ours, theirs)| ours.is_some() && ours == theirs)
}

impl Hypervisors {
    /// Those that may be the hypervisor of a state directory.
    fn candidates(&self, state: &StateDir, record: Option<&Record>) -> io::Result<Vec<u32>> {
        let (ours, files) = (inode(state.path()), shown_files(state.path()));
        let mut found = Vec::new();
        for Listed { process, dir } in self.listed()? {
            // Most are of other directories. Only what is left takes system calls.
            let may_be_ours = match dir {
                Some((theirs, shown)) => ours.is_none_or(|ours| ours == *theirs) || share_a_file(&files, shown),
                None => ours.is_none() || has_recorded_command(process, record),
            };
            if !may_be_ours {
                continue;
            }
            let is_ours = match state.is_hypervisor(process, record) {
                // Another user's process. Unless it names this directory, it has nothing to do with it.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied && !state.is_named_by(process) => false,
                is_ours => is_ours?,
            };
            if is_ours {
                found.push(process.pid);
            }
        }
        Ok(found)
    }

    fn listed(&self) -> io::Result<&[Listed]> {
        if let Some(listed) = self.0.get() {
            return Ok(listed);
        }
        let mut listed = Vec::new();
        for process in list_all()? {
            if process.command.iter().any(|word| is_pid_file(word)) {
                let reached = pid_file(&process.command).map(|file| process.reach(Path::new(file)));
                let dir = reached.and_then(|reached| {
                    let reached = reached.ok()??;
                    let dir = reached.parent()?;
                    Some((inode(dir)?, shown_files(dir)))
                });
                listed.push(Listed { process, dir });
            }
        }
        Ok(self.0.get_or_init(|| listed))
    }
}

/// Whether the process has the recorded command line.
fn has_recorded_command(process: &ProcessInfo, record: Option<&Record>) -> bool {
    record.is_some_and(|record| !record.arguments.is_empty() && process.runs(&program(record), &record.arguments))
}

/// Whether a word of a command line ends with the name of a pid file. The path, and hyperkit's option, may precede the name.
fn is_pid_file(word: &OsStr) -> bool {
    word.as_encoded_bytes().ends_with(PID_FILE.as_bytes())
}

impl StateDir {
    /// The directory of the hypervisor whose command line has this relative path of a state directory, which is relative to the
    /// hypervisor's working directory. `None` if none runs.
    ///
    /// # Errors
    /// [`Error::CannotTell`] if there are several, or if the processes cannot be read.
    pub fn of_relative(dir: &Path) -> Result<Option<Self>> {
        let cannot_tell = |error| Error::cannot_tell(Some(dir))(error);
        let mut found = Vec::new();
        for process in list_all().map_err(cannot_tell)? {
            let Some(file) = pid_file(&process.command).map(Path::new) else { continue };
            // The working directory itself is `.`, or nothing.
            let is_dir = |parent: &Path| parent == dir || (parent.as_os_str().is_empty() && dir == Path::new("."));
            if file.file_name() == Some(OsStr::new(PID_FILE)) && file.parent().is_some_and(is_dir) {
                let reached = process.reach(dir).map_err(cannot_tell)?;
                found.extend(reached.and_then(|dir| dir.canonicalize().ok()));
            }
        }
        found.sort();
        found.dedup();
        match &found[..] {
            [] => Ok(None),
            [dir] => Self::new(dir).map(Some),
            _ => Err(cannot_tell(io::Error::other(format!("{} hypervisors have this relative path", found.len())))),
        }
    }

    /// The hypervisor that runs for this directory, by the pid file, by the record, or else by its command line. `None` if
    /// none runs.
    ///
    /// # Errors
    /// [`Error::CannotTell`] if the processes, or files of the directory, cannot be read.
    pub fn running(&self, record: Option<&Record>) -> Result<Option<Process>> {
        self.running_among(record, &Hypervisors::default())
    }

    /// [`running`](Self::running), for a caller that is going to change the directory.
    pub fn running_locked(&self, record: Option<&Record>, _: &Lock) -> Result<Option<Process>> {
        let all = Hypervisors::default();
        let found = self.find_running(record, &all, |pid, is_ours| Process::find(pid, is_ours))?;
        if found.is_none() {
            self.check_pid_file_is_unlocked()?;
            self.check_not_in_a_container(record)?;
        }
        Ok(found)
    }

    /// Fails if the recorded process is in another pid namespace and some process still has the hypervisor's log open.
    fn check_not_in_a_container(&self, record: Option<&Record>) -> Result<()> {
        let cannot_tell = |error| Error::cannot_tell(Some(self.path()))(error);
        let Some(identity) = record.and_then(|record| record.pid_identity.as_ref()) else { return Ok(()) };
        // The lock comes first, since finding out the own namespace takes several times as long.
        let is_locked = is_locked(&self.file(LOG_FILE));
        if matches!(is_locked, Ok(false)) || !is_in_another_pid_namespace(identity).map_err(cannot_tell)? {
            return Ok(());
        }
        is_locked.map_err(cannot_tell)?;
        Err(cannot_tell(io::Error::other(format!("a process in another container has {LOG_FILE} open"))))
    }

    /// [`check_pid_file_is_unlocked`](Self::check_pid_file_is_unlocked), for a caller that has not locked the directory. It checks
    /// nothing while another call changes the directory.
    fn check_pid_file(&self) -> Result<()> {
        let is_missing = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
        if self.file(PID_FILE).symlink_metadata().is_err_and(|error| is_missing(&error)) {
            return Ok(());
        }
        let dir = match open_dir(self.path()) {
            Err(error) if is_missing(&error) => return Ok(()),
            dir => dir.map_err(Error::cannot_tell(Some(self.path())))?,
        };
        if flock(&dir, FlockOperation::NonBlockingLockShared) == Err(Errno::WOULDBLOCK) {
            return Ok(());
        }
        let checked = self.check_pid_file_is_unlocked();
        unlock(&dir);
        checked
    }

    /// An error if a process holds the lock that QEMU has on its pid file. This program cannot see that process, which may be in
    /// another container.
    fn check_pid_file_is_unlocked(&self) -> Result<()> {
        let cannot_tell = |error| Error::cannot_tell(Some(self.path()))(error);
        match self.pid_file_is_locked().map_err(cannot_tell)? {
            true => Err(cannot_tell(io::Error::other(format!(
                "a process that this program cannot see holds the lock on {PID_FILE}"
            )))),
            false => Ok(()),
        }
    }

    /// Tries the lock itself, so a QEMU that is starting must be kept away.
    fn pid_file_is_locked(&self) -> io::Result<bool> {
        let file = match open_regular(&self.file(PID_FILE)) {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => {
                return Ok(false);
            }
            file => file?,
        };
        match fcntl_lock(&file, FlockOperation::NonBlockingLockShared) {
            Err(Errno::AGAIN | Errno::ACCESS) => Ok(true),
            // Closing the file releases the lock. A file system without locks has none.
            _ => Ok(false),
        }
    }

    /// [`running`](Self::running), for a caller that asks for many state directories.
    pub fn running_among(&self, record: Option<&Record>, all: &Hypervisors) -> Result<Option<Process>> {
        let found = self.find_running(record, all, |pid, is_ours| Process::find(pid, is_ours))?;
        if found.is_none() {
            self.check_pid_file()?;
            self.check_not_in_a_container(record)?;
        }
        Ok(found)
    }

    /// Whether [`running`](Self::running) would find one. Without a handle of the process this is faster.
    pub fn is_running(&self, record: Option<&Record>) -> Result<bool> {
        let find = |pid, is_ours: &dyn Fn(&ProcessInfo) -> io::Result<bool>| match query(pid)? {
            Some(process) => Ok(is_ours(&process)?.then_some(())),
            // This waits for a process that is exiting.
            None => Ok(Process::find(pid, is_ours)?.map(drop)),
        };
        let is_running = self.find_running(record, &Hypervisors::default(), find)?.is_some();
        if !is_running {
            self.check_pid_file()?;
            self.check_not_in_a_container(record)?;
        }
        Ok(is_running)
    }

    fn find_running<T>(
        &self,
        record: Option<&Record>,
        all: &Hypervisors,
        find: impl Fn(u32, &dyn Fn(&ProcessInfo) -> io::Result<bool>) -> io::Result<Option<T>>,
    ) -> Result<Option<T>> {
        let cannot_tell = |error| Error::cannot_tell(Some(self.path()))(error);
        let pid_in_file = match self.pid() {
            Err(Error::Io { source, .. }) => return Err(cannot_tell(source)),
            pid => pid?,
        };
        let is_ours = |process: &ProcessInfo| {
            let has_start = |record| is_same_start(record, pid_in_file, process);
            Ok((self.is_hypervisor(process, record)? && record.map_or(Ok(true), has_start)?)
                || self.is_recorded_process(process.pid, record)?)
        };
        let recorded_pid = record.and_then(|record| record.pid).filter(|pid| pid_in_file != Some(*pid));
        for pid in [pid_in_file, recorded_pid].into_iter().flatten() {
            if let Some(found) = find(pid, &is_ours).map_err(cannot_tell)? {
                return Ok(Some(found));
            }
        }
        // The directory may have been deleted while a VM ran, or its starter was killed before there was a pid file.
        for pid in all.candidates(self, record).map_err(cannot_tell)? {
            if let Some(found) = find(pid, &is_ours).map_err(cannot_tell)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Whether the process has a pid file with the path of this directory, or with the end of its path. There may be another
    /// directory of this path where the process is.
    fn is_named_by(&self, process: &ProcessInfo) -> bool {
        let dir = pid_file(&process.command).and_then(|file| Path::new(file).parent());
        dir.is_some_and(|dir| self.path().ends_with(canonical(dir)) || self.path().ends_with(dir))
    }

    /// Whether this is the process that was started in this directory, which may have been moved since. A wrapper can give it any
    /// command line.
    fn is_recorded_process(&self, pid: u32, record: Option<&Record>) -> io::Result<bool> {
        let identity = record.filter(|record| record.pid == Some(pid)).and_then(|record| record.pid_identity.as_ref());
        identity.map_or(Ok(false), |identity| Ok(self.identity_of(pid)?.as_ref() == Some(identity)))
    }

    /// What identifies a process of this directory; see [`Record::pid_identity`].
    pub fn identity_of(&self, pid: u32) -> io::Result<Option<String>> {
        Ok(identity(pid)?
            .zip(inode(self.path()))
            .map(|(process, (device, inode))| format!("{process} {device}:{inode}")))
    }

    /// Whether the process is a hypervisor with the pid file of this directory. Its command line is the recorded one, or else one
    /// that an engine has.
    fn is_hypervisor(&self, process: &ProcessInfo, record: Option<&Record>) -> io::Result<bool> {
        let has_recorded_command = has_recorded_command(process, record);
        let file = match (has_recorded_command, record) {
            (true, Some(record)) => record.arguments.iter().rfind(|word| is_pid_file(word.as_ref())).map(AsRef::as_ref),
            _ => pid_file(&process.command),
        };
        let Some(file) = file.map(Path::new).filter(|file| file.file_name() == Some(OsStr::new(PID_FILE))) else {
            return Ok(false);
        };
        let Some(reached) = process.reach(file)? else { return Ok(false) };
        let their_dir = reached.parent().unwrap_or(Path::new("/"));
        // Device and inode tell, since one directory may have several paths. A directory that was deleted has only its path.
        let is_ours = match (inode(self.path()), inode(their_dir)) {
            (Some(ours), Some(theirs)) if ours == theirs => true,
            (Some(_), Some(_)) if share_a_file(&shown_files(self.path()), &shown_files(their_dir)) => {
                let reason =
                    format!("process {} has these files on another file system, such as an overlay", process.pid);
                return Err(io::Error::other(reason));
            }
            (None, None) => file.parent().map(canonical).as_deref() == Some(self.path()),
            _ => false,
        };
        // A script that is going to start the hypervisor is still run by a shell.
        let is_script =
            has_recorded_command && record.is_some_and(|record| process.command.len() > record.arguments.len() + 1);
        Ok(is_ours && (is_script || !process.is_other_program()?))
    }
}

/// The program in a record.
fn program(record: &Record) -> PathBuf {
    let arguments = record.arguments.join(" ");
    PathBuf::from(record.cmdline.strip_suffix(&arguments).unwrap_or_default().trim_end())
}

/// Whether the process is the recorded one, or one that was started later. The clock may have been set since the start, so the
/// start time decides only if the pid file does not.
fn is_same_start(record: &Record, pid_in_file: Option<u32>, process: &ProcessInfo) -> io::Result<bool> {
    match record.pid_started {
        Some(started) if record.pid == Some(process.pid) && pid_in_file != record.pid => process.started_at(started),
        _ => Ok(true),
    }
}
