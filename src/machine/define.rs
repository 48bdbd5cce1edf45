//! Writing a state directory without starting anything.

use crate::config::HyperKit;
use crate::config::record::Record;
use crate::error::{ConfigError, Error, Result};
use crate::plan::validate::validate;
use crate::state::StateDir;
use crate::sys::path::make_absolute;

impl HyperKit {
    /// Writes the description to its state directory without starting anything, so that
    /// [`from_state`](Self::from_state) finds it. Creates the directory if it is missing.
    ///
    /// Relative paths are made absolute. The files that the description names need not exist yet.
    ///
    /// ```
    /// use hyperkit::HyperKit;
    ///
    /// let dir = tempfile::tempdir()?;
    /// HyperKit::new().state_dir(dir.path().join("vm")).kernel("vmlinuz").cpus(2).define()?;
    /// assert_eq!(HyperKit::from_state(dir.path().join("vm"))?.cpus, 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] if the description is not valid or has no [`state_dir`](Self#structfield.state_dir);
    /// [`Error::AlreadyRunning`]; [`Error::CannotTell`]; [`Error::Io`].
    pub fn define(&self) -> Result<()> {
        let mut description = self.clone();
        let state = StateDir::of(self)?.ok_or(ConfigError::StateDirRequired { field: "define" })?;
        description.state_dir = Some(state.path().to_owned());
        description.paths_mut().try_for_each(make_absolute)?;
        validate(&description).into_result()?;
        let _lock = state.create_and_lock()?;
        let record = state.load_whole_record()?;
        if let Some(process) = state.running(record.as_ref())? {
            return Err(Error::AlreadyRunning { pid: process.pid(), state_dir: state.path().to_owned() });
        }
        // Disks that this crate created for an earlier start are still its own.
        let created_disks = record.map(|record| record.created_disks).unwrap_or_default();
        description.record = Record { created_disks, ..Record::default() };
        state.save(&description)
    }
}
