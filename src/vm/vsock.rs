//! Streams between programs of the host and of the guest, over the sockets that each engine makes of vsock.
//!
//! hyperkit takes `CID.PORT` in hexadecimal on its socket `connect` and answers nothing; forwarded ports have sockets of
//! their own. vhost-device-vsock takes `CONNECT PORT` on `v.sock` and answers `OK`. What the guest connects to arrives at
//! a socket of the host, which each engine looks for under a name of its own.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use crate::config::HyperKit;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::state::{StateDir, VSOCK_SOCKET};
use crate::sys::unix_socket::{connect, make_way};
use crate::vm::Vm;

/// The host's context identifier.
const HOST_CID: u32 = 2;
/// How long it may take until the guest has said whether somebody listens.
const PATIENCE: Duration = Duration::from_secs(10);
/// `OK` and a number are shorter than this, in bytes.
const LONGEST_ANSWER: usize = 32;

impl Vm {
    /// Connects to a vsock port of the guest.
    ///
    /// With hyperkit a port nobody listens on shows only as the end of the stream, when it is read. With QEMU a stream that
    /// is shut down in one direction ends in both, so who has sent all had better wait for the answer before.
    ///
    #[cfg_attr(target_os = "linux", doc = "```")]
    #[cfg_attr(not(target_os = "linux"), doc = "```no_run")]
    /// # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
    /// # let _here = here::with_vsock();
    /// use hyperkit::{Error, HyperKit};
    /// use std::io::Write;
    ///
    /// let vm = HyperKit::from_state("vm")?.vm()?.ok_or("it does not run")?;
    /// # vm.wait_for_console("is up", std::time::Duration::from_secs(300))?;
    /// match vm.vsock_connect(1234) {
    ///     Ok(mut stream) => stream.write_all(b"hello")?,
    ///     Err(Error::NobodyListens { port }) => println!("nobody listens on port {port} yet"),
    ///     Err(error) => return Err(error.into()),
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::NotRunning`]; [`Error::Needs`] if the machine has no vsock; [`Error::NobodyListens`] with QEMU;
    /// [`Error::Io`]; [`Error::Unsupported`] with QEMU on `/dev/vhost-vsock`, for want of vhost-device-vsock.
    pub fn vsock_connect(&self, port: u32) -> Result<UnixStream> {
        let machine = self.with_vsock("vsock_connect")?;
        let (dir, cid) = (machine.vsock_place(), machine.vsock_guest_cid);
        let (socket, request) = match self.engine {
            Engine::HyperKit if machine.vsock_ports.contains(&port) => (dir.join(format!("guest.{port:08x}")), None),
            Engine::HyperKit => (dir.join("connect"), Some(format!("{cid:08x}.{port:08x}\n"))),
            Engine::Qemu => (dir.join(VSOCK_SOCKET), Some(format!("CONNECT {port}\n"))),
        };
        let talk = || -> io::Result<Option<UnixStream>> {
            let mut stream = connect(&socket, PATIENCE)?;
            request.iter().try_for_each(|request| stream.write_all(request.as_bytes()))?;
            let is_through = self.engine == Engine::HyperKit || is_accepted(&mut stream)?;
            Ok(is_through.then_some(stream))
        };
        talk().map_err(Error::io("connect to", &socket))?.ok_or(Error::NobodyListens { port })
    }

    /// Listens on a vsock port of the host, for the guest to connect to CID 2.
    ///
    /// Of a listener that is gone the socket is replaced; in the state directory it goes with the machine's other sockets.
    ///
    #[cfg_attr(target_os = "linux", doc = "```")]
    #[cfg_attr(not(target_os = "linux"), doc = "```no_run")]
    /// # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
    /// # let _here = here::with_vsock();
    /// let vm = hyperkit::HyperKit::from_state("vm")?.vm()?.ok_or("it does not run")?;
    /// let listener = vm.vsock_listen(5555)?;
    /// # std::os::unix::net::UnixStream::connect("vm/v.sock_5555")?; // as for a guest
    /// let (stream, _) = listener.accept()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`vsock_connect`](Self::vsock_connect); [`Error::SocketTaken`] if somebody listens there already.
    pub fn vsock_listen(&self, port: u32) -> Result<UnixListener> {
        let socket = self.listening_place(&self.with_vsock("vsock_listen")?, port);
        // Of two who find the same left behind, the second must not remove what the first has made.
        let _lock = self.state.as_ref().map(StateDir::lock).transpose()?;
        make_way(&socket)?;
        UnixListener::bind(&socket).map_err(Error::io("listen on", &socket))
    }

    fn listening_place(&self, machine: &HyperKit, port: u32) -> PathBuf {
        let name = match self.engine {
            Engine::HyperKit => format!("{HOST_CID:08x}.{port:08x}"),
            Engine::Qemu => format!("{VSOCK_SOCKET}_{port}"),
        };
        machine.vsock_place().join(name)
    }

    /// The description of the machine, if it runs and has a vsock that sockets lead to.
    fn with_vsock(&self, call: &'static str) -> Result<HyperKit> {
        if self.try_wait()?.is_some() {
            return Err(Error::NotRunning);
        }
        let state = self.state.as_ref().ok_or(Error::StateDirRequired { field: "vsock" })?;
        let machine = state.load()?;
        if !machine.vsock {
            return Err(Error::Needs { field: call, needs: "vsock" });
        }
        if self.engine == Engine::Qemu && machine.vhost_device_vsock.is_none() {
            let feature = "vsock over unix sockets with /dev/vhost-vsock: install vhost-device-vsock, or use AF_VSOCK and the guest's CID";
            return Err(Error::Unsupported { engine: self.engine, feature });
        }
        Ok(machine)
    }
}

/// Reads `OK` and a number; the end of the stream says that nobody listens. Not a byte more is read: those are the guest's.
fn is_accepted(stream: &mut UnixStream) -> io::Result<bool> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut answer = Vec::new();
    while answer.last() != Some(&b'\n') && answer.len() < LONGEST_ANSWER {
        let mut byte = [0];
        match stream.read(&mut byte) {
            Ok(0) => return Ok(false),
            Ok(_) => answer.push(byte[0]),
            Err(error) => match error.kind() {
                ErrorKind::Interrupted => {}
                // A guest whose driver is not there yet says nothing at all.
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
            let (mut stream, mut program) = UnixStream::pair().unwrap();
            program.write_all(answer.as_bytes()).unwrap();
            drop(program);
            let accepted = is_accepted(&mut stream).unwrap();
            let mut rest = String::new();
            stream.read_to_string(&mut rest).unwrap();
            (accepted, rest)
        };
        assert_eq!(after("OK 1073741824\nthe guest's"), (true, "the guest's".to_owned()));
        assert_eq!(after(""), (false, String::new()));
        assert_eq!(after("OK 10"), (false, String::new()));
        assert_eq!(after("NO\n"), (false, String::new()));
        assert_eq!(after(&"x".repeat(LONGEST_ANSWER + 1)), (false, "x".to_owned()));
    }

    #[test]
    fn the_end_of_a_connection_that_was_not_read_to_its_end_is_a_refusal() {
        let (mut stream, program) = UnixStream::pair().unwrap();
        stream.write_all(b"CONNECT 1\n").unwrap();
        drop(program);
        assert!(!is_accepted(&mut stream).unwrap());
    }
}
