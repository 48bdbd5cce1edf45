//! VPNKit, Docker Desktop's program that gives a VM a network.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::ConfigError;
use crate::sys::unix_socket::connect;

/// The places of Docker Desktop's VPNKit socket below the home directory, newest first.
const SOCKETS: [&str; 2] =
    ["Library/Containers/com.docker.docker/Data/vpnkit.eth.sock", "Library/Containers/com.docker.docker/Data/s50"];

/// How long VPNKit may take to answer a greeting.
const TIMEOUT: Duration = Duration::from_secs(3);

/// The places where Docker Desktop's VPNKit may listen, at least one.
pub(super) fn sockets() -> Vec<PathBuf> {
    let home = PathBuf::from(std::env::var_os("HOME").unwrap_or_default());
    SOCKETS.iter().map(|socket| home.join(socket)).collect()
}

/// Refuses a socket on which no VPNKit listens: hyperkit would try to connect, or wait for a greeting, forever and without a
/// message.
pub(super) fn check(socket: &Path) -> Result<(), ConfigError> {
    if !socket.exists() {
        return Err(ConfigError::NotFound { field: "network", path: socket.to_owned() });
    }
    match connect(socket, Duration::ZERO) {
        // The queue of the listening program is full.
        Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
        connected => connected.and_then(greet),
    }
    .map_err(|error| ConfigError::inaccessible("network", socket, &error))
}

/// Fills the buffer before the timeout, also if the bytes come one by one.
fn read_exact(stream: &mut UnixStream, mut buffer: &mut [u8], timeout: Duration) -> io::Result<()> {
    let end = Instant::now() + timeout;
    while !buffer.is_empty() {
        let rest = end.saturating_duration_since(Instant::now());
        // A timeout of 0 is an error.
        stream.set_read_timeout(Some(rest.max(Duration::from_millis(1))))?;
        match stream.read(buffer) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(_) if rest.is_zero() => return Err(ErrorKind::TimedOut.into()),
            Ok(length) => buffer = &mut buffer[length..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Exchanges greetings, the first step of the handshake with VPNKit (vpnkit_connect in pci_virtio_net_vpnkit.c): its magic number,
/// the version, and a commit of 40 characters. It has no effect on VPNKit, which creates a network card only in the next step.
fn greet(mut stream: UnixStream) -> io::Result<()> {
    const MAGIC: [u8; 5] = *b"VMN3T";
    const VERSION: [u8; 4] = 22_u32.to_le_bytes();

    stream.write_all(&[&MAGIC[..], &VERSION, &[b'0'; 40]].concat())?;
    let mut greeting = [0; 49];
    let reason = match read_exact(&mut stream, &mut greeting, TIMEOUT).map_err(|error| error.kind()) {
        Ok(()) if greeting.starts_with(&MAGIC) => return Ok(()),
        Ok(()) => "the program that listens is not VPNKit",
        Err(ErrorKind::WouldBlock | ErrorKind::TimedOut) => "the program that listens sends no greeting of VPNKit",
        Err(_) => "the program that listens closes the connection without a greeting of VPNKit",
    };
    Err(io::Error::new(ErrorKind::InvalidData, reason))
}
