//! The traits of std that make the console a stream with a descriptor.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::event::PollFlags;

use super::{ConsoleStream, eio_is_end};

impl Read for &ConsoleStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut unmatched = self.unmatched();
        if !unmatched.is_empty() {
            let length = buffer.len().min(unmatched.len());
            buffer[..length].copy_from_slice(&unmatched[..length]);
            unmatched.drain(..length);
            return Ok(length);
        }
        drop(unmatched);
        eio_is_end(self.retry_until_ready(PollFlags::IN, |mut pty| pty.read(buffer)))
    }
}

impl Write for &ConsoleStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.retry_until_ready(PollFlags::OUT, |mut pty| pty.write(bytes))
    }

    /// Nothing is buffered.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for ConsoleStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&*self).read(buffer)
    }
}

impl Write for ConsoleStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        (&*self).flush()
    }
}

impl AsFd for ConsoleStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pty.as_fd()
    }
}

impl AsRawFd for ConsoleStream {
    fn as_raw_fd(&self) -> RawFd {
        self.pty.as_raw_fd()
    }
}

impl From<ConsoleStream> for OwnedFd {
    /// The descriptor of the pty. It is in non-blocking mode: a read or write that would have to wait fails with EAGAIN.
    fn from(console: ConsoleStream) -> Self {
        console.pty.into()
    }
}
