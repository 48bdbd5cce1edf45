//! Writing a state directory without starting anything.

use crate::config::record::Record;
use crate::config::{HyperKit, Network};
use crate::error::{ConfigError, Result};
use crate::machine::prepare::check_idle;
use crate::plan::validate::validate;
use crate::state::StateDir;
use crate::sys::path::{make_absolute, make_program_absolute};

/// # Define
impl HyperKit {
    /// Writes the description to its state directory without starting the VM, so that
    /// [`from_state`](Self::from_state) finds it. Creates the directory if it is missing.
    ///
    /// This is for programs that create a VM first and start it later. Relative paths are made absolute. The files that the
    /// description names need not exist yet.
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
    /// [`Error::InvalidConfig`](crate::Error::InvalidConfig) if the description is not valid or has no
    /// [`state_dir`](Self#structfield.state_dir); [`Error::AlreadyRunning`](crate::Error::AlreadyRunning) if a VM runs
    /// there; [`Error::CannotTell`](crate::Error::CannotTell); [`Error::Io`](crate::Error::Io).
    #[doc(alias = "create")]
    pub fn define(&self) -> Result<()> {
        let mut description = self.clone();
        let state = StateDir::of(self)?.ok_or(ConfigError::StateDirRequired { field: "define" })?;
        description.state_dir = Some(state.path().to_owned());
        let urls = description.replace_urls(|disk| Ok(disk.format_by_name()));
        description.relocate_disks();
        description.paths_mut().try_for_each(make_absolute)?;
        description.programs_mut().try_for_each(make_program_absolute)?;
        if let Network::VpnKit(socket) = &mut description.network {
            make_absolute(socket)?;
        }
        let mut violations = validate(&description);
        violations.extend(urls);
        violations.into_result()?;
        let lock = state.create_and_lock()?;
        let record = check_idle(&state, &lock)?;
        // `remove` may still delete the disks that this crate created for an earlier start.
        let created_disks = record.map(|record| record.created_disks).unwrap_or_default();
        description.record = Record { created_disks, ..Record::default() };
        state.save(&description)
    }
}
