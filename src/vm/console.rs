//! The console as a stream, and the ptys of the serial ports.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

use crate::config::HyperKit;
use crate::error::{ConfigError, Error, Result};
use crate::exit::Exit;
use crate::plan::serial_ports::{Line, ports};
use crate::state::StateDir;
use crate::state::tty_file::read_pty_path;
use crate::vm::{CONTROL_TIMEOUT, Vm};

/// How often a pty is tried that the system cannot poll.
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// How much output `expect` keeps that does not contain the text, in bytes.
const MAX_UNMATCHED_BYTES: usize = 128 * 1024;
/// What a pty holds for its reader, in bytes.
const PTY_BYTES: usize = 4096;

/// The ptys of the VM's serial ports, com1 first. What the state directory records counts, and not this description.
pub(crate) fn pty_paths(description: &HyperKit) -> Result<Vec<PathBuf>> {
    let state = StateDir::of(description)?;
    let recorded = state.as_ref().map(|state| state.recorded_or(description)).transpose()?;
    let mut paths = Vec::new();
    for port in ports(recorded.as_ref().unwrap_or(description))? {
        let Line::Pty(name) = port.line else { continue };
        let state = state.as_ref().ok_or(ConfigError::StateDirRequired { field: "console" })?;
        let file = state.file(name);
        paths.push(read_pty_path(&file).ok_or(Error::PtyNotFound { path: file })?);
    }
    Ok(paths)
}

/// The console of a running VM: reading returns what the guest writes, and the guest reads what is written.
///
/// It is the pty of the first serial port in raw mode: bytes pass unchanged in both directions (Return is `\r`, ^C is
/// byte 3). Reading waits for output of the guest, and returns 0 bytes when the VM has exited. The wait can be bounded
/// ([`set_timeout`](Self::set_timeout)) or turned off ([`set_nonblocking`](Self::set_nonblocking)). Two threads can read
/// and write at once, through `&ConsoleStream` or [`try_clone`](Self::try_clone); if two read at once, each gets a part.
/// Dropping it does not affect the VM.
///
/// **Read the console while it is open.** A pty holds a few KiB. On QEMU, a guest that writes more waits until somebody
/// reads, and so does its log. A program that only writes has to read, too, or close the stream. While nobody has the
/// console open, nothing waits. QEMU takes up to a second to notice that it was opened; what the guest writes until then
/// is only in the log. Input written before QEMU has noticed reaches the guest when the console is next opened.
///
/// ```
/// # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
/// # let _here = here::running();
/// use std::time::Duration;
///
/// let minute = Duration::from_secs(60);
/// let vm = hyperkit::HyperKit::from_state("vm")?.vm()?.ok_or("it does not run")?;
/// vm.wait_for_console("is up", 5 * minute)?;
/// let console = vm.console()?;
/// console.send_line("echo $((6 * 7))")?;
/// console.expect("42", minute)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct ConsoleStream {
    pty: File,
    timeout: Mutex<Option<Duration>>,
    nonblocking: AtomicBool,
    /// What an `expect` that failed has read. It comes first at the next read.
    unmatched: Mutex<Vec<u8>>,
    vm: Vm,
}

impl Vm {
    /// Opens the console: the first serial port that leads to a pty. Any program can do this.
    ///
    /// # Errors
    /// [`Error::NotRunning`]; [`ConfigError::StateDirRequired`] and [`Error::NoConsole`] if the console leads elsewhere;
    /// [`Error::PtyNotFound`] if its file names no pty; [`Error::Io`] if it cannot be opened.
    pub fn console(&self) -> Result<ConsoleStream> {
        let state = self.required_state("console")?;
        let description = self.description();
        let paths = match pty_paths(description) {
            // The starter may have been killed before it wrote the file for QEMU.
            Err(Error::PtyNotFound { .. }) if self.try_wait().is_none() => {
                let _lock = state.lock()?;
                self.driver().finish_start(description, state, CONTROL_TIMEOUT)?;
                pty_paths(description)
            }
            paths => paths,
        };
        let no_console = || Error::NoConsole { state_dir: self.state_dir().map(Path::to_owned) };
        let path = paths.and_then(|paths| paths.into_iter().next().ok_or_else(no_console));
        // A VM that has exited has no console, whatever its file names.
        self.check_running()?;
        let path = path?;
        let flags = (OFlags::NOCTTY | OFlags::NONBLOCK).bits() as i32;
        let opened = OpenOptions::new().read(true).write(true).custom_flags(flags).open(&path);
        // If the VM still runs, the pty was the VM's when it was opened. Otherwise another program may have it by now.
        self.check_running()?;
        let stream = opened.and_then(|pty| {
            let mut settings = tcgetattr(&pty)?;
            settings.make_raw();
            tcsetattr(&pty, OptionalActions::Now, &settings)?;
            Ok(ConsoleStream {
                pty,
                timeout: Mutex::new(None),
                nonblocking: AtomicBool::new(false),
                unmatched: Mutex::default(),
                vm: self.clone(),
            })
        });
        stream.map_err(Error::io("open the console", &path))
    }
}

impl ConsoleStream {
    /// Sets how long each read and write waits before it fails with [`TimedOut`](io::ErrorKind::TimedOut). `None`, the
    /// default, is forever.
    pub fn set_timeout(&self, timeout: Option<Duration>) {
        *self.timeout.lock().unwrap_or_else(PoisonError::into_inner) = timeout;
    }

    /// Sets whether reads and writes that would have to wait fail with [`WouldBlock`](io::ErrorKind::WouldBlock), as an
    /// async runtime expects. The guide's page [`embedding`](crate::guide::embedding) has an example for tokio.
    pub fn set_nonblocking(&self, nonblocking: bool) {
        self.nonblocking.store(nonblocking, Ordering::Relaxed);
    }

