//! Stopping a VM, and deleting what it left.

use crate::config::HyperKit;
use crate::config::disk::{DiskFormat, QcowOptions};
use crate::error::{Error, Result};
use crate::machine::lookup::state_dir;
use crate::preflight::image_lock::lock_image;
use crate::runtime::cleanup::is_file_name;
use crate::state::{JSON_FILE, StateDir};
use crate::vm::{Disks, Vm};

/// # End and remove
///
/// To let the guest power off by itself, use [`Vm::shutdown`].
///
/// ```
/// # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
/// # let _here = here::running();
/// use hyperkit::{Disks, HyperKit};
///
/// let description = HyperKit::from_state("vm")?;
/// description.stop()?;
/// description.remove(Disks::Delete)?;
/// assert!(HyperKit::from_state("vm").is_err());
/// # Ok::<(), hyperkit::Error>(())
/// ```
impl HyperKit {
    /// Kills the hypervisor, as the Go package's `Stop`; see [`Vm::kill`]. It is no error if the VM does not run.
    ///
    /// # Errors
    /// Those of [`vm`](Self::vm) and [`Vm::kill`].
    #[doc(alias = "kill")]
    #[doc(alias = "terminate")]
    pub fn stop(&self) -> Result<()> {
        match self.vm()? {
            Some(vm) => vm.kill(),
            None => Ok(()),
        }
    }

    /// Deletes the files that the VM and this crate created in the state directory, and the directory if it is empty then.
    ///
    /// [`Disks::Keep`] keeps all disk images. [`Disks::Delete`] deletes those that this crate created in the state
    /// directory, and keeps all others. (The record names the created images. If you replace one by another file of the
    /// same name, that file is deleted.)
    ///
    /// # Errors
    /// [`Error::StillRunning`]; [`Error::DiskInUse`] if another VM uses a disk that would be deleted;
    /// [`Error::CannotTell`]; [`Error::Io`].
    #[doc(alias = "delete")]
    #[doc(alias = "rm")]
    #[doc(alias = "clean")]
    pub fn remove(&self, disks: Disks) -> Result<()> {
        state_dir(self)?.map_or(Ok(()), |state| remove(&state, disks))
    }
}

/// # Remove
impl Vm {
    /// Deletes what the VM left in its state directory, after the VM has exited; see [`HyperKit::remove`].
    ///
    /// # Errors
    /// Those of [`HyperKit::remove`]; [`Error::Replaced`].
    #[doc(alias = "delete")]
    pub fn remove(&self, disks: Disks) -> Result<()> {
        self.check_not_replaced()?;
        self.state().map_or(Ok(()), |state| remove(state, disks))
    }
}

fn remove(state: &StateDir, disks: Disks) -> Result<()> {
    let Some(lock) = state.lock()? else { return Ok(()) };
    let record = state.load_whole_record()?;
    if let Some(process) = state.running_locked(record.as_ref(), &lock)? {
        return Err(Error::StillRunning { pid: process.pid(), state_dir: state.path().to_owned() });
    }
    if record.is_none() && !state.file(JSON_FILE).exists() {
        return Ok(()); // this is not a state directory
    }
    let mut created = record.map(|record| record.created_disks).unwrap_or_default();
    created.retain(|name| is_file_name(name) && !state.file(name).is_dir());
    let deleted: &[String] = if disks == Disks::Delete { &created } else { &[] };
    // As qcow2, so that all uses are found. No other VM can start with an image while it is deleted.
    let lock_disk = |name| lock_image(&state.file(name), &DiskFormat::Qcow2(QcowOptions::default()), false);
    let _image_locks = deleted.iter().map(lock_disk).collect::<Result<Vec<_>>>()?;
    state.remove(deleted, lock)
}
