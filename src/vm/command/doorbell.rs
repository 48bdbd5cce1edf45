//! How a program of the host learns that the agent has begun to listen on vsock: the agent then connects to the doorbell, a vsock
//! port of the host, and sends a byte.
//!
//! One program can listen there. Other programs connect to it and send nothing. When that program needs the doorbell no more, or
//! is killed, their connections end, and each of them tries again.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::state::StateDir;
use crate::sys::unix_socket::{connect, remove_stale_socket};

/// The guest, too, can connect as often as it likes. More connections wait in the listener's queue.
const MAX_CALLERS: usize = 64;

pub(super) struct Doorbell<'a> {
    state: &'a StateDir,
    socket: PathBuf,
    place: Place,
}

enum Place {
    /// This program listens. `id` is the socket's device and inode.
    Listener { listener: UnixListener, callers: Vec<UnixStream>, id: (u64, u64) },
    /// Another program listens.
    Queue(UnixStream),
    /// Another program listened a moment ago, or too many wait.
    Nowhere,
}

/// What has ended a wait.
#[derive(Debug, PartialEq)]
pub(super) enum Woken {
    Agent,
    /// The program that listened has left.
    Listener,
    Timeout,
}

impl<'a> Doorbell<'a> {
    /// Listens on a socket, or queues up behind the program that does.
    pub fn open(state: &'a StateDir, socket: &Path) -> Result<Self> {
        // Of two programs that find the same stale socket, the second must not remove what the first has created.
        let _lock = state.lock()?;
        let place = match remove_stale_socket(socket) {
            Ok(()) => listen(socket).map_err(Error::io("listen on", socket))?,
            Err(Error::SocketInUse { .. }) => connect(socket, Duration::ZERO).map_or(Place::Nowhere, Place::Queue),
            Err(error) => return Err(error),
        };
        Ok(Self { state, socket: socket.to_owned(), place })
    }

    /// Waits until the agent rings, or the program that listens leaves.
    pub fn wait(&mut self, timeout: Duration) -> io::Result<Woken> {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Woken::Timeout);
            }
            match &mut self.place {
                Place::Listener { listener, callers, .. } => {
                    let mut fds: Vec<_> = callers.iter().map(|caller| PollFd::new(caller, PollFlags::IN)).collect();
                    if fds.len() < MAX_CALLERS {
                        fds.push(PollFd::new(listener, PollFlags::IN));
                    }
                    wait_for(&mut fds, left)?;
                    if is_rung(listener, callers)? {
                        return Ok(Woken::Agent);
                    }
                }
                Place::Queue(stream) => {
                    if wait_for(&mut [PollFd::new(stream, PollFlags::IN)], left)? {
                        return Ok(Woken::Listener);
                    }
                }
                Place::Nowhere => {
                    std::thread::sleep(left);
                    return Ok(Woken::Listener);
                }
            }
        }
    }
}

impl Drop for Doorbell<'_> {
    fn drop(&mut self) {
        let Place::Listener { id, .. } = &self.place else { return };
        let _lock = self.state.lock();
        // Another VM may have taken the directory over.
        if fs::symlink_metadata(&self.socket).is_ok_and(|socket| (socket.dev(), socket.ino()) == *id) {
            let _ = fs::remove_file(&self.socket);
        }
    }
}

fn listen(socket: &Path) -> io::Result<Place> {
    let listener = UnixListener::bind(socket)?;
    listener.set_nonblocking(true)?;
    let metadata = fs::symlink_metadata(socket)?;
    Ok(Place::Listener { listener, callers: Vec::new(), id: (metadata.dev(), metadata.ino()) })
}

/// Accepts connections. Returns whether one of them has sent something.
fn is_rung(listener: &UnixListener, callers: &mut Vec<UnixStream>) -> io::Result<bool> {
    while callers.len() < MAX_CALLERS {
        match listener.accept() {
            Ok((caller, _)) => {
                caller.set_nonblocking(true)?;
                callers.push(caller);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if [io::ErrorKind::Interrupted, io::ErrorKind::ConnectionAborted].contains(&error.kind()) => {}
            Err(error) => return Err(error),
        }
    }
    let mut is_rung = false;
    callers.retain(|mut caller| match caller.read(&mut [0]) {
        Ok(length) => {
            is_rung |= length > 0;
            false
        }
        Err(error) => matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted),
    });
    Ok(is_rung)
}

/// Returns whether one of the descriptors is ready.
fn wait_for(fds: &mut [PollFd<'_>], timeout: Duration) -> io::Result<bool> {
    // Rounded up, so that the deadline has passed then.
    let timeout = timeout + Duration::from_millis(1);
    let timeout =
        Timespec { tv_sec: timeout.as_secs().try_into().unwrap_or(1), tv_nsec: timeout.subsec_nanos().into() };
    match poll(fds, Some(&timeout)) {
        Ok(count) => Ok(count > 0),
        Err(Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::thread;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn ring_of_the_agent_ends_the_wait_and_silent_callers_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let (state, socket) = (StateDir::new(dir.path()).unwrap(), dir.path().join("bell"));
        drop(UnixListener::bind(&socket).unwrap()); // a stale socket
        let mut bell = Doorbell::open(&state, &socket).unwrap();
        let silent: Vec<_> = (0..10).map(|_| UnixStream::connect(&socket).unwrap()).collect();
        drop(UnixStream::connect(&socket).unwrap());
        assert_eq!(bell.wait(Duration::from_millis(50)).unwrap(), Woken::Timeout);
        thread::scope(|scope| {
            let waiting = scope.spawn(|| bell.wait(LONG).unwrap());
            UnixStream::connect(&socket).unwrap().write_all(&[1]).unwrap();
            assert_eq!(waiting.join().unwrap(), Woken::Agent);
        });
        drop(bell);
        assert!(!socket.exists());
        drop(silent);
    }

    #[test]
    fn programs_in_the_queue_are_woken_when_the_listener_leaves_and_one_of_them_takes_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let (state, socket) = (StateDir::new(dir.path()).unwrap(), dir.path().join("bell"));
        let first = Doorbell::open(&state, &socket).unwrap();
        // More than the listener accepts.
        let mut queue: Vec<_> = (0..MAX_CALLERS + 8).map(|_| Doorbell::open(&state, &socket).unwrap()).collect();
        assert!(queue.iter().all(|bell| matches!(bell.place, Place::Queue(_))));
        drop(first);
        for bell in &mut queue {
            assert_eq!(bell.wait(LONG).unwrap(), Woken::Listener);
        }
        let second = Doorbell::open(&state, &socket).unwrap();
        assert!(matches!(second.place, Place::Listener { .. }));
        // A program that has left does not remove the socket of the next one.
        drop(queue);
        assert!(socket.exists());
    }
}
