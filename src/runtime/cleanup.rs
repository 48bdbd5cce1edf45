//! Cleanup of a state directory on start, on exit and on removal.

use std::ffi::OsString;
use std::fs;
use std::io;

use crate::config::disk::is_overlay_name;
use crate::engine::is_engine_socket;
use crate::error::{Error, Result};
use crate::plan::serial_ports::{ALL_LOGS, ALL_TTYS};
use crate::preflight::image::unfinished_name;
use crate::runtime::daemons::wait_until_unread;
use crate::runtime::network_number::release_numbers;
use crate::state::{JSON_FILE, LIFETIME_FIFO, LOG_FILE, Lock, PID_FILE, StateDir, UNFINISHED};
use crate::sys::file::remove_file;

impl StateDir {
    /// Prepares a start: removes everything of the previous VM except `hyperkit.json` and disks.
    pub fn clear_for_start(&self, lock: &Lock) -> Result<()> {
        self.clear_runtime_files(lock)?;
        ALL_LOGS.iter().map(|name| self.file(name)).try_for_each(remove_file)
    }

    /// Removes pid file, tty files, sockets and overlays of a VM that has exited. Logs stay, except those that no hypervisor has
    /// opened.
    pub fn clear_runtime_files(&self, _: &Lock) -> Result<()> {
        // Until a daemon has exited, it could create its sockets again.
        wait_until_unread(&self.file(LIFETIME_FIFO));
        let files = [PID_FILE, UNFINISHED, LIFETIME_FIFO].into_iter().chain(ALL_TTYS);
        let files = files.chain(ALL_LOGS.into_iter().filter(|log| !self.has_used_log(log)));
        let stale = files.map(str::to_owned).chain(self.files_of_vm()?);
        stale.map(|name| self.file(&name)).try_for_each(remove_file)?;
        // A damaged record names no networks.
        self.load_if_recorded().ok().flatten().map_or(Ok(()), |recorded| release_numbers(&recorded))
    }

    /// Cleans up after the VM with this process ID, which has exited, unless another one was started in the directory since.
    /// Records that this program has `killed` it.
    pub fn clear_if_idle(&self, pid: u32, killed: bool) -> Result<()> {
        let Some(lock) = self.lock()? else { return Ok(()) };
        let recorded = self.load_if_recorded()?;
        if self.running_locked(recorded.as_ref().map(|recorded| &recorded.record), &lock)?.is_some() {
            return Ok(());
        }
        if let Some(mut description) = recorded.filter(|recorded| killed && recorded.record.pid == Some(pid)) {
            description.record.killed = true;
            // A full disk must not keep anybody from stopping a VM.
            let _ = self.save(&description);
        }
        self.clear_runtime_files(&lock)
    }

    /// Removes the overlays of the VM with this process ID, which has exited, unless another VM was started in the directory since.
    /// Waits only a moment for the lock: the call that has it removes the overlays, too.
    pub fn remove_overlays(&self, pid: u32) -> Result<()> {
        let Some(_lock) = self.try_lock()? else { return Ok(()) };
        match self.load_record()?.is_some_and(|record| record.pid == Some(pid)) {
            true => self
                .files_of_vm()?
                .iter()
                .filter(|name| is_overlay_name(name))
                .map(|name| self.file(name))
                .try_for_each(remove_file),
            false => Ok(()),
        }
    }

    /// The overlays, sockets, and links to sockets, of a VM.
    pub(super) fn files_of_vm(&self) -> Result<Vec<String>> {
        let failed = |error| Error::io("list", self.path())(error);
        let mut found = Vec::new();
        for entry in fs::read_dir(self.path()).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if let (Some(name), Ok(kind)) = (entry.file_name().to_str(), entry.file_type()) {
                if is_engine_socket(name, kind) || (is_overlay_name(name) && !kind.is_dir()) {
                    found.push(name.to_owned());
                }
            }
        }
        Ok(found)
    }

    /// Removes what the VM and this crate created in the directory, with these disks, and then the directory if it is
    /// empty.
    pub fn remove(&self, disks: &[String], lock: Lock) -> Result<()> {
        self.clear_runtime_files(&lock)?;
        let logs = [LOG_FILE].into_iter().chain(ALL_LOGS).map(OsString::from);
        // A crash may have left an unfinished image of each disk.
        let disks = disks.iter().flat_map(|name| [OsString::from(name), unfinished_name(name)]);
        // The state file comes last: until then an interrupted removal can be repeated.
        let names = disks.chain(logs).chain([JSON_FILE.into()]);
        names.map(|name| self.file(&name)).try_for_each(remove_file)?;
        match fs::remove_dir(self.path()) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
            removed => removed.map_err(Error::io("remove", self.path())),
        }
    }
}

/// Whether a recorded name is that of a file in the directory: others can write anything into a state file.
pub(crate) fn is_file_name(name: &str) -> bool {
    !name.contains(['/', '\0']) && !["", ".", ".."].contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    const OURS: [&str; 8] = [
        "00000003.00000946",
        "agent.sock",
        "connect",
        "events.sock",
        "qmp.sock",
        "v.sock",
        "v.sock_5555",
        "vhost.sock",
    ];
    const LINK: &str = "guest.00000946";

    #[test]
    fn files_of_a_vm_are_recognized_by_kind_and_name() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path()).unwrap();
        for name in OURS.iter().chain(&[LINK]) {
            File::create(state.file(name)).unwrap();
        }
        symlink("elsewhere", state.file("guest.readme")).unwrap();
        for name in ["other.00000946", "00000003.log", "0000003.00000946", "0000000G.00000946", "v.sock_x", "x.sock"] {
            drop(UnixListener::bind(state.file(name)).unwrap());
        }
        assert_eq!(state.files_of_vm().unwrap(), [""; 0]);

        for name in OURS.iter().chain(&[LINK]) {
            fs::remove_file(state.file(name)).unwrap();
        }
        OURS.iter().for_each(|name| drop(UnixListener::bind(state.file(name)).unwrap()));
        symlink("00000003.00000946", state.file(LINK)).unwrap();
        let mut found = state.files_of_vm().unwrap();
        found.sort();
        let mut all = [&OURS[..], &[LINK]].concat();
        all.sort_unstable();
        assert_eq!(found, all);
    }
}
