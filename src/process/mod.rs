//! A process that may not be our child: is it there, is it the one that was started, signal it, wait for it.

mod info;

use std::io;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use info::look;
pub(crate) use info::{Seen, look_at_all, started};

#[cfg(target_os = "linux")]
use rustix::{
    event::{PollFd, PollFlags, poll},
    fd::OwnedFd,
    process::{PidfdFlags, pidfd_open, pidfd_send_signal},
};

/// A process that runs, and that later is either the same or gone.
#[derive(Debug)]
pub(crate) struct Process {
    pid: Pid,
    /// Known where there is no handle.
    started: Option<u64>,
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
        let handle = match pidfd_open(raw, PidfdFlags::empty()) {
            Err(rustix::io::Errno::SRCH) => return None,
            handle => handle.ok(), // none before Linux 5.3
        };
        let seen = look(pid).filter(is_wanted)?;
        #[cfg(target_os = "linux")]
        let started = if handle.is_some() { None } else { seen.started() };
        #[cfg(not(target_os = "linux"))]
        let started = seen.started();
        Some(Self {
            pid: raw,
            started,
            #[cfg(target_os = "linux")]
            handle,
        })
    }

    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// By its pid and the time of its start, for want of a handle.
    fn is_running(&self) -> bool {
        look(self.pid()).is_some_and(|seen| self.started.is_some_and(|started| seen.began_at(started)))
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
            ready => return ready.is_ok_and(|ready| ready > 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command};

    fn just_started() -> Child {
        let child = Command::new("sleep").arg("1000").spawn().unwrap();
        // For a moment it is still us.
        #[cfg(target_os = "linux")]
        while std::fs::read_link(format!("/proc/{}/exe", child.id())).unwrap() == std::env::current_exe().unwrap() {}
        child
    }

    fn sleeping() -> (Child, Process) {
        let child = just_started();
        let is_sleep = |seen: &Seen| seen.command.last().is_some_and(|last| last == "1000");
        let found = Process::find(child.id(), is_sleep);
        (child, found.unwrap())
    }

    /// Most of them have no arguments yet at the first look.
    #[test]
    fn who_has_just_been_started_is_seen() {
        for round in 0..100 {
            let mut child = if round % 2 == 0 { sleeping().0 } else { just_started() };
            assert!(look_at_all().iter().any(|seen| seen.pid == child.id()));
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    #[test]
    fn a_start_is_told_by_the_clock() {
        let (mut child, _) = sleeping();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let began = started(child.id()).unwrap();
        assert!(now.abs_diff(began) < 60, "{began}, and now it is {now}");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// As on macOS, and on Linux before 5.3.
    #[test]
    fn a_process_without_a_handle_is_known_by_the_time_of_its_start() {
        let (mut child, found) = sleeping();
        let without_handle = |started| Process {
            pid: found.pid,
            started,
            #[cfg(target_os = "linux")]
            handle: None,
        };
        let process = without_handle(started(child.id()));
        let another = without_handle(started(child.id()).map(|started| started - 1000));
        assert!(another.wait(None), "it is not the one that has this pid now");
        another.signal(Signal::KILL).unwrap();
        assert!(!process.wait(Some(Instant::now())) && !process.wait(Some(Instant::now() + Duration::from_millis(5))));
        process.signal(Signal::KILL).unwrap();
        assert!(process.wait(None), "a zombie does not run");
        child.wait().unwrap();
        assert!(Process::find(child.id(), |_| true).is_none());
    }

    #[test]
    fn the_end_is_waited_for_until_the_deadline() {
        let (mut child, process) = sleeping();
        assert!(!process.wait(Some(Instant::now())));
        std::thread::scope(|scope| {
            // Most likely somebody waits by then.
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(50));
                child.kill().unwrap();
            });
            assert!(process.wait(Some(Instant::now() + Duration::from_secs(60))));
        });
        child.wait().unwrap();
    }

    #[test]
    fn a_signal_that_the_system_does_not_let_through_is_an_error() {
        assert!(gone_is_fine(Err(rustix::io::Errno::SRCH)).is_ok());
        assert_eq!(gone_is_fine(Err(rustix::io::Errno::PERM)).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }
}
