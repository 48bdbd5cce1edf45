//! The groups of errors.

use crate::error::{ConfigError, Error};

/// What an [`Error`] is about, and what a program can do about it. It is for programs that treat whole groups alike.
///
/// [`Error::kind`] returns it. The page of [`Error`] lists the variants of each kind.
///
/// ```
/// use hyperkit::{ErrorKind, HyperKit};
///
/// let error = HyperKit::new().start("console=ttyS0").unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::Config); // no kernel, no state directory
/// match error.kind() {
///     ErrorKind::Config | ErrorKind::NotInstalled => println!("ask the user: {error:#}"),
///     ErrorKind::InUse | ErrorKind::CannotTell => println!("try again later: {error:#}"),
///     _ => println!("report: {error:#}"),
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The description or a file that it names cannot be used. Show the error to whoever wrote the description: trying
    /// again fails again.
    Config,
    /// A program is not installed. Ask the user to install it, or to set its path in the description.
    NotInstalled,
    /// A disk, port, socket or state directory is in use, or a file exists. Stop the program that uses it, or use another
    /// disk, port or directory.
    InUse,
    /// The VM is not running. Start it.
    NotRunning,
    /// This program cannot find out whether the VM runs, or whether an image is in use. Assume neither answer: try again,
    /// or run with more rights or file descriptors.
    CannotTell,
    /// The hypervisor or a helper program failed. Show its output, which the error contains.
    Hypervisor,
    /// The guest did not do what was expected. Look at the console.
    Guest,
    /// Something took longer than it was allowed to. Try again with a longer timeout.
    Timeout,
    /// The state directory has no VM, or its `hyperkit.json` is damaged. Define or start the VM, or remove the state
    /// directory.
    State,
    /// The operating system refused something. Show the cause: `{error:#}`.
    Io,
}

impl Error {
    /// Returns the group of the error. [`ErrorKind`] has an example.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        let is_program = |violation: &ConfigError| {
            matches!(violation, ConfigError::ToolNotFound { .. } | ConfigError::VpnKitNotFound { .. })
        };
        match self {
            Self::InvalidConfig(violations) if violations.iter().all(is_program) => ErrorKind::NotInstalled,
            Self::InvalidConfig(_)
            | Self::InvalidArguments { .. }
            | Self::NoConsole { .. }
            | Self::NoConsoleLog { .. } => ErrorKind::Config,
            Self::HypervisorNotFound { .. } => ErrorKind::NotInstalled,
            Self::DiskInUse { .. }
            | Self::PortInUse { .. }
            | Self::SocketInUse { .. }
            | Self::NetworkNumberInUse { .. }
            | Self::DiskExists { .. }
            | Self::AlreadyRunning { .. }
            | Self::StillRunning { .. } => ErrorKind::InUse,
            Self::NotRunning { .. } | Self::PtyNotFound { .. } => ErrorKind::NotRunning,
            Self::CannotTell { .. } => ErrorKind::CannotTell,
            Self::ImageToolFailed { .. }
            | Self::HypervisorFailed { .. }
            | Self::VsockDaemonFailed { .. }
            | Self::VirtiofsdFailed { .. }
            | Self::Qmp { .. } => ErrorKind::Hypervisor,
            Self::ConsoleTextNotFound { exit: Some(_), .. }
            | Self::VsockConnectionRefused { .. }
            | Self::VmExited { .. }
            | Self::AgentFailed { .. }
            | Self::CommandNotStarted { .. }
            | Self::CommandOutputTooLong { .. }
            | Self::CopyFailed { .. } => ErrorKind::Guest,
            Self::ConsoleTextNotFound { exit: None, .. }
            | Self::StartTimedOut { .. }
            | Self::AgentNotResponding { .. }
            | Self::CommandTimedOut { .. } => ErrorKind::Timeout,
            Self::StateNotFound { .. } | Self::DamagedState { .. } | Self::Replaced { .. } => ErrorKind::State,
            Self::Io { .. } => ErrorKind::Io,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_missing_programs_count_as_not_installed() {
        let tool = ConfigError::ToolNotFound { field: "disks", searched: Vec::new() };
        assert_eq!(Error::from(tool.clone()).kind(), ErrorKind::NotInstalled);
        let both = Error::InvalidConfig(vec![tool, ConfigError::MissingDiskPath]);
        assert_eq!(both.kind(), ErrorKind::Config);
    }
}
