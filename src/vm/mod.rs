//! A running machine, and how it ended.

pub(crate) mod console;
pub(crate) mod console_log;
pub(crate) mod network;
mod vsock;

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::engine::{Control, Engine};
use crate::error::{Error, Result};
use crate::exit::{Exit, Shutdown};
use crate::process::Process;
use crate::runtime::child::Child;
use crate::runtime::output::{LastWords, Output};
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
