//! Waiting for the exit of a VM.

use std::time::{Duration, Instant};

use crate::exit::Exit;
use crate::vm::Vm;

/// # Wait for the exit
///
/// ```
/// # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
/// # let _here = here::running();
/// # let vm = hyperkit::HyperKit::from_state("vm")?.vm()?.ok_or("the VM does not run")?;
/// use std::time::Duration;
///
/// assert_eq!(vm.try_wait(), None); // it runs
/// assert_eq!(vm.wait_timeout(Duration::from_millis(10)), None);
/// # vm.kill()?; // nothing else ends the VM of this example
/// println!("the VM {}", vm.wait());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
impl Vm {
    /// Waits until the VM has exited.
    ///
    /// If this program started the VM, `wait` also waits until the logger has received all of the hypervisor's output. So a
    /// logger that blocks delays it.
    #[must_use = "how the VM exited"]
    pub fn wait(&self) -> Exit {
        self.wait_until(None).unwrap_or(Exit::Unknown)
    }

    /// Waits until the VM has exited, but at most `timeout`; `None` if it still runs.
    #[must_use = "whether and how the VM exited"]
    pub fn wait_timeout(&self, timeout: Duration) -> Option<Exit> {
        // If the clock cannot represent the deadline, it waits without one.
        self.wait_until(Instant::now().checked_add(timeout))
    }

    /// Returns how the VM exited; `None` if it still runs.
    #[must_use]
    pub fn try_wait(&self) -> Option<Exit> {
        self.wait_timeout(Duration::ZERO)
    }
}
