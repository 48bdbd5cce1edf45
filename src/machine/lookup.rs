//! Finding VMs again: from a state directory, in a directory of them, by a running process.

use std::fs;
use std::io;
use std::path::Path;

use crate::config::HyperKit;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::process::Process;
use crate::runtime::child::Child;
use crate::state::StateDir;
use crate::vm::{Handle, Vm};

impl HyperKit {
    /// The machine that a state directory remembers, running or not.
    ///
    /// ```
    /// # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
    /// # let _here = here::running();
    /// let machine = hyperkit::HyperKit::from_state("vm")?;
    /// if machine.is_running() {
    ///     machine.stop()?;
    /// }
    /// # Ok::<(), hyperkit::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::NoState`], [`Error::DamagedState`], [`Error::Io`].
    pub fn from_state(dir: impl AsRef<Path>) -> Result<Self> {
        let state = StateDir::new(dir.as_ref())?;
        let mut machine = state.load()?;
        if let Some(process) = state.running(Some(&machine)) {
            machine.pid = Some(process.pid());
        }
        Ok(machine)
    }

    /// The machines that the directories in `root` remember, by the directories' names; those in directories further
    /// down are not looked for. A `root` that is not there has none.
    ///
    /// One that cannot be read is an error in its place, and does not hide the others.
    ///
    /// ```
    /// # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
    /// # let _here = here::running();
    /// for machine in hyperkit::HyperKit::list("machines")?.into_iter().flatten() {
    ///     println!("{:?} {}", machine.state_dir, machine.is_running());
    /// }
    /// # Ok::<(), hyperkit::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Io`] if `root` cannot be listed; for each machine those of [`from_state`](Self::from_state).
    pub fn list(root: impl AsRef<Path>) -> Result<Vec<Result<Self>>> {
        let root = root.as_ref();
        let entries = match fs::read_dir(root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(Error::io("list", root))?,
        };
        let dirs = entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>();
        let mut dirs = dirs.map_err(Error::io("list", root))?;
        dirs.sort();
        let is_one = |machine: &Result<Self>| match machine {
            Err(Error::NoState { .. }) => false,
            // What is no directory has nothing in it.
            Err(Error::Io { source, .. }) => source.kind() != io::ErrorKind::NotADirectory,
            _ => true,
        };
        Ok(dirs.iter().map(Self::from_state).filter(is_one).collect())
    }

    /// Takes up the running machine; `None` if it does not run.
    ///
    /// A program that has not started it learns when it ends, but not how: [`Exit::Unknown`].
    ///
    /// # Errors
    /// [`Error::Io`] if there is no telling where the state directory is.
    pub fn vm(&self) -> Result<Option<Vm>> {
        let state = self.state_dir.as_deref().map(StateDir::new).transpose()?;
        let children = Child::all(); // before one of them can end
        let process = match &state {
            // Another program may have started it since.
            Some(state) => state.running(Some(self)).or_else(|| state.running(Some(&state.load().ok()?))),
            None => self.pid.and_then(|pid| {
                // Nothing is waited for without a state directory: our own child may not have become the program yet.
                let is_our_child = children.iter().any(|child| child.pid() == pid);
                Process::find(pid, |seen| {
                    (is_our_child || seen.has_arguments(&self.arguments))
                        && self.pid_started.is_some_and(|started| seen.began_at(started))
                })
            }),
        };
        let engine = Engine::of_machine(self);
        let handle = |process: Process| match children.iter().find(|child| child.pid() == process.pid()) {
            Some(child) => Handle::Child(child.clone()),
            None => Handle::Found(process),
        };
        Ok(process.map(|process| Vm { process: handle(process), engine, state, output: None }))
    }

    /// Whether the machine runs: the process that was started, and no other that has its pid now.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.vm().is_ok_and(|vm| vm.is_some())
    }
}
