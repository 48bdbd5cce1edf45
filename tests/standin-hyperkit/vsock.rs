//! vsock: the sockets on the host, and a guest that listens on the ports that a test chooses.

use std::fs;
use std::io::{self, Read};
use std::net::Shutdown;
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex};

use crate::devices::{pairs, refuse_option};
use crate::fail;

/// Creates the sockets, and replaces existing ones. Like hyperkit, does not delete them at exit.
pub fn set_up(config: &str) {
    let (mut cid, mut dir, mut ports) = (0, Path::new(""), Vec::new());
    for (key, value) in pairs(config) {
        match key {
            "guest_cid" => cid = value.parse().unwrap_or(0),
            "path" => dir = Path::new(value),
            "guest_forwards" => {
                let port = |text: &str| text.parse::<u32>().ok().filter(|&port| port != u32::MAX);
                let parsed: Option<_> = value.split(';').map(port).collect();
                ports = parsed.unwrap_or_else(|| fail(format!("virtio-sock: bad port in {value}")));
            }
            _ => refuse_option(key),
        }
    }
    if !(3..=0x7fff_ffff).contains(&cid) || !dir.is_dir() || dir.as_os_str().len() > 85 || ports.len() > 4 {
        fail("virtio-sock: bad configuration");
    }
    let listen = |name: &str, forwarded: Option<u32>| {
        let _ = fs::remove_file(dir.join(name));
        let listener = UnixListener::bind(dir.join(name)).unwrap_or_else(|error| fail(error));
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                if let Some(port) = forwarded.or_else(|| requested_port(&mut stream)) {
                    connect_guest(stream, port);
                }
            }
        });
    };
    listen("connect", None);
    for port in ports {
        let name = format!("{cid:08x}.{port:08x}");
        listen(&name, Some(port));
        let link = dir.join(format!("guest.{port:08x}"));
        let _ = fs::remove_file(&link);
        symlink(&name, link).unwrap_or_else(|error| fail(error));
    }
}

/// Set when the guest's driver for vsock runs: the directory with a socket for each port on which the guest listens, named by the
/// port's number.
static GUEST: (Mutex<Option<PathBuf>>, Condvar) = (Mutex::new(None), Condvar::new());

/// Without a directory, the guest listens on no port.
pub fn turn_on(listeners: Option<&str>) {
    *GUEST.0.lock().unwrap() = Some(listeners.unwrap_or("/no/listeners").into());
    GUEST.1.notify_all();
}

/// Connects a stream of the host to a port of the guest. The guest's driver takes the request from a queue. If nothing listens, the
/// stream ends.
fn connect_guest(host: UnixStream, port: u32) {
    let listeners = GUEST.1.wait_while(GUEST.0.lock().unwrap(), |listeners| listeners.is_none()).unwrap().clone();
    let Ok(guest) = UnixStream::connect(listeners.unwrap_or_default().join(port.to_string())) else { return };
    let (Ok(host_copy), Ok(guest_copy)) = (host.try_clone(), guest.try_clone()) else { return };
    std::thread::spawn(move || relay(host, guest));
    std::thread::spawn(move || relay(guest_copy, host_copy));
}

/// Like hyperkit, passes the end of one direction on, and ends both if the receiver has closed.
fn relay(mut from: UnixStream, mut to: UnixStream) {
    if io::copy(&mut from, &mut to).is_err() {
        let _ = from.shutdown(Shutdown::Both);
    }
    let _ = to.shutdown(Shutdown::Write);
}

/// Reads `CID.PORT` in hexadecimal with a newline. Like hyperkit, reads once: a request in two parts is refused.
fn requested_port(stream: &mut UnixStream) -> Option<u32> {
    let mut request = [0; 18];
    let length = stream.read(&mut request).unwrap_or(0);
    let is_number = |text: &[u8]| text.len() == 8 && text.iter().all(u8::is_ascii_hexdigit);
    let is_valid = length == 18
        && is_number(&request[..8])
        && request[8] == b'.'
        && is_number(&request[9..17])
        && request[17] == b'\n';
    let port = std::str::from_utf8(&request[9..17]).ok().filter(|_| is_valid)?;
    u32::from_str_radix(port, 16).ok()
}
