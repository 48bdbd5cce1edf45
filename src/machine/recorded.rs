//! What a description carries of its last start.

use crate::config::HyperKit;
use crate::engine;

/// # What the last start recorded
///
/// These return what a description carries: [`from_state`](HyperKit::from_state) reads it from the state directory, and
/// [`Vm::description`](crate::Vm::description) has it, too. A description that was never started has none.
///
/// ```
/// # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
/// # let _here = here::running();
/// let description = hyperkit::HyperKit::from_state("vm")?;
/// println!("process {:?}: {:?}", description.recorded_pid(), description.recorded_arguments());
/// # assert!(!description.recorded_arguments().is_empty());
/// # Ok::<(), hyperkit::Error>(())
/// ```
impl HyperKit {
    /// Returns the hypervisor's process ID at the last start. [`is_running`](Self::is_running) says whether that process
    /// still runs.
    #[must_use]
    pub fn recorded_pid(&self) -> Option<u32> {
        self.record.pid
    }

    /// Returns the hypervisor's arguments at the last start; empty if the VM was never started.
    #[must_use]
    pub fn recorded_arguments(&self) -> &[String] {
        &self.record.arguments
    }

    /// Returns the kernel command line of the last start; `None` if the VM was never started.
    ///
    /// A VM that was found in its state directory can be started again with the same line:
    ///
    /// ```
    /// # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
    /// # let _here = here::running();
    /// let description = hyperkit::HyperKit::from_state("vm")?;
    /// description.stop()?;
    /// let kernel_cmdline = description.recorded_kernel_cmdline().unwrap_or_default();
    /// description.start(&kernel_cmdline)?;
    /// # Ok::<(), hyperkit::Error>(())
    /// ```
    #[must_use]
    pub fn recorded_kernel_cmdline(&self) -> Option<String> {
        engine::recorded_cmdline(self)
    }
}
