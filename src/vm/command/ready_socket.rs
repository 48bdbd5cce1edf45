//! How a host program is notified that the agent has begun to listen on vsock: the agent connects to a vsock port of the host, and
//! sends a byte. On the host, this port is a unix socket, the ready socket.
//!
//! Only one host program can listen there. The others connect to it and send nothing. When the listener has finished or is killed,
//! their connections end, and each of them tries to connect to the agent, and to listen.

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
use crate::sys::unix_socket::{connect, listen};

/// The limit of accepted connections, since the guest can open any number. Further ones wait in the listener's queue.
const MAX_CONNECTIONS: usize = 64;

pub(super) struct ReadySocket<'a> {
    state: &'a StateDir,
    socket: PathBuf,
    role: Role,
}

enum Role {
    /// This program listens. `id` is the socket's device and inode.
    Listener { listener: UnixListener, connections: Vec<UnixStream>, id: (u64, u64) },
    /// Another program listens. The connection to it ends when it stops listening.
    Waiter(UnixStream),
    /// Another program listened a moment ago, or its queue is full.
    Refused,
}

/// Why a wait has ended.
#[derive(Debug, PartialEq)]
pub(super) enum WaitEnd {
    AgentReady,
    /// The other program does not listen any more.
    ListenerLeft,
    Timeout,
}

impl<'a> ReadySocket<'a> {
    /// Listens on a socket, or connects to the program that does.
    pub fn open(state: &'a StateDir, socket: &Path) -> Result<Self> {
        let _lock = state.lock()?;
        let role = match listen(socket) {
            Ok(listener) => listener_role(listener, socket).map_err(Error::io("listen on", socket))?,
            Err(Error::SocketInUse { .. }) => connect(socket, Duration::ZERO).map_or(Role::Refused, Role::Waiter),
            Err(error) => return Err(error),
        };
        Ok(Self { state, socket: socket.to_owned(), role })
    }

    /// Waits until the agent notifies this program, or the other program stops listening.
    pub fn wait(&mut self, timeout: Duration) -> io::Result<WaitEnd> {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(WaitEnd::Timeout);
            }
            match &mut self.role {
                Role::Listener { listener, connections, .. } => {
                    let mut fds: Vec<_> =
                        connections.iter().map(|connection| PollFd::new(connection, PollFlags::IN)).collect();
                    if fds.len() < MAX_CONNECTIONS {
                        fds.push(PollFd::new(listener, PollFlags::IN));
                    }
                    wait_for(&mut fds, left)?;
                    if receive_notification(listener, connections)? {
                        return Ok(WaitEnd::AgentReady);
                    }
                }
                Role::Waiter(stream) => {
                    if wait_for(&mut [PollFd::new(stream, PollFlags::IN)], left)? {
                        return Ok(WaitEnd::ListenerLeft);
                    }
                }
                Role::Refused => {
                    std::thread::sleep(left);
                    return Ok(WaitEnd::ListenerLeft);
                }
            }
        }
    }
}

impl Drop for ReadySocket<'_> {
    fn drop(&mut self) {
        let Role::Listener { id, .. } = &self.role else { return };
        let _lock = self.state.lock();
        // Another VM may have taken the directory over.
        if fs::symlink_metadata(&self.socket).is_ok_and(|socket| (socket.dev(), socket.ino()) == *id) {
            let _ = fs::remove_file(&self.socket);
        }
    }
}

fn listener_role(listener: UnixListener, socket: &Path) -> io::Result<Role> {
    listener.set_nonblocking(true)?;
    let metadata = fs::symlink_metadata(socket)?;
    Ok(Role::Listener { listener, connections: Vec::new(), id: (metadata.dev(), metadata.ino()) })
}

/// Accepts and reads connections. Returns whether one of them has sent something.
fn receive_notification(listener: &UnixListener, connections: &mut Vec<UnixStream>) -> io::Result<bool> {
    while connections.len() < MAX_CONNECTIONS {
        match listener.accept() {
            Ok((connection, _)) => {
                connection.set_nonblocking(true)?;
                connections.push(connection);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if [io::ErrorKind::Interrupted, io::ErrorKind::ConnectionAborted].contains(&error.kind()) => {}
            Err(error) => return Err(error),
        }
    }
    let mut is_notified = false;
    connections.retain(|mut connection| match connection.read(&mut [0]) {
        Ok(length) => {
            is_notified |= length > 0;
            false
        }
        Err(error) => matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted),
    });
    Ok(is_notified)
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
    fn agents_byte_ends_the_wait_and_silent_connections_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let (state, socket) = (StateDir::new(dir.path()).unwrap(), dir.path().join("ready"));
        drop(UnixListener::bind(&socket).unwrap()); // a stale socket
        let mut ready = ReadySocket::open(&state, &socket).unwrap();
        let silent: Vec<_> = (0..10).map(|_| UnixStream::connect(&socket).unwrap()).collect();
        drop(UnixStream::connect(&socket).unwrap());
        assert_eq!(ready.wait(Duration::from_millis(50)).unwrap(), WaitEnd::Timeout);
        thread::scope(|scope| {
            let waiting = scope.spawn(|| ready.wait(LONG).unwrap());
            UnixStream::connect(&socket).unwrap().write_all(&[1]).unwrap();
            assert_eq!(waiting.join().unwrap(), WaitEnd::AgentReady);
        });
        drop(ready);
        assert!(!socket.exists());
        drop(silent);
    }

    #[test]
    fn waiting_programs_are_notified_when_the_listener_stops_and_one_of_them_listens_next() {
        let dir = tempfile::tempdir().unwrap();
        let (state, socket) = (StateDir::new(dir.path()).unwrap(), dir.path().join("ready"));
        let first = ReadySocket::open(&state, &socket).unwrap();
        // More than the listener accepts.
        let mut waiting_programs: Vec<_> =
            (0..MAX_CONNECTIONS + 8).map(|_| ReadySocket::open(&state, &socket).unwrap()).collect();
        assert!(waiting_programs.iter().all(|ready| matches!(ready.role, Role::Waiter(_))));
        drop(first);
        for ready in &mut waiting_programs {
            assert_eq!(ready.wait(LONG).unwrap(), WaitEnd::ListenerLeft);
        }
        let second = ReadySocket::open(&state, &socket).unwrap();
        assert!(matches!(second.role, Role::Listener { .. }));
        // A program that has left does not remove the socket of the next one.
        drop(waiting_programs);
        assert!(socket.exists());
    }
}
