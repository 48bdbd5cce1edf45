//! A running machine, and how it ended.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::child::Child;
use crate::engine::{Control, Engine};
use crate::error::{Error, Result};
use crate::output::{LastWords, Output};
use crate::process::Process;
use crate::state::StateDir;

/// A guest that has not listened yet may do so now; QEMU's and hyperkit's take presses at this pace.
const PRESS_AGAIN: Duration = Duration::from_millis(500);
/// How long a program may take to answer. Another client of its that is being served counts in.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// A machine that was started, by this program or another.
///
/// All methods take `&self` and may be called from any thread, as often as one likes. Dropping it leaves the machine
/// running; [`HyperKit::vm`](crate::HyperKit::vm) takes it up again.
///
/// ```
/// # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
/// # let _here = here::alone();
/// let vm = hyperkit::HyperKit::new().kernel("vmlinuz").initrd("initrd.img").start("console=ttyS0")?;
/// println!("process {}", vm.pid());
/// # vm.stop()?; // nobody is here to do it
/// let exit = vm.wait()?;
/// println!("the machine {exit}");
/// # Ok::<(), hyperkit::Error>(())
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
    /// The guest powered off or halted. With QEMU and no state directory, also when it asked for a reset.
    PowerOff,
    /// The guest asked for a reset. No machine does that in place: start it again.
    Reset,
    /// The guest's processor gave up. QEMU tells it as a reset.
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

/// What [`Vm::shutdown`] took to end the machine, and how it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Shutdown {
    /// It had ended before.
    Ended(Exit),
    /// The power button did.
    PowerButton(Exit),
    /// The guest did not power off in time, and the plug was pulled.
    Plug(Exit),
}

impl Shutdown {
    /// How the machine ended.
    #[must_use]
    pub fn exit(self) -> Exit {
        match self {
            Self::Ended(exit) | Self::PowerButton(exit) | Self::Plug(exit) => exit,
        }
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

    /// Waits until the machine has ended, and for our own child until the logger has what its program printed: a logger
    /// that blocks holds this up.
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
        self.clear()
    }

    /// Ends the process, and leaves the state directory as it is.
    pub(crate) fn end(&self) -> Result<()> {
        self.signal(Signal::KILL)?;
        self.wait_until(None);
        Ok(())
    }

    /// The last lines of what the program printed and of what the guest said on its console, also after the end.
    #[must_use]
    pub fn last_words(&self) -> LastWords {
        LastWords::read(self.output.as_ref(), self.state.as_ref(), self.engine)
    }

    /// Presses the power button, waits for the guest to power off, and pulls the plug if it has not after `grace`.
    ///
    /// A guest that does not listen yet loses the press, so it is repeated; a paused machine is resumed for it. With
    /// hyperkit, pressing the button before the guest has turned ACPI on kills the machine. Returns when the process
    /// is gone and its pid file with it.
    ///
    /// ```
    /// # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
    /// # let _here = here::running();
    /// use hyperkit::{HyperKit, Shutdown};
    /// use std::time::Duration;
    ///
    /// if let Some(vm) = HyperKit::from_state("vm")?.vm()? {
    ///     match vm.shutdown(Duration::from_secs(30))? {
    ///         Shutdown::Plug(_) => println!("it had to be unplugged"),
    ///         clean => println!("the machine {}", clean.exit()),
    ///     }
    /// }
    /// # Ok::<(), hyperkit::Error>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`stop`](Self::stop). A button that cannot be pressed is none: that is what the plug is for.
    pub fn shutdown(&self, grace: Duration) -> Result<Shutdown> {
        if let Some(exit) = self.try_wait()? {
            self.clear()?;
            return Ok(Shutdown::Ended(exit));
        }
        let began = Instant::now();
        while let Some(left) = grace.checked_sub(began.elapsed()).filter(|left| !left.is_zero()) {
            for what in [Control::Resume, Control::PressPowerButton] {
                if let Err(error) = self.engine.control(what, self, left.min(PATIENCE)) {
                    log::debug!(target: "hyperkit", "{what:?}: {error}");
                }
            }
            if let Some(exit) = self.wait_timeout(grace.saturating_sub(began.elapsed()).min(PRESS_AGAIN))? {
                self.clear()?;
                return Ok(Shutdown::PowerButton(exit));
            }
        }
        self.stop()?;
        Ok(match self.wait()? {
            exit if exit.is_the_guests() => Shutdown::PowerButton(exit), // at the last moment
            exit => Shutdown::Plug(exit),
        })
    }

    /// Stops the guest's processors until [`resume`](Self::resume). The machine counts as running.
    ///
    /// With hyperkit, pausing a machine whose first vCPU does not run yet kills it.
    ///
    /// # Errors
    /// [`Error::NotRunning`]; [`Error::Io`]; with QEMU, [`Error::Qmp`], and [`Error::StateDirRequired`] for a machine
    /// without a state directory.
    pub fn pause(&self) -> Result<()> {
        self.control(Control::Pause)
    }

    /// Lets a paused guest go on. One that is not paused is left as it is.
    ///
    /// # Errors
    /// Those of [`pause`](Self::pause).
    pub fn resume(&self) -> Result<()> {
        self.control(Control::Resume)
    }

    fn control(&self, what: Control) -> Result<()> {
        match self.try_wait()? {
            Some(_) => Err(Error::NotRunning),
            None => self.engine.control(what, self, PATIENCE),
        }
    }

    /// Clears up in the state directory, unless another machine was started there since.
    fn clear(&self) -> Result<()> {
        self.state.as_ref().map_or(Ok(()), StateDir::clear_if_idle)
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        let sent = match &self.process {
            Handle::Child(child) => child.signal(signal),
            Handle::Found(process) => process.signal(signal),
        };
        sent.map_err(Error::io("send a signal to", format!("process {}", self.pid())))
    }

    fn wait_until(&self, deadline: Option<Instant>) -> Option<Exit> {
        match &self.process {
            Handle::Child(child) => child.wait(deadline),
            Handle::Found(process) => process.wait(deadline).then_some(Exit::Unknown),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_told_in_words_and_a_shutdown_has_one() {
        for (exit, told) in [
            (Exit::PowerOff, "powered off"),
            (Exit::Reset, "asked for a reset"),
            (Exit::TripleFault, "had a triple fault"),
            (Exit::Failed(1), "failed with exit code 1"),
            (Exit::Killed(9), "was killed by signal 9"),
            (Exit::Unknown, "ended, how is not known"),
        ] {
            assert_eq!(exit.to_string(), told);
            for shutdown in [Shutdown::Ended(exit), Shutdown::PowerButton(exit), Shutdown::Plug(exit)] {
                assert_eq!(shutdown.exit(), exit);
            }
        }
    }
}
