//! Unix sockets: connecting with a timeout, listening, and removing stale ones.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};

use crate::error::{Error, Result};
use crate::sys::file::remove_file;

/// Connects within the timeout: the queue of a listener that hangs fills up, and then connecting would block.
pub(crate) fn connect(socket: &Path, timeout: Duration) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(socket)?;
    // If the clock cannot represent the deadline, it waits without one.
    let deadline = Instant::now().checked_add(timeout);
    let is_over = || deadline.is_some_and(|deadline| Instant::now() >= deadline);
    loop {
        let stream = UnixStream::from(unconnected(SocketType::STREAM)?);
        match rustix::net::connect(&stream, &address) {
            Err(Errno::AGAIN) if !is_over() => std::thread::sleep(Duration::from_millis(10)),
            connected => {
                connected?;
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
        }
    }
}

/// The process that listens at the other end of a connection. `None` on systems that do not report it.
pub(crate) fn peer_pid(stream: &UnixStream) -> io::Result<Option<u32>> {
    #[cfg(target_os = "linux")]
    {
        // 0 if the process is in a pid namespace that this program does not see.
        let pid = rustix::net::sockopt::socket_peercred(stream)?.pid.as_raw_nonzero().get();
        Ok(Some(pid.unsigned_abs()))
    }
    #[cfg(target_vendor = "apple")]
    {
        let pid = nix::sys::socket::getsockopt(stream, nix::sys::socket::sockopt::LocalPeerPid)?;
        Ok(u32::try_from(pid).ok())
    }
    #[cfg(not(any(target_os = "linux", target_vendor = "apple")))]
    {
        let _ = stream;
        Ok(None)
    }
}

/// Listens on a socket, and replaces a stale one. The caller holds the lock of the state directory. Otherwise, if two programs found the
/// same stale socket, the second one could remove the first one's new socket.
pub(crate) fn listen(socket: &Path) -> Result<UnixListener> {
    remove_stale_socket(socket)?;
    UnixListener::bind(socket).map_err(Error::io("listen on", socket))
}

/// Removes a stale socket, so that the caller can create a new one there. Anything else at this path stays and is an error.
pub(crate) fn remove_stale_socket(socket: &Path) -> Result<()> {
    let Ok(metadata) = socket.symlink_metadata() else { return Ok(()) };
    if metadata.file_type().is_socket() && is_stale(socket) {
        return remove_file(socket);
    }
    Err(Error::SocketInUse { path: socket.to_owned() })
}

/// Whether no program listens on a socket. This does not disturb a program that listens on a stream socket: connecting a
/// datagram socket to it fails with EPROTOTYPE, and with ECONNREFUSED if no program listens.
pub(crate) fn is_stale(socket: &Path) -> bool {
    let tried = || rustix::net::connect(unconnected(SocketType::DGRAM)?, &SocketAddrUnix::new(socket)?);
    tried() == Err(Errno::CONNREFUSED)
}

/// A socket that does not block, and that no other child inherits.
fn unconnected(kind: SocketType) -> rustix::io::Result<OwnedFd> {
    #[cfg(target_os = "linux")]
    return rustix::net::socket_with(
        AddressFamily::UNIX,
        kind,
        rustix::net::SocketFlags::CLOEXEC | rustix::net::SocketFlags::NONBLOCK,
        None,
    );
    #[cfg(not(target_os = "linux"))]
    {
        let socket = rustix::net::socket(AddressFamily::UNIX, kind, None)?;
        rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&socket, true)?;
        #[cfg(target_vendor = "apple")]
        // as std does: writing to a closed connection is an error, and does not kill the program
        rustix::net::sockopt::set_socket_nosigpipe(&socket, true)?;
        Ok(socket)
    }
}
