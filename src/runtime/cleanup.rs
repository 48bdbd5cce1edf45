//! Cleanup of a state directory on start, on exit and on removal.

use std::ffi::OsString;
use std::fs::{self, FileType};
use std::io;
use std::os::unix::fs::FileTypeExt;

use crate::error::{Error, Result};
use crate::plan::serial_ports::{ALL_LOGS, ALL_TTYS};
use crate::preflight::image;
use crate::runtime::vhost_vsock::wait_until_gone;
use crate::state::UNFINISHED;
use crate::state::{
    EVENTS_SOCKET, JSON_FILE, LOG_FILE, Lock, PID_FILE, QMP_SOCKET, StateDir, VHOST_LINE, VHOST_SOCKET, VSOCK_SOCKET,
};
use crate::sys::file::remove_file;
use crate::sys::unix_socket::is_listening_place;

impl StateDir {
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
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
}
