//! vsock: the agent listens, and each connection has a process of its own, which serves it as another process serves the port.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::sys::socket::{VsockAddr, bind, connect, getpeername};
use rustix::net::{AddressFamily, SocketFlags, SocketType, accept_with, listen, socket_with};

use crate::port::{Channel, named_port, retry, wait_for_device};
use crate::protocol::VSOCK_PORT;
use crate::session;
use crate::supervisor::SELF;

/// The option of this program for a connection, which is its standard input.
pub const OPTION: &str = "--session";
/// Any address of this guest (VMADDR_CID_ANY).
const ANY: u32 = u32::MAX;
const HOST: u32 = 2;
const QUEUE: i32 = 128;
/// After an error that may pass, such as too many open files.
const ACCEPT_DELAY: Duration = Duration::from_millis(100);
/// How long a host program may neither read nor send anything while output waits for it. vhost-device-vsock does not report to the
/// guest that the host has closed a connection on which the guest sends.
const STALL_LIMIT: Duration = Duration::from_secs(30);

/// Serves the connections of the host. With `is_spare`, refuses them if the VM has the agent's port, which the host then uses.
pub fn serve(is_spare: bool) -> io::Result<()> {
    wait_for_device(|| Path::new("/dev/vsock").exists().then_some(()))?;
    let listener = new_socket()?;
    bind(listener.as_raw_fd(), &VsockAddr::new(ANY, VSOCK_PORT))?;
    listen(&listener, QUEUE)?;
    thread::spawn(notify_host);
    loop {
        let connection = match accept_with(&listener, SocketFlags::CLOEXEC) {
            Ok(connection) => connection,
            Err(_) => {
                thread::sleep(ACCEPT_DELAY);
                continue;
            }
        };
        // With the module vsock_loopback, any user of the guest can connect.
        let peer = getpeername::<VsockAddr>(connection.as_raw_fd());
        if peer.is_ok_and(|peer| peer.cid() == HOST) && !(is_spare && named_port().is_some()) {
            if let Err(error) = start_session(connection) {
                eprintln!("hyperkit-agent: cannot serve a connection: {error}");
            }
        }
    }
}

fn new_socket() -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::VSOCK, SocketType::STREAM, SocketFlags::CLOEXEC, None)?)
}

/// Notifies a host program that waits for the agent. If none waits, the connection is refused.
fn notify_host() {
    if let Ok(socket) = new_socket() {
        if connect(socket.as_raw_fd(), &VsockAddr::new(HOST, VSOCK_PORT)).is_ok() {
            let _ = rustix::io::write(&socket, &[1]);
        }
    }
}

fn start_session(connection: OwnedFd) -> io::Result<()> {
    let mut command = Command::new(SELF);
    command.arg0("hyperkit-agent").arg(OPTION).stdin(connection).stdout(Stdio::null());
    let mut session = command.spawn()?;
    // Only the session may have the connection open. Otherwise the kernel would not tell the host when the session exits.
    drop(command);
    thread::Builder::new().spawn(move || session.wait()).map(drop)
}

/// Serves the connection that is this process's standard input, until its end.
pub fn run_session() -> io::Result<()> {
    let stream = Stream(io::stdin().as_fd().try_clone_to_owned()?.into());
    rustix::io::ioctl_fionbio(&stream.0, true)?;
    session::serve(&stream, || ())
}

/// A connection of one host program.
struct Stream(File);

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Channel for Stream {
    /// A connection that was reset has ended, too.
    fn read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        retry((&self.0).read(buffer)).or(Ok(Some(0)))
    }

    /// The next read reports the end of the connection.
    fn write(&self, bytes: &[u8]) -> io::Result<Option<usize>> {
        retry((&self.0).write(bytes)).or(Ok(Some(bytes.len())))
    }

    fn is_closed(&self) -> io::Result<bool> {
        Ok(true)
    }

    fn wait_for_host(&self, _: &[u8]) -> io::Result<bool> {
        Ok(false)
    }

    fn stall_limit(&self) -> Option<Duration> {
        Some(STALL_LIMIT)
    }
}
