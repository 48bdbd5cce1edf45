//! Finding VMs again: in a state directory, or in a directory of state directories.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::HyperKit;
use crate::config::json::misspelled;
use crate::config::record::Record;
use crate::error::{ConfigError, Error, Result};
use crate::process::{Process, ProcessInfo, query};
use crate::runtime::child::Child;
use crate::runtime::discovery::Hypervisors;
use crate::state::{JSON_FILE, PID_FILE, StateDir};
use crate::vm::{Handle, Vm};

/// A state directory that [`HyperKit::list`] found.
///
/// ```
/// # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
/// # let _here = here::running();
/// for found in hyperkit::HyperKit::list("machines")? {
///     match (found.description, found.vm) {
///         (Ok(description), Ok(vm)) => println!("{} vCPUs, running: {}", description.cpus, vm.is_some()),
///         (Err(error), _) | (_, Err(error)) => println!("{}: {error}", found.dir.display()),
///     }
/// }
/// # Ok::<(), hyperkit::Error>(())
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub struct Found {
    /// The state directory.
    pub dir: PathBuf,
    /// The description in that directory, or why it cannot be read.
    pub description: Result<HyperKit>,
    /// The VM if it runs, `None` if it does not, or the error that kept this program from finding out.
    pub vm: Result<Option<Vm>>,
}

/// # Find again
impl HyperKit {
    /// Reads the description in a state directory, whether its VM runs or not.
    ///
    /// The description can also start another VM, in another [`state_dir`](Self#structfield.state_dir). The other VM gets
    /// new disks in place of those that were created in this state directory.
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
    /// [`Error::StateNotFound`] if no VM was ever started or defined there; [`Error::DamagedState`]; [`Error::Io`].
    #[doc(alias = "open")]
    #[doc(alias = "load")]
    pub fn from_state(dir: impl AsRef<Path>) -> Result<Self> {
        let state = StateDir::new(dir.as_ref())?;
        let description = state.load()?;
        for (key, known) in misspelled(&description.unknown) {
            let path = state.file(JSON_FILE);
            log::warn!(target: "hyperkit", "{}: unknown key {key:?}; is {known:?} meant?", path.display());
        }
        Ok(description)
    }

    /// Returns the state directories in `root`, sorted by name. It searches only the directories directly in `root`. If
    /// `root` does not exist, the list is empty.
    ///
    /// The list includes a directory whose `hyperkit.json` is damaged, and one in which a VM runs but `hyperkit.json` is
    /// missing.
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
        let (mut found, all) = (Vec::new(), Hypervisors::default());
        for dir in dirs {
            found.extend(look_into(dir, &children, &all)?);
        }
        Ok(found)
    }

    /// Returns the VM of this description if it runs, and `None` if it does not.
    ///
    /// The returned VM is the process that was started. Another process that has got the same process ID since is never
    /// taken for the VM.
    ///
    /// With a state directory, its record counts, and not this description. Without one, the process is known only to the
    /// description that [`Vm::description`] returns.
    ///
    /// The operating system reports how a process exited only to the program that started it. Other programs learn that
    /// the VM has exited, with [`Exit::Unknown`](crate::Exit::Unknown).
    ///
    /// ```
    /// # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
    /// # let _here = here::running();
    /// match hyperkit::HyperKit::from_state("vm")?.vm()? {
    ///     Some(vm) => println!("runs as process {}", vm.pid()),
    ///     None => println!("does not run"),
    /// }
    /// # Ok::<(), hyperkit::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::CannotTell`] if the operating system does not let this program find out whether the VM runs;
    /// [`ConfigError::StateDirRequired`] if the description has neither a state directory nor a record; [`Error::Io`].
    pub fn vm(&self) -> Result<Option<Vm>> {
        let children = Child::all(); // before one of them can exit
        match state_dir(self)? {
            Some(state) => {
                let recorded = state.load_if_recorded()?;
                vm_in(&state, recorded, Some(self), &children, &Hypervisors::default())
            }
            None => self.recorded_vm(&children),
        }
    }

    /// Returns whether the VM runs. This is faster than [`vm`](Self::vm), which has an example.
    ///
    /// # Errors
    /// Those of [`vm`](Self::vm).
    pub fn is_running(&self) -> Result<bool> {
        match state_dir(self)? {
            Some(state) => state.is_running(state.load_record()?.as_ref()),
            None => Ok(self.vm()?.is_some()),
        }
    }

    /// The VM without a state directory that this description's record identifies.
    fn recorded_vm(&self, children: &[Arc<Child>]) -> Result<Option<Vm>> {
        let record = &self.record;
        let (Some(pid), Some(started)) = (record.pid, record.pid_started) else {
            return Err(ConfigError::StateDirRequired { field: "vm" }.into()); // nothing identifies the process
        };
        let program = self.hyperkit.as_deref().unwrap_or(Path::new(""));
        // Without a state directory a start does not wait, so our own child may still be before its `exec`.
        let is_our_child = children.iter().any(|child| child.pid() == pid);
        let is_ours = |process: &ProcessInfo| {
            Ok((is_our_child || process.runs(program, &record.arguments)) && process.started_at(started)?)
        };
        let process = Process::find(pid, is_ours).map_err(Error::cannot_tell(None))?;
        process.map(|process| Vm::new(handle(process, children), self.clone(), None, None)).transpose()
    }
}

