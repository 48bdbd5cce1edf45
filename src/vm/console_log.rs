//! The console's log: as a whole, line by line, or until it contains a text.

use std::collections::VecDeque;
use std::iter::FusedIterator;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::config::HyperKit;
use crate::engine::driver_of;
use crate::error::{ConfigError, Error, Result};
use crate::plan::serial_ports::ports;
use crate::runtime::ring::ConsoleLog;
use crate::state::StateDir;
use crate::vm::Vm;

/// How often a log is read while a caller waits for a line.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// A longer line is returned in pieces, so that a guest that writes no newline needs no memory.
const MAX_LINE_BYTES: usize = 64 * 1024;

/// The console's output that is kept, oldest first. What the state directory records counts, and not this description.
pub(crate) fn read(description: &HyperKit) -> Result<Vec<u8>> {
    let (mut log, path) = open_log(description)?;
    log.read_new().map_err(Error::io("read", path))
}

/// Opens the log of the first serial port that has one.
fn open_log(description: &HyperKit) -> Result<(ConsoleLog, PathBuf)> {
    let state = StateDir::of(description)?.ok_or(ConfigError::StateDirRequired { field: "console" })?;
    let no_log = || Error::NoConsoleLog { state_dir: Some(state.path().to_owned()) };
    let description = state.recorded_or(description)?;
    let name = ports(&description)?.iter().find_map(|port| port.log).ok_or_else(no_log)?;
    let path = state.file(name);
    let log = ConsoleLog::open(&path, driver_of(&description).has_ring_log()).map_err(Error::io("open", &path))?;
    Ok((log, path))
}

/// # Console log
///
/// These read the console's log and not the console itself. They lose nothing that the guest wrote before the call, and
/// any number of callers gets the same output.
impl Vm {
    /// Returns the console's output that is kept: see [`HyperKit::console_log`], which has an example.
    ///
    /// # Errors
    /// Those of [`HyperKit::console_log`]; [`Error::Replaced`].
    #[doc(alias = "output")]
    pub fn console_log(&self) -> Result<Vec<u8>> {
        let log = read(self.description());
        self.check_not_replaced()?; // or it may be the log of another VM
        log
    }

    /// Returns the lines on the console: first those that the log has, and then each new one, until the VM exits.
    ///
    /// Lines have no line break at their end. When the VM exits, an unfinished last line counts as a line.
    ///
    /// On QEMU, a guest stops when a console is open, in any program, and not read: see
    /// [`ConsoleStream`](crate::ConsoleStream#read-the-stream-while-it-is-open). Then no more lines come until some program
    /// reads the stream, or all streams are closed.
    ///
    /// hyperkit's log is a ring of 64 KiB, which is read 20 times a second. If the guest writes more than that between two
    /// reads, lines are lost.
    ///
    /// ```
    /// # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
    /// # let _here = here::running();
    /// let vm = hyperkit::HyperKit::from_state("vm")?.vm()?.ok_or("the VM does not run")?;
    /// # vm.kill()?; // so that the lines end
    /// for line in vm.console_lines()? {
    ///     println!("{}", line?);
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`console_log`](Self::console_log).
    #[doc(alias = "log")]
    #[doc(alias = "follow")]
    #[doc(alias = "tail")]
    pub fn console_lines(&self) -> Result<ConsoleLines> {
        let (log, path) = open_log(self.description())?;
        self.check_not_replaced()?; // of the log that is open now
        Ok(ConsoleLines {
            vm: self.clone(),
            log,
            path,
            complete: VecDeque::new(),
            partial: Vec::new(),
            has_ended: false,
            is_closed: Arc::default(),
        })
    }

    /// Waits until the console's log contains `text`, such as a prompt, but at most `timeout`. Returns the line with the
    /// text. The guest may not have finished that line.
    ///
    /// The search starts at the beginning of the log, so it finds a text that the guest wrote before the call. For a
    /// dialogue, in which the same prompt comes again, use [`ConsoleStream::expect`](crate::ConsoleStream::expect).
    ///
    /// On QEMU, a guest stops when a console is open, in any program, and not read: see
    /// [`ConsoleStream`](crate::ConsoleStream#read-the-stream-while-it-is-open). Then this call times out, even if the guest
    /// would write the text next. So drop an open stream before the call, or read it in another thread.
    ///
    /// ```
    /// # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
    /// # let _here = here::running();
    /// # let vm = hyperkit::HyperKit::from_state("vm")?.vm()?.ok_or("the VM does not run")?;
    /// vm.wait_for_console("is up", std::time::Duration::from_secs(300))?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::ConsoleTextNotFound`], with the last lines of the log, if the guest did not write the text within `timeout`
    /// or before the VM exited; those of [`console_lines`](Self::console_lines).
    #[doc(alias = "expect")]
    #[doc(alias = "boot")]
    pub fn wait_for_console(&self, text: &str, timeout: Duration) -> Result<String> {
        let deadline = Instant::now().checked_add(timeout);
        let mut lines = self.console_lines()?;
        loop {
            let has_more = lines.read_once(deadline)?;
            while let Some(line) = lines.complete.pop_front() {
                if line.contains(text) {
                    return Ok(line);
                }
            }
            // A prompt has no line break.
            let partial = String::from_utf8_lossy(&lines.partial);
            if partial.contains(text) {
                return Ok(partial.into_owned());
            }
            if !has_more || deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Err(Error::ConsoleTextNotFound {
                    text: text.to_owned(),
                    exit: if has_more { None } else { self.try_wait() },
                    timeout,
                    state_dir: self.state_dir().map(Path::to_owned),
                    log_tail: self.log_tail(),
                });
            }
        }
    }
}

