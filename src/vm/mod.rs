//! A VM that was started, by this program or another.

pub(crate) mod console;
pub(crate) mod console_log;
mod exited;
pub(crate) mod network;
pub(crate) mod scoped;
mod vsock;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde::Serialize;

pub use exited::Exited;

use crate::config::HyperKit;
use crate::engine::{Control, EngineDriver, driver_of};
use crate::error::{ConfigError, Error, Result};
use crate::exit::{Exit, ShutdownOutcome};
use crate::process::{ExitFd, Process};
use crate::runtime::child::Child;
use crate::runtime::log_tail::LogTail;
use crate::runtime::output::Output;
use crate::state::StateDir;

/// How often the power button is pressed: a guest that is not ready loses a press.
const PRESS_INTERVAL: Duration = Duration::from_millis(500);
/// How long a hypervisor may take to answer, including the time in which it serves another client.
pub(crate) const CONTROL_TIMEOUT: Duration = Duration::from_secs(5);

/// A VM that was started, by this program or another.
///
/// All methods take `&self` and can be called from any thread. A clone is another handle of the same VM. Dropping all
/// handles leaves the VM running; [`HyperKit::vm`] finds it again. (A [`ScopedVm`](crate::ScopedVm) is killed when it is
/// dropped.)
///
/// ```
/// # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
/// # let _here = here::alone();
/// use hyperkit::{Disks, HyperKit};
///
/// let vm = HyperKit::new().state_dir("vm").kernel("vmlinuz").initrd("initrd.img").start("console=ttyS0")?;
/// println!("process {} in {:?}", vm.pid(), vm.state_dir());
/// # vm.kill()?; // nobody is here to do it
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum VmStatus {
    /// The hypervisor runs. hyperkit does not report whether the VM is paused, and then it counts as running.
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

/// Whether [`remove`](Vm::remove) deletes the disk images that this crate created in the state directory.
///
/// Images elsewhere, and images that this crate did not create, are never deleted.
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
            #[cfg(target_os = "linux")]
            exit_fd,
        })))
    }

    /// The process ID of the hypervisor.
    #[must_use]
    pub fn pid(&self) -> u32 {
        match &self.0.process {
            Handle::Child(child) => child.pid(),
            Handle::Found(process) => process.pid(),
        }
    }

    /// The description as it was started: absolute paths, the hypervisor and the formats of disks that were found.
    #[must_use]
    pub fn description(&self) -> &HyperKit {
        &self.0.description
    }

    /// The state directory, absolute and without symlinks.
    #[must_use]
    pub fn state_dir(&self) -> Option<&Path> {
        self.0.state.as_ref().map(StateDir::path)
    }

    /// Waits until the VM has exited. For a VM that this program started, also until the logger has got all of the
    /// hypervisor's output, so a logger that blocks delays this.
    #[must_use = "how the VM exited"]
    pub fn wait(&self) -> Exit {
        self.wait_until(None).unwrap_or(Exit::Unknown)
    }

    /// Waits until the VM has exited, but at most `timeout`; `None` if it still runs.
    #[must_use = "whether and how the VM exited"]
    pub fn wait_timeout(&self, timeout: Duration) -> Option<Exit> {
        // A deadline that the clock cannot represent is none.
        self.wait_until(Instant::now().checked_add(timeout))
    }

    /// How the VM exited; `None` if it still runs.
    #[must_use]
    pub fn try_wait(&self) -> Option<Exit> {
        self.wait_timeout(Duration::ZERO)
    }

    /// Returns whether the VM runs, is paused or has exited.
    ///
    /// # Errors
    /// [`Error::Qmp`] or [`Error::Io`] if QEMU does not answer within 5 s.
    pub fn status(&self) -> Result<VmStatus> {
        if let Some(exit) = self.try_wait() {
            return Ok(VmStatus::Exited(exit));
        }
        match self.driver().is_paused(self.state(), CONTROL_TIMEOUT) {
            Ok(Some(true)) => Ok(VmStatus::Paused),
            Ok(_) => Ok(VmStatus::Running),
            // It may have exited meanwhile.
            Err(error) => self.try_wait().map(VmStatus::Exited).ok_or(error),
        }
    }

    /// Kills the hypervisor (SIGKILL), and returns when its process and its pid file are gone.
    ///
    /// What the guest has not written to its disks is lost. It is no error if the VM has exited already.
    ///
    /// # Errors
    /// [`Error::Io`] if the operating system refuses the signal, or the pid file cannot be removed;
    /// [`Error::CannotTell`].
    pub fn kill(&self) -> Result<()> {
        self.kill_process()?;
        self.clean_up()
    }

    /// Kills the process, and leaves the state directory as it is.
    pub(crate) fn kill_process(&self) -> Result<()> {
        self.signal(Signal::KILL)?;
        self.wait_until(None);
        Ok(())
    }

    /// The last lines of the hypervisor's output and of the console, also after the VM has exited.
    #[must_use]
    pub fn log_tail(&self) -> LogTail {
        LogTail::read(self.0.output.as_ref(), self.state(), self.driver())
    }

    /// Presses the power button, waits for the guest to power off, and kills the hypervisor if that takes longer than
    /// `grace`.
    ///
    /// The press is repeated, since a guest that is not ready loses it; a paused VM is resumed. On hyperkit, a press before
    /// the guest has turned ACPI on kills the VM. Returns when the process and its pid file are gone.
    ///
    /// ```
    /// # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
    /// # let _here = here::running();
    /// use hyperkit::{HyperKit, ShutdownOutcome};
    /// use std::time::Duration;
    ///
    /// if let Some(vm) = HyperKit::from_state("vm")?.vm()? {
    ///     match vm.shutdown(Duration::from_secs(30))? {
    ///         ShutdownOutcome::Graceful(exit) => println!("the guest {exit}"),
    ///         other => println!("{other}"),
    ///     }
    /// }
    /// # Ok::<(), hyperkit::Error>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`kill`](Self::kill). It is no error if the power button cannot be pressed: the VM is then killed.
    pub fn shutdown(&self, grace: Duration) -> Result<ShutdownOutcome> {
        if let Some(exit) = self.try_wait() {
            self.clean_up()?;
            return Ok(ShutdownOutcome::AlreadyExited(exit));
        }
        let start = Instant::now();
        while let Some(left) = grace.checked_sub(start.elapsed()).filter(|left| !left.is_zero()) {
            for control in [Control::Resume, Control::PressPowerButton] {
                if let Err(error) = self.send_control(control, left.min(CONTROL_TIMEOUT)) {
                    let dir = self.state_dir().unwrap_or(Path::new("")).display();
                    log::debug!(target: "hyperkit", "{dir}: {control:?}: {error:#}");
                }
            }
            if let Some(exit) = self.wait_timeout(grace.saturating_sub(start.elapsed()).min(PRESS_INTERVAL)) {
                let outcome = self.outcome(exit)?;
                self.clean_up()?;
                return Ok(outcome);
            }
        }
        self.kill()?;
        Ok(match self.wait() {
            exit if exit.is_guest() => ShutdownOutcome::Graceful(exit), // at the last moment
            exit => ShutdownOutcome::Forced(exit),
        })
    }

    /// Classifies an exit within the grace period. Only the parent learns the exit status. Otherwise the pid file tells, which
    /// hyperkit and QEMU remove at a normal exit.
    fn outcome(&self, exit: Exit) -> Result<ShutdownOutcome> {
        Ok(match (exit, self.state()) {
            (Exit::Unknown, Some(state)) if state.pid()? == Some(self.pid()) => ShutdownOutcome::Forced(exit),
            (Exit::Unknown, Some(_)) => ShutdownOutcome::Graceful(exit),
            (Exit::Unknown, None) => ShutdownOutcome::Unknown,
            (exit, _) if exit.is_guest() => ShutdownOutcome::Graceful(exit),
            (exit, _) => ShutdownOutcome::Forced(exit),
        })
    }

    /// Stops the guest's vCPUs until [`resume`](Self::resume). The VM still counts as running.
    ///
    /// On hyperkit, pausing a VM whose first vCPU does not run yet kills it.
    ///
    /// # Errors
    /// [`Error::NotRunning`]; [`Error::Io`]; on QEMU [`Error::Qmp`], and [`ConfigError::StateDirRequired`] for a VM
    /// without a state directory.
    pub fn pause(&self) -> Result<()> {
        self.control(Control::Pause)
    }

    /// Lets a paused guest continue. A guest that is not paused is not affected.
    ///
    /// # Errors
    /// Those of [`pause`](Self::pause).
    pub fn resume(&self) -> Result<()> {
        self.control(Control::Resume)
    }

    fn control(&self, control: Control) -> Result<()> {
        self.check_running()?;
        self.send_control(control, CONTROL_TIMEOUT)
    }

    fn send_control(&self, control: Control, timeout: Duration) -> Result<()> {
        self.driver().control(control, self.state(), &|signal| self.signal(signal), timeout)
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

    pub(crate) fn state(&self) -> Option<&StateDir> {
        self.0.state.as_ref()
    }

    /// The state directory, for a call that needs one.
    pub(crate) fn required_state(&self, call: &'static str) -> Result<&StateDir, ConfigError> {
        self.state().ok_or(ConfigError::StateDirRequired { field: call })
    }

    pub(crate) fn child(&self) -> Option<&Arc<Child>> {
        match &self.0.process {
            Handle::Child(child) => Some(child),
            Handle::Found(_) => None,
        }
    }

    /// Cleans up in the state directory, unless another VM was started there since. A start that is in progress does it by
    /// itself: its lock may be this thread's own.
    fn clean_up(&self) -> Result<()> {
        if self.child().is_some_and(|child| child.is_starting()) {
            return Ok(());
        }
        self.state().map_or(Ok(()), StateDir::clear_if_idle)
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

/// The descriptor (usually a pidfd) becomes readable when the hypervisor has exited. Linux only.
#[cfg(target_os = "linux")]
impl std::os::fd::AsFd for Vm {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.exit_fd.as_fd()
    }
}