/// The state directory of a description.
pub(super) fn state_dir(description: &HyperKit) -> Result<Option<StateDir>> {
    let found = running_state_dir(description)?;
    found.map_or_else(|| StateDir::of(description), |found| Ok(Some(found)))
}

/// The state directory of a running VM whose description was made by [`parse_arguments`](crate::parse_arguments) from the VM's
/// command line. A relative path is relative to the hypervisor's working directory. `None` if no such VM runs, and for other
/// descriptions.
pub(super) fn running_state_dir(description: &HyperKit) -> Result<Option<StateDir>> {
    let is_elsewhere = |dir: &&Path| description.record.home.is_from_arguments && dir.is_relative();
    Ok(description.state_dir.as_deref().filter(is_elsewhere).map(StateDir::of_relative).transpose()?.flatten())
}

/// Fails if the VM of a [`running_state_dir`] runs. A start would create another one in this program's working directory.
pub(super) fn refuse_running(description: &HyperKit) -> Result<()> {
    let Some(state) = running_state_dir(description)? else { return Ok(()) };
    match state.running(state.load_record()?.as_ref())? {
        Some(process) => Err(Error::AlreadyRunning { pid: process.pid(), state_dir: state.path().to_owned() }),
        None => Ok(()),
    }
}

/// The VM that runs for a state directory. If nothing is recorded there, its description is `wanted`, or else one that has only
/// the hypervisor.
fn vm_in(
    state: &StateDir,
    recorded: Option<HyperKit>,
    wanted: Option<&HyperKit>,
    children: &[Arc<Child>],
    all: &Hypervisors,
) -> Result<Option<Vm>> {
    let record = recorded.as_ref().map(|recorded| &recorded.record);
    let Some(process) = state.running_among(record, all)? else { return Ok(None) };
    let description = match recorded {
        Some(recorded) => recorded,
        None => {
            let info = query(process.pid()).map_err(Error::cannot_tell(Some(state.path())))?;
            let command = info.map(|info| info.command).unwrap_or_default();
            let wanted = wanted.filter(|wanted| wanted.hyperkit.is_some()).cloned();
            // The record that `wanted` carries is of another start.
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

/// What is found in a directory; `None` if it is not a state directory.
fn look_into(dir: PathBuf, children: &[Arc<Child>], all: &Hypervisors) -> Result<Option<Found>> {
    let state = StateDir::new(&dir)?;
    let exists = |name| state.file(name).symlink_metadata().is_ok();
    let loaded = match state.load() {
        Err(Error::StateNotFound { .. }) if !exists(PID_FILE) && !dir.is_dir() => return Ok(None),
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotADirectory => return Ok(None),
        loaded => loaded,
    };
    let recorded = loaded.as_ref().ok().cloned();
    let vm = vm_in(&state, recorded, None, children, all);
    // There may be a stale pid file. Without one, nothing hints at a VM but a process.
    if !exists(JSON_FILE) && (matches!(vm, Ok(None)) || (vm.is_err() && !exists(PID_FILE))) {
        return Ok(None);
    }
    Ok(Some(Found { dir, description: loaded, vm }))
}
