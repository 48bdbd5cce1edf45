//! What the guest has said on its console, as far as it is kept: in one piece, line by line as it comes, or awaited.
//!
//! QEMU appends to a file. hyperkit writes 65536 bytes round and round, and does not say where it is: as long as the file
//! was not filled, NULs tell, and after that the times in front of the kernel's lines, which go back where the oldest
//! follow the newest. Without such lines it is the beginning of the file.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::config::HyperKit;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::plan::serial_ports::ports;
use crate::runtime::ring::Log;
use crate::state::StateDir;
use crate::vm::Vm;

/// How often a log is looked at that somebody follows.
const PACE: Duration = Duration::from_millis(50);
/// A longer line is handed out in pieces, so that a guest that sends no newline costs no memory.
const LONGEST_LINE: usize = 64 * 1024;

impl HyperKit {
    /// What the guest has said on its console, oldest first, as far as it is kept: of hyperkit's ring all, of QEMU's file
    /// the last MiB. The machine may run or have ended.
    ///
    /// Where hyperkit's ring has gone round, its beginning is found by the times that Linux puts before its lines.
    ///
    /// ```
    /// # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
    /// # let _here = here::running();
    /// let said = hyperkit::HyperKit::from_state("vm")?.console_log()?;
    /// print!("{}", String::from_utf8_lossy(&said));
    /// # Ok::<(), hyperkit::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::StateDirRequired`]; [`Error::NoLog`] if no serial port keeps a log; [`Error::Io`] if it was not begun.
    pub fn console_log(&self) -> Result<Vec<u8>> {
        let (mut log, path) = self.open_log()?;
        log.more().map_err(Error::io("read", path))
    }

    /// The log of the first serial port that keeps one.
    fn open_log(&self) -> Result<(Log, PathBuf)> {
        let dir = self.state_dir.as_deref().ok_or(Error::StateDirRequired { field: "console" })?;
        let name = ports(self)?.iter().find_map(|port| port.log).ok_or(Error::NoLog)?;
        let path = StateDir::new(dir)?.file(name);
        let log = Log::open(&path, Engine::of_machine(self)).map_err(Error::io("open", &path))?;
        Ok((log, path))
    }
}

impl Vm {
    /// The lines on the console, those that are kept and then each as it comes, until the machine ends.
    ///
    /// A line comes without its end; the last one also if it has none. If hyperkit's ring goes round once between two
    /// looks (20 a second), what was overwritten is lost.
    ///
    /// ```
    /// # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
    /// # let _here = here::running();
    /// let vm = hyperkit::HyperKit::from_state("vm")?.vm()?.ok_or("it does not run")?;
    /// # vm.stop()?; // so that it ends
    /// for line in vm.console_lines()? {
    ///     println!("{}", line?);
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`HyperKit::console_log`].
    pub fn console_lines(&self) -> Result<ConsoleLines<'_>> {
        let state = self.state.as_ref().ok_or(Error::StateDirRequired { field: "console" })?;
        let (log, path) = state.load()?.open_log()?;
        Ok(ConsoleLines { vm: self, log, path, lines: VecDeque::new(), rest: Vec::new(), ended: false })
    }

    /// Waits until the console has said `text`, such as a prompt, for `patience` at most: also before, as far as it is
    /// kept. Returns the line it is in, as far as that has come.
    ///
    /// ```
    /// # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
    /// # let _here = here::running();
    /// # let vm = hyperkit::HyperKit::from_state("vm")?.vm()?.ok_or("it does not run")?;
    /// vm.wait_for_console("is up", std::time::Duration::from_secs(300))?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::NotSaid`], with the machine's last words, if it has not said so in time, or has ended without; those of
    /// [`console_lines`](Self::console_lines).
    pub fn wait_for_console(&self, text: &str, patience: Duration) -> Result<String> {
        let deadline = Instant::now().checked_add(patience);
        let mut lines = self.console_lines()?;
        loop {
            let more = lines.look(deadline)?;
            while let Some(line) = lines.lines.pop_front() {
                if line.contains(text) {
                    return Ok(line);
                }
            }
            // A prompt has no end of line.
            let rest = String::from_utf8_lossy(&lines.rest);
            if rest.contains(text) {
                return Ok(rest.into_owned());
            }
            if !more || deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                let exit = if more { None } else { self.try_wait()? };
                return Err(Error::NotSaid { text: text.to_owned(), exit, last_words: self.last_words() });
            }
        }
    }
}

/// The lines on a machine's console; see [`Vm::console_lines`].
#[derive(Debug)]
pub struct ConsoleLines<'a> {
    vm: &'a Vm,
    log: Log,
    path: PathBuf,
    lines: VecDeque<String>,
    /// Of a line that has not ended.
    rest: Vec<u8>,
    ended: bool,
}

impl ConsoleLines<'_> {
    /// Looks once for what has come; before that, if nothing had, waits a little, until the deadline at most. Whether
    /// there may be more.
    fn look(&mut self, deadline: Option<Instant>) -> Result<bool> {
        if self.ended {
            return Ok(false);
        }
        let mut more = self.read()?;
        if more.is_empty() {
            let left = deadline.map_or(PACE, |deadline| deadline.saturating_duration_since(Instant::now()));
            let has_ended = !matches!(self.vm.wait_timeout(left.min(PACE)), Ok(None));
            more = self.read()?;
            self.ended = has_ended && more.is_empty(); // what it said at its end comes, too
        }
        self.rest.extend(more);
        let complete = self.rest.iter().rposition(|&byte| byte == b'\n').map_or(0, |last| last + 1);
        let rest = self.rest.split_off(complete);
        let lines = std::mem::replace(&mut self.rest, rest);
        lines.split_inclusive(|&byte| byte == b'\n').for_each(|line| self.push(line));
        if self.rest.len() > LONGEST_LINE || (self.ended && !self.rest.is_empty()) {
            let rest = std::mem::take(&mut self.rest);
            self.push(&rest);
        }
        Ok(!self.ended)
    }

    fn read(&mut self) -> Result<Vec<u8>> {
        self.log.more().map_err(Error::io("read", &self.path))
    }

    fn push(&mut self, line: &[u8]) {
        self.lines.push_back(String::from_utf8_lossy(line).trim_end_matches(['\r', '\n']).to_owned());
    }
}

impl Iterator for ConsoleLines<'_> {
    type Item = Result<String>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(line) = self.lines.pop_front() {
                return Some(Ok(line));
            }
            match self.look(None) {
                Ok(false) if self.lines.is_empty() => return None,
                Ok(_) => {}
                Err(error) => {
                    self.ended = true;
                    return Some(Err(error));
                }
            }
        }
    }
}
