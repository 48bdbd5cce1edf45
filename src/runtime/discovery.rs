//! Finds the hypervisor of a state directory among the running processes.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::Path;

use crate::config::record::Record;
use crate::engine::pid_files;
use crate::error::{Error, Result};
use crate::process::{Process, ProcessInfo, list_all, query};
use crate::state::{PID_FILE, StateDir};
use crate::sys::path::canonical;

impl StateDir {
    /// The hypervisor that runs for this directory, by the pid file and by the record. `None` if none runs.
    ///
    /// # Errors
    /// [`Error::CannotTell`] if the processes, or files of the directory, cannot be read.
    pub fn running(&self, record: Option<&Record>) -> Result<Option<Process>> {
        self.find_running(record, |pid, is_ours| Process::find(pid, is_ours))
    }

    /// Whether [`running`](Self::running) would find one. Without a handle of the process this is faster.
    pub fn is_running(&self, record: Option<&Record>) -> Result<bool> {
        let find = |pid, is_ours: &dyn Fn(&ProcessInfo) -> io::Result<bool>| match query(pid)? {
            Some(process) => Ok(is_ours(&process)?.then_some(())),
            None => Ok(None),
        };
        Ok(self.find_running(record, find)?.is_some())
    }

    fn find_running<T>(
        &self,
        record: Option<&Record>,
        find: impl Fn(u32, &dyn Fn(&ProcessInfo) -> io::Result<bool>) -> io::Result<Option<T>>,
    ) -> Result<Option<T>> {
        let cannot_tell = |error| Error::cannot_tell(Some(self.path()))(error);
        let pid_in_file = match self.pid() {
            Err(Error::Io { source, .. }) => return Err(cannot_tell(source)),
            pid => pid?,
        };
        let is_ours = |process: &ProcessInfo| {
            let is_recorded = |record| matches_record(record, pid_in_file, process);
            Ok(self.owns_pid_file(process)? && record.map_or(Ok(true), is_recorded)?)
        };
        let recorded_pid = record.and_then(|record| record.pid).filter(|pid| pid_in_file != Some(*pid));
        for pid in [pid_in_file, recorded_pid].into_iter().flatten() {
            if let Some(found) = find(pid, &is_ours).map_err(cannot_tell)? {
                return Ok(Some(found));
            }
        }
        for pid in self.candidates(record).map_err(cannot_tell)? {
            if let Some(found) = find(pid, &is_ours).map_err(cannot_tell)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// The processes that may be the hypervisor by their command line alone. This is needed if a starter was killed before its
    /// hypervisor wrote a pid file, or if the state file is unreadable. An empty directory never had a VM.
    fn candidates(&self, record: Option<&Record>) -> io::Result<Vec<u32>> {
        let should_scan = match record {
            Some(record) => record.pid.is_none() && !record.arguments.is_empty(),
            None => has_files(self.path())?,
        };
        let mut found = Vec::new();
        for process in if should_scan { list_all()? } else { Vec::new() } {
            let may_be_ours = match record {
                Some(record) => process.has_arguments(&record.arguments),
                None => match self.owns_pid_file(&process) {
                    // The process belongs to another user, who cannot write to this user's state directory.
                    Err(error) if error.kind() == io::ErrorKind::PermissionDenied => false,
                    owns => owns?,
                },
            };
            if may_be_ours {
                found.push(process.pid);
            }
        }
        Ok(found)
    }

    /// Whether the process has an option to write the pid file of this directory.
    fn owns_pid_file(&self, process: &ProcessInfo) -> io::Result<bool> {
        for file in pid_files(&process.command).map(Path::new) {
            if file.file_name() != Some(OsStr::new(PID_FILE)) {
                continue;
            }
            // The Go package passes relative paths.
            let path = match file.is_absolute() {
                true => file.to_owned(),
                false => match process.working_dir()? {
                    Some(dir) => dir.join(file),
                    None => return Ok(false), // it has exited
                },
            };
            if path.parent().is_some_and(|dir| dir == self.path() || canonical(dir) == self.path()) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Whether the process is the recorded one, or one that was started later and wrote the pid file. The clock may have
/// been set since the start, so the start time decides only if the pid file does not.
fn matches_record(record: &Record, pid_in_file: Option<u32>, process: &ProcessInfo) -> io::Result<bool> {
    if record.pid != Some(process.pid) {
        return Ok(true);
    }
    if !process.has_arguments(&record.arguments) {
        return Ok(false);
    }
    match record.pid_started {
        Some(started) if pid_in_file != Some(process.pid) => process.started_at(started),
        _ => Ok(true),
    }
}

fn has_files(dir: &Path) -> io::Result<bool> {
    match fs::read_dir(dir) {
        Ok(mut entries) => Ok(entries.next().is_some()),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(false),
        Err(error) => Err(error),
    }
}
