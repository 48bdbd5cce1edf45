//! Errors: [`Error`] of every call, [`ConfigError`] of a description, [`ErrorKind`] for groups.

mod config;
mod field;
mod kind;
mod message;
mod methods;
mod not_started;
mod text;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

pub use config::ConfigError;
pub use kind::ErrorKind;
pub use not_started::NotStarted;
pub(crate) use text::escape_control;

use crate::{Exit, LogTail};

/// The result of every call in this crate that can fail.
///
/// A program that uses it need not import it:
///
/// ```no_run
/// fn main() -> hyperkit::Result<()> {
///     for found in hyperkit::HyperKit::list("machines")? {
///         println!("{}", found.dir.display());
///     }
///     Ok(())
/// }
/// ```
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a VM could not be described, started, found or ended.
///
/// `{error}` is one line without the cause, which [`source`](std::error::Error::source) returns. `{error:#}` appends the
/// causes. Both escape control characters, since guests and hypervisors choose some of the text.
///
/// [`kind`](Self::kind) returns the group of an error. [`ErrorKind`] says what a program can do about each group, and each
/// variant what to do about it. Two variants belong to two groups, depending on their fields.
///
/// | kind | variants |
/// |---|---|
/// | [`Config`](ErrorKind::Config) | [`InvalidConfig`](Self::InvalidConfig), [`InvalidArguments`](Self::InvalidArguments), [`NoConsole`](Self::NoConsole), [`NoConsoleLog`](Self::NoConsoleLog) |
/// | [`NotInstalled`](ErrorKind::NotInstalled) | [`HypervisorNotFound`](Self::HypervisorNotFound), [`InvalidConfig`](Self::InvalidConfig) |
/// | [`InUse`](ErrorKind::InUse) | [`AlreadyRunning`](Self::AlreadyRunning), [`StillRunning`](Self::StillRunning), [`DiskInUse`](Self::DiskInUse), [`DiskExists`](Self::DiskExists), [`PortInUse`](Self::PortInUse), [`SocketInUse`](Self::SocketInUse), [`NetworkNumberInUse`](Self::NetworkNumberInUse) |
/// | [`NotRunning`](ErrorKind::NotRunning) | [`NotRunning`](Self::NotRunning), [`PtyNotFound`](Self::PtyNotFound) |
/// | [`CannotTell`](ErrorKind::CannotTell) | [`CannotTell`](Self::CannotTell) |
/// | [`Hypervisor`](ErrorKind::Hypervisor) | [`HypervisorFailed`](Self::HypervisorFailed), [`VsockDaemonFailed`](Self::VsockDaemonFailed), [`VirtiofsdFailed`](Self::VirtiofsdFailed), [`ImageToolFailed`](Self::ImageToolFailed), [`Qmp`](Self::Qmp) |
/// | [`Guest`](ErrorKind::Guest) | [`VsockConnectionRefused`](Self::VsockConnectionRefused), [`ConsoleTextNotFound`](Self::ConsoleTextNotFound), [`VmExited`](Self::VmExited), [`AgentFailed`](Self::AgentFailed), [`CommandNotStarted`](Self::CommandNotStarted), [`CommandOutputTooLong`](Self::CommandOutputTooLong), [`CopyFailed`](Self::CopyFailed) |
/// | [`Timeout`](ErrorKind::Timeout) | [`StartTimedOut`](Self::StartTimedOut), [`ConsoleTextNotFound`](Self::ConsoleTextNotFound), [`AgentNotResponding`](Self::AgentNotResponding), [`CommandTimedOut`](Self::CommandTimedOut) |
/// | [`State`](ErrorKind::State) | [`StateNotFound`](Self::StateNotFound), [`DamagedState`](Self::DamagedState), [`Replaced`](Self::Replaced) |
/// | [`Io`](ErrorKind::Io) | [`Io`](Self::Io) |
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
    // --- Config ---
    /// The description, or a file that it names, cannot be used. Nothing was created. Correct what the violations name;
    /// the list is not empty. If all of them are about programs that are not installed, the kind is
    /// [`NotInstalled`](ErrorKind::NotInstalled).
    InvalidConfig(Vec<ConfigError>),
    /// [`parse_arguments`](crate::parse_arguments) got arguments that hyperkit would refuse. Correct the argument.
    InvalidArguments {
        /// The argument that is wrong, or the option that is missing.
        argument: String,
        /// The reason.
        reason: String,
    },
    /// No serial port is connected to a pty. Start the VM with [`Console::Pty`](crate::Console::Pty) or
    /// [`Serial::pty`](crate::Serial::pty).
    NoConsole {
        /// The state directory, if the VM has one.
        state_dir: Option<PathBuf>,
    },
    /// No serial port has a log. Start the VM with [`Console::Pty`](crate::Console::Pty) or
    /// [`Serial::log`](crate::Serial::log).
    NoConsoleLog {
        /// The state directory, if the VM has one.
        state_dir: Option<PathBuf>,
    },

    // --- NotInstalled ---
    /// No hypervisor is installed, or not at the path that the description names. Install one, or set
    /// [`hyperkit`](crate::HyperKit#structfield.hyperkit).
    HypervisorNotFound {
        /// All places that were searched.
        searched: Vec<PathBuf>,
    },

    // --- InUse ---
    /// A VM runs in this state directory already. Use it ([`HyperKit::vm`](crate::HyperKit::vm),
    /// [`start_or_attach`](crate::HyperKit::start_or_attach)), end it, or use another state directory.
    AlreadyRunning {
        /// The process ID of its hypervisor.
        pid: u32,
        /// The state directory.
        state_dir: PathBuf,
    },
    /// The operation requires that the VM has exited. End it first ([`Vm::shutdown`](crate::Vm::shutdown),
    /// [`HyperKit::stop`](crate::HyperKit::stop)).
    StillRunning {
        /// The process ID of its hypervisor.
        pid: u32,
        /// The state directory.
        state_dir: PathBuf,
    },
    /// Another VM uses this disk image. End that VM, or use another image. Two VMs can share an image that both only
    /// read.
    DiskInUse {
        /// The image.
        path: PathBuf,
    },
    /// A disk image has to be created where a file exists. The file was not changed. Use another path, or remove the
    /// file.
    DiskExists {
        /// The file.
        path: PathBuf,
    },
    /// A port of 127.0.0.1 cannot be bound: another program uses it, or ports below 1024 need root. Use another port;
    /// in `port_forwards`, 0 is any free one.
    PortInUse {
        /// The field: `port_forwards` or `gdb_port`.
        field: &'static str,
        /// The port.
        port: u16,
        /// The operating system's error.
        source: io::Error,
    },
    /// A socket has to be created where a program listens, or where another file exists. It was not changed. Stop that
    /// program, or choose another [`vsock_dir`](crate::HyperKit#structfield.vsock_dir) or
    /// [network](crate::HyperKit#structfield.internal_networks).
    SocketInUse {
        /// The path of the socket.
        path: PathBuf,
    },
    /// Another VM of the network has this number. Use another number, or stop that VM.
    NetworkNumberInUse {
        /// The directory of the network.
        dir: PathBuf,
        /// The number.
        number: u8,
    },

    // --- NotRunning ---
    /// The operation requires a running VM. Start it.
    NotRunning {
        /// The state directory, if the VM has one.
        state_dir: Option<PathBuf>,
    },
    /// The file that names a serial port's pty is missing or names no pty. The VM may not be running: start it.
    PtyNotFound {
        /// The file.
        path: PathBuf,
    },

    // --- CannotTell ---
    /// The operating system does not let this program find out whether the VM runs, or whether a disk image is in use.
    /// Nothing was changed. Try again, or run with more rights or file descriptors.
    CannotTell {
        /// The state directory or disk image.
        path: Option<PathBuf>,
        /// The operating system's error.
        source: io::Error,
    },

    // --- Hypervisor ---
    /// The hypervisor exited during the start, or failed later under [`run`](crate::HyperKit::run). Read the log tail.
    HypervisorFailed {
        /// How it exited.
        exit: Exit,
        /// The state directory, if the VM has one.
        state_dir: Option<PathBuf>,
        /// The last lines of its output.
        log_tail: LogTail,
    },
    /// vhost-device-vsock, the program that provides vsock to a QEMU guest, did not start. Read the log tail.
    VsockDaemonFailed {
        /// The program.
        program: PathBuf,
        /// The last lines of its output.
        log_tail: LogTail,
    },
    /// virtiofsd, the program that serves a share by virtiofs, failed during the start. Read the log tail.
    VirtiofsdFailed {
        /// The program.
        program: PathBuf,
        /// The last lines of its output and of the hypervisor's.
        log_tail: LogTail,
    },
    /// The program that creates and grows qcow2 images failed. Read what it printed.
    ImageToolFailed {
        /// The program.
        tool: PathBuf,
        /// The image.
        path: PathBuf,
        /// What it printed to standard error.
        stderr: String,
    },
    /// QEMU's control socket is missing, or gave an unexpected answer. Try again; if QEMU hangs,
    /// [`Vm::kill`](crate::Vm::kill) ends it.
    Qmp {
        /// The control socket.
        socket: PathBuf,
        /// What went wrong.
        reason: String,
    },

    // --- Guest ---
    /// No program in the guest accepts connections on this vsock port. The guest may not have started that program yet:
    /// try again.
    VsockConnectionRefused {
        /// The port.
        port: u32,
    },
    /// The guest did not write the text on the console in time, or before the VM exited. Read the log tail. If the VM
    /// still runs, the kind is [`Timeout`](ErrorKind::Timeout): try again with a longer timeout, and read or drop a
    /// [`ConsoleStream`](crate::ConsoleStream#read-the-stream-while-it-is-open) that is open.
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

    /// The VM exited while a command ran in it, or before the agent answered.
    VmExited {
        /// The program of the command.
        program: String,
        /// How the VM exited.
        exit: Exit,
        /// The state directory, if the VM has one.
        state_dir: Option<PathBuf>,
        /// The last lines of the hypervisor and the console.
        log_tail: LogTail,
    },
    /// A program in the guest was not started. [`NotStarted`] says why.
    CommandNotStarted {
        /// The program.
        program: String,
        /// What failed.
        reason: NotStarted,
        /// The error of the guest's operating system.
        source: io::Error,
    },
    /// A program in the guest wrote more than the [limit](crate::GuestCommand::output_limit), and was killed. Raise the limit, or
    /// read its output as a stream with [`spawn`](crate::GuestCommand::spawn).
    CommandOutputTooLong {
        /// The program.
        program: String,
        /// The limit in bytes.
        limit: usize,
    },
    /// [`copy_in`](crate::Vm::copy_in) or [`copy_out`](crate::Vm::copy_out) failed. There is no copy. The cause names the
    /// file.
    CopyFailed {
        /// The path of the file or directory.
        from: PathBuf,
        /// The path of the copy.
        to: PathBuf,
        /// What failed.
        source: io::Error,
    },
    /// The agent in the guest has exited, or sent something that it must not send, or the connection to it has failed. The commands
    /// of this connection are lost; the next command connects again. If the agent is of another version of this crate, replace it.
    AgentFailed {
        /// What went wrong.
        reason: String,
        /// The state directory, if the VM has one.
        state_dir: Option<PathBuf>,
    },

    // --- Timeout ---
    /// The [agent](crate::guide::agent) in the guest did not answer in time. The guest may still boot, or does not run the
    /// agent. Or another program uses the agent, or the VM is paused. Look at the console, and try again with a longer
    /// [timeout](crate::GuestCommand::agent_timeout).
    AgentNotResponding {
        /// The time it had.
        timeout: Duration,
        /// Whether the VM is paused.
        is_paused: bool,
        /// The state directory, if the VM has one.
        state_dir: Option<PathBuf>,
        /// The last lines of the hypervisor and the console.
        log_tail: LogTail,
    },
    /// A program in the guest ran longer than its [timeout](crate::GuestCommand::timeout), and was killed with its descendants.
    CommandTimedOut {
        /// The program.
        program: String,
        /// The time it had.
        timeout: Duration,
        /// What it wrote to standard output until then, if the call collects output.
        stdout: Vec<u8>,
        /// What it wrote to standard error until then.
        stderr: Vec<u8>,
    },
    /// The hypervisor was not ready in time, and was killed. Read the log tail, or use
    /// [`Starting::wait_ready`](crate::Starting::wait_ready) with a longer timeout.
    StartTimedOut {
        /// The time it had.
        timeout: Duration,
        /// The state directory, if the VM has one.
        state_dir: Option<PathBuf>,
        /// The socket of a VPNKit that may not have answered: hyperkit waits for the answer, and prints no message.
        suspect: Option<PathBuf>,
        /// The last lines of its output.
        log_tail: LogTail,
    },

    // --- State ---
    /// The state directory has no `hyperkit.json`: no VM was ever started or defined there. Correct the path, or start
    /// or define the VM.
    StateNotFound {
        /// The missing file.
        path: PathBuf,
    },
    /// Another VM was started in the state directory since. Its console, log and files are not those of this VM. Find the
    /// running VM with [`HyperKit::from_state`](crate::HyperKit::from_state).
    Replaced {
        /// The process ID of this VM's hypervisor.
        pid: u32,
        /// The process ID that the state directory records.
        successor: u32,
        /// The state directory.
        state_dir: PathBuf,
    },
    /// `hyperkit.json` cannot be parsed. Start or define the VM again, or delete the record with
    /// [`HyperKit::remove`](crate::HyperKit::remove).
    DamagedState {
        /// The file.
        path: PathBuf,
        /// Where and why parsing failed.
        source: io::Error,
    },

    // --- Io ---
    /// A system call failed. The cause says why; often it is a permission or a full disk.
    Io {
        /// The operation that failed, for instance `read`.
        action: &'static str,
        /// The file or program.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
}
