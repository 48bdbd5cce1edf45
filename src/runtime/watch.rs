//! Wakes the thread that supervises a child when the child has exited or its output file was written to.

use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::process::ExitFd;
use crate::runtime::output::Output;

/// How often a child's output is looked at if the system cannot report that it was written to.
const POLL_INTERVAL: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

pub(super) struct ChildWatcher {
    exit: ExitFd,
    output: Option<FileWatch>,
}

impl ChildWatcher {
    pub fn new(exit: ExitFd, output: &Output) -> Self {
        Self { exit, output: FileWatch::new(output.file()) }
    }

    /// Waits until the child has exited or its output was written to. It may also return earlier.
    pub fn wait(&self) {
        let output = self.output.as_ref().map(|output| PollFd::from_borrowed_fd(output.as_fd(), PollFlags::IN));
        let timeout = if output.is_some() { None } else { Some(&POLL_INTERVAL) };
        let exit = PollFd::from_borrowed_fd(self.exit.as_fd(), PollFlags::IN);
        let _ = poll(&mut [exit].into_iter().chain(output).collect::<Vec<_>>(), timeout);
        if let Some(output) = &self.output {
            output.reset();
        }
    }
}

#[cfg(target_os = "linux")]
use linux::FileWatch;

#[cfg(target_os = "linux")]
mod linux {
    use std::collections::HashMap;
    use std::fs::File;
    use std::io;
    use std::mem::MaybeUninit;
    use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
    use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

    use rustix::event::{EventfdFlags, eventfd};
    use rustix::fs::inotify::{CreateFlags, ReadFlags, Reader, WatchFlags, add_watch, init, remove_watch};
    use rustix::io::Errno;

    use crate::sys::thread;

    /// Becomes readable when a file is written to.
    pub(super) struct FileWatch {
        written: Arc<OwnedFd>,
        watch: i32,
        inotify: Arc<OwnedFd>,
    }

    /// One inotify instance and one thread for all VMs, since Linux allows a user some 128 instances. They end with the last VM.
    struct InotifyHub {
        inotify: Arc<OwnedFd>,
        watches: HashMap<i32, Arc<OwnedFd>>,
    }

    static HUB: Mutex<Option<InotifyHub>> = Mutex::new(None);

    fn hub() -> MutexGuard<'static, Option<InotifyHub>> {
        HUB.lock().unwrap_or_else(PoisonError::into_inner)
    }

    impl FileWatch {
        /// `None` if the system has no inotify watches left.
        pub fn new(file: &File) -> Option<Self> {
            Self::add(file).ok()
        }

        fn add(file: &File) -> io::Result<Self> {
            let written = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
            let path = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
            let add_to = |inotify: &OwnedFd| add_watch(inotify, &path, WatchFlags::MODIFY);
            let mut hub = hub();
            let (inotify, watch) = if let Some(InotifyHub { inotify, .. }) = &*hub {
                (inotify.clone(), add_to(inotify)?)
            } else {
                let inotify = Arc::new(init(CreateFlags::CLOEXEC)?);
                let watch = add_to(&inotify)?;
                let events = inotify.clone();
                thread::spawn("hyperkit-inotify", Box::new(move || dispatch(&events)))?;
                (inotify, watch)
            };
            let InotifyHub { watches, .. } =
                hub.get_or_insert_with(|| InotifyHub { inotify: inotify.clone(), watches: HashMap::new() });
            watches.insert(watch, written.clone());
            Ok(Self { written, watch, inotify })
        }

        pub fn reset(&self) {
            let _ = rustix::io::read(&self.written, &mut [0_u8; 8]);
        }
    }

    impl AsFd for FileWatch {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.written.as_fd()
        }
    }

    impl Drop for FileWatch {
        fn drop(&mut self) {
            if let Some(hub) = &mut *hub() {
                hub.watches.remove(&self.watch);
            }
            // This wakes the thread, which ends with the last watch.
            let _ = remove_watch(&self.inotify, self.watch);
        }
    }

    /// Passes on events until no watch is left.
    fn dispatch(inotify: &OwnedFd) {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = Reader::new(inotify, &mut buffer);
        loop {
            let (watch, flags) = match events.next() {
                Ok(event) => (event.wd(), event.events()),
                Err(Errno::INTR) => continue,
                // Does not happen to an inotify descriptor. If it did, output would be passed on only at the exit.
                Err(_) => {
                    *hub() = None;
                    return;
                }
            };
            let mut hub = hub();
            let watches = hub.iter().flat_map(|hub| &hub.watches);
            for (_, written) in watches.filter(|(of, _)| **of == watch || flags.contains(ReadFlags::QUEUE_OVERFLOW)) {
                let _ = rustix::io::write(written, &1_u64.to_ne_bytes());
            }
            if hub.as_ref().is_none_or(|hub| hub.watches.is_empty()) {
                *hub = None;
                return;
            }
        }
    }
}

#[cfg(not(target_os = "linux"))]
use other::FileWatch;

#[cfg(not(target_os = "linux"))]
mod other {
    use std::fs::File;
    use std::os::fd::{AsFd, BorrowedFd};

    /// Other systems do not report writes to a file that is only known by its descriptor.
    pub(super) enum FileWatch {}

    impl FileWatch {
        pub fn new(_: &File) -> Option<Self> {
            None
        }

        pub fn reset(&self) {
            match *self {}
        }
    }

    impl AsFd for FileWatch {
        fn as_fd(&self) -> BorrowedFd<'_> {
            match *self {}
        }
    }
}
