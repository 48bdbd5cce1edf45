//! A program that listens where VPNKit would, and speaks its handshake with hyperkit.

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

/// How much of the handshake the program does. Then it keeps the connection open.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Handshake {
    Nothing,
    Greeting,
    All,
}

/// Listens on a socket until the test program ends.
pub fn listen_as_vpnkit(socket: &Path, handshake: Handshake) {
    let listener = UnixListener::bind(socket).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || serve(stream, handshake));
        }
    });
}

fn serve(mut stream: UnixStream, handshake: Handshake) -> io::Result<()> {
    if handshake != Handshake::Nothing {
        let mut greeting = [0; 49]; // magic, version, commit
        stream.read_exact(&mut greeting)?;
        stream.write_all(&greeting)?;
    }
    if handshake == Handshake::All {
        stream.read_exact(&mut [0; 41])?; // command
        stream.write_all(&[&[1][..], &[0; 257]].concat())?; // accepted, the network card
    }
    io::copy(&mut stream, &mut io::sink()).map(drop)
}
