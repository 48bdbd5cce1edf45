//! A process that may not be our child: is it there, is it the one that was started, signal it, wait for it.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Signal, getrlimit, kill_process, setrlimit};
use sysinfo::{ProcessRefreshKind, ProcessStatus, ProcessesToUpdate, System, UpdateKind};

#[cfg(target_os = "linux")]
use rustix::{
    event::{PollFd, PollFlags, poll},
    fd::OwnedFd,
    process::{PidfdFlags, pidfd_open, pidfd_send_signal},
};

/// What the system says of a process that runs: neither gone nor a zombie.
pub(crate) struct Seen {
    pub pid: u32,
    /// Seconds since 1970, as exact as the system's clock was steady.
    pub started: u64,
    /// Program and arguments, trimmed and without empty ones: sysinfo gives them so on Linux.
    pub command: Vec<OsString>,
    /// What relative paths on its command line are relative to, if it is ours to know.
    pub directory: Option<PathBuf>,
}

impl Seen {
    /// Whether it began when it was recorded to have, as far as the clock can tell.
    pub fn began_at(&self, recorded: u64) -> bool {
        recorded.abs_diff(self.started) <= 2
    }

    /// Whether it was started with `arguments`; a script has its interpreter before them.
    pub fn has_arguments(&self, arguments: &[String]) -> bool {
        let wanted: Vec<_> = arguments.iter().map(|argument| argument.trim_ascii()).filter(|a| !a.is_empty()).collect();
        // Not more of them than that: a program can be told that its name is nothing at all.
        self.command.len() >= wanted.len()
            && self.command.iter().rev().zip(wanted.iter().rev()).all(|(argument, wanted)| argument == wanted)
    }
}

/// The process `pid`, if it runs.
pub(crate) fn look(pid: u32) -> Option<Seen> {
    let pid = sysinfo::Pid::from_u32(pid);
    refreshed(ProcessesToUpdate::Some(&[pid])).processes().get(&pid).and_then(seen)
}

/// All processes that run.
pub(crate) fn look_at_all() -> Vec<Seen> {
    refreshed(ProcessesToUpdate::All).processes().values().filter_map(seen).collect()
}

fn refreshed(which: ProcessesToUpdate<'_>) -> System {
    let mut system = System::new();
    // Threads have pids of their own on Linux, and the command line of their process.
    let what = ProcessRefreshKind::nothing().without_tasks().with_cmd(UpdateKind::Always).with_cwd(UpdateKind::Always);
    // sysinfo keeps a file open for each process and raises the program's limit of open files for that, once. Neither
    // is ours to do: without files to keep it works as well.
    static FIRST: Once = Once::new();
    FIRST.call_once(|| {
        let limit = getrlimit(Resource::Nofile);
        sysinfo::set_open_files_limit(0);
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            log::debug!(target: "hyperkit", "cannot put the limit of open files back: {error}");
        }
    });
    system.refresh_processes_specifics(which, true, what);
    system
}

fn seen(process: &sysinfo::Process) -> Option<Seen> {
    if matches!(process.status(), ProcessStatus::Zombie | ProcessStatus::Dead) {
        return None;
    }
    let command = process.cmd().iter().map(trimmed).filter(|a| !a.is_empty()).collect();
    let directory = process.cwd().map(Path::to_owned);
    Some(Seen { pid: process.pid().as_u32(), started: process.start_time(), command, directory })
}

/// macOS has the arguments as they are; see [`Seen::command`].
fn trimmed(argument: &OsString) -> OsString {
    argument.to_str().map_or_else(|| argument.clone(), |text| text.trim_ascii().into())
}

/// A process that runs, and that later is either the same or gone.
#[derive(Debug)]
pub(crate) struct Process {
    pid: Pid,
    started: u64,
    /// Linux can hold on to the process itself, so that its pid cannot come to mean another.
    #[cfg(target_os = "linux")]
    handle: Option<OwnedFd>,
}

impl Process {
    /// The process `pid`, if it runs and is the one that `is_wanted` describes.
    pub fn find(pid: u32, is_wanted: impl FnOnce(&Seen) -> bool) -> Option<Self> {
        let raw = Pid::from_raw(i32::try_from(pid).ok()?)?;
        // First held, then looked at: what was looked at is then what is held.
        #[cfg(target_os = "linux")]
        let handle = pidfd_open(raw, PidfdFlags::empty()).ok(); // none before Linux 5.3
        let seen = look(pid).filter(is_wanted)?;
        Some(Self {
            pid: raw,
            started: seen.started,
            #[cfg(target_os = "linux")]
            handle,
        })
    }

    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    pub fn is_running(&self) -> bool {
        #[cfg(target_os = "linux")]
        if let Some(handle) = &self.handle {
            return !readable(handle, Some(Duration::ZERO));
        }
        look(self.pid()).is_some_and(|seen| seen.began_at(self.started))
    }

    /// Sends a signal; to a process that is gone already, none is sent.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        if let Some(handle) = &self.handle {
            return gone_is_fine(pidfd_send_signal(handle, signal));
        }
        if self.is_running() { gone_is_fine(kill_process(self.pid, signal)) } else { Ok(()) }
    }

    /// Waits until the process is gone; `false` if it is not by the deadline.
    pub fn wait(&self, deadline: Option<Instant>) -> bool {
        let left = || deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        #[cfg(target_os = "linux")]
        if let Some(handle) = &self.handle {
            return readable(handle, left());
        }
        let mut pause = Duration::from_millis(1);
        while self.is_running() {
            if left() == Some(Duration::ZERO) {
                return false;
            }
            std::thread::sleep(left().map_or(pause, |left| pause.min(left)));
            pause = (pause * 2).min(Duration::from_millis(50));
        }
        true
    }
}

pub(crate) fn gone_is_fine(sent: rustix::io::Result<()>) -> io::Result<()> {
    match sent {
        Err(rustix::io::Errno::SRCH) => Ok(()),
        sent => Ok(sent?),
    }
}

/// Waits until the process behind a pidfd is gone.
#[cfg(target_os = "linux")]
fn readable(handle: &OwnedFd, patience: Option<Duration>) -> bool {
    let deadline = patience.map(|patience| Instant::now() + patience);
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout = left.and_then(|left| left.try_into().ok());
        match poll(&mut [PollFd::new(handle, PollFlags::IN)], timeout.as_ref()) {
            Err(rustix::io::Errno::INTR) => {}
            Ok(0) if left.is_none_or(|left| !left.is_zero()) => {}
            Ok(0) | Err(_) => return false,
            Ok(_) => return true,
        }
    }
}
