//! Ending a VM and deleting what it left.

use crate::config::HyperKit;
use crate::config::disk::{Format, Qcow};
use crate::error::{Error, Result};
use crate::preflight::image_lock::refuse_if_in_use;
use crate::state::StateDir;

impl HyperKit {
    /// Pulls the plug, as [`Vm::stop`]. A machine that does not run is no error.
    ///
    /// # Errors
    /// Those of [`Vm::stop`].
    pub fn stop(&self) -> Result<()> {
        match self.vm()? {
            Some(vm) => vm.stop(),
            None => Ok(()),
        }
    }

    /// Forgets the machine: deletes from the state directory what the machine and this crate have put there, and the
    /// directory if that leaves it empty. With `keep_disk`, the disk images stay; images that this crate did not make,
    /// or that are elsewhere, stay in any case. (Images are remembered by name: what you put in the place of one that
    /// was made counts as made.)
    ///
    /// # Errors
    /// [`Error::StillRunning`]; [`Error::DiskInUse`] if another machine uses a disk that would be deleted; [`Error::Io`].
    pub fn remove(&self, keep_disk: bool) -> Result<()> {
        let Some(dir) = &self.state_dir else { return Ok(()) };
        let state = StateDir::new(dir)?;
        let Some(lock) = state.lock()? else { return Ok(()) };
        let recorded = match state.load() {
            Err(Error::NoState { .. }) => return Ok(()), // then there is nothing of ours
            Err(Error::DamagedState { .. }) => self.clone(),
            loaded => loaded?,
        };
        if let Some(process) = state.running(Some(&recorded)) {
            return Err(Error::StillRunning { pid: process.pid() });
        }
        let disks: &[String] = if keep_disk { &[] } else { &recorded.made_disks };
        for name in disks {
            // Of whichever format: this looks for all uses.
            refuse_if_in_use(&state.file(name), &Format::Qcow2(Qcow::default()), false)?;
        }
        state.remove(disks, lock)
    }
}
