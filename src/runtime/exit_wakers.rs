//! Wakes futures that wait for the exit of processes that are not children of this one. One thread serves all of them, and
//! ends with the last.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Waker;

use rustix::event::{PollFd, PollFlags, poll};

use crate::process::ExitFd;
use crate::sys::thread;

/// A waker that the future replaces at each poll. It is dropped with the future.
pub(crate) type SharedWaker = Arc<Mutex<Waker>>;

struct Poller {
    waiting: Vec<(ExitFd, Weak<Mutex<Waker>>)>,
    /// Interrupts the thread's poll.
    interrupt: UnixStream,
}

static POLLER: Mutex<Option<Poller>> = Mutex::new(None);

fn poller() -> MutexGuard<'static, Option<Poller>> {
    POLLER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Wakes `waker` when the process of `exit` has exited.
pub(crate) fn wake_at_exit(exit: ExitFd, waker: &SharedWaker) -> io::Result<()> {
    let mut poller = poller();
    if let Some(running) = &mut *poller {
        running.waiting.push((exit, Arc::downgrade(waker)));
        // A full socket interrupts the poll as well.
        let _ = running.interrupt.write(&[0]);
        return Ok(());
    }
    let (interrupt, interrupted) = UnixStream::pair()?;
    interrupt.set_nonblocking(true)?;
    interrupted.set_nonblocking(true)?;
    thread::spawn("hyperkit-exits", Box::new(move || run(&interrupted)))?;
    *poller = Some(Poller { waiting: vec![(exit, Arc::downgrade(waker))], interrupt });
    Ok(())
}

fn run(interrupted: &UnixStream) {
    loop {
        let fds: Vec<ExitFd> = {
            let mut poller = poller();
            let Some(running) = &mut *poller else { return };
            running.waiting.retain(|(_, waker)| waker.strong_count() > 0);
            if running.waiting.is_empty() {
                *poller = None;
                return;
            }
            running.waiting.iter().map(|(exit, _)| exit.clone()).collect()
        };
        let fds = fds.iter().map(|exit| PollFd::from_borrowed_fd(exit.as_fd(), PollFlags::IN));
        let mut polled: Vec<_> = [PollFd::new(interrupted, PollFlags::IN)].into_iter().chain(fds).collect();
        let _ = poll(&mut polled, None);
        let _ = (&mut &*interrupted).read(&mut [0; 64]);
        // Later entries were added meanwhile.
        let has_exited: Vec<bool> = polled[1..].iter().map(|fd| !fd.revents().is_empty()).collect();
        let mut woken = Vec::new();
        if let Some(running) = &mut *poller() {
            let mut index = 0;
            running.waiting.retain(|(_, waker)| {
                index += 1;
                let exited = has_exited.get(index - 1).copied().unwrap_or(false);
                woken.extend(waker.upgrade().filter(|_| exited));
                !exited
            });
        }
        woken.iter().for_each(wake);
    }
}

/// Wakes a future. The waker is code of the embedding program. It may poll the future at once, which locks the waker. It may
/// panic, and then others must still be woken.
pub(super) fn wake(waker: &SharedWaker) {
    let waker = waker.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let _ = catch_unwind(AssertUnwindSafe(|| waker.wake()));
}
