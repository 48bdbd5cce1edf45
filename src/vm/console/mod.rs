//! The console as a stream, and the ptys (pseudo-terminals) of the serial ports.

mod stream_traits;

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
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

/// How often a pty is read or written on a system that cannot poll ptys.
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// How much output without the text `expect` keeps, in bytes.
const MAX_UNMATCHED_BYTES: usize = 128 * 1024;
/// How much unread output a pty holds, in bytes.
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

/// The console of a running VM, from [`Vm::console`]. A read returns what the guest has written. The guest reads what this
/// program writes.
///
/// The stream is the pty (pseudo-terminal) of the first serial port, in raw mode: bytes pass unchanged in both directions.
/// To press Return, write `\r`; ^C is byte 3. A read waits for output of the guest, and returns 0 bytes when the VM has
/// exited. [`set_timeout`](Self::set_timeout) limits the wait, [`set_nonblocking`](Self::set_nonblocking) turns it off. One
/// thread can read while another writes, through `&ConsoleStream` or [`try_clone`](Self::try_clone). If two threads or
/// programs read, each gets a part of the output. Dropping the stream does not affect the VM.
///
/// Write only when the guest reads, for instance after its prompt. hyperkit discards input until the guest has turned on its serial
/// port, and a Linux guest turns the port on again when a program opens it.
///
/// # Read the stream while it is open
/// A pty holds 4 KiB of unread output. On QEMU, when an open console's pty is full, the guest stops at its next write
/// to the console, and nothing more gets into the console's log. The guest continues when some program reads or all
/// streams are closed. So a program that only writes, or that calls [`Vm::wait_for_console`] or [`Vm::console_lines`]
/// meanwhile, has to read the stream, too, or drop it. While the console is not open, the guest never waits.
///
/// QEMU takes up to a second to notice that a console was opened. What the guest writes in that second is only in the log.
/// What a program writes in that second reaches the guest later: if the stream is closed too early, then only when the
/// console is next opened.
///
/// # Example
/// ```
/// # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
/// # let _here = here::running();
/// use std::time::Duration;
///
/// let minute = Duration::from_secs(60);
/// let vm = hyperkit::HyperKit::from_state("vm")?.vm()?.ok_or("the VM does not run")?;
/// vm.wait_for_console("# ", 5 * minute)?; // the prompt: a shell drops input that arrives before it
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
    /// What a failed `expect` has read. The next read returns it first.
    unmatched: Mutex<Vec<u8>>,
    vm: Vm,
}

