//! A process by its pid: whether it runs, signals, waiting for its exit. It need not be a child of this process.
//!
//! "Running", "not running" and "cannot tell" are three answers: `Ok(Some(_))`, `Ok(None)` and `Err(_)`.

mod exit_fd;
mod info;

use std::io;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

pub(crate) use exit_fd::ExitFd;
#[cfg(target_os = "linux")]
use info::is_exiting;
pub(crate) use info::query;
pub(crate) use info::{ProcessInfo, identity, is_in_another_pid_namespace, list_all, start_time};

#[cfg(target_os = "linux")]
use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{PidfdFlags, pidfd_open, pidfd_send_signal},
};

/// How long a process may take from the loss of its memory to its exit.
#[cfg(target_os = "linux")]
const EXIT_TIMEOUT: Duration = Duration::from_secs(10);

/// A process that was running when it was found. It stays this process: a later one with the same pid is not taken for it.
#[derive(Debug)]
pub(crate) struct Process {
    pid: Pid,
    /// The start time, if there is no pidfd.
    started: Option<u64>,
    /// On Linux, a handle of the process itself: its pid may be reused.
    #[cfg(target_os = "linux")]
    pidfd: Option<ExitFd>,
}

impl Process {
    /// The process `pid`, if it runs and `is_wanted` accepts it.
    ///
    /// A process that is exiting loses its memory first, with its arguments, and its files last, with the locks on disk
    /// images. It counts as not running, but this waits until it has exited, so that the next VM can have the images.
    pub fn find(pid: u32, is_wanted: impl FnOnce(&ProcessInfo) -> io::Result<bool>) -> io::Result<Option<Self>> {
        let Some(raw) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
        // The pidfd is opened first, so that the information is about the process of the pidfd, and not of an earlier one.
        #[cfg(target_os = "linux")]
        let pidfd = match pidfd_open(raw, PidfdFlags::empty()) {
            Ok(pidfd) => Some(ExitFd::from(pidfd)),
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            // Before Linux 5.3, or behind a seccomp filter. The ID of a thread gives EINVAL, since Linux 6.16 ENOENT.
            Err(
                rustix::io::Errno::NOSYS
                | rustix::io::Errno::PERM
                | rustix::io::Errno::INVAL
                | rustix::io::Errno::NOENT,
            ) => None,
            Err(error) => return Err(error.into()),
        };
        let Some(info) = query(pid)? else {
            #[cfg(target_os = "linux")]
            if let Some(pidfd) = pidfd.filter(|_| is_exiting(pid)) {
                if !wait_until_readable(&pidfd, Some(Instant::now() + EXIT_TIMEOUT)) {
                    let reason = format!("process {pid} has lost its arguments and does not exit");
                    return Err(io::Error::new(io::ErrorKind::TimedOut, reason));
                }
            }
            return Ok(None);
        };
        if !is_wanted(&info)? {
            return Ok(None);
        }
        #[cfg(target_os = "linux")]
        let started = if pidfd.is_some() { None } else { info.start_time()? };
        #[cfg(not(target_os = "linux"))]
        let started = info.start_time()?;
        Ok(Some(Self {
            pid: raw,
            started,
            #[cfg(target_os = "linux")]
            pidfd,
        }))
    }

    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Identifies the process by its pid and start time, without a pidfd. If the process cannot be read, it counts as running:
    /// a later call may succeed.
    fn is_running(&self) -> bool {
        match query(self.pid()) {
            Ok(Some(info)) => self.started.is_some_and(|started| info.started_at(started).unwrap_or(true)),
            Ok(None) => false,
            Err(_) => true,
        }
    }

    /// Sends a signal. It is no error if the process has exited.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        if let Some(pidfd) = &self.pidfd {
            return ignore_esrch(pidfd_send_signal(pidfd, signal));
        }
        match query(self.pid())? {
            Some(info) if self.started.map_or(Ok(false), |started| info.started_at(started))? => {
                ignore_esrch(kill_process(self.pid, signal))
            }
            _ => Ok(()),
        }
    }

    /// Waits until the process has exited; `false` if it has not by the deadline.
    pub fn wait(&self, deadline: Option<Instant>) -> bool {
        let left = || deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        #[cfg(target_os = "linux")]
        if let Some(pidfd) = &self.pidfd {
            return wait_until_readable(pidfd, deadline);
        }
        let mut interval = Duration::from_millis(1);
        while self.is_running() {
            if left() == Some(Duration::ZERO) {
                return false;
            }
            std::thread::sleep(left().map_or(interval, |left| interval.min(left)));
            interval = (interval * 2).min(Duration::from_millis(50));
        }
        true
    }

    /// A descriptor that becomes readable at the exit.
    pub fn exit_fd(&self) -> io::Result<ExitFd> {
        #[cfg(target_os = "linux")]
        if let Some(pidfd) = &self.pidfd {
            return Ok(pidfd.clone());
        }
        let process = Self {
            pid: self.pid,
            started: self.started,
            #[cfg(target_os = "linux")]
            pidfd: None,
        };
        ExitFd::from_polling(move || process.wait(Some(Instant::now())))
    }
}

