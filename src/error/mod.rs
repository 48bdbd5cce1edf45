//! What can go wrong: [`Error`] for callers, [`ConfigError`] for what is wrong with a description.

mod config;
mod field;
mod kind;
mod text;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use config::ConfigError;
pub use kind::ErrorKind;

use crate::{Exit, LogTail};

/// The result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a VM could not be described, started, found or ended.
///
/// `{error}` is one line without its cause, which is in [`source`](std::error::Error::source); `{error:#}` appends the
/// causes. Control characters are escaped in both, since guests and hypervisors choose some of the text.
/// [`kind`](Self::kind) groups the variants.
///
/// ```
/// use hyperkit::{Error, ErrorKind, HyperKit};
///
/// let error = HyperKit::from_state("no-such-directory").unwrap_err();
/// assert!(matches!(error, Error::StateNotFound { .. }));
/// assert_eq!(error.kind(), ErrorKind::State);
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    // --- the description ---
    /// The description, or a file that it names, cannot be used. Nothing was created. The list is not empty.
    InvalidConfig(Vec<ConfigError>),
    /// [`parse_arguments`](crate::parse_arguments) got arguments that hyperkit would refuse.
    InvalidArguments {
        /// The argument that is wrong, or the option that is missing.
        argument: String,
        /// The reason.
        reason: String,
    },
    /// No hypervisor is installed, or not at the path that the description names.
    HypervisorNotFound {
        /// All places that were searched.
        searched: Vec<PathBuf>,
    },

    // --- resources that others use ---
    /// Another VM uses this disk image.
    DiskInUse {
        /// The image.
        path: PathBuf,
    },
    /// A port of 127.0.0.1 cannot be bound.
    PortInUse {
        /// The field: `port_forwards` or `gdb_port`.
        field: &'static str,
        /// The port.
        port: u16,
        /// The operating system's error.
        source: io::Error,
    },
    /// A socket has to be created where something exists that is not a stale socket. It was not changed.
    SocketInUse {
        /// The path of the socket.
        path: PathBuf,
    },
    /// A disk image has to be created where a file exists. It was not changed.
    DiskExists {
        /// The file.
        path: PathBuf,
    },
    /// The program that creates and grows qcow2 images failed.
    ImageToolFailed {
        /// The program.
        tool: PathBuf,
        /// The image.
        path: PathBuf,
        /// What it printed to standard error.
        stderr: String,
    },

    // --- the VM ---
    /// A VM runs in this state directory already.
    AlreadyRunning {
        /// The process ID of its hypervisor.
        pid: u32,
        /// The state directory.
        state_dir: PathBuf,
    },
    /// The operation requires that the VM has exited.
    StillRunning {
        /// The process ID of its hypervisor.
        pid: u32,
        /// The state directory.
        state_dir: PathBuf,
    },
    /// The operation requires a running VM.
    NotRunning {
        /// The state directory, if the VM has one.
        state_dir: Option<PathBuf>,
    },
    /// The operating system does not let this program find out whether the VM runs, or whether a disk image is in use.
    /// Nothing was changed.
    CannotTell {
        /// The state directory or disk image.
        path: Option<PathBuf>,
        /// The operating system's error.
        source: io::Error,
    },
    /// The hypervisor was not ready in time and was killed.
    StartTimedOut {
        /// The time it had.
        timeout: Duration,
        /// The state directory, if the VM has one.
        state_dir: Option<PathBuf>,
        /// The last lines of its output.
        log_tail: LogTail,
    },
    /// The hypervisor exited during the start, or failed later under [`run`](crate::HyperKit::run).
    HypervisorFailed {
        /// How it exited.
        exit: Exit,
        /// The state directory, if the VM has one.
        state_dir: Option<PathBuf>,
        /// The last lines of its output.
        log_tail: LogTail,
    },
    /// The program that provides vsock to a QEMU guest did not start.
    VsockDaemonFailed {
        /// The program.
        program: PathBuf,
        /// The last lines of its output.
        log_tail: LogTail,
    },
    /// QEMU's control socket is missing, or gave an unexpected answer.
    Qmp {
        /// The control socket.
        socket: PathBuf,
        /// What went wrong.
        reason: String,
    },
    /// No program in the guest accepts connections on this vsock port, or the guest has not started that far.
    VsockConnectionRefused {
        /// The port.
        port: u32,
    },

    // --- the console ---
    /// No serial port leads to a pty.
    NoConsole {
        /// The state directory, if the VM has one.
        state_dir: Option<PathBuf>,
    },
    /// No serial port has a log.
    NoConsoleLog {
        /// The state directory, if the VM has one.
        state_dir: Option<PathBuf>,
    },
    /// The file that names a serial port's pty is missing or names no pty. The VM may not be running.
    PtyNotFound {
        /// The file.
        path: PathBuf,
    },
    /// The console did not show the text in time, or before the VM exited.
    ConsoleTextNotFound {
        /// The text.
        text: String,
        /// How the VM exited; `None` if it still runs and the time is up.
        exit: Option<Exit>,
        /// The time that was allowed.
        timeout: Duration,
        /// The state directory, if the VM has one.
        state_dir: Option<PathBuf>,
        /// The last lines of the hypervisor and the console.
        log_tail: LogTail,
    },

    // --- the state directory ---
    /// The state directory has no `hyperkit.json`: no VM was ever started or defined there.
    StateNotFound {
        /// The missing file.
        path: PathBuf,
    },
    /// `hyperkit.json` cannot be parsed.
    DamagedState {
        /// The file.
        path: PathBuf,
        /// Where and why parsing failed.
        source: io::Error,
    },

    // --- the operating system ---
    /// A system call failed.
    Io {
        /// The operation that failed, for instance `read`.
        action: &'static str,
        /// The file or program.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
}