/// # Console
impl Vm {
    /// Opens the console, that is, the first serial port that is connected to a pty. Any program can open it, and several can
    /// at once.
    ///
    /// Read the stream or drop it. On QEMU, a guest stops when its console is open and not read, as
    /// [`ConsoleStream`](ConsoleStream#read-the-stream-while-it-is-open) explains. To look at the output only, use [`console_lines`](Self::console_lines) or
    /// [`console_log`](Self::console_log) instead.
    ///
    /// ```
    /// # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
    /// # let _here = here::running();
    /// # let vm = hyperkit::HyperKit::from_state("vm")?.vm()?.ok_or("the VM does not run")?;
    /// use std::time::Duration;
    ///
    /// vm.wait_for_console("# ", Duration::from_secs(300))?; // the prompt, before the console is open
    /// let console = vm.console()?;
    /// console.send_line("uname")?;
    /// console.expect("Linux", Duration::from_secs(60))?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::NotRunning`]; [`ConfigError::StateDirRequired`] for a VM without a state directory; [`Error::NoConsole`] if
    /// no serial port is connected to a pty; [`Error::PtyNotFound`] if the file in the state directory names no pty;
    /// [`Error::Io`] if the pty cannot be opened.
    #[doc(alias = "serial")]
    #[doc(alias = "terminal")]
    #[doc(alias = "attach")]
    #[doc(alias = "pty")]
    pub fn console(&self) -> Result<ConsoleStream> {
        let state = self.required_state("console")?;
        self.check_not_replaced()?;
        let description = self.description();
        let paths = match pty_paths(description) {
            // The starter may have been killed before it wrote the file for QEMU.
            Err(Error::PtyNotFound { .. }) if self.try_wait().is_none() => {
                let _lock = state.lock()?;
                self.driver().finish_start(description, state, self.pid(), CONTROL_TIMEOUT)?;
                pty_paths(description)
            }
            paths => paths,
        };
        let no_console = || Error::NoConsole { state_dir: self.state_dir().map(Path::to_owned) };
        let path = paths.and_then(|paths| paths.into_iter().next().ok_or_else(no_console));
        // If the VM has exited, that is the error, and not its missing pty.
        self.check_running()?;
        let path = path?;
        let flags = (OFlags::NOCTTY | OFlags::NONBLOCK).bits() as i32;
        let opened = OpenOptions::new().read(true).write(true).custom_flags(flags).open(&path);
        // If the VM still runs, the opened pty is the VM's. If it has exited, the pty may belong to another program by now.
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
    /// default, means without limit.
    ///
    /// ```
    /// # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
    /// # let _here = here::running();
    /// # let vm = hyperkit::HyperKit::from_state("vm")?.vm()?.ok_or("the VM does not run")?;
    /// use std::io::{ErrorKind, Read};
    /// use std::time::Duration;
    ///
    /// let mut console = vm.console()?;
    /// console.set_timeout(Some(Duration::from_millis(100)));
    /// match console.read(&mut [0; 1024]) {
    ///     Ok(0) => println!("the VM has exited"),
    ///     Ok(length) => println!("{length} bytes of output"),
    ///     Err(error) if error.kind() == ErrorKind::TimedOut => println!("no output"),
    ///     Err(error) => return Err(error.into()),
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn set_timeout(&self, timeout: Option<Duration>) {
        *self.timeout.lock().unwrap_or_else(PoisonError::into_inner) = timeout;
    }

    /// Sets whether a read or write that would have to wait fails with [`WouldBlock`](io::ErrorKind::WouldBlock), as async
    /// runtimes expect. The guide's page [`howto`](crate::guide::howto) has a program for tokio.
    ///
    /// ```
    /// # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
    /// # let _here = here::running();
    /// # let vm = hyperkit::HyperKit::from_state("vm")?.vm()?.ok_or("the VM does not run")?;
    /// use std::io::{ErrorKind, Read};
    ///
    /// let mut console = vm.console()?;
    /// console.set_nonblocking(true);
    /// match console.read(&mut [0; 1024]) {
    ///     Ok(length) => println!("{length} bytes of output"),
    ///     Err(error) if error.kind() == ErrorKind::WouldBlock => println!("no output yet"),
    ///     Err(error) => return Err(error.into()),
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn set_nonblocking(&self, nonblocking: bool) {
        self.nonblocking.store(nonblocking, Ordering::Relaxed);
    }

    /// Returns another stream on the same console, with the same settings.
    ///
    /// ```
    /// # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
    /// # let _here = here::running();
    /// # let vm = hyperkit::HyperKit::from_state("vm")?.vm()?.ok_or("the VM does not run")?;
    /// let mut output = vm.console()?;
    /// let input = output.try_clone()?;
    /// std::thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink())); // reads to the end
    /// input.send_line("uname")?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
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

    /// Reads until the guest has written `text`, such as a prompt, and returns what was read, with `text` at its end.
    ///
    /// It begins where the last read ended, and reads nothing after `text`. If it fails, what it has read is not lost: the
    /// next read or `expect` begins there. It does not find what the guest wrote before the console was opened;
    /// [`Vm::wait_for_console`] searches the log for that. The settings of [`set_timeout`](Self::set_timeout) and
    /// [`set_nonblocking`](Self::set_nonblocking) do not apply. [`ConsoleStream`] has an example.
    ///
    /// # Errors
    /// [`Error::ConsoleTextNotFound`] if the guest did not write the text within `timeout`, or before the VM exited;
    /// [`Error::Io`].
    #[doc(alias = "wait")]
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
            // A read that returns a byte never times out, so the time is checked here, too.
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

    /// Writes `line` and Return to the guest. [`ConsoleStream`] has an example.
    ///
    /// It waits while the guest does not read its input, at most as long as [`set_timeout`](Self::set_timeout) allows. The
    /// setting of [`set_nonblocking`](Self::set_nonblocking) does not apply: a part of a line would be of no use.
    ///
    /// # Errors
    /// [`Error::Io`] if the time is up, or the VM has exited.
    #[doc(alias = "write")]
    #[doc(alias = "input")]
    #[doc(alias = "type")]
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
