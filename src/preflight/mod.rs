//! Everything before a start: checks of the description, of the files and programs that it names, and of the host; disk
//! images, which a start also creates, grows and locks.

pub(crate) mod files;
pub(crate) mod image;
pub(crate) mod image_format;
pub(crate) mod image_lock;
pub(crate) mod kernel;

use crate::config::HyperKit;
use crate::engine::{self, Engine, driver_of};
use crate::error::{Error, Result};
use crate::plan::validate::{Violations, validate};
use crate::sys::path::{canonical, make_absolute, make_program_absolute};

use files::check_files;
use image_format::found_format;

impl HyperKit {
    /// Checks whether the VM could be started: the description, the files that it names, the hypervisor. Changes
    /// nothing, so it does not find out what is in use: whether the VM runs already, or another one has its images or
    /// ports, only [`start`](Self::start) reports. An unset [`console`](Self#structfield.console) counts as in
    /// [`run`](Self::run): a start in the background also needs a state directory for it.
    ///
    /// ```
    /// use hyperkit::{ConfigError, HyperKit};
    ///
    /// let error = HyperKit::new().kernel("no-such-file").cpus(0).check().unwrap_err();
    /// assert_eq!(error.violations()[0], ConfigError::InvalidCpus { value: 0 });
    /// assert!(matches!(error.violations()[1], ConfigError::NotFound { field: "kernel", .. }));
    /// ```
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] with all violations; if there are none, [`Error::HypervisorNotFound`].
    pub fn check(&self) -> Result<()> {
        checked(self).map(drop)
    }

    /// Returns the description as it would be started: paths absolute, hypervisor and network socket found, formats of
    /// disk images probed.
    ///
    /// ```
    /// let description = hyperkit::HyperKit::new().hyperkit("sh").kernel("vmlinuz").resolve()?;
    /// assert!(description.kernel.unwrap().is_absolute() && description.hyperkit.unwrap().is_absolute());
    /// # Ok::<(), hyperkit::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::InvalidConfig`], [`Error::HypervisorNotFound`], [`Error::Io`].
    pub fn resolve(&self) -> Result<Self> {
        let (description, violations, not_found) = resolve(self)?;
        violations.into_result()?;
        not_found.map_or(Ok(description), Err)
    }

    /// Returns the engine that would run the VM.
    ///
    /// ```
    /// use hyperkit::{Engine, HyperKit};
    ///
    /// assert_eq!(HyperKit::new().hyperkit("qemu-system-x86_64").engine()?, Engine::Qemu);
    /// # Ok::<(), hyperkit::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::HypervisorNotFound`] if [`hyperkit`](Self#structfield.hyperkit) is unset and no hypervisor is installed.
    pub fn engine(&self) -> Result<Engine> {
        match &self.hyperkit {
            Some(program) => Ok(Engine::of(program)),
            None => engine::find(None).map(Engine::of),
        }
    }
}

/// The description as it would be started, if it passes all checks.
pub(crate) fn checked(description: &HyperKit) -> Result<HyperKit> {
    let (description, mut violations, not_found) = resolve(description)?;
    if not_found.is_none() {
        let driver = driver_of(&description);
        violations.extend(driver.unsupported(&description));
        violations.extend(driver.check_host(&description));
    }
    check_files(&description, &mut violations);
    violations.into_result()?;
    not_found.map_or(Ok(description), Err)
}

/// Resolves what can be resolved, with the violations that are found on the way, and the error if the hypervisor is
/// missing.
fn resolve(description: &HyperKit) -> Result<(HyperKit, Violations, Option<Error>)> {
    let mut resolved = description.clone();
    resolved.paths_mut().try_for_each(make_absolute)?;
    resolved.programs_mut().try_for_each(make_program_absolute)?;
    if let Some(dir) = &mut resolved.state_dir {
        make_absolute(dir)?;
        *dir = canonical(dir);
    }
    if let crate::config::Network::VpnKit(socket) = &mut resolved.network {
        make_absolute(socket)?;
    }
    resolved.relocate_disks();
    let mut violations = validate(&resolved);
    let not_found = match engine::find(description.hyperkit.as_deref()) {
        Ok(program) => {
            resolved.hyperkit = Some(program);
            let driver = driver_of(&resolved);
            violations.collect(driver.resolve(&mut resolved));
            None
        }
        Err(error) => Some(error),
    };
    for index in 0..resolved.disks.len() {
        let disk = &resolved.disks[index];
        let Ok(path) = disk.image_path(index, resolved.state_dir.as_deref()) else { continue };
        if let Some(format) = violations.collect(found_format(disk, &path)) {
            let disk = &mut resolved.disks[index];
            // The default place depends on the format: it is the one that was looked at.
            if disk.format.is_none() {
                disk.path = Some(path);
            }
            disk.format = Some(format);
        }
    }
    Ok((resolved, violations, not_found))
}
