//! A descriptor that becomes readable when a process has exited.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use crate::sys::thread;

/// Readable once the process has exited: a pidfd, or else one end of a socket pair whose other end a waiting thread holds.
#[derive(Clone, Debug)]
pub(crate) struct ExitFd(Arc<OwnedFd>);

impl ExitFd {
    /// For a process whose exit `wait` waits for, in a thread of its own.
    pub fn from_waiting(wait: impl FnOnce() + Send + 'static) -> io::Result<Self> {
        let (exit, held) = UnixStream::pair()?;
        let run = move || {
            wait();
            drop(held);
        };
        thread::spawn("hyperkit-exit", Box::new(run))?;
        Ok(Self(Arc::new(exit.into())))
    }
}

impl From<OwnedFd> for ExitFd {
    fn from(pidfd: OwnedFd) -> Self {
        Self(Arc::new(pidfd))
    }
}

impl AsFd for ExitFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
