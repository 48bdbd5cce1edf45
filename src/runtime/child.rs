//! A hypervisor that this process has started. One thread supervises it: the thread passes on output and reaps.

use std::io;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Waker;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

use crate::engine::{EngineDriver, ExitListener};
use crate::error::{Error, Result};
use crate::exit::Exit;
use crate::process::{ExitFd, ignore_esrch};
use crate::runtime::console_stdio::ConsoleRelay;
use crate::runtime::daemons::Daemons;
use crate::runtime::exit_wakers::wake;
use crate::runtime::output::Output;
use crate::runtime::owner::OwnerLink;
use crate::runtime::watch::ChildWatcher;
use crate::state::StateDir;
use crate::sys::handover::handover;
use crate::sys::terminal::TerminalSettings;
use crate::sys::thread;

/// The children of this process that were not reaped yet: a VM that is found in its state directory may be one of them,
/// and only the parent learns how a process exited.
static CHILDREN: Mutex<Vec<Arc<Child>>> = Mutex::new(Vec::new());

fn children() -> MutexGuard<'static, Vec<Arc<Child>>> {
    lock(&CHILDREN)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A child process. Any number of threads can wait for it.
pub(crate) struct Child {
    pid: Pid,
    driver: &'static dyn EngineDriver,
    exit: Mutex<ExitState>,
    exited: Condvar,
    exit_fd: ExitFd,
    /// The thread that waits for the hypervisor's report of how the guest ended.
    exit_listener: Mutex<Option<ListenerThread>>,
    events: Mutex<Weak<UnixStream>>,
    resources: Mutex<Resources>,
    /// Whether a start that waits for this child holds the lock of the state directory, and cleans up there if it fails.
    is_starting: AtomicBool,
}

#[derive(Default)]
struct ExitState {
    exit: Option<Exit>,
    wakers: Vec<Weak<Mutex<Waker>>>,
}

/// The thread that runs an [`ExitListener`], and what it reported.
struct ListenerThread {
    thread: JoinHandle<()>,
    report: Arc<Mutex<Option<Exit>>>,
}

/// What is kept as long as the child runs.
#[derive(Debug, Default)]
pub(crate) struct Resources {
    /// The caller's terminal, if the console is on it.
    pub terminal: Option<TerminalSettings>,
    /// Copies between the console and the caller's standard input and output.
    pub console: Option<ConsoleRelay>,
    pub daemons: Option<Daemons>,
    /// Whether disks have overlays, which are deleted at the exit.
    pub has_overlays: bool,
    /// Kills the child with this process, if it must not outlive it.
    pub owner: Option<OwnerLink>,
}

impl std::fmt::Debug for Child {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Child").field("pid", &self.pid).finish_non_exhaustive()
    }
}

impl Child {
    /// Starts `command`, which writes to `output`.
    pub fn spawn(
        driver: &'static dyn EngineDriver,
        mut command: Command,
        output: Output,
        state: Option<StateDir>,
        mut resources: Resources,
    ) -> Result<Arc<Self>> {
        // The thread is created first. If that failed after the spawn, no thread would supervise the child.
        let (send, receive) = handover::<(std::process::Child, Arc<Self>)>();
        let supervise = move || {
            if let Some((child, shared)) = receive.receive() {
                shared.supervise(child, output, state.as_ref());
            }
        };
        let program = command.get_program().to_owned();
        let thread = thread::spawn("hyperkit", Box::new(supervise));
        let spawned = match thread {
            Ok(_) => command.spawn().map_err(Error::io("start", &program)),
            Err(error) => Err(Error::io("create a thread for", &program)(error)),
        };
        // The command holds the daemons' FIFO open. If the spawn failed, dropping the resources waits for the daemons.
        drop(command);
        let mut child = spawned?;
        let exit_fd = exit_fd(Pid::from_child(&child)).inspect_err(|_| {
            let _ = child.kill();
            resources.owner.take().into_iter().for_each(OwnerLink::release); // before the pid is free
            let _ = child.wait();
        });
        let shared = Arc::new(Self {
            pid: Pid::from_child(&child),
            driver,
            exit: Mutex::default(),
            exited: Condvar::new(),
            exit_fd: exit_fd.map_err(Error::io("watch", &program))?,
            exit_listener: Mutex::new(None),
            events: Mutex::default(),
            resources: Mutex::new(resources),
            is_starting: AtomicBool::new(false),
        });
        children().push(shared.clone());
        send.send((child, shared.clone()));
        Ok(shared)
    }

    /// The children that were not reaped yet.
    pub fn all() -> Vec<Arc<Self>> {
        children().clone()
    }

    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// See the field.
    pub fn is_starting(&self) -> bool {
        self.is_starting.load(Ordering::Acquire)
    }

    pub fn set_starting(&self, is_starting: bool) {
        self.is_starting.store(is_starting, Ordering::Release);
    }

    /// A descriptor that becomes readable at the exit.
    pub fn exit_fd(&self) -> &ExitFd {
        &self.exit_fd
    }

