//! Connecting to a unix socket, and finding out whether somebody is there.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};

use crate::error::{Error, Result};
use crate::state::VSOCK_SOCKET;
use crate::sys::file::remove_file;
use std::os::unix::fs::FileTypeExt;

/// Connects without ever waiting for longer than `patience`: the queue of a program that hangs fills up.
pub(crate) fn connect(socket: &Path, patience: Duration) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(socket)?;
    let deadline = Instant::now() + patience;
    loop {
        let stream = UnixStream::from(unconnected(SocketType::STREAM)?);
        match rustix::net::connect(&stream, &address) {
            Err(Errno::AGAIN) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(10)),
            connected => {
                connected?;
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
        }
    }
}

/// Whether of a socket only the file is left. Who listens on a stream socket is not disturbed: datagrams are refused there
/// for being of the wrong kind, and for want of a listener where there is none.
pub(crate) fn is_left_behind(socket: &Path) -> bool {
    let tried = || rustix::net::connect(unconnected(SocketType::DGRAM)?, &SocketAddrUnix::new(socket)?);
    tried() == Err(Errno::CONNREFUSED)
}

/// A socket that does not wait, and that no other child inherits.
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
        // as std has it: writing to who is gone is an error, and does not end the program
        rustix::net::sockopt::set_socket_nosigpipe(&socket, true)?;
        Ok(socket)
    }
}

/// Of a listener that is gone only the file is left, and would pass for the new one. What is not ours stays.
pub(crate) fn make_way(socket: &Path) -> Result<()> {
    let Ok(metadata) = socket.symlink_metadata() else { return Ok(()) };
    if metadata.file_type().is_socket() && is_left_behind(socket) {
        return remove_file(socket);
    }
    Err(Error::SocketTaken { path: socket.to_owned() })
}

/// The names of sockets that [`Vm::vsock_listen`] makes for QEMU.
pub(crate) fn is_listening_place(name: &str) -> bool {
    let port = name.strip_prefix(VSOCK_SOCKET).and_then(|rest| rest.strip_prefix('_'));
    port.is_some_and(|port| port.parse::<u32>().is_ok())
}
