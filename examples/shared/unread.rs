//! Notices that nobody reads standard output any more. A hypervisor that writes there ignores it.

use std::io::stdout;
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

/// Calls a function, in a thread, when the reader of the pipe on standard output has closed it, or the terminal is gone.
pub fn when_unread(act: impl FnOnce() + Send + 'static) {
    thread::spawn(|| {
        let stdout = stdout();
        // Both are reported without being asked for.
        let mut descriptors = [PollFd::new(&stdout, PollFlags::empty())];
        while poll(&mut descriptors, None) == Err(Errno::INTR) {}
        if descriptors[0].revents().intersects(PollFlags::ERR | PollFlags::HUP) {
            act();
        }
    });
}
