//! What the program prints: into `hyperkit.log`, from there to the log facade, and its last lines into errors.
//!
//! The program writes to the file itself, so that nothing is lost and nothing blocks when the starter is gone.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::plan::serial_ports::ALL_LOGS;
use crate::runtime::ring::Log;
use crate::state::{LOG_FILE, StateDir};
use crate::sys::file::remove_file;

/// A longer line is logged in pieces, so that a program that prints no newline costs no memory.
const LONGEST_LINE: usize = 8 * 1024;
/// How much of the end is read for the last words, and how many lines of it are kept.
const LAST_BYTES: u64 = 4 * 1024;
const LAST_LINES: usize = 10;

/// The file that a program prints into, and how far it was passed on to the log facade.
#[derive(Debug)]
pub(crate) struct Output {
    file: File,
    passed_on: u64,
}

impl Output {
    /// A new `hyperkit.log`; without a state directory, a file without a name.
    pub fn create(state: Option<&StateDir>) -> Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let path = match state {
            Some(state) => state.file(LOG_FILE),
            None => {
                let name = format!("hyperkit-{}-{}.log", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
                std::env::temp_dir().join(name)
            }
        };
        if state.is_some() {
            remove_file(&path)?;
        }
        let file = OpenOptions::new().read(true).append(true).create_new(true).mode(0o600).open(&path);
        let file = file.map_err(Error::io("make", &path))?;
        if state.is_none() {
            remove_file(&path)?;
        }
        Ok(Self { file, passed_on: 0 })
    }

    /// For the program to print into.
    pub fn writer(&self) -> Result<Stdio> {
        Ok(self.another()?.file.into())
    }

    /// The same file, read from its beginning.
    pub fn another(&self) -> Result<Self> {
        let file = self.file.try_clone().map_err(Error::io("share", LOG_FILE))?;
        Ok(Self { file, passed_on: 0 })
    }

    #[cfg(target_os = "linux")]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Passes on the lines that have come since the last time; at the end of the program also one without its newline.
    pub fn pass_on(&mut self, at_end: bool) {
        let mut buffer = [0; LONGEST_LINE];
        // The offset is our own: the program's writes move the one that is shared with it.
        while let Ok(length @ 1..) = self.file.read_at(&mut buffer, self.passed_on) {
            let read = &buffer[..length];
            let complete = match read.iter().rposition(|&byte| byte == b'\n') {
                Some(newline) => newline + 1,
                None if at_end || length == buffer.len() => length,
                None => return,
            };
            for line in read[..complete].split_inclusive(|&byte| byte == b'\n') {
                // First, so that a logger that panics gets no line twice.
                self.passed_on += line.len() as u64;
                log::info!(target: "hyperkit", "{}", String::from_utf8_lossy(line).trim_end_matches(['\r', '\n']));
            }
        }
    }
}

/// The last lines that a machine left, of what its program printed and of what its guest said on the console.
///
/// ```
/// let words = hyperkit::LastWords::default();
/// assert!(words.is_empty());
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LastWords {
    /// Of `hyperkit.log`.
    pub program: String,
    /// Of `console-ring`.
    pub console: String,
}

impl LastWords {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.program.is_empty() && self.console.is_empty()
    }

    /// Of the program that prints into `output`, or else into the log in `state`, and of the console in `state`.
    pub(crate) fn read(output: Option<&Output>, state: Option<&StateDir>, engine: Engine) -> Self {
        let log = |name| state.and_then(|state| File::open(state.file(name)).ok());
        let program = match output {
            Some(output) => last_bytes(&output.file),
            None => log(LOG_FILE).map(|log| last_bytes(&log)).unwrap_or_default(),
        };
        let console = state.and_then(|state| Log::open(&state.file(ALL_LOGS[0]), engine).ok()?.more().ok());
        Self { program: last_lines(&program), console: last_lines(&console.unwrap_or_default()) }
    }
}

impl fmt::Display for LastWords {
    /// The lines of the program, and those of the console behind the word `console`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let console = if self.console.is_empty() { String::new() } else { format!("console: {}", self.console) };
        let both: Vec<_> = [&self.program, &console].into_iter().filter(|lines| !lines.is_empty()).cloned().collect();
        f.write_str(&both.join("\n"))
    }
}

fn last_bytes(file: &File) -> Vec<u8> {
    let length = file.metadata().map_or(0, |metadata| metadata.len());
    let mut bytes = vec![0; length.min(LAST_BYTES) as usize];
    let read = file.read_at(&mut bytes, length.saturating_sub(LAST_BYTES)).unwrap_or(0);
    bytes.truncate(read);
    bytes
}

fn last_lines(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(&said[said.len().saturating_sub(LAST_BYTES as usize)..]);
    let lines: Vec<_> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
}
