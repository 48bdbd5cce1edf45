//! A descriptor that becomes readable when a process has exited.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
#[cfg(target_os = "linux")]
use rustix::process::{Signal, pidfd_send_signal};

use crate::sys::thread;

/// How often a process is polled if the system does not report its exit.
const POLL_INTERVAL: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// Readable once the process has exited: a pidfd, or one end of a socket pair. A thread that waits for the exit holds the other
/// end.
#[derive(Clone, Debug)]
pub(crate) struct ExitFd {
    fd: Arc<OwnedFd>,
    #[cfg(target_os = "linux")]
    is_pidfd: bool,
}

impl ExitFd {
    /// For a process for whose exit `wait` waits, in a separate thread.
    pub fn from_waiting(wait: impl FnOnce() + Send + 'static) -> io::Result<Self> {
        Self::from_thread(|_| wait())
    }

    /// For a process whose exit can only be polled, in a separate thread. The thread also ends when the descriptor is closed.
    pub fn from_polling(has_exited: impl Fn() -> bool + Send + 'static) -> io::Result<Self> {
        Self::from_thread(move |held| {
            let is_closed = || {
                let mut polled = [PollFd::new(held, PollFlags::IN)];
                poll(&mut polled, Some(&POLL_INTERVAL)).is_ok_and(|ready| ready > 0)
            };
            while !has_exited() && !is_closed() {}
        })
    }

    /// Sends a signal to the process, and to no other that has its process ID by now. `None` if this is no pidfd.
    #[cfg(target_os = "linux")]
    pub fn signal(&self, signal: Signal) -> Option<rustix::io::Result<()>> {
        self.is_pidfd.then(|| pidfd_send_signal(self, signal))
    }

    fn from_thread(wait: impl FnOnce(&UnixStream) + Send + 'static) -> io::Result<Self> {
        let (exit, held) = UnixStream::pair()?;
        thread::spawn("hyperkit-exit", Box::new(move || wait(&held)))?;
        Ok(Self {
            fd: Arc::new(exit.into()),
            #[cfg(target_os = "linux")]
            is_pidfd: false,
        })
    }
}

#[cfg(target_os = "linux")]
impl From<OwnedFd> for ExitFd {
    fn from(pidfd: OwnedFd) -> Self {
        Self { fd: Arc::new(pidfd), is_pidfd: true }
    }
}

impl AsFd for ExitFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn a_polling_thread_ends_at_the_exit_or_with_its_descriptor() {
        let has_exited = Arc::new(AtomicBool::new(false));
        let polled = has_exited.clone();
        let watched = ExitFd::from_polling(move || polled.load(Ordering::Relaxed)).unwrap();
        let is_readable = |timeout| poll(&mut [PollFd::new(&watched, PollFlags::IN)], timeout).unwrap() > 0;
        assert!(!is_readable(Some(&Timespec { tv_sec: 0, tv_nsec: 0 })));
        has_exited.store(true, Ordering::Relaxed);
        assert!(is_readable(None));

        let held = Arc::new(());
        let of_thread = held.clone();
        let unused = ExitFd::from_polling(move || Arc::strong_count(&of_thread) == 0).unwrap();
        drop(unused);
        while Arc::strong_count(&held) > 1 {
            std::thread::yield_now();
        }
    }
}
