//! A VM that ends with its owner.

use std::ops::Deref;

use crate::vm::Vm;

/// A VM that ends with its owner, from [`HyperKit::start_scoped`](crate::HyperKit::start_scoped).
///
/// The VM is killed when the `ScopedVm` is dropped, and when this program ends in any way, SIGKILL included. It has all
/// methods of [`Vm`].
///
/// If this program is killed while a process that it has forked still runs, and that process has executed no other program,
/// the VM runs until that process exits, too.
///
/// ```
/// # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
/// # let _here = here::alone();
/// let description = hyperkit::HyperKit::new().state_dir("vm").kernel("vmlinuz").initrd("initrd.img");
/// let vm = description.start_scoped("console=ttyS0")?;
/// assert!(description.is_running()?);
/// drop(vm);
/// assert!(!description.is_running()?);
/// # Ok::<(), hyperkit::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "dropping it kills the VM"]
pub struct ScopedVm {
    vm: Vm,
    is_kept: bool,
}

impl ScopedVm {
    pub(crate) fn new(vm: Vm) -> Self {
        Self { vm, is_kept: false }
    }

    /// Turns it into an ordinary [`Vm`], which outlives this program.
    ///
    /// ```
    /// # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
    /// # let _here = here::alone();
    /// let description = hyperkit::HyperKit::new().state_dir("vm").kernel("vmlinuz").initrd("initrd.img");
    /// let vm = description.start_scoped("console=ttyS0")?.keep();
    /// drop(vm);
    /// assert!(description.is_running()?);
    /// # Ok::<(), hyperkit::Error>(())
    /// ```
    #[must_use]
    pub fn keep(mut self) -> Vm {
        self.is_kept = true;
        if let Some(child) = self.vm.child() {
            child.detach_owner();
        }
        self.vm.clone()
    }
}

impl Deref for ScopedVm {
    type Target = Vm;

    fn deref(&self) -> &Vm {
        &self.vm
    }
}

impl Drop for ScopedVm {
    fn drop(&mut self) {
        if self.is_kept {
            return;
        }
        if let Err(error) = self.vm.kill() {
            let dir = self.vm.state_dir().unwrap_or(std::path::Path::new("")).display();
            log::warn!(target: "hyperkit", "{dir}: cannot kill process {}: {error:#}", self.vm.pid());
        }
    }
}
