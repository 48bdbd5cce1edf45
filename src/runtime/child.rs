//! A program that this process has started: one thread watches it, passes on what it prints, and reaps it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::exit::Exit;
use crate::process::gone_is_fine;
use crate::runtime::output::Output;
use crate::runtime::vhost_vsock::Companion;
use crate::sys::terminal::Terminal;

/// The children of this program that have not been reaped, so that whoever finds one as a process learns how it ends.
static ALIVE: Mutex<Vec<Arc<Child>>> = Mutex::new(Vec::new());

fn alive() -> MutexGuard<'static, Vec<Arc<Child>>> {
    ALIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A child, for any number of threads.
#[derive(Debug)]
pub(crate) struct Child {
    pid: Pid,
    engine: Engine,
    end: Mutex<Option<Exit>>,
    ended: Condvar,
    /// Listens to what the program itself tells of the guest's end.
    ear: Mutex<Option<JoinHandle<Option<Exit>>>>,
    /// The program that runs beside it.
    companion: Mutex<Option<Companion>>,
}

impl Child {
    /// Starts `command`, which prints into `output` and may have been lent the `terminal` and have a `companion`.
    pub fn spawn(
        engine: Engine,
        mut command: Command,
        output: Output,
        terminal: Option<Terminal>,
        companion: Option<Companion>,
    ) -> Result<Arc<Self>> {
        // The thread first: a child that nobody could watch must not be.
        let (send, receive) = mpsc::channel::<(std::process::Child, Arc<Self>)>();
        let watch = move || {
            if let Ok((child, shared)) = receive.recv() {
                shared.watch(child, output, terminal);
            }
        };
        let program = command.get_program().to_owned();
        let thread = thread::Builder::new().name("hyperkit".to_owned()).spawn(watch);
        thread.map_err(Error::io("make a thread to watch", &program))?;

        let child = command.spawn().map_err(Error::io("start", &program))?;
        let shared = Arc::new(Self {
            pid: Pid::from_child(&child),
            engine,
            end: Mutex::new(None),
            ended: Condvar::new(),
            ear: Mutex::new(None),
            companion: Mutex::new(companion),
        });
        alive().push(shared.clone());
        let _ = send.send((child, shared.clone())); // it waits for nothing else
        Ok(shared)
    }

    /// The children that have not been reaped.
    pub fn all() -> Vec<Arc<Self>> {
        alive().clone()
    }

    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Has a thread listen to what tells how the guest ends. It has to return when the program is gone.
    pub fn listen(&self, tell: impl FnOnce() -> Option<Exit> + Send + 'static) -> Result<()> {
        let ear = thread::Builder::new().name("hyperkit-events".to_owned()).spawn(tell);
        let ear = ear.map_err(Error::io("make a thread to listen to", format!("process {}", self.pid())))?;
        *self.ear.lock().unwrap_or_else(PoisonError::into_inner) = Some(ear);
        Ok(())
    }

    /// The machine is there: its companion lives from now on as long as it does, also without us.
    pub fn is_set_up(&self) {
        if let Some(companion) = &mut *self.companion.lock().unwrap_or_else(PoisonError::into_inner) {
            companion.let_go();
        }
    }

    /// Waits for its end until the deadline.
    pub fn wait(&self, deadline: Option<Instant>) -> Option<Exit> {
        let mut end = self.lock();
        while end.is_none() {
            end = match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
                Some(Duration::ZERO) => break,
                Some(left) => self.ended.wait_timeout(end, left).unwrap_or_else(PoisonError::into_inner).0,
                None => self.ended.wait(end).unwrap_or_else(PoisonError::into_inner),
            };
        }
        *end
    }

    pub fn signal(&self, signal: Signal) -> std::io::Result<()> {
        // It is reaped under this lock: as long as it has not ended, the pid is its own.
        let end = self.lock();
        if end.is_none() { gone_is_fine(kill_process(self.pid, signal)) } else { Ok(()) }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Exit>> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watch(&self, mut child: std::process::Child, mut output: Output, terminal: Option<Terminal>) {
        let mut alarm = crate::runtime::watch::Alarm::new(self.pid, &output);
        // The logger is the embedding program's. If it panics, the child still has to be reaped, and the lines after the
        // one that it panics on passed on: that one counts as passed on already, so this ends.
        let mut pass_on = |at_end| while catch_unwind(AssertUnwindSafe(|| output.pass_on(at_end))).is_err() {};
        while is_alive(self.pid) {
            pass_on(false);
            alarm.wait();
        }
        // Ended, too, before anyone hears of it.
        drop(self.companion.lock().unwrap_or_else(PoisonError::into_inner).take());
        pass_on(true);
        drop(terminal);
        let ear = self.ear.lock().unwrap_or_else(PoisonError::into_inner).take();
        let told = ear.and_then(|ear| ear.join().ok()).flatten();
        let mut end = self.lock();
        alive().retain(|other| other.pid != self.pid);
        // Where SIGCHLD is ignored, the system has reaped it, and nobody knows.
        *end = Some(child.wait().map_or(Exit::Unknown, |status| self.engine.exit(status, told)));
        self.ended.notify_all();
    }
}

/// Looks without reaping.
fn is_alive(pid: Pid) -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
    matches!(waitid(WaitId::Pid(pid), options), Ok(None) | Err(rustix::io::Errno::INTR))
}
