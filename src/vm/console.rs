//! The guest's serial ports from outside: which ptys they are, and a stream on the console's.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

use crate::config::HyperKit;
use crate::error::{Error, Result};
use crate::plan::serial_ports::{Line, ports};
use crate::state::StateDir;
use crate::state::tty_file::pty_in;
use crate::vm::{PATIENCE, Vm};

/// How often a pty is looked at that cannot be waited for.
const PACE: Duration = Duration::from_millis(5);

impl HyperKit {
    /// The ptys of the machine's serial ports, com1 first; those ports that lead elsewhere have none.
    ///
    /// ```
    /// # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
    /// # let _here = here::running();
    /// for pty in hyperkit::HyperKit::from_state("vm")?.ttys()? {
    ///     println!("screen {}", pty.display());
    /// }
    /// # Ok::<(), hyperkit::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::StateDirRequired`]; [`Error::NoTty`] if the machine does not run, or its file does not say.
    pub fn ttys(&self) -> Result<Vec<PathBuf>> {
        let mut ttys = Vec::new();
        for port in ports(self)? {
            let Line::Tty(name) = port.line else { continue };
            let dir = self.state_dir.as_deref().ok_or(Error::StateDirRequired { field: "console" })?;
            let file = StateDir::new(dir)?.file(name);
            ttys.push(pty_in(&file).ok_or(Error::NoTty { path: file })?);
        }
        Ok(ttys)
    }
}

/// The console of a running machine: what the guest says is read from it, what is written to it the guest reads.
///
/// It is the machine's pty in raw mode, so bytes go both ways as they are (Return is `\r`, ^C is byte 3). Reading waits
/// for the guest to say something, and ends with 0 bytes when the machine has ended; a [`timeout`](Self::set_timeout)
/// bounds the wait. One stream can be read and written at once from two threads, through `&ConsoleStream`; of two that are
/// read at once each gets a part. Dropping it leaves the machine alone.
///
/// **Read what you have opened.** A pty holds some KiB. With QEMU, a guest that says more waits until somebody reads, and
/// so does its log: whoever only wants to write has to read, too, or to close the stream. With nobody there nothing waits.
/// QEMU takes up to a second to see that somebody has come; what the guest says until then is only in the log, and what was
/// written to a stream that is closed before reaches the guest when the next one is opened.
///
/// ```
/// # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
/// # let _here = here::running();
/// use std::io::{Read, Write};
/// use std::time::Duration;
///
/// let vm = hyperkit::HyperKit::from_state("vm")?.vm()?.ok_or("it does not run")?;
/// vm.wait_for_console("is up", Duration::from_secs(300))?;
/// let mut console = vm.console()?;
/// console.set_timeout(Some(Duration::from_secs(60)));
/// console.write_all(b"echo $((6 * 7))\r")?;
/// let (mut said, mut buffer) = (String::new(), [0; 4096]);
/// while !said.contains("42") {
///     match console.read(&mut buffer)? {
///         0 => return Err("the machine has ended".into()),
///         length => said += &String::from_utf8_lossy(&buffer[..length]),
///     }
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct ConsoleStream {
    pty: File,
    timeout: Option<Duration>,
}

impl Vm {
    /// Opens the console, from whichever program: the first serial port that leads to a pty.
    ///
    /// # Errors
    /// [`Error::NotRunning`]; [`Error::StateDirRequired`] and [`Error::NoConsole`] if the console leads elsewhere;
    /// [`Error::NoTty`] if its file does not say where; [`Error::Io`] if it cannot be opened.
    pub fn console(&self) -> Result<ConsoleStream> {
        let state = self.state.as_ref().ok_or(Error::StateDirRequired { field: "console" })?;
        let machine = state.load()?;
        let ttys = match machine.ttys() {
            // The starter may have been killed before it wrote down what QEMU had told it.
            Err(Error::NoTty { .. }) if self.try_wait()?.is_none() => {
                let _lock = state.lock()?;
                self.engine.is_set_up(&machine, state, PATIENCE)?;
                machine.ttys()
            }
            ttys => ttys,
        };
        let pty = ttys.and_then(|ttys| ttys.into_iter().next().ok_or(Error::NoConsole));
        // A machine that has ended has no console, whatever is left of its file.
        if self.try_wait()?.is_some() {
            return Err(Error::NotRunning);
        }
        let pty = pty?;
        let flags = (OFlags::NOCTTY | OFlags::NONBLOCK).bits() as i32;
        let opened = OpenOptions::new().read(true).write(true).custom_flags(flags).open(&pty);
        // The pty was the machine's when it was opened, if the machine still runs: else another may have its name now.
        if self.try_wait()?.is_some() {
            return Err(Error::NotRunning);
        }
        let stream = opened.and_then(|pty| {
            let mut settings = tcgetattr(&pty)?;
            settings.make_raw();
            tcsetattr(&pty, OptionalActions::Now, &settings)?;
            Ok(ConsoleStream { pty, timeout: None })
        });
        stream.map_err(Error::io("open the console", &pty))
    }
}

impl ConsoleStream {
    /// How long each reading and writing may wait before it fails with [`TimedOut`](io::ErrorKind::TimedOut); `None`,
    /// as at first, is for ever.
    pub fn set_timeout(&mut self, timeout: Option<Duration>) {
        self.timeout = timeout;
    }

    /// Does something that does not wait, and waits where it would have.
    fn when(&self, ready: PollFlags, mut act: impl FnMut(&File) -> io::Result<usize>) -> io::Result<usize> {
        let deadline = self.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            match act(&self.pty) {
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
                Ok(_) if polled[0].revents().contains(PollFlags::NVAL) => std::thread::sleep(PACE),
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Read for &ConsoleStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.when(PollFlags::IN, |mut pty| pty.read(buffer)) {
            // So Linux says that the other end of a pty is gone.
            Err(error) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => Ok(0),
            read => read,
        }
    }
}

impl Write for &ConsoleStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.when(PollFlags::OUT, |mut pty| pty.write(bytes))
    }

    /// What was written is with the machine already.
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
