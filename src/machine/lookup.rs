//! Finding VMs again: in a state directory, or in a directory of state directories.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::HyperKit;
use crate::config::record::Record;
use crate::error::{ConfigError, Error, Result};
use crate::process::{Process, ProcessInfo, query};
use crate::runtime::child::Child;
use crate::state::{JSON_FILE, PID_FILE, StateDir};
use crate::vm::{Handle, Vm};

/// A state directory that [`HyperKit::list`] found.
#[derive(Debug)]
#[non_exhaustive]
pub struct Found {
    /// The state directory.
    pub dir: PathBuf,
    /// The description in it, or why it cannot be read.
    pub description: Result<HyperKit>,
    /// The VM if it runs, or why that cannot be found out.
    pub vm: Result<Option<Vm>>,
}

impl HyperKit {
    /// Reads the description in a state directory, whether its VM runs or not.
    ///
    /// The description can start another VM in another [`state_dir`](Self#structfield.state_dir). A disk that was created in
    /// this state directory stays with it: the other VM gets a disk of its own.
    ///
    /// ```
    /// # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
    /// # let _here = here::running();
    /// let description = hyperkit::HyperKit::from_state("vm")?;
    /// if description.is_running()? {
    ///     description.stop()?;
    /// }
    /// # Ok::<(), hyperkit::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::StateNotFound`], [`Error::DamagedState`], [`Error::Io`].
    pub fn from_state(dir: impl AsRef<Path>) -> Result<Self> {
        StateDir::new(dir.as_ref())?.load()
    }

    /// Returns the state directories in `root`, sorted by name; directories further down are not searched. A `root` that
    /// does not exist has none.
    ///
    /// A VM whose `hyperkit.json` is damaged, or missing beside its pid file, is listed, too.
    ///
    /// ```
    /// # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
    /// # let _here = here::running();
    /// for found in hyperkit::HyperKit::list("machines")? {
    ///     let is_running = found.vm?.is_some();
    ///     println!("{} {}", found.dir.display(), if is_running { "running" } else { "not running" });
    /// }
    /// # Ok::<(), hyperkit::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Io`] if `root` cannot be read.
    pub fn list(root: impl AsRef<Path>) -> Result<Vec<Found>> {
        let root = root.as_ref();
        let entries = match fs::read_dir(root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(Error::io("list", root))?,
        };
        let dirs = entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>();
        let mut dirs = dirs.map_err(Error::io("list", root))?;
        dirs.sort();
        let children = Child::all(); // before one of them can exit
        let mut found = Vec::new();
        for dir in dirs {
            found.extend(look_into(dir, &children)?);
        }
        Ok(found)
    }

    /// Returns the VM of this description if it runs: the process that was started, and no other that has its process ID
    /// now. `None` if it does not run.
    ///
    /// With a state directory, what is recorded there counts. Without one, only a description that was started
    /// ([`Vm::description`]) tells which process it is.
    ///
    /// A program that did not start the VM learns when it exits, but not its exit status: [`Exit::Unknown`].
    ///
    /// [`Exit::Unknown`]: crate::Exit::Unknown
    ///
    /// # Errors
    /// [`Error::CannotTell`] if the operating system does not let this program find out;
    /// [`ConfigError::StateDirRequired`] without a state directory and a record; [`Error::Io`].
    pub fn vm(&self) -> Result<Option<Vm>> {
        let children = Child::all(); // before one of them can exit
        match StateDir::of(self)? {
            Some(state) => {
                let recorded = state.load_if_recorded()?;
                vm_in(&state, recorded, Some(self), &children)
            }
            None => self.recorded_vm(&children),
        }
    }

    /// Returns whether the VM runs.
    ///
    /// # Errors
    /// Those of [`vm`](Self::vm).
    pub fn is_running(&self) -> Result<bool> {
        match StateDir::of(self)? {
            Some(state) => state.is_running(state.load_record()?.as_ref()),
            None => Ok(self.vm()?.is_some()),
        }
    }

    /// The VM without a state directory that this description's record identifies.
    fn recorded_vm(&self, children: &[Arc<Child>]) -> Result<Option<Vm>> {
        let record = &self.record;
        let (Some(pid), Some(started)) = (record.pid, record.pid_started) else {
            return Err(ConfigError::StateDirRequired { field: "vm" }.into()); // nothing tells
        };
        // Without a state directory a start does not wait, so our own child may still be before its `exec`.
        let is_our_child = children.iter().any(|child| child.pid() == pid);
        let is_ours = |process: &ProcessInfo| {
            Ok((is_our_child || process.has_arguments(&record.arguments)) && process.started_at(started)?)
        };
        let process = Process::find(pid, is_ours).map_err(Error::cannot_tell(None))?;
        process.map(|process| Vm::new(handle(process, children), self.clone(), None, None)).transpose()
    }
}

/// The VM that runs for a state directory. If nothing is recorded there, it is described by `wanted`, or else only by its program.
fn vm_in(
    state: &StateDir,
    recorded: Option<HyperKit>,
    wanted: Option<&HyperKit>,
    children: &[Arc<Child>],
) -> Result<Option<Vm>> {
    let Some(process) = state.running(recorded.as_ref().map(|recorded| &recorded.record))? else { return Ok(None) };
    let description = match recorded {
        Some(recorded) => recorded,
        None => {
            let info = query(process.pid()).map_err(Error::cannot_tell(Some(state.path())))?;
            let command = info.map(|info| info.command).unwrap_or_default();
            let wanted = wanted.filter(|wanted| wanted.hyperkit.is_some()).cloned();
            // Its record is of another start.
            let wanted = wanted.map(|wanted| HyperKit { record: Record::default(), ..wanted });
            let unknown = || HyperKit { hyperkit: command.first().map(PathBuf::from), ..HyperKit::default() };
            let description = wanted.unwrap_or_else(unknown);
            description.state_dir(state.path())
        }
    };
    Vm::new(handle(process, children), description, Some(state.clone()), None).map(Some)
}

fn handle(process: Process, children: &[Arc<Child>]) -> Handle {
    match children.iter().find(|child| child.pid() == process.pid()) {
        Some(child) => Handle::Child(child.clone()),
        None => Handle::Found(process),
    }
}

/// The content of a directory; `None` if that is not a state directory.
fn look_into(dir: PathBuf, children: &[Arc<Child>]) -> Result<Option<Found>> {
    let state = StateDir::new(&dir)?;
    let exists = |name| state.file(name).symlink_metadata().is_ok();
    let loaded = match state.load() {
        Err(Error::StateNotFound { .. }) if !exists(PID_FILE) => return Ok(None),
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotADirectory => return Ok(None),
        loaded => loaded,
    };
    let recorded = loaded.as_ref().ok().cloned();
    let vm = vm_in(&state, recorded, None, children);
    if !exists(JSON_FILE) && matches!(vm, Ok(None)) {
        return Ok(None); // a stale pid file alone is no VM
    }
    Ok(Some(Found { dir, description: loaded, vm }))
}