/// Turns ESRCH into success: a signal to a process that has exited is no error.
pub(crate) fn ignore_esrch(sent: rustix::io::Result<()>) -> io::Result<()> {
    match sent {
        Err(rustix::io::Errno::SRCH) => Ok(()),
        sent => Ok(sent?),
    }
}

/// Waits until a descriptor is readable, which a pidfd is when its process has exited.
#[cfg(target_os = "linux")]
fn wait_until_readable(fd: &ExitFd, deadline: Option<Instant>) -> bool {
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout = left.and_then(|left| left.try_into().ok());
        match poll(&mut [PollFd::new(fd, PollFlags::IN)], timeout.as_ref()) {
            Err(rustix::io::Errno::INTR) => {}
            Ok(ready) => return ready > 0,
            // The system lacks memory: try again, but not at once.
            Err(_) if left == Some(Duration::ZERO) => return false,
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command};

    fn spawn_sleep() -> Child {
        let child = Command::new("sleep").arg("1000").spawn().unwrap();
        // Before its exec, the child is still this program.
        #[cfg(target_os = "linux")]
        while std::fs::read_link(format!("/proc/{}/exe", child.id())).unwrap() == std::env::current_exe().unwrap() {}
        child
    }

    fn find_sleep() -> (Child, Process) {
        let child = spawn_sleep();
        let is_sleep = |info: &ProcessInfo| Ok(info.command.last().is_some_and(|last| last == "1000"));
        let found = Process::find(child.id(), is_sleep);
        (child, found.unwrap().unwrap())
    }

    /// Most of them have no arguments yet at the first read.
    #[test]
    fn a_process_is_found_right_after_its_exec() {
        for round in 0..100 {
            let mut child = if round % 2 == 0 { find_sleep().0 } else { spawn_sleep() };
            assert!(list_all().unwrap().iter().any(|process| process.pid == child.id()));
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    #[test]
    fn start_time_is_in_seconds_since_1970() {
        let (mut child, _) = find_sleep();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let started = start_time(child.id()).unwrap().unwrap();
        assert!(now.abs_diff(started) < 60, "started at {started}, now it is {now}");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// As on macOS, and on Linux before 5.3.
    #[test]
    fn without_a_pidfd_the_start_time_identifies_a_process() {
        let (mut child, found) = find_sleep();
        let without_pidfd = |started| Process {
            pid: found.pid,
            started,
            #[cfg(target_os = "linux")]
            pidfd: None,
        };
        let started = start_time(child.id()).unwrap();
        let process = without_pidfd(started);
        let another = without_pidfd(started.map(|started| started - 1000));
        assert!(another.wait(None), "another process has this pid now");
        another.signal(Signal::KILL).unwrap();
        assert!(!process.wait(Some(Instant::now())) && !process.wait(Some(Instant::now() + Duration::from_millis(5))));
        process.signal(Signal::KILL).unwrap();
        assert!(process.wait(None), "a zombie is not running");
        child.wait().unwrap();
        assert!(Process::find(child.id(), |_| Ok(true)).unwrap().is_none());
    }

    #[test]
    fn wait_returns_at_the_deadline_or_at_the_exit() {
        let (mut child, process) = find_sleep();
        assert!(!process.wait(Some(Instant::now())));
        std::thread::scope(|scope| {
            // Most likely the other thread waits by then.
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(50));
                child.kill().unwrap();
            });
            assert!(process.wait(Some(Instant::now() + Duration::from_secs(60))));
        });
        child.wait().unwrap();
    }

    #[test]
    fn a_failure_to_look_is_an_error_and_not_an_exit() {
        let (mut child, process) = find_sleep();
        let denied = |_: &ProcessInfo| Err(io::ErrorKind::PermissionDenied.into());
        let found = Process::find(child.id(), denied);
        assert_eq!(found.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        process.signal(Signal::KILL).unwrap();
        child.wait().unwrap();
    }

    /// A pid file may hold the ID of a thread, which has no pidfd. It can be looked at.
    #[cfg(target_os = "linux")]
    #[test]
    fn the_id_of_a_thread_is_no_failure_to_look() {
        let (stop, wait) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || wait.recv().is_err());
        let ids = std::fs::read_dir("/proc/self/task").unwrap();
        let ids = ids.map(|entry| entry.unwrap().file_name().into_string().unwrap().parse().unwrap());
        for id in ids.filter(|id| *id != std::process::id()) {
            assert!(Process::find(id, |_| Ok(false)).unwrap().is_none(), "thread {id}");
        }
        drop(stop);
        assert!(thread.join().unwrap());
    }

    #[test]
    fn a_signal_that_the_system_refuses_is_an_error() {
        assert!(ignore_esrch(Err(rustix::io::Errno::SRCH)).is_ok());
        assert_eq!(ignore_esrch(Err(rustix::io::Errno::PERM)).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }
}
