//! A hypervisor that was spawned and is not ready yet.

use std::io;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{StatVfs, statvfs};

use crate::config::HyperKit;
use crate::error::{Error, Result};
use crate::exit::Exit;
use crate::machine::prepare::refuse_resources_in_use;
use crate::plan::serial_ports::ports;
use crate::process::Process;
use crate::state::{Lock, StateDir};
use crate::vm::{Handle, Vm};

/// The poll interval is 1/20 of the elapsed time, from 50 µs to 10 ms, so that polling delays a start by at most 5 %.
const INTERVAL_FRACTION: u32 = 20;
const MIN_INTERVAL: Duration = Duration::from_micros(50);
const MAX_INTERVAL: Duration = Duration::from_millis(10);

/// A hypervisor needs a few files of some KiB, but also its console log.
const MIN_FREE_BYTES: u64 = 1024 * 1024;
const NO_SPACE: &str = "start a VM, as less than 1 MiB or no file is free in the file system of";

/// A hypervisor that was started and may not be ready yet, from [`HyperKit::spawn`](crate::HyperKit::spawn).
///
/// [`wait_ready`](Self::wait_ready) turns it into a [`Vm`]. All methods take `&self`: while one thread waits, another can
/// [`kill`](Self::kill) the hypervisor. Dropping a `Starting` whose hypervisor is not ready kills the hypervisor. If this
/// program is killed meanwhile, the VM runs on, and its state directory already records it.
///
/// The state directory is locked until the hypervisor is ready or the `Starting` is dropped. Until then, all calls that
/// change it wait, in other programs, too: [`start`](crate::HyperKit::start), [`define`](crate::HyperKit::define),
/// [`remove`](crate::HyperKit::remove). Only [`stop`](crate::HyperKit::stop) does not wait: it kills the hypervisor.
///
/// ```
/// # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
/// # let _here = here::alone();
/// use std::time::Duration;
///
/// let description = hyperkit::HyperKit::new().state_dir("vm").kernel("vmlinuz").initrd("initrd.img");
/// let starting = description.spawn("console=ttyS0")?;
/// println!("process {}", starting.pid());
/// let vm = starting.wait_ready(Duration::from_secs(10))?;
/// # Ok::<(), hyperkit::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "dropping it kills the hypervisor"]
pub struct Starting {
    vm: Vm,
    is_foreground: bool,
    phase: Mutex<Phase>,
}

#[derive(Debug, Default)]
enum Phase {
    /// With the lock of the state directory, if there is one.
    Starting(Option<Lock>),
    Ready,
    #[default]
    Failed,
}

impl Starting {
    pub(super) fn new(vm: Vm, lock: Option<Lock>, is_foreground: bool) -> Self {
        let starting = Self { vm, is_foreground, phase: Mutex::default() };
        starting.set_phase(&mut starting.phase(), Phase::Starting(lock));
        starting
    }