impl Error {
    /// The violations of an [`InvalidConfig`](Self::InvalidConfig) error; none of any other.
    #[must_use]
    pub fn violations(&self) -> &[ConfigError] {
        match self {
            Self::InvalidConfig(violations) => violations,
            _ => &[],
        }
    }

    /// Whether a check before a start failed.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, Self::InvalidConfig(_) | Self::HypervisorNotFound { .. })
    }

    /// For `map_err`: names what was tried, and with which file.
    pub(crate) fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::new_io(action, path.as_ref(), source)
    }

    /// Not inlined: there are many callers, and failures are rare.
    #[cold]
    #[inline(never)]
    fn new_io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }

    /// For `map_err`: names the state directory or image that could not be looked at.
    pub(crate) fn cannot_tell(path: Option<&Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.map(Path::to_owned);
        move |source| Self::CannotTell { path, source }
    }

    fn message(&self) -> String {
        match self {
            Self::InvalidConfig(violations) => {
                violations.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
            }
            Self::InvalidArguments { argument, reason } => format!("invalid hyperkit argument {argument:?}: {reason}"),
            Self::HypervisorNotFound { searched } => {
                format!("no hypervisor found: {}; install hyperkit or QEMU, or set `hyperkit`", text::list(searched))
            }
            Self::DiskInUse { path } => format!("disk image in use by another VM: {}", path.display()),
            Self::PortInUse { field, port, .. } => {
                format!("cannot bind port {port} of 127.0.0.1 for `{field}`; use another one, or 0 for any free port")
            }
            Self::SocketInUse { path } => {
                format!("socket path in use: {}; stop its owner or choose another `vsock_dir`", path.display())
            }
            Self::DiskExists { path } => format!("file exists: {}", path.display()),
            Self::ImageToolFailed { tool, path, stderr } => {
                format!("{} failed for {}: {stderr}", tool.display(), path.display())
            }
            Self::AlreadyRunning { pid, state_dir } => {
                format!("VM already running as process {pid}: {}", state_dir.display())
            }
            Self::StillRunning { pid, state_dir } => {
                format!("VM still running as process {pid}: {}; stop it first", state_dir.display())
            }
            Self::NotRunning { state_dir } => format!("VM not running{}", of(state_dir)),
            Self::CannotTell { path, .. } => match path {
                Some(path) => format!("cannot tell whether a VM is running or using {}", path.display()),
                None => "cannot tell whether the VM is running".to_owned(),
            },
            Self::StartTimedOut { timeout, state_dir, log_tail } => {
                format!("VM not ready after {} and killed{}{}", seconds(*timeout), of(state_dir), tail(log_tail))
            }
            Self::HypervisorFailed { exit, state_dir, log_tail } => {
                format!("hypervisor {exit}{}{}", of(state_dir), tail(log_tail))
            }
            Self::VsockDaemonFailed { program, log_tail } => {
                format!("vsock daemon did not start: {}{}", program.display(), tail(log_tail))
            }
            Self::Qmp { socket, reason } => format!("QMP error: {reason}: {}", socket.display()),
            Self::VsockConnectionRefused { port } => {
                format!("connection refused on the guest's vsock port {port}; the guest may not be ready")
            }
            Self::NoConsole { state_dir } => {
                format!("no serial port leads to a pty{}; set `console` to `Pty`", of(state_dir))
            }
            Self::NoConsoleLog { state_dir } => {
                format!("no serial port has a log{}; set `console` to `Pty`", of(state_dir))
            }
            Self::PtyNotFound { path } => format!("pty not found: {}; is the VM running?", path.display()),
            Self::ConsoleTextNotFound { text, exit, timeout, state_dir, log_tail } => {
                let reason = match exit {
                    Some(exit) => format!("VM {exit} while waiting"),
                    None => format!("timed out after {} waiting", seconds(*timeout)),
                };
                format!("{reason} for {text:?} on the console{}{}", of(state_dir), tail(log_tail))
            }
            Self::StateNotFound { path } => format!("no saved state: {} not found", path.display()),
            Self::DamagedState { path, .. } => {
                format!("damaged state file: {}; start the VM again or remove the file", path.display())
            }
            Self::Io { action, path, .. } => format!("cannot {action} {}", path.display()),
        }
    }
}