/// The lines on a VM's console, from [`Vm::console_lines`]. It borrows nothing, so it can be moved to another thread or task.
///
/// ```
/// # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
/// # let _here = here::running();
/// let vm = hyperkit::HyperKit::from_state("vm")?.vm()?.ok_or("the VM does not run")?;
/// let lines = vm.console_lines()?;
/// let closer = lines.closer();
/// let thread = std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| println!("{line}")));
/// closer.close();
/// thread.join().unwrap();
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[must_use = "lines are read when they are asked for"]
pub struct ConsoleLines {
    vm: Vm,
    log: ConsoleLog,
    path: PathBuf,
    complete: VecDeque<String>,
    /// The bytes of a line that the guest has not finished.
    partial: Vec<u8>,
    has_ended: bool,
    is_closed: Arc<AtomicBool>,
}

/// The result of [`ConsoleLines::next_timeout`], which has an example.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NextLine {
    /// A line, without its line break.
    Line(String),
    /// The guest finished no line in time.
    TimedOut,
    /// No more lines will come: the VM has exited, or the lines were closed.
    Ended,
}

/// Ends [`ConsoleLines`] from another thread. It comes from [`ConsoleLines::closer`]; [`ConsoleLines`] has an example.
#[derive(Clone, Debug)]
pub struct ConsoleLinesCloser(Arc<AtomicBool>);

impl ConsoleLinesCloser {
    /// Ends the lines. A thread that waits for the next line returns within 50 ms.
    pub fn close(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl ConsoleLines {
    /// Waits for the next line, but at most `timeout`.
    ///
    /// ```
    /// # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
    /// # let _here = here::running();
    /// use std::time::Duration;
    /// use hyperkit::{HyperKit, NextLine};
    ///
    /// let vm = HyperKit::from_state("vm")?.vm()?.ok_or("the VM does not run")?;
    /// let mut lines = vm.console_lines()?;
    /// while let NextLine::Line(line) = lines.next_timeout(Duration::from_secs(1))? {
    ///     println!("{line}");
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Io`] if the log cannot be read. No more lines come after that.
    pub fn next_timeout(&mut self, timeout: Duration) -> Result<NextLine> {
        self.next_until(Instant::now().checked_add(timeout))
    }

    /// Returns a handle that ends the lines from another thread. [`ConsoleLines`] has an example.
    #[must_use]
    pub fn closer(&self) -> ConsoleLinesCloser {
        ConsoleLinesCloser(self.is_closed.clone())
    }

    fn next_until(&mut self, deadline: Option<Instant>) -> Result<NextLine> {
        loop {
            if let Some(line) = self.complete.pop_front() {
                return Ok(NextLine::Line(line));
            }
            if self.is_closed.load(Ordering::Relaxed) {
                self.has_ended = true;
                return Ok(NextLine::Ended);
            }
            match self.read_once(deadline) {
                Ok(false) if self.complete.is_empty() => return Ok(NextLine::Ended),
                Ok(_) if !self.complete.is_empty() => {}
                Ok(_) if deadline.is_some_and(|deadline| Instant::now() >= deadline) => return Ok(NextLine::TimedOut),
                Ok(_) => {}
                Err(error) => {
                    self.has_ended = true;
                    return Err(error);
                }
            }
        }
    }

    /// Reads the log once. If there is nothing new, waits a little, but not beyond the deadline, and reads again. Returns
    /// whether more can come.
    fn read_once(&mut self, deadline: Option<Instant>) -> Result<bool> {
        if self.has_ended {
            return Ok(false);
        }
        let mut new = self.read_new()?;
        if new.is_empty() {
            let left = deadline.map_or(POLL_INTERVAL, |deadline| deadline.saturating_duration_since(Instant::now()));
            let has_exited = self.vm.wait_timeout(left.min(POLL_INTERVAL)).is_some();
            new = self.read_new()?;
            self.has_ended = has_exited && new.is_empty(); // not before the guest's last output was returned
        }
        self.partial.extend(new);
        let complete = self.partial.iter().rposition(|&byte| byte == b'\n').map_or(0, |last| last + 1);
        let partial = self.partial.split_off(complete);
        let lines = std::mem::replace(&mut self.partial, partial);
        lines.split_inclusive(|&byte| byte == b'\n').for_each(|line| self.push(line));
        if self.partial.len() > MAX_LINE_BYTES || (self.has_ended && !self.partial.is_empty()) {
            let partial = std::mem::take(&mut self.partial);
            self.push(&partial);
        }
        Ok(!self.has_ended)
    }

    fn read_new(&mut self) -> Result<Vec<u8>> {
        self.log.read_new().map_err(Error::io("read", &self.path))
    }

    fn push(&mut self, line: &[u8]) {
        self.complete.push_back(String::from_utf8_lossy(line).trim_end_matches(['\r', '\n']).to_owned());
    }
}

impl Iterator for ConsoleLines {
    type Item = Result<String>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.next_until(None) {
            Ok(NextLine::Line(line)) => Some(Ok(line)),
            Ok(_) => None,
            Err(error) => Some(Err(error)),
        }
    }
}

impl FusedIterator for ConsoleLines {}
