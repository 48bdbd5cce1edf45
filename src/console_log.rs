//! What the guest has said on its console, as far as it is kept: in one piece, line by line as it comes, or awaited.
//!
//! QEMU appends to a file. hyperkit writes 65536 bytes round and round, and does not say where it is: as long as the file
//! was not filled, NULs tell, and after that the times in front of the kernel's lines, which go back where the oldest
//! follow the newest. Without such lines it is the beginning of the file.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::config::HyperKit;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::serial::ports;
use crate::state::StateDir;
use crate::vm::Vm;

/// Of a growing file, the most that is read of what was there before, in bytes.
const KEPT: u64 = 1024 * 1024;
/// The size of hyperkit's ring, in bytes.
const RING: u64 = 65536;
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
    /// ```no_run
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
    fn open_log(&self) -> Result<(Log, std::path::PathBuf)> {
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
    /// ```no_run
    /// let vm = hyperkit::HyperKit::from_state("vm")?.vm()?.ok_or("it does not run")?;
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
        let (log, _) = state.load()?.open_log()?;
        Ok(ConsoleLines { vm: self, log, lines: VecDeque::new(), rest: Vec::new(), ended: false })
    }

    /// Waits until the console has said `text`, such as a prompt, for `patience` at most: also before, as far as it is
    /// kept. Returns the line it is in, as far as that has come.
    ///
    /// ```no_run
    /// # let vm = hyperkit::HyperKit::from_state("vm")?.vm()?.ok_or("it does not run")?;
    /// vm.wait_for_console("login:", std::time::Duration::from_secs(60))?;
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
            let more = lines.look(deadline).map_err(Error::io("read the log of", self.pid().to_string()))?;
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
                return Err(Error::NotSaid { text: text.to_owned(), last_words: self.last_words() });
            }
        }
    }
}

/// The lines on a machine's console; see [`Vm::console_lines`].
#[derive(Debug)]
pub struct ConsoleLines<'a> {
    vm: &'a Vm,
    log: Log,
    lines: VecDeque<String>,
    /// Of a line that has not ended.
    rest: Vec<u8>,
    ended: bool,
}

impl ConsoleLines<'_> {
    /// Looks once for what has come; before that, if nothing had, waits a little, until the deadline at most. Whether
    /// there may be more.
    fn look(&mut self, deadline: Option<Instant>) -> io::Result<bool> {
        if self.ended {
            return Ok(false);
        }
        let mut more = self.log.more()?;
        if more.is_empty() {
            let left = deadline.map_or(PACE, |deadline| deadline.saturating_duration_since(Instant::now()));
            self.ended = !matches!(self.vm.wait_timeout(left.min(PACE)), Ok(None));
            more = self.log.more()?; // what it said at its end, too
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

    fn push(&mut self, line: &[u8]) {
        self.lines.push_back(String::from_utf8_lossy(line).trim_end_matches(['\r', '\n']).to_owned());
    }
}

impl Iterator for ConsoleLines<'_> {
    type Item = io::Result<String>;

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

/// A log and how far it was read.
#[derive(Debug)]
pub(crate) struct Log {
    file: File,
    /// Of a ring, what was in it the last time; of a growing file nothing.
    ring: Option<Vec<u8>>,
    at: u64,
}

impl Log {
    pub(crate) fn open(path: &Path, engine: Engine) -> io::Result<Self> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        let ring = (engine == Engine::HyperKit).then(Vec::new);
        Ok(Self { at: if ring.is_some() { 0 } else { length.saturating_sub(KEPT) }, file, ring })
    }

    /// What has come since the last time; at first, what is kept.
    pub(crate) fn more(&mut self) -> io::Result<Vec<u8>> {
        let Some(before) = &mut self.ring else {
            let mut more = vec![0; KEPT as usize];
            let length = self.file.read_at(&mut more, self.at)?;
            more.truncate(length);
            self.at += length as u64;
            return Ok(more);
        };
        let mut now = vec![0; RING as usize];
        let mut length = 0;
        while let read @ 1.. = self.file.read_at(&mut now[length..], length as u64)? {
            length += read;
        }
        let more = if before.is_empty() {
            let begin = oldest(&now);
            let mut all = [&now[begin..], &now[..begin]].concat();
            let end = all.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
            all.truncate(end);
            self.at = (begin + end) as u64 % RING;
            all
        } else {
            // Written from where it was the last time up to the last byte that is another: one that is the same by chance
            // comes with those behind it.
            let from_here = |offset: usize| (self.at as usize + offset) % now.len();
            let is_new = |offset| now[from_here(offset)] != before[from_here(offset)];
            let changed = (0..now.len()).rposition(is_new).map_or(0, |last| last + 1);
            let more = (0..changed).map(|offset| now[from_here(offset)]).collect();
            self.at = (self.at + changed as u64) % RING;
            more
        };
        *before = now;
        Ok(more)
    }
}

/// Where in a ring the oldest is: 0 if it was not filled, or nothing tells.
fn oldest(ring: &[u8]) -> usize {
    if ring.last() == Some(&0) {
        return 0;
    }
    let (mut begin, mut newest) = (0, None);
    // Where the newest may have ended, at the latest: before the last line without a time, of which something is left of
    // the oldest. Rather something old behind the newest than the newest before all.
    let mut end = 0;
    for line in ring.split_inclusive(|&byte| byte == b'\n') {
        let time = kernel_time(line);
        if time.is_some() && time < newest {
            return end;
        }
        newest = time.or(newest);
        end = if time.is_some() { begin + line.len() } else { begin };
        begin += line.len();
    }
    0
}

/// The time in microseconds at the beginning of a line of Linux: `[   12.345678] `.
fn kernel_time(line: &[u8]) -> Option<u64> {
    let line = std::str::from_utf8(line.get(..line.len().min(32))?).ok()?;
    let (time, _) = line.strip_prefix('[')?.split_once(']')?;
    let (seconds, micros) = time.trim_start().split_once('.')?;
    if micros.len() != 6 {
        return None;
    }
    seconds.parse::<u64>().ok()?.checked_mul(1_000_000)?.checked_add(micros.parse().ok()?)
}