    /// Returns the process ID of the hypervisor.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.vm.pid()
    }

    /// Waits until the hypervisor is ready, that is, until it has written its pid file and created all devices. Kills it if
    /// that takes longer than `timeout` or fails. If two threads call this, the second waits for the first.
    ///
    /// A hypervisor without a state directory does not report that it is ready, so this returns at once. hyperkit with its
    /// console on stdio reports its pid file, but not its devices. In both cases, [`Vm::wait`] reports a hypervisor that
    /// fails a moment later.
    ///
    /// # Errors
    /// [`Error::HypervisorFailed`] and [`Error::StartTimedOut`] with the hypervisor's output; [`Error::Io`].
    pub fn wait_ready(&self, timeout: Duration) -> Result<Vm> {
        let mut phase = self.phase();
        match &*phase {
            Phase::Ready => return Ok(self.vm.clone()),
            Phase::Failed => return Err(self.failed(self.vm.try_wait().unwrap_or(Exit::Unknown))),
            Phase::Starting(_) => {}
        }
        match self.vm.state().map_or(Ok(()), |state| self.await_ready(state, timeout)) {
            Ok(()) => {
                self.set_phase(&mut phase, Phase::Ready);
                Ok(self.vm.clone())
            }
            Err(error) => {
                self.give_up(&mut phase);
                Err(self.cause_of(error))
            }
        }
    }

    /// Another start may have taken an image or a port after this one had found it free, a daemon may have failed, or the file
    /// system may be full. Then that is the error, and not that the hypervisor has failed.
    fn cause_of(&self, error: Error) -> Error {
        let Error::HypervisorFailed { log_tail, .. } = &error else { return error };
        let in_use = refuse_resources_in_use(self.vm.description());
        if let Err(in_use @ (Error::DiskInUse { .. } | Error::PortInUse { .. })) = in_use {
            return in_use;
        }
        if let Some(program) = self.vm.driver().failed_daemon(self.vm.description(), &log_tail.hypervisor) {
            return Error::VirtiofsdFailed { program, log_tail: log_tail.clone() };
        }
        // The other start may have failed as well.
        let mut lines = log_tail.hypervisor.lines();
        let line = lines.rfind(|line| line.contains(self.vm.driver().locked_image_message())).unwrap_or_default();
        let description = self.vm.description();
        let images = description.disks.iter().filter_map(|disk| disk.path.as_ref()).chain(&description.isos);
        let locked = images.filter(|image| line.contains(&*image.to_string_lossy()));
        if let Some(path) = locked.max_by_key(|image| image.as_os_str().len()) {
            return Error::DiskInUse { path: path.clone() };
        }
        match self.vm.state_dir() {
            // The hypervisor could not even write why it failed.
            Some(dir) if has_no_space(dir) => {
                Error::io(NO_SPACE, dir)(io::Error::new(io::ErrorKind::StorageFull, error))
            }
            _ => error,
        }
    }

    /// Kills the hypervisor, and returns when it has exited. A call of [`wait_ready`](Self::wait_ready) in another thread
    /// then fails with [`Error::HypervisorFailed`].
    ///
    /// ```
    /// # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
    /// # let _here = here::alone();
    /// let description = hyperkit::HyperKit::new().state_dir("vm").kernel("vmlinuz").initrd("initrd.img");
    /// let starting = description.spawn("console=ttyS0")?;
    /// starting.kill()?;
    /// assert!(!description.is_running()?);
    /// # Ok::<(), hyperkit::Error>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`Vm::kill`].
    pub fn kill(&self) -> Result<()> {
        self.vm.kill_process()?;
        let mut phase = self.phase();
        match &*phase {
            Phase::Starting(_) => self.give_up(&mut phase),
            Phase::Ready | Phase::Failed => self.vm.kill()?,
        }
        Ok(())
    }

    fn phase(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the phase. The child learns whether this holds the lock before the lock is released.
    fn set_phase(&self, phase: &mut Phase, new: Phase) -> Phase {
        if let Some(child) = self.vm.child() {
            child.set_starting(matches!(new, Phase::Starting(Some(_))));
        }
        std::mem::replace(phase, new)
    }

    fn await_ready(&self, state: &StateDir, timeout: Duration) -> Result<()> {
        let (start, driver) = (Instant::now(), self.vm.driver());
        loop {
            let has_pid_file = state.pid()? == Some(self.vm.pid());
            let left = timeout.saturating_sub(start.elapsed());
            if has_pid_file && driver.finish_start(self.vm.description(), state, self.vm.pid(), left)? {
                break;
            }
            if left.is_zero() {
                let state_dir = Some(state.path().to_owned());
                let suspect = driver.awaited_socket(self.vm.description()).map(Path::to_owned);
                return Err(Error::StartTimedOut { timeout, state_dir, suspect, log_tail: self.vm.log_tail() });
            }
            let interval = (start.elapsed() / INTERVAL_FRACTION).clamp(MIN_INTERVAL, MAX_INTERVAL);
            match self.vm.wait_timeout(interval.min(left)) {
                // For `run`, a guest that exits before the hypervisor is ready is a completed run, not a failed start.
                Some(exit)
                    if self.is_foreground && exit.is_guest() && (exit != Exit::PowerOff || self.has_logs(state)?) =>
                {
                    return Ok(());
                }
                Some(exit) => return Err(self.failed(exit)),
                None => {}
            }
        }
        state.restrict_access(self.vm.description());
        if let Some(child) = self.vm.child() {
            driver
                .exit_listener(self.vm.description(), state, self.vm.pid())
                .map_or(Ok(()), |listener| child.listen(listener))?;
            child.detach_daemons();
        }
        Ok(())
    }

    /// Whether the console logs were opened, which a hypervisor does before its guest runs. Another program, such as `true`, also exits
    /// with 0.
    fn has_logs(&self, state: &StateDir) -> Result<bool> {
        let mut logs = ports(self.vm.description())?.into_iter().filter_map(|port| port.log);
        Ok(logs.all(|log| state.has_used_log(log)))
    }

    fn failed(&self, exit: Exit) -> Error {
        let state_dir = self.vm.state_dir().map(Into::into);
        Error::HypervisorFailed { exit, state_dir, log_tail: self.vm.log_tail() }
    }

    /// Kills the spawned process. If that is a script that has started the hypervisor, kills that, too. Then cleans up.
    fn give_up(&self, phase: &mut Phase) {
        let Phase::Starting(lock) = self.set_phase(phase, Phase::Failed) else { return };
        let ended = self.vm.kill_process().and_then(|()| match self.vm.state().zip(lock) {
            Some((state, lock)) => {
                if let Some(process) = state.running(Some(&self.vm.description().record))? {
                    kill(process)?;
                }
                state.clear_runtime_files(&lock)
            }
            None => Ok(()),
        });
        if let Err(error) = ended {
            let dir = self.vm.state_dir().unwrap_or(Path::new("")).display();
            log::warn!(target: "hyperkit", "{dir}: cleaning up after a failed start: {error:#}");
        }
    }
}

fn has_no_space(dir: &Path) -> bool {
    // Some file systems do not count files.
    let is_full = |space: StatVfs| {
        space.f_bavail.saturating_mul(space.f_frsize) < MIN_FREE_BYTES || (space.f_files > 0 && space.f_favail == 0)
    };
    statvfs(dir).is_ok_and(is_full)
}

fn kill(process: Process) -> Result<()> {
    Vm::new(Handle::Found(process), HyperKit::default(), None, None)?.kill_process()
}

impl Drop for Starting {
    fn drop(&mut self) {
        if !matches!(*self.phase(), Phase::Ready) {
            self.give_up(&mut self.phase());
        }
    }
}
