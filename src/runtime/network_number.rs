//! The numbers of VMs in internal networks: a start takes them, and cleanup releases them.
//!
//! A number is in use if a process receives at its socket, or has the socket on its command line. The starter receives at the socket
//! until it has spawned QEMU, whose command line contains the path. QEMU replaces the socket some milliseconds later, whether it is in
//! use or not. So the number is in use at every moment, even if the starter is killed, and the network needs no process of its own.

use std::fs::{self, DirBuilder, File};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use crate::config::{HyperKit, InternalNetwork};
use crate::engine::receives_frames_at;
use crate::error::{Error, Result};
use crate::preflight::files::check_network_dir;
use crate::process::list_all;
use crate::sys::file::{open_dir, remove_file};
use crate::sys::lock::{open_locked, unlock};
use crate::sys::unix_socket::{is_stale, remove_stale_socket};

/// A number that a start has taken. Dropping it releases the number, unless a hypervisor uses it by then.
#[derive(Debug)]
pub(crate) struct NetworkNumber {
    network: InternalNetwork,
    socket: Option<UnixDatagram>,
    /// The directories that were created, innermost first.
    created: Vec<PathBuf>,
}

impl NetworkNumber {
    /// Takes the numbers of a description, and creates missing directories.
    pub fn take_all(description: &HyperKit) -> Result<Vec<Self>> {
        description.internal_networks.iter().map(Self::take).collect()
    }

    fn take(network: &InternalNetwork) -> Result<Self> {
        let dir = &network.dir;
        let missing = dir.ancestors().take_while(|dir| !dir.exists()).map(Path::to_owned).collect();
        let mut taken = Self { network: network.clone(), socket: None, created: missing };
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700);
        let create = || builder.create(dir).and_then(|()| open_dir(dir));
        let _lock = open_locked(dir, create).map(DirLock).map_err(Error::io("create and lock", dir))?;
        // Another program may have created the directory since the description was checked.
        check_network_dir(dir)?;
        let path = network.socket();
        if is_socket(&path) && !is_stale(&path) || is_used_by_hypervisor(network)? {
            return Err(Error::NetworkNumberInUse { dir: dir.clone(), number: network.number });
        }
        network.sockets().iter().try_for_each(|socket| remove_stale_socket(socket))?;
        taken.socket = Some(UnixDatagram::bind(&path).map_err(Error::io("create", &path))?);
        Ok(taken)
    }
}

impl Drop for NetworkNumber {
    fn drop(&mut self) {
        let was_taken = self.socket.take().is_some();
        let released = if was_taken { release(&self.network) } else { Ok(()) };
        if let Err(error) = released {
            log::warn!(target: "hyperkit", "{}: {error:#}", self.network.dir.display());
        }
        // `remove_dir` keeps a directory that is not empty.
        self.created.iter().for_each(|dir| drop(fs::remove_dir(dir)));
    }
}

/// The lock of a network's directory, for the moment in which sockets change.
struct DirLock(File);

impl Drop for DirLock {
    fn drop(&mut self) {
        unlock(&self.0);
    }
}

/// Removes the stale sockets of a description's VM, and the directories of its networks if they are empty.
pub(super) fn release_numbers(description: &HyperKit) -> Result<()> {
    description.internal_networks.iter().try_for_each(release)
}

fn release(network: &InternalNetwork) -> Result<()> {
    let dir = &network.dir;
    let _lock = match open_locked(dir, || open_dir(dir)) {
        Err(error) if [ErrorKind::NotFound, ErrorKind::NotADirectory].contains(&error.kind()) => return Ok(()),
        locked => locked.map(DirLock).map_err(Error::io("lock", dir))?,
    };
    // Another VM may use the number by now.
    let mut stale = network.sockets().into_iter().filter(|socket| is_socket(socket) && is_stale(socket)).peekable();
    if stale.peek().is_some() && !is_used_by_hypervisor(network)? {
        stale.try_for_each(remove_file)?;
    }
    // `remove_dir` keeps a directory that is not empty.
    let _ = fs::remove_dir(dir);
    Ok(())
}

fn is_socket(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|metadata| metadata.file_type().is_socket())
}

/// Whether the command line of a hypervisor contains the number's socket.
fn is_used_by_hypervisor(network: &InternalNetwork) -> Result<bool> {
    let processes = list_all().map_err(|error| Error::cannot_tell(Some(&network.dir))(error))?;
    let socket = network.socket();
    Ok(processes.iter().any(|process| receives_frames_at(&process.command, &socket)))
}
