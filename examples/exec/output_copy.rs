//! Copies what the program in the guest writes.

use std::io::Read;
use std::os::fd::BorrowedFd;

use hyperkit::GuestReader;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, write};

const PIECE: usize = 64 * 1024;

/// Copies an output of the program to a descriptor until the output ends. Fails if the descriptor cannot be written to. If the
/// output cannot be read, waiting for the program reports why.
pub fn copy(mut output: GuestReader, to: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut buffer = vec![0; PIECE];
    loop {
        match output.read(&mut buffer) {
            Ok(length @ 1..) => write_all(to, &buffer[..length])?,
            _ => return Ok(()),
        }
    }
}

fn write_all(to: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match write(to, bytes) {
            Ok(length) => bytes = &bytes[length..],
            // Another program has made the terminal or pipe non-blocking.
            Err(Errno::AGAIN) => drop(poll(&mut [PollFd::new(&to, PollFlags::OUT)], None)),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
