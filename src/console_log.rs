//! What the guest has said on its console, as far as it is kept: in one piece, line by line as it comes, or awaited.
//!
//! QEMU appends to a file. hyperkit writes 65536 bytes round and round, and does not say where it is: as long as the file
//! was not filled, NULs tell, and after that the times in front of the kernel's lines, which go back where the oldest
//! follow the newest. Without such lines it is the beginning of the file.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
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

/// A log and how far it was read.
#[derive(Debug)]
pub(crate) struct Log {
    file: File,
    ring: Option<Ring>,
    at: u64,
}

/// What was in hyperkit's ring the last time.
#[derive(Debug, Default)]
struct Ring {
    before: Vec<u8>,
    /// Whether where it is written next is only a guess.
    is_guess: bool,
}

impl Log {
    pub(crate) fn open(path: &Path, engine: Engine) -> io::Result<Self> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        let ring = (engine == Engine::HyperKit).then(Ring::default);
        Ok(Self { at: if ring.is_some() { 0 } else { length.saturating_sub(KEPT) }, file, ring })
    }

    /// What has come since the last time; at first, what is kept.
    pub(crate) fn more(&mut self) -> io::Result<Vec<u8>> {
        let Some(ring) = &mut self.ring else {
            let mut more = vec![0; KEPT as usize];
            let length = self.file.read_at(&mut more, self.at)?;
            more.truncate(length);
            self.at += length as u64;
            return Ok(more);
        };
        let mut now = whole(&self.file)?;
        let more = if ring.before.is_empty() {
            let found = oldest(&now);
            ring.is_guess = found.is_none();
            let begin = found.unwrap_or(0);
            let mut all = [&now[begin..], &now[..begin]].concat();
            let end = all.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
            all.truncate(end);
            self.at = (begin + end) as u64 % RING;
            all
        } else {
            let is_new: Vec<_> = now.iter().zip(&ring.before).map(|(now, before)| now != before).collect();
            if ring.is_guess {
                if let Some(first) = first_of_new((0..is_new.len()).filter(|&at| is_new[at]).collect()) {
                    (self.at, ring.is_guess) = (first as u64, false);
                }
            }
            // Written from where it was the last time up to the last byte that is another: one that is the same by chance
            // comes with those behind it.
            let begin = self.at as usize;
            let from_here = |offset: usize| (begin + offset) % is_new.len();
            let changed = (0..is_new.len()).rposition(|offset| is_new[from_here(offset)]).map_or(0, |last| last + 1);
            // What was written while we read may have been read in part. Up to there all is written now.
            let complete = if changed > 0 { whole(&self.file)? } else { Vec::new() };
            (0..changed).map(from_here).for_each(|at| now[at] = complete[at]);
            let more = (0..changed).map(|offset| now[from_here(offset)]).collect();
            self.at = (self.at + changed as u64) % RING;
            more
        };
        ring.before = now;
        Ok(more)
    }
}

/// All of a ring.
fn whole(file: &File) -> io::Result<Vec<u8>> {
    let mut ring = vec![0; RING as usize];
    let mut length = 0;
    while let read @ 1.. = file.read_at(&mut ring[length..], length as u64)? {
        length += read;
    }
    Ok(ring)
}

/// Which of the bytes of a ring that are new, at these places, was written first: the one behind the longest way round
/// without any.
fn first_of_new(places: Vec<usize>) -> Option<usize> {
    let last = places.last()?;
    let ways = [last].into_iter().chain(&places).zip(&places).map(|(before, &at)| {
        let way = (at + RING as usize - before - 1) % RING as usize;
        (way, at)
    });
    ways.max().map(|(_, at)| at)
}

/// Where in a ring the oldest is: 0 if it was not filled; `None` if nothing tells.
fn oldest(ring: &[u8]) -> Option<usize> {
    if ring.last() == Some(&0) {
        return Some(0);
    }
    let (mut begin, mut newest, mut found) = (0, None::<u64>, None);
    // Where the newest may have ended, at the latest: before the last line without a time, of which something is left of
    // the oldest. Rather something old behind the newest than the newest before all.
    let mut end = 0;
    for line in ring.split_inclusive(|&byte| byte == b'\n') {
        let time = kernel_time(line);
        if let (Some(newest), Some(time)) = (newest, time) {
            // Processors may differ a little; the beginning is where the time goes back the furthest.
            found = found.max(newest.checked_sub(time).filter(|&back| back > 0).map(|back| (back, end)));
        }
        newest = time.or(newest);
        end = if time.is_some() { begin + line.len() } else { begin };
        begin += line.len();
    }
    found.map(|(_, end)| end)
}

/// The time in microseconds at the beginning of a line of Linux: `[   12.345678] `.
fn kernel_time(line: &[u8]) -> Option<u64> {
    let end = line.iter().take(32).position(|&byte| byte == b']')?;
    let time = std::str::from_utf8(line.strip_prefix(b"[")?.get(..end.checked_sub(1)?)?).ok()?;
    let (seconds, micros) = time.trim_start().split_once('.')?;
    if micros.len() != 6 {
        return None;
    }
    seconds.parse::<u64>().ok()?.checked_mul(1_000_000)?.checked_add(micros.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_where_the_time_goes_back_the_furthest() {
        let lines =
            |times: &[&str]| times.iter().map(|time| format!("[{time:>12}] text\n")).collect::<Vec<_>>().concat();
        let (new, old) = (lines(&["3.000000", "3.000002", "3.000001"]), lines(&["1.000000", "2.000000"]));
        assert_eq!(oldest((new.clone() + &old).as_bytes()), Some(new.len()));
        assert_eq!(oldest(old.as_bytes()), None, "it has filled the ring, or has just gone round");
        assert_eq!(oldest(b"no times\nat all\n"), None);
        assert_eq!(oldest(b"not full\n\0"), Some(0));
    }

    #[test]
    fn new_bytes_begin_behind_the_longest_way_without_any() {
        let end = RING as usize - 1;
        assert_eq!(first_of_new(vec![]), None);
        assert_eq!(first_of_new(vec![7]), Some(7));
        assert_eq!(first_of_new(vec![7, 9, 30]), Some(7));
        assert_eq!(first_of_new(vec![0, 1, end - 5, end]), Some(end - 5), "around the end");
    }
}
