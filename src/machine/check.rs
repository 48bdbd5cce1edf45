//! What can be asked about a description before a start.

use crate::config::HyperKit;
use crate::engine::{self, Engine};
use crate::error::Result;
use crate::preflight::{checked, find_hypervisor, resolved};

/// # Check and render
///
/// These calls change nothing and start nothing.
impl HyperKit {
    /// Checks whether the VM could be started: the description, the files that it names, and the hypervisor.
    ///
    /// It changes nothing, so it does not report what is in use. Only [`start`](Self::start) reports that the VM runs
    /// already, or that another VM uses its images or ports. An unset [`console`](Self#structfield.console) counts as in
    /// [`run`](Self::run). A start in the background uses a pty instead, and therefore also requires a state directory.
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
    /// [`Error::InvalidConfig`](crate::Error::InvalidConfig) with all violations; if there are none,
    /// [`Error::HypervisorNotFound`](crate::Error::HypervisorNotFound).
    #[doc(alias = "validate")]
    pub fn check(&self) -> Result<()> {
        checked(self).map(drop)
    }

    /// Returns the hypervisor's arguments for this description and kernel command line.
    ///
    /// It looks at no file. Relative paths stay relative, except that hyperkit requires an absolute path for a qcow2 image.
    /// QEMU's accelerator is left out, since it depends on the host. With [`hyperkit`](Self#structfield.hyperkit) unset,
    /// the arguments are those of hyperkit, as in the Go package. [`parse_arguments`](crate::parse_arguments) is the
    /// inverse.
    ///
    /// ```
    /// let description = hyperkit::HyperKit::new().kernel("/boot/vmlinuz");
    /// let arguments = description.arguments("console=ttyS0")?;
    /// // `kexec` is hyperkit's word for loading a Linux kernel without a boot loader.
    /// assert_eq!(arguments.last().unwrap(), "kexec,/boot/vmlinuz,,earlyprintk=serial console=ttyS0");
    /// # Ok::<(), hyperkit::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::InvalidConfig`](crate::Error::InvalidConfig) with all violations that do not depend on files or the host.
    #[doc(alias = "argv")]
    #[doc(alias = "command line")]
    pub fn arguments(&self, kernel_cmdline: &str) -> Result<Vec<String>> {
        engine::arguments(self, kernel_cmdline)
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
    /// [`Error::InvalidConfig`](crate::Error::InvalidConfig);
    /// [`Error::HypervisorNotFound`](crate::Error::HypervisorNotFound); [`Error::Io`](crate::Error::Io) if a relative path
    /// cannot be made absolute.
    pub fn resolve(&self) -> Result<Self> {
        resolved(self)
    }

    /// Returns the engine that would run the VM. If [`hyperkit`](Self#structfield.hyperkit) is unset, the architecture of the kernel or of
    /// the boot ROM and the installed hypervisors decide, and the crate logs the choice.
    ///
    /// ```
    /// use hyperkit::{Engine, HyperKit};
    ///
    /// assert_eq!(HyperKit::new().hyperkit("qemu-system-x86_64").engine()?, Engine::Qemu);
    /// # Ok::<(), hyperkit::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::HypervisorNotFound`](crate::Error::HypervisorNotFound) if [`hyperkit`](Self#structfield.hyperkit) is unset
    /// and no hypervisor is installed.
    pub fn engine(&self) -> Result<Engine> {
        match &self.hyperkit {
            Some(program) => Ok(Engine::of(program)),
            None => find_hypervisor(self).map(Engine::of),
        }
    }
}
