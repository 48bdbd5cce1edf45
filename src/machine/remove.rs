//! Stopping a VM, and deleting what it left.

use crate::config::HyperKit;
use crate::config::disk::{DiskFormat, QcowOptions};
use crate::error::{Error, Result};
use crate::preflight::image_lock::lock_image;
use crate::state::{JSON_FILE, StateDir};
use crate::vm::{Disks, Vm};

impl HyperKit {
    /// Kills the hypervisor, as the Go package's `Stop`; see [`Vm::kill`]. It is no error if the VM does not run.
    ///
    /// # Errors
    /// Those of [`vm`](Self::vm) and [`Vm::kill`].
    pub fn stop(&self) -> Result<()> {
        match self.vm()? {
            Some(vm) => vm.kill(),
            None => Ok(()),
        }
    }

    /// Deletes from the state directory what the VM and this crate created there, and the directory itself if it is empty
    /// then. With [`Disks::Keep`], disk images stay. Images that this crate did not create, or that are elsewhere, always
    /// stay. (The state directory records created images by name: a file that you put in place of one counts as created.)
    ///
    /// # Errors
    /// [`Error::StillRunning`]; [`Error::DiskInUse`] if another VM uses a disk that would be deleted;
    /// [`Error::CannotTell`]; [`Error::Io`].
    pub fn remove(&self, disks: Disks) -> Result<()> {
        StateDir::of(self)?.map_or(Ok(()), |state| remove(&state, disks))
    }
}

impl Vm {
    /// Deletes what the VM left in its state directory, after it has exited; see [`HyperKit::remove`].
    ///
    /// # Errors
    /// Those of [`HyperKit::remove`].
    pub fn remove(&self, disks: Disks) -> Result<()> {
        self.state().map_or(Ok(()), |state| remove(state, disks))
    }
}

fn remove(state: &StateDir, disks: Disks) -> Result<()> {
    let Some(lock) = state.lock()? else { return Ok(()) };
    let record = state.load_whole_record()?;
    if let Some(process) = state.running(record.as_ref())? {
        return Err(Error::StillRunning { pid: process.pid(), state_dir: state.path().to_owned() });
    }
    if record.is_none() && !state.file(JSON_FILE).exists() {
        return Ok(()); // nothing in the directory is ours
    }
    let created = record.map(|record| record.created_disks).unwrap_or_default();
    let deleted: &[String] = if disks == Disks::Delete { &created } else { &[] };
    for name in deleted {
        // As qcow2, so that all uses are found.
        lock_image(&state.file(name), &DiskFormat::Qcow2(QcowOptions::default()), false)?;
    }
    state.remove(deleted, lock)
}
