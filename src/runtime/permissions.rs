//! Access to the files of a VM: only its owner may use them, even if the state directory is older than the VM and open to others.

use std::fs::{OpenOptions, Permissions, set_permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::time::SystemTime;

use crate::config::{HyperKit, InternalNetwork};
use crate::error::{Error, Result};
use crate::plan::serial_ports::{ALL_LOGS, ALL_TTYS, ports};
use crate::state::{PID_FILE, StateDir};

const OWNER_ONLY: u32 = 0o600;

impl StateDir {
    /// Creates the console logs, empty. hyperkit and QEMU truncate an existing file and keep its mode. If they create the file, other
    /// users can read it, unless the umask prevents this.
    pub fn create_logs(&self, description: &HyperKit) -> Result<()> {
        for log in ports(description)?.iter().filter_map(|port| port.log) {
            let path = self.file(log);
            let log = OpenOptions::new().write(true).create_new(true).mode(OWNER_ONLY).open(&path);
            // This time shows `has_used_log` whether the hypervisor has truncated the log. If the file system refuses it, the log
            // counts as used.
            let _ = log.map_err(Error::io("create", &path))?.set_modified(SystemTime::UNIX_EPOCH);
        }
        Ok(())
    }

    /// Whether a hypervisor has opened a log that [`create_logs`](Self::create_logs) created.
    pub fn has_used_log(&self, log: &str) -> bool {
        let log = self.file(log).metadata();
        log.is_ok_and(|log| log.len() > 0 || log.modified().is_ok_and(|at| at != SystemTime::UNIX_EPOCH))
    }

    /// Makes the files that the hypervisor has created accessible to their owner only. Others could control the VM by its sockets.
    pub fn restrict_access(&self, description: &HyperKit) {
        let files = [PID_FILE].into_iter().chain(ALL_TTYS).chain(ALL_LOGS).map(str::to_owned);
        let files = files.chain(self.files_of_vm().unwrap_or_default()).map(|name| self.file(name));
        for path in files.chain(description.internal_networks.iter().flat_map(InternalNetwork::sockets)) {
            // The tty file of an old hyperkit is a link to the pty.
            let is_link = path.symlink_metadata().is_ok_and(|metadata| metadata.is_symlink());
            let restricted = if is_link { Ok(()) } else { set_permissions(&path, Permissions::from_mode(OWNER_ONLY)) };
            match restricted {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    log::warn!(target: "hyperkit", "{}: others may have access: {error}", path.display());
                }
                _ => {}
            }
        }
    }
}
