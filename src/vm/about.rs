//! Which VM a handle is of.

use std::path::Path;

use crate::config::HyperKit;
use crate::runtime::log_tail::LogTail;
use crate::state::StateDir;
use crate::vm::{Handle, Vm};

/// # About the VM
impl Vm {
    /// Returns the process ID of the hypervisor.
    #[must_use]
    pub fn pid(&self) -> u32 {
        match &self.0.process {
            Handle::Child(child) => child.pid(),
            Handle::Found(process) => process.pid(),
        }
    }

    /// Returns the description as it was started: with absolute paths, and with the hypervisor and the disk formats that were
    /// found.
    #[must_use]
    pub fn description(&self) -> &HyperKit {
        &self.0.description
    }

    /// Returns the state directory as an absolute path without symlinks; `None` if the VM has none.
    #[must_use]
    pub fn state_dir(&self) -> Option<&Path> {
        self.0.state.as_ref().map(StateDir::path)
    }

    /// Returns the last lines of the hypervisor's output and of the console. This also works after the VM has exited.
    ///
    /// ```
    /// # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
    /// # let _here = here::running();
    /// # let vm = hyperkit::HyperKit::from_state("vm")?.vm()?.ok_or("the VM does not run")?;
    /// println!("{:#}", vm.log_tail());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "log")]
    #[must_use]
    pub fn log_tail(&self) -> LogTail {
        let state = self.state().filter(|_| self.check_not_replaced().is_ok());
        LogTail::read(self.0.output.as_ref(), state, self.driver())
    }
}