    /// Runs the listener in a separate thread.
    pub fn listen(&self, listener: ExitListener) -> Result<()> {
        let report = Arc::new(Mutex::new(None));
        let reported = report.clone();
        let ExitListener { listen, connection } = listener;
        let thread = thread::spawn("hyperkit-events", Box::new(move || *lock(&reported) = listen()));
        let thread = thread.map_err(Error::io("create a thread for", format!("process {}", self.pid())))?;
        *lock(&self.exit_listener) = Some(ListenerThread { thread, report });
        *lock(&self.events) = connection;
        Ok(())
    }

    /// The connection of the listener.
    pub fn events(&self) -> Option<Arc<UnixStream>> {
        lock(&self.events).upgrade()
    }

    /// From now on the daemons live as long as the hypervisor, also without this process.
    pub fn detach_daemons(&self) {
        if let Some(daemons) = &mut lock(&self.resources).daemons {
            daemons.release();
        }
    }

    /// From now on the hypervisor outlives this process.
    pub fn detach_owner(&self) {
        if let Some(owner) = lock(&self.resources).owner.take() {
            owner.release();
        }
    }

    /// Waits for the exit until the deadline.
    pub fn wait(&self, deadline: Option<Instant>) -> Option<Exit> {
        let mut state = lock(&self.exit);
        while state.exit.is_none() {
            state = match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
                Some(Duration::ZERO) => break,
                Some(left) => self.exited.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0,
                None => self.exited.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
        state.exit
    }

    /// The exit, or else registers a waker that is woken at the exit.
    pub fn poll_exit(&self, waker: &Arc<Mutex<Waker>>) -> Option<Exit> {
        let mut state = lock(&self.exit);
        if state.exit.is_none() {
            // Futures that were dropped need no waking.
            state.wakers.retain(|other| other.strong_count() > 0 && !other.ptr_eq(&Arc::downgrade(waker)));
            state.wakers.push(Arc::downgrade(waker));
        }
        state.exit
    }

    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        // If SIGCHLD is ignored, the system reaps the child, and another process may have its pid.
        #[cfg(target_os = "linux")]
        if let Some(sent) = self.exit_fd.signal(signal) {
            return ignore_esrch(sent);
        }
        // The child is reaped under this lock. So while no exit is known, no other process can have the pid.
        let state = lock(&self.exit);
        if state.exit.is_none() { ignore_esrch(kill_process(self.pid, signal)) } else { Ok(()) }
    }

    fn supervise(&self, mut child: std::process::Child, mut output: Output, state: Option<&StateDir>) {
        let watcher = ChildWatcher::new(self.exit_fd.clone(), &output);
        // The logger is the embedding program's. If it panics, the child must still be reaped, and the lines after the one
        // at which it panicked must be passed on. That line counts as passed on, so this ends.
        let mut pass_on =
            |has_exited| while catch_unwind(AssertUnwindSafe(|| output.pass_on(state, has_exited))).is_err() {};
        while is_alive(self.pid) {
            pass_on(false);
            watcher.wait();
        }
        // Release the child's resources before waiters see its exit, and before its pid is free.
        let Resources { terminal, console, daemons, owner, has_overlays } = std::mem::take(&mut *lock(&self.resources));
        owner.into_iter().for_each(OwnerLink::release);
        drop(daemons);
        if let Some(state) = state.filter(|_| has_overlays) {
            // What fails here is done by the next start or by `remove`.
            let _ = state.remove_overlays(self.pid());
        }
        pass_on(true);
        console.into_iter().for_each(ConsoleRelay::finish);
        drop(terminal);
        // Usually the owner's shell has removed it, but not if the shell was killed early.
        let _ = output.remove_temporary();
        let listener = lock(&self.exit_listener).take();
        let reported = listener.and_then(|ListenerThread { thread, report }| {
            let _ = thread.join();
            *lock(&report)
        });
        let mut exit = lock(&self.exit);
        children().retain(|other| other.pid != self.pid);
        // If SIGCHLD is ignored, the system has reaped the child, and its status is lost.
        exit.exit = Some(child.wait().map_or(Exit::Unknown, |status| self.driver.exit(status, reported)));
        let wakers = std::mem::take(&mut exit.wakers);
        drop(exit);
        self.exited.notify_all();
        wakers.iter().filter_map(Weak::upgrade).for_each(|waker| wake(&waker));
    }
}

/// Whether the child has not exited. Does not reap it. Only ECHILD proves that the system has reaped it: after any other error,
/// reaping a child that runs would block everybody who asks for its exit.
fn is_alive(pid: Pid) -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
    match waitid(WaitId::Pid(pid), options) {
        Ok(status) => status.is_none(),
        Err(error) => error != rustix::io::Errno::CHILD,
    }
}

/// Becomes readable when the child has exited.
fn exit_fd(pid: Pid) -> io::Result<ExitFd> {
    #[cfg(target_os = "linux")]
    if let Ok(pidfd) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) {
        return Ok(pidfd.into());
    }
    ExitFd::from_waiting(move || {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        while waitid(WaitId::Pid(pid), options).is_err_and(|error| error != rustix::io::Errno::CHILD) {}
    })
}
