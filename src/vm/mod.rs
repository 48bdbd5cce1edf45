//! A VM that was started, by this program or another.

// The order of the blocks on `Vm`'s page of the documentation is the order of these modules. The empty lines keep rustfmt
// from sorting them.
mod about;

mod waiting;

mod exited;

mod control;

pub(crate) mod command;

pub(crate) mod console;
pub(crate) mod console_log;

pub(crate) mod network;
pub(crate) mod scoped;
mod successor;
mod vsock;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde::Serialize;

pub use exited::Exited;

use crate::config::HyperKit;
use crate::engine::{Control, EngineDriver, Hypervisor, driver_of};
use crate::error::{ConfigError, Error, Result};
use crate::exit::Exit;
use crate::process::{ExitFd, Process};
use crate::runtime::child::Child;
use crate::runtime::output::Output;
use crate::state::StateDir;
use crate::vm::command::AgentSlot;

/// How long a hypervisor may take to answer, including the time in which it serves another client.
pub(crate) const CONTROL_TIMEOUT: Duration = Duration::from_secs(5);

/// A VM that was started, by this program or by another one.
///
/// [`HyperKit::start`] returns it, and [`HyperKit::vm`] finds it again. It stays the handle of this VM: if another VM is
/// started later in the same state directory, this handle does not change to it.
///
/// All methods take `&self` and can be called from any thread. A clone is another handle of the same VM. If all handles are
/// dropped, the VM runs on. (A [`ScopedVm`](crate::ScopedVm) kills its VM when it is dropped.)
///
/// ```
/// # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
/// # let _here = here::alone();
/// use hyperkit::{Disks, HyperKit};
///
/// let vm = HyperKit::new().state_dir("vm").kernel("vmlinuz").initrd("initrd.img").start("console=ttyS0")?;
/// println!("process {} in {:?}, {} vCPUs", vm.pid(), vm.state_dir(), vm.description().cpus);
/// # vm.kill()?; // nothing else ends the VM of this example
/// let exit = vm.wait();
/// println!("the VM {exit}");
/// vm.remove(Disks::Delete)?;
/// # Ok::<(), hyperkit::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Vm(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    process: Handle,
    /// The description as it was started.
    description: HyperKit,
    state: Option<StateDir>,
    /// The hypervisor's output, if this program has started it.
    output: Option<Output>,
    agent: AgentSlot,
    #[cfg(target_os = "linux")]
    exit_fd: ExitFd,
}

/// The hypervisor's process. Only its parent learns how it exited.
#[derive(Debug)]
pub(crate) enum Handle {
    Child(Arc<Child>),
    Found(Process),
}

/// What a VM is doing; see [`Vm::status`].
///
/// ```
/// use hyperkit::{Exit, VmStatus};
///
/// assert_eq!(VmStatus::Paused.to_string(), "paused");
/// assert_eq!(VmStatus::Exited(Exit::PowerOff).to_string(), "exited: powered off");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum VmStatus {
    /// The hypervisor runs. On hyperkit, a paused VM is reported as running, too.
    Running,
    /// The guest's vCPUs are stopped.
    Paused,
    /// The hypervisor has exited.
    Exited(Exit),
}

impl fmt::Display for VmStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Running => f.write_str("running"),
            Self::Paused => f.write_str("paused"),
            Self::Exited(exit) => write!(f, "exited: {exit}"),
        }
    }
}

/// Whether [`Vm::remove`] and [`HyperKit::remove`](crate::HyperKit::remove) delete the disk images that this crate created
/// in the state directory.
///
/// Images elsewhere, and images that this crate did not create, are never deleted. [`Vm`] has an example.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Disks {
    /// Disk images stay.
    Keep,
    /// Disk images that this crate created in the state directory are deleted.
    Delete,
}

impl Vm {
    pub(crate) fn new(
        process: Handle,
        description: HyperKit,
        state: Option<StateDir>,
        output: Option<Output>,
    ) -> Result<Self> {
        #[cfg(target_os = "linux")]
        let exit_fd = exit_fd(&process)?;
        Ok(Self(Arc::new(Inner {
            process,
            description,
            state,
            output,
            agent: AgentSlot::default(),
            #[cfg(target_os = "linux")]
            exit_fd,
        })))
    }

    /// Kills the process, and leaves the state directory as it is.
    pub(crate) fn kill_process(&self) -> Result<()> {
        self.signal(Signal::KILL)?;
        self.wait_until(None);
        Ok(())
    }

    fn control(&self, control: Control) -> Result<()> {
        self.check_running()?;
        self.send_control(control, CONTROL_TIMEOUT)
    }

    fn send_control(&self, control: Control, timeout: Duration) -> Result<()> {
        self.driver().control(control, self.hypervisor(), &|signal| self.signal(signal), timeout)
    }

    pub(crate) fn check_running(&self) -> Result<()> {
        match self.try_wait() {
            Some(_) => Err(Error::NotRunning { state_dir: self.state_dir().map(Path::to_owned) }),
            None => Ok(()),
        }
    }

    pub(crate) fn driver(&self) -> &'static dyn EngineDriver {
        driver_of(&self.0.description)
    }

    pub(crate) fn hypervisor(&self) -> Hypervisor<'_> {
        Hypervisor { pid: self.pid(), description: self.description(), state: self.state() }
    }

    pub(crate) fn state(&self) -> Option<&StateDir> {
        self.0.state.as_ref()
    }

    /// The state directory, for a call that needs one.
    pub(crate) fn required_state(&self, call: &'static str) -> Result<&StateDir, ConfigError> {
        self.state().ok_or(ConfigError::StateDirRequired { field: call })
    }

    fn agent_slot(&self) -> &AgentSlot {
        &self.0.agent
    }

    pub(crate) fn child(&self) -> Option<&Arc<Child>> {
        match &self.0.process {
            Handle::Child(child) => Some(child),
            Handle::Found(_) => None,
        }
    }

    /// Cleans up in the state directory, and records that this program has `killed` the VM, unless another VM was started there since. A
    /// start that is in progress cleans up by itself. This thread may hold the lock for that start, and would wait for itself here.
    fn clean_up(&self, killed: bool) -> Result<()> {
        if self.child().is_some_and(|child| child.is_starting()) {
            return Ok(());
        }
        self.state().map_or(Ok(()), |state| state.clear_if_idle(self.pid(), killed))
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let sent = match &self.0.process {
            Handle::Child(child) => child.signal(signal),
            Handle::Found(process) => process.signal(signal),
        };
        sent.map_err(Error::io("send a signal to", format!("process {}", self.pid())))
    }

    fn wait_until(&self, deadline: Option<Instant>) -> Option<Exit> {
        match &self.0.process {
            Handle::Child(child) => child.wait(deadline),
            Handle::Found(process) => process.wait(deadline).then_some(Exit::Unknown),
        }
    }
}

/// Becomes readable at the exit.
fn exit_fd(process: &Handle) -> Result<ExitFd> {
    match process {
        Handle::Child(child) => Ok(child.exit_fd().clone()),
        Handle::Found(process) => process.exit_fd().map_err(Error::io("watch", format!("process {}", process.pid()))),
    }
}

/// The descriptor (usually a pidfd) becomes readable when the hypervisor has exited. Linux only. [`Vm::exited`] is the same as
/// a future, on every system.
#[cfg(target_os = "linux")]
impl std::os::fd::AsFd for Vm {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.exit_fd.as_fd()
    }
}
