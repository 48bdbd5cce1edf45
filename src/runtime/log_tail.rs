//! The last lines of a hypervisor and its guest, for errors.

use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;

use serde::Serialize;

use crate::engine::EngineDriver;
use crate::error::escape_control;
use crate::plan::serial_ports::ALL_LOGS;
use crate::runtime::output::Output;
use crate::runtime::ring::ConsoleLog;
use crate::state::{LOG_FILE, StateDir};
use crate::sys::file::open_regular;

/// How much of the end of a log is kept, in bytes and in lines.
const MAX_TAIL_BYTES: u64 = 4 * 1024;
const MAX_TAIL_LINES: usize = 10;
/// The hypervisor's errors may be followed by up to 4 KiB of hyperkit's stdout.
const MAX_READ_BYTES: u64 = 2 * MAX_TAIL_BYTES;
/// What Linux prints before the reason of a panic (kernel/panic.c).
const KERNEL_PANIC: &str = "Kernel panic - not syncing";

/// The last lines of a hypervisor's output and of its guest's console, in errors and from
/// [`Vm::log_tail`](crate::Vm::log_tail).
///
/// `{tail}` is one line, `{tail:#}` has the original line breaks. Both escape control characters.
///
/// ```
/// # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
/// # let _here = here::alone();
/// use hyperkit::{Error, HyperKit};
///
/// let description = HyperKit::new().state_dir("vm").kernel("vmlinuz").extra_argument("-no-such-option");
/// if let Err(Error::HypervisorFailed { log_tail, .. }) = description.start("") {
///     println!("{log_tail:#}");
///     # assert!(log_tail.hypervisor.contains("no-such-option"));
/// }
/// # assert!(hyperkit::LogTail::default().is_empty());
/// # assert!(description.start("").is_err());
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LogTail {
    /// The last lines of `hyperkit.log`, at most 10.
    pub hypervisor: String,
    /// The last lines of `console-ring`, at most 10. If the guest's kernel has panicked, the first of them is the line that says
    /// why, since the lines after it only show where.
    pub console: String,
}

impl LogTail {
    /// Returns whether there is no output at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.hypervisor.is_empty() && self.console.is_empty()
    }

    /// The same with the last lines of this console output.
    pub(crate) fn with_console(self, output: &[u8]) -> Self {
        let panic =
            String::from_utf8_lossy(output).lines().rfind(|line| line.contains(KERNEL_PANIC)).map(str::to_owned);
        let console = last_lines(output);
        let console = match panic.filter(|panic| !console.contains(panic.trim_end())) {
            Some(panic) => format!("{}\n{console}", panic.trim_end()),
            None => console,
        };
        Self { console, ..self }
    }

    /// Sets the last lines of this hypervisor's output. Lines that only report progress are left out if there are others.
    fn with_hypervisor(self, output: &[u8], driver: &dyn EngineDriver) -> Self {
        let text = String::from_utf8_lossy(output);
        let others: Vec<_> = text.lines().filter(|line| !driver.is_progress(line)).collect();
        let hypervisor = match others.iter().all(|line| line.trim().is_empty()) {
            true => last_lines(output),
            false => last_lines(others.join("\n").as_bytes()),
        };
        Self { hypervisor, ..self }
    }

    /// Reads the output of a hypervisor that this process started, or else the log in `state`, and the console log in
    /// `state`.
    pub(crate) fn read(output: Option<&Output>, state: Option<&StateDir>, driver: &dyn EngineDriver) -> Self {
        let log = |name| state.and_then(|state| open_regular(&state.file(name)).ok());
        let hypervisor = match output {
            Some(output) => last_bytes(output.file()),
            None => log(LOG_FILE).map(|log| last_bytes(&log)).unwrap_or_default(),
        };
        let console = state
            .and_then(|state| ConsoleLog::open(&state.file(ALL_LOGS[0]), driver.has_ring_log()).ok()?.read_new().ok());
        Self::default().with_hypervisor(&hypervisor, driver).with_console(&console.unwrap_or_default())
    }
}

impl fmt::Display for LogTail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let separator = if f.alternate() { "\n" } else { " | " };
        let console = self.console.lines().map(|line| format!("console: {line}"));
        let lines = self.hypervisor.lines().map(str::to_owned).chain(console);
        f.write_str(&lines.map(|line| escape_control(&line)).collect::<Vec<_>>().join(separator))
    }
}

fn last_bytes(file: &File) -> Vec<u8> {
    let length = file.metadata().map_or(0, |metadata| metadata.len());
    let mut bytes = vec![0; length.min(MAX_READ_BYTES) as usize];
    let read = file.read_at(&mut bytes, length.saturating_sub(MAX_READ_BYTES)).unwrap_or(0);
    bytes.truncate(read);
    bytes
}

fn last_lines(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(&output[output.len().saturating_sub(MAX_TAIL_BYTES as usize)..]);
    let lines: Vec<_> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(MAX_TAIL_LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_panic_is_the_first_line() {
        let trace = "Call Trace:\n".repeat(20);
        let output = format!("booting\n[1.0] Kernel panic - not syncing: no init\r\n{trace}");
        let tail = LogTail::default().with_console(output.as_bytes());
        assert!(tail.console.starts_with("[1.0] Kernel panic - not syncing: no init\nCall Trace:\n"), "{tail}");
        assert_eq!(tail.console.lines().count(), 11);
        let shown = LogTail::default().with_console(b"Kernel panic - not syncing: no init\n");
        assert_eq!(shown.console, "Kernel panic - not syncing: no init");
    }

    #[test]
    fn display_is_one_line_and_escapes_control_characters() {
        let tail = LogTail { hypervisor: "one\ntwo".to_owned(), console: "\u{1b}[2J".to_owned() };
        assert_eq!(tail.to_string(), "one | two | console: \\u{1b}[2J");
        assert_eq!(format!("{tail:#}"), "one\ntwo\nconsole: \\u{1b}[2J");
    }
}