    /// Returns another stream on the same console, with the same settings.
    ///
    /// # Errors
    /// [`Error::Io`] if the descriptor cannot be duplicated.
    pub fn try_clone(&self) -> Result<Self> {
        Ok(Self {
            pty: self.pty.try_clone().map_err(Error::io("duplicate", "the console"))?,
            timeout: Mutex::new(self.timeout()),
            nonblocking: AtomicBool::new(self.nonblocking.load(Ordering::Relaxed)),
            unmatched: Mutex::default(),
            vm: self.vm.clone(),
        })
    }

    /// Reads until the guest has written `text`, such as a prompt, and returns all that was read, `text` included.
    ///
    /// Reading continues where the last read ended, and nothing after `text` is read. After an error, the next call finds also
    /// what this one has read. What the guest wrote before the
    /// console was opened is not found; [`Vm::wait_for_console`] searches the log. The settings of
    /// [`set_timeout`](Self::set_timeout) and [`set_nonblocking`](Self::set_nonblocking) do not apply.
    ///
    /// # Errors
    /// [`Error::ConsoleTextNotFound`] if the text did not come within `timeout`, or before the VM exited; [`Error::Io`].
    pub fn expect(&self, text: &str, timeout: Duration) -> Result<String> {
        let deadline = Instant::now().checked_add(timeout);
        let mut unread = std::mem::take(&mut *self.unmatched()).into_iter();
        let (mut output, mut count) = (Vec::new(), 0_usize);
        // Single bytes, so that what follows the text is left for the next read.
        let failed = loop {
            if output.ends_with(text.as_bytes()) {
                self.unmatched().extend(unread);
                return Ok(String::from_utf8_lossy(&output).into_owned());
            }
            if output.len() > MAX_UNMATCHED_BYTES {
                output.drain(..output.len().saturating_sub(text.len().max(MAX_UNMATCHED_BYTES / 2)));
            }
            if let Some(byte) = unread.next() {
                output.push(byte);
                continue;
            }
            // Reads do not time out while there is something to read.
            count += 1;
            if count % PTY_BYTES == 0 && deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                break self.not_found(text, timeout, None, &output);
            }
            let mut byte = [0];
            match self.read_until(deadline, &mut byte) {
                Ok(1..) => output.push(byte[0]),
                // The hypervisor has closed the pty, and usually exits.
                Ok(0) => break self.not_found(text, timeout, self.vm.wait_until(deadline), &output),
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    break self.not_found(text, timeout, None, &output);
                }
                Err(error) => break Error::io("read", "the console")(error),
            }
        };
        *self.unmatched() = output;
        Err(failed)
    }

    fn unmatched(&self) -> MutexGuard<'_, Vec<u8>> {
        self.unmatched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a line to the guest, with the Return that ends it.
    ///
    /// A guest that reads nothing lets this wait, unless [`set_timeout`](Self::set_timeout) bounds it. The setting of
    /// [`set_nonblocking`](Self::set_nonblocking) does not apply: a part of a line would be of no use.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn send_line(&self, line: &str) -> Result<()> {
        let line = format!("{line}\r");
        let (mut rest, deadline) = (line.as_bytes(), self.deadline());
        while !rest.is_empty() {
            let written = self.retry_until(deadline, PollFlags::OUT, |mut pty| pty.write(rest));
            rest = &rest[written.map_err(Error::io("write to", "the console"))?..];
        }
        Ok(())
    }

    fn not_found(&self, text: &str, timeout: Duration, exit: Option<Exit>, output: &[u8]) -> Error {
        Error::ConsoleTextNotFound {
            text: text.to_owned(),
            exit,
            timeout,
            state_dir: self.vm.state_dir().map(Path::to_owned),
            log_tail: self.vm.log_tail().with_console(output),
        }
    }

    fn timeout(&self) -> Option<Duration> {
        *self.timeout.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When a call that starts now times out.
    fn deadline(&self) -> Option<Instant> {
        self.timeout().and_then(|timeout| Instant::now().checked_add(timeout))
    }

    /// Retries a non-blocking operation until it succeeds or times out, as the settings say.
    fn retry_until_ready(
        &self,
        ready: PollFlags,
        attempt: impl FnMut(&File) -> io::Result<usize>,
    ) -> io::Result<usize> {
        if self.nonblocking.load(Ordering::Relaxed) {
            let mut attempt = attempt;
            return attempt(&self.pty);
        }
        self.retry_until(self.deadline(), ready, attempt)
    }

    fn retry_until(
        &self,
        deadline: Option<Instant>,
        ready: PollFlags,
        mut attempt: impl FnMut(&File) -> io::Result<usize>,
    ) -> io::Result<usize> {
        loop {
            match attempt(&self.pty) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return done,
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let left = left.and_then(|left| Timespec::try_from(left).ok());
            let mut polled = [PollFd::new(&self.pty, ready)];
            match poll(&mut polled, left.as_ref()) {
                // macOS does not poll terminals.
                Ok(_) if polled[0].revents().contains(PollFlags::NVAL) => std::thread::sleep(POLL_INTERVAL),
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn read_until(&self, deadline: Option<Instant>, buffer: &mut [u8]) -> io::Result<usize> {
        eio_is_end(self.retry_until(deadline, PollFlags::IN, |mut pty| pty.read(buffer)))
    }
}

/// Linux reports EIO when the other end of a pty is closed.
fn eio_is_end(read: io::Result<usize>) -> io::Result<usize> {
    match read {
        Err(error) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => Ok(0),
        read => read,
    }
}

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
    /// The descriptor of the pty, which does not block: a read or write that would have to wait gives EAGAIN.
    fn from(console: ConsoleStream) -> Self {
        console.pty.into()
    }
}
