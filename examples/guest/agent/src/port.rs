//! The virtio serial port of the agent.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};

const NAME: &str = "org.hyperkit.agent";
const PORTS: &str = "/sys/class/virtio-ports";
/// The kernel's events, not those of udev.
const KERNEL_EVENTS: u32 = 1;

/// Opens the port with the agent's name. Waits until the kernel reports one: it names a port some time after its driver is
/// loaded.
pub fn find() -> io::Result<Port> {
    // Before the first look, so that no port is missed.
    let events = events();
    loop {
        if let Some(path) = named_port() {
            return open(&path);
        }
        let events = events.as_ref().map_err(|error| io::Error::new(error.kind(), error.to_string()))?;
        // A lost event (ENOBUFS) is also a reason to look.
        let _ = recv(events, &mut [0; 4096], RecvFlags::empty());
    }
}

fn events() -> io::Result<OwnedFd> {
    let events = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, SocketFlags::CLOEXEC, Some(KOBJECT_UEVENT))?;
    bind(&events, &SocketAddrNetlink::new(0, KERNEL_EVENTS))?;
    Ok(events)
}

fn named_port() -> Option<PathBuf> {
    let is_named = |dir: &PathBuf| fs::read_to_string(dir.join("name")).is_ok_and(|name| name.trim_end() == NAME);
    let mut ports = fs::read_dir(PORTS).ok()?.flatten().map(|entry| entry.path());
    Some(Path::new("/dev").join(ports.find(is_named)?.file_name()?))
}

/// Opens a port.
pub fn open(path: &Path) -> io::Result<Port> {
    let file = OpenOptions::new().read(true).write(true).open(path);
    let file = file.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
    let port = Port(file);
    port.set_nonblocking(true)?;
    Ok(port)
}

/// An open port. It does not block.
pub struct Port(File);

impl Port {
    fn set_nonblocking(&self, on: bool) -> io::Result<()> {
        let flags = rustix::fs::fcntl_getfl(&self.0)?;
        Ok(rustix::fs::fcntl_setfl(
            &self.0,
            flags.difference(rustix::fs::OFlags::NONBLOCK)
                | match on {
                    true => rustix::fs::OFlags::NONBLOCK,
                    false => rustix::fs::OFlags::empty(),
                },
        )?)
    }

    /// Reads what has arrived. 0: no host program has the port open. `None`: nothing has arrived.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        retry((&self.0).read(buffer))
    }

    /// Writes what fits.
    pub fn write(&self, bytes: &[u8]) -> io::Result<Option<usize>> {
        retry((&self.0).write(bytes))
    }

    /// Waits until a host program has the port open. `poll` cannot wait for that: while no program has the port open, it
    /// returns at once. A blocking write waits. The host ignores bytes before WELCOME.
    pub fn wait_for_host(&self) -> io::Result<()> {
        self.set_nonblocking(false)?;
        let written = (&self.0).write_all(&[0]);
        self.set_nonblocking(true)?;
        written
    }
}

impl AsFd for Port {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// `None` if a call would block or was interrupted.
pub fn retry(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(None),
        result => result.map(Some),
    }
}
