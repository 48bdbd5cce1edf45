//! vsock: connections between programs of the host and of the guest, over the unix sockets that each engine offers.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use crate::engine::VsockEndpoint;
use crate::error::{ConfigError, Error, Result};
use crate::state::StateDir;
use crate::sys::unix_socket::{connect, listen};
use crate::vm::Vm;

/// How long the guest may take to accept or refuse a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The limit on the answer of vhost-device-vsock, in bytes. It is `OK`, a number and a newline.
const MAX_ANSWER_BYTES: usize = 32;

/// # vsock
///
/// vsock (sockets between a host and its guests) needs no network card. The guest has the address
/// [`vsock_guest_cid`](crate::HyperKit#structfield.vsock_guest_cid), the host has 2. On both, ports are numbers of 32 bits.
/// The VM must have been started with [`vsock`](crate::HyperKit#structfield.vsock).
impl Vm {
    /// Connects to a vsock port of the guest, on which a program in the guest listens.
    ///
    /// hyperkit does not report a refused connection: the first read then returns the end of the stream. While the guest has not
    /// loaded its vsock driver, hyperkit keeps the connection waiting, and a read waits, too; QEMU refuses the connection. On QEMU,
    /// a stream that is shut down in one direction ends in both. So read the guest's answer before you shut down the stream.
    ///
    #[cfg_attr(target_os = "linux", doc = "```")]
    #[cfg_attr(not(target_os = "linux"), doc = "```no_run")]
    /// # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
    /// # let _here = here::with_vsock();
    /// use hyperkit::{Error, HyperKit};
    /// use std::io::Write;
    ///
    /// let vm = HyperKit::from_state("vm")?.vm()?.ok_or("the VM does not run")?;
    /// # vm.wait_for_console("is up", std::time::Duration::from_secs(300))?;
    /// match vm.vsock_connect(1234) {
    ///     Ok(mut stream) => stream.write_all(b"hello")?,
    ///     Err(Error::VsockConnectionRefused { port }) => println!("no program listens on port {port} yet"),
    ///     Err(error) => return Err(error.into()),
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::NotRunning`]; [`ConfigError::MissingPrerequisite`] if the VM has no vsock device;
    /// [`Error::VsockConnectionRefused`] on QEMU; [`Error::Io`]; [`ConfigError::Unsupported`] on QEMU without
    /// [`vhost_device_vsock`](crate::HyperKit#structfield.vhost_device_vsock).
    pub fn vsock_connect(&self, port: u32) -> Result<UnixStream> {
        let VsockEndpoint { socket, request, is_acknowledged } = self.vsock_endpoint("vsock_connect", port)?;
        let connected = || -> io::Result<Option<UnixStream>> {
            let mut stream = connect(&socket, CONNECT_TIMEOUT)?;
            request.iter().try_for_each(|request| stream.write_all(request.as_bytes()))?;
            let is_open = !is_acknowledged || read_acceptance(&mut stream)?;
            Ok(is_open.then_some(stream))
        };
        connected().map_err(Error::io("connect to", &socket))?.ok_or(Error::VsockConnectionRefused { port })
    }

    /// Listens on a vsock port of the host, to which programs in the guest can connect. Their address for the host is CID 2.
    ///
    /// It creates a unix socket in [`vsock_dir`](crate::HyperKit#structfield.vsock_dir), and replaces a stale one. A socket
    /// in the state directory is removed together with the VM's other sockets.
    ///
    #[cfg_attr(target_os = "linux", doc = "```")]
    #[cfg_attr(not(target_os = "linux"), doc = "```no_run")]
    /// # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
    /// # let _here = here::with_vsock();
    /// let vm = hyperkit::HyperKit::from_state("vm")?.vm()?.ok_or("the VM does not run")?;
    /// let listener = vm.vsock_listen(5555)?;
    /// # std::os::unix::net::UnixStream::connect("vm/v.sock_5555")?; // as vhost-device-vsock does for a guest
    /// let (stream, _) = listener.accept()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`vsock_connect`](Self::vsock_connect), except `VsockConnectionRefused`; [`Error::SocketInUse`] if another
    /// program listens there.
    pub fn vsock_listen(&self, port: u32) -> Result<UnixListener> {
        self.vsock_endpoint("vsock_listen", port)?;
        let name = self.driver().vsock_listener_name(port);
        let socket = self.description().vsock_sockets_dir().join(name);
        let _lock = self.state().map(StateDir::lock).transpose()?;
        listen(&socket)
    }

    /// How to connect to a vsock port, if the VM runs and has a vsock device with sockets on the host.
    pub(super) fn vsock_endpoint(&self, call: &'static str, port: u32) -> Result<VsockEndpoint> {
        self.check_running()?;
        self.check_not_replaced()?;
        let description = self.description();
        if !description.vsock {
            return Err(ConfigError::MissingPrerequisite { field: call, requires: "vsock" }.into());
        }
        Ok(self.driver().vsock_endpoint(description, port)?)
    }
}

/// Reads `OK` and a number. The end of the stream means that the connection was refused. It reads nothing after the answer,
/// since that comes from the guest.
fn read_acceptance(stream: &mut UnixStream) -> io::Result<bool> {
    stream.set_read_timeout(Some(CONNECT_TIMEOUT))?;
    let mut answer = Vec::new();
    while answer.last() != Some(&b'\n') && answer.len() < MAX_ANSWER_BYTES {
        let mut byte = [0];
        match stream.read(&mut byte) {
            Ok(0) => return Ok(false),
            Ok(_) => answer.push(byte[0]),
            Err(error) => match error.kind() {
                ErrorKind::Interrupted => {}
                // A guest whose driver is not loaded yet does not answer.
                ErrorKind::ConnectionReset | ErrorKind::WouldBlock | ErrorKind::TimedOut => return Ok(false),
                _ => return Err(error),
            },
        }
    }
    stream.set_read_timeout(None)?;
    Ok(answer.starts_with(b"OK "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_to_its_end_and_no_further() {
        let after = |answer: &str| {
            let (mut stream, mut peer) = UnixStream::pair().unwrap();
            peer.write_all(answer.as_bytes()).unwrap();
            drop(peer);
            let accepted = read_acceptance(&mut stream).unwrap();
            let mut rest = String::new();
            stream.read_to_string(&mut rest).unwrap();
            (accepted, rest)
        };
        assert_eq!(after("OK 1073741824\nfrom the guest"), (true, "from the guest".to_owned()));
        assert_eq!(after(""), (false, String::new()));
        assert_eq!(after("OK 10"), (false, String::new()));
        assert_eq!(after("NO\n"), (false, String::new()));
        assert_eq!(after(&"x".repeat(MAX_ANSWER_BYTES + 1)), (false, "x".to_owned()));
    }

    #[test]
    fn a_reset_connection_is_refused() {
        let (mut stream, peer) = UnixStream::pair().unwrap();
        stream.write_all(b"CONNECT 1\n").unwrap();
        drop(peer);
        assert!(!read_acceptance(&mut stream).unwrap());
    }
}