impl From<ConfigError> for Error {
    fn from(violation: ConfigError) -> Self {
        Self::InvalidConfig(vec![violation])
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&escape_control(&self.message()))?;
        if f.alternate() {
            let first = std::error::Error::source(self);
            for cause in std::iter::successors(first, |cause| cause.source()) {
                write!(f, ": {}", escape_control(&cause.to_string()))?;
            }
        }
        Ok(())
    }
}

/// The text with its control characters as Rust escapes them: a guest's could clear the caller's screen.
pub(crate) fn escape_control(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character.is_control() {
            true => escaped.extend(character.escape_default()),
            false => escaped.push(character),
        }
    }
    escaped
}

/// `30 s` or `1500 ms`.
fn seconds(duration: Duration) -> String {
    match duration.subsec_nanos() {
        0 => format!("{} s", duration.as_secs()),
        _ => format!("{} ms", duration.as_millis()),
    }
}

fn of(state_dir: &Option<PathBuf>) -> String {
    state_dir.as_ref().map_or(String::new(), |dir| format!(": {}", dir.display()))
}

fn tail(log_tail: &LogTail) -> String {
    if log_tail.is_empty() { String::new() } else { format!("; hypervisor output: {log_tail}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alternate_display_appends_causes_and_escapes_control_characters() {
        let error = Error::io("read", "/x\u{1b}[2J")(io::Error::other("first\nsecond"));
        assert_eq!(error.to_string(), "cannot read /x\\u{1b}[2J");
        assert_eq!(format!("{error:#}"), "cannot read /x\\u{1b}[2J: first\\nsecond");
    }
}
