//! A running machine, and how it ended.

use std::fmt;
use std::io;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::child::Child;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::output::Output;
use crate::process::Process;
use crate::state::StateDir;

/// A machine that was started, by this program or another.
///
/// All methods take `&self` and may be called from any thread, as often as one likes. Dropping it leaves the machine
/// running; [`HyperKit::vm`](crate::HyperKit::vm) takes it up again.
///
/// ```no_run
/// # fn main() -> hyperkit::Result<()> {
/// let vm = hyperkit::HyperKit::new().kernel("vmlinuz").initrd("initrd.img").start("console=ttyS0")?;
/// println!("process {}", vm.pid());
/// let exit = vm.wait()?;
/// println!("the machine {exit}");
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Vm {
    pub(crate) process: Handle,
    pub(crate) engine: Engine,
    pub(crate) state: Option<StateDir>,
    /// What the program prints, if this is who has started it.
    pub(crate) output: Option<Output>,
}

/// Only the parent of a process learns how it ended.
#[derive(Debug)]
pub(crate) enum Handle {
    Child(Arc<Child>),
    Found(Process),
}

/// How a machine ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Exit {
    /// The guest powered off or halted. With QEMU, also when it asked for a reset.
    PowerOff,
    /// The guest asked for a reset. No machine does that in place: start it again.
    Reset,
    /// The guest's processor gave up.
    TripleFault,
    /// The program ended with this exit code.
    Failed(i32),
    /// The program was ended by this signal.
    Killed(i32),
    /// It is gone, and nobody could learn how: another program had started it.
    Unknown,
}

impl Exit {
    /// Whether the guest brought it about, and not the program or someone outside.
    pub(crate) fn is_the_guests(self) -> bool {
        matches!(self, Self::PowerOff | Self::Reset | Self::TripleFault)
    }
}

impl fmt::Display for Exit {
    /// What the machine did, to stand behind its name: `powered off`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff => f.write_str("powered off"),
            Self::Reset => f.write_str("asked for a reset"),
            Self::TripleFault => f.write_str("had a triple fault"),
            Self::Failed(code) => write!(f, "failed with exit code {code}"),
            Self::Killed(signal) => write!(f, "was killed by signal {signal}"),
            Self::Unknown => f.write_str("ended, how is not known"),
        }
    }
}

impl Vm {
    /// The process that runs the machine.
    #[must_use]
    pub fn pid(&self) -> u32 {
        match &self.process {
            Handle::Child(child) => child.pid(),
            Handle::Found(process) => process.pid(),
        }
    }

    /// Waits until the machine has ended.
    ///
    /// # Errors
    /// None so far.
    pub fn wait(&self) -> Result<Exit> {
        Ok(self.wait_until(None).unwrap_or(Exit::Unknown))
    }

    /// Waits until the machine has ended, for `patience` at most; `None` if it runs still.
    ///
    /// # Errors
    /// None so far.
    pub fn wait_timeout(&self, patience: Duration) -> Result<Option<Exit>> {
        // A deadline beyond what the clock can say is none.
        Ok(self.wait_until(Instant::now().checked_add(patience)))
    }

    /// How the machine ended; `None` if it runs still.
    ///
    /// # Errors
    /// None so far.
    pub fn try_wait(&self) -> Result<Option<Exit>> {
        self.wait_timeout(Duration::ZERO)
    }

    /// Pulls the plug: ends the machine at once, and returns when its process is gone and its pid file with it.
    ///
    /// The guest gets no chance to write what it has not written. A machine that has ended already is no error.
    ///
    /// # Errors
    /// [`Error::Io`] if the system does not let this program end it, or if its pid file cannot be removed.
    pub fn stop(&self) -> Result<()> {
        self.end()?;
        self.state.as_ref().map_or(Ok(()), StateDir::clear_if_idle)
    }

    /// Ends the process, and leaves the state directory as it is.
    pub(crate) fn end(&self) -> Result<()> {
        self.signal(Signal::KILL).map_err(Error::io("end", format!("process {}", self.pid())))?;
        self.wait_until(None);
        Ok(())
    }

    fn signal(&self, signal: Signal) -> io::Result<()> {
        match &self.process {
            Handle::Child(child) => child.signal(signal),
            Handle::Found(process) => process.signal(signal),
        }
    }

    fn wait_until(&self, deadline: Option<Instant>) -> Option<Exit> {
        let exit = |status: Option<ExitStatus>| status.map_or(Exit::Unknown, |status| self.engine.exit(status));
        match &self.process {
            Handle::Child(child) => child.wait(deadline).map(exit),
            Handle::Found(process) => process.wait(deadline).then_some(Exit::Unknown),
        }
    }
}
