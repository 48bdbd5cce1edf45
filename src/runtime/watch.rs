//! Goes off when a child has ended or printed something, so that whoever watches it sleeps until then.

pub(crate) use system::Alarm;

#[cfg(target_os = "linux")]
mod system {
    use std::collections::HashMap;
    use std::fs::File;
    use std::io;
    use std::mem::MaybeUninit;
    use std::os::fd::{AsFd, AsRawFd, OwnedFd};
    use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
    use std::thread;

    use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
    use rustix::fs::inotify::{CreateFlags, ReadFlags, Reader, WatchFlags, add_watch, init, remove_watch};
    use rustix::io::Errno;
    use rustix::process::{Pid, PidfdFlags, pidfd_open};

    use crate::runtime::output::Output;

    /// How often a child is looked at where the system has no handle or no bell left to give.
    const PACE: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

    pub(crate) struct Alarm {
        process: Option<OwnedFd>,
        bell: Option<Bell>,
    }

    impl Alarm {
        pub fn new(pid: Pid, output: &Output) -> Self {
            // pidfds came with Linux 5.3.
            Self { process: pidfd_open(pid, PidfdFlags::empty()).ok(), bell: Bell::new(output.file()).ok() }
        }

        pub fn wait(&mut self) {
            let handles = [self.process.as_ref(), self.bell.as_ref().map(|bell| &*bell.rings)];
            let is_complete = handles.iter().all(Option::is_some);
            let mut polled: Vec<_> = handles.into_iter().flatten().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
            let _ = poll(&mut polled, if is_complete { None } else { Some(&PACE) });
            if let Some(bell) = &self.bell {
                let _ = rustix::io::read(&bell.rings, &mut [0_u8; 8]);
            }
        }
    }

    /// Rings when a file is written to.
    struct Bell {
        rings: Arc<OwnedFd>,
        watch: i32,
        events: Arc<OwnedFd>,
    }

    /// Who rings the bells, by the watch of each. A user may have some 128 instances of inotify, so all machines share one,
    /// and a thread that is there as long as there are bells.
    struct Ringer {
        events: Arc<OwnedFd>,
        bells: HashMap<i32, Arc<OwnedFd>>,
    }

    static RINGER: Mutex<Option<Ringer>> = Mutex::new(None);

    fn ringer() -> MutexGuard<'static, Option<Ringer>> {
        RINGER.lock().unwrap_or_else(PoisonError::into_inner)
    }

    impl Bell {
        fn new(file: &File) -> io::Result<Self> {
            let rings = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
            let path = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
            let watch_in = |events: &OwnedFd| add_watch(events, &path, WatchFlags::MODIFY);
            let mut ringer = ringer();
            let (events, watch) = if let Some(Ringer { events, .. }) = &*ringer {
                (events.clone(), watch_in(events)?)
            } else {
                let events = Arc::new(init(CreateFlags::CLOEXEC)?);
                let watch = watch_in(&events)?;
                let listens = events.clone();
                thread::Builder::new().name("hyperkit-bells".to_owned()).spawn(move || ring(&listens))?;
                (events, watch)
            };
            let Ringer { bells, .. } =
                ringer.get_or_insert_with(|| Ringer { events: events.clone(), bells: HashMap::new() });
            bells.insert(watch, rings.clone());
            Ok(Self { rings, watch, events })
        }
    }

    impl Drop for Bell {
        fn drop(&mut self) {
            if let Some(ringer) = &mut *ringer() {
                ringer.bells.remove(&self.watch);
            }
            // It tells the ringer, who goes if it was the last.
            let _ = remove_watch(&self.events, self.watch);
        }
    }

    fn ring(events: &OwnedFd) {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = Reader::new(events, &mut buffer);
        loop {
            let (watch, flags) = match events.next() {
                Ok(event) => (event.wd(), event.events()),
                Err(Errno::INTR) => continue,
                // Nothing that a descriptor of our own should give. What is printed is then passed on at the end.
                Err(_) => {
                    *ringer() = None;
                    return;
                }
            };
            let mut ringer = ringer();
            let bells = ringer.iter().flat_map(|ringer| &ringer.bells);
            for (_, bell) in bells.filter(|(of, _)| **of == watch || flags.contains(ReadFlags::QUEUE_OVERFLOW)) {
                let _ = rustix::io::write(bell, &1_u64.to_ne_bytes());
            }
            if ringer.as_ref().is_none_or(|ringer| ringer.bells.is_empty()) {
                *ringer = None;
                return;
            }
        }
    }
}

/// Elsewhere a thread of its own waits for the end, and what is printed is looked for now and then.
#[cfg(not(target_os = "linux"))]
mod system {
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

    use crate::runtime::output::Output;

    pub(crate) struct Alarm {
        end: mpsc::Receiver<()>,
    }

    impl Alarm {
        pub fn new(pid: Pid, _: &Output) -> Self {
            let (ended, end) = mpsc::channel();
            let wait = move || {
                let _ = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
                drop(ended);
            };
            // Without that thread the channel is closed at once, and the pause below does its work.
            let _ = thread::Builder::new().name("hyperkit-end".to_owned()).spawn(wait);
            Self { end }
        }

        pub fn wait(&mut self) {
            let pause = Duration::from_millis(100);
            if self.end.recv_timeout(pause) == Err(mpsc::RecvTimeoutError::Disconnected) {
                thread::sleep(Duration::from_millis(1));
            }
        }
    }
}
