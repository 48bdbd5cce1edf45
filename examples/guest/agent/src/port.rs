//! The virtio serial port of the agent.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};

const NAME: &str = "org.hyperkit.agent";
const PORTS: &str = "/sys/class/virtio-ports";
/// The kernel's events, not those of udev.
const KERNEL_EVENTS: u32 = 1;
/// How often a closed port is checked until the host program counts as gone: after 1, 2, 4, … ms.
const CLOSED_CHECKS: u32 = 10;

/// Opens the port with the agent's name. Waits until the kernel reports one: it names a port some time after its driver is
/// loaded.
pub fn find() -> io::Result<Port> {
    open(&wait_for_device(named_port)?)
}

/// Waits until a device is there. `find` is called for each device that the kernel reports.
pub fn wait_for_device<T>(find: impl Fn() -> Option<T>) -> io::Result<T> {
    // Before the first look, so that no device is missed.
    let events = events();
    loop {
        if let Some(found) = find() {
            return Ok(found);
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

pub fn named_port() -> Option<PathBuf> {
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

/// What the agent serves.
pub trait Channel: AsFd {
    /// Reads what has arrived. 0: no host program has the channel open. `None`: nothing has arrived.
    fn read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>>;

    /// Writes what fits.
    fn write(&self, bytes: &[u8]) -> io::Result<Option<usize>>;

    /// Whether no host program has the channel open any more, after a read has returned 0.
    fn is_closed(&self) -> io::Result<bool>;

    /// Waits until a host program has the channel open, and sends it these bytes. Returns false if no other will open it.
    fn wait_for_host(&self, greeting: &[u8]) -> io::Result<bool>;

    /// How long the host may neither read nor send anything while output waits for it. `None`: without a limit.
    fn stall_limit(&self) -> Option<Duration> {
        None
    }
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
}

impl Channel for Port {
    fn read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        retry((&self.0).read(buffer))
    }

    fn write(&self, bytes: &[u8]) -> io::Result<Option<usize>> {
        retry((&self.0).write(bytes))
    }

    /// The kernel passes on bytes at once, and lets a worker handle the hypervisor's messages that the port was closed and opened. So
    /// the bytes of the next host program can arrive before these messages, and the port seems to be closed once more while that
    /// program has it open, until the worker has handled the next message.
    fn is_closed(&self) -> io::Result<bool> {
        for check in 0..CLOSED_CHECKS {
            let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
            match poll(&mut fds, Some(&Timespec::default())) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            if !fds[0].revents().contains(PollFlags::HUP) {
                return Ok(false);
            }
            thread::sleep(Duration::from_millis(1 << check));
        }
        Ok(true)
    }

    /// `poll` cannot wait for that: while no program has the port open, it returns at once. A blocking write waits.
    fn wait_for_host(&self, greeting: &[u8]) -> io::Result<bool> {
        self.set_nonblocking(false)?;
        let written = (&self.0).write_all(greeting);
        self.set_nonblocking(true)?;
        written.map(|()| true)
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
