//! The groups of errors.

use crate::error::{ConfigError, Error};

/// What an [`Error`] is about, for programs that treat whole groups alike.
///
/// | kind | what a caller can do |
/// |---|---|
/// | `Config` | correct the description or the files that it names |
/// | `NotInstalled` | install a hypervisor or helper program, or set its path |
/// | `InUse` | stop the other VM or program, or use another disk, port or directory |
/// | `NotRunning` | start the VM |
/// | `CannotTell` | retry, or run with more rights or file descriptors |
/// | `Hypervisor` | read the log tail: the hypervisor or a helper program failed |
/// | `Guest` | look at the console: the guest did not do what was expected |
/// | `Timeout` | retry with a longer timeout |
/// | `State` | `define` or `start` the VM, or remove the state directory |
/// | `Io` | look at the cause: the operating system refused something |
///
/// ```
/// use hyperkit::{ErrorKind, HyperKit};
///
/// let error = HyperKit::new().start("console=ttyS0").unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::Config); // no kernel, no state directory
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The description or a file that it names cannot be used.
    Config,
    /// A program is not installed.
    NotInstalled,
    /// A disk, port, socket or state directory is in use, or a file exists.
    InUse,
    /// The VM is not running.
    NotRunning,
    /// Whether the VM runs, or an image is in use, cannot be found out.
    CannotTell,
    /// The hypervisor or a helper program failed.
    Hypervisor,
    /// The guest did not answer as expected.
    Guest,
    /// Something took longer than it was allowed to.
    Timeout,
    /// The state directory holds no VM, or `hyperkit.json` is damaged.
    State,
    /// The operating system refused something.
    Io,
}

impl Error {
    /// The group that the error belongs to.
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
            | Self::DiskExists { .. }
            | Self::AlreadyRunning { .. }
            | Self::StillRunning { .. } => ErrorKind::InUse,
            Self::NotRunning { .. } | Self::PtyNotFound { .. } => ErrorKind::NotRunning,
            Self::CannotTell { .. } => ErrorKind::CannotTell,
            Self::ImageToolFailed { .. }
            | Self::HypervisorFailed { .. }
            | Self::VsockDaemonFailed { .. }
            | Self::Qmp { .. } => ErrorKind::Hypervisor,
            Self::ConsoleTextNotFound { exit: Some(_), .. } | Self::VsockConnectionRefused { .. } => ErrorKind::Guest,
            Self::ConsoleTextNotFound { exit: None, .. } | Self::StartTimedOut { .. } => ErrorKind::Timeout,
            Self::StateNotFound { .. } | Self::DamagedState { .. } => ErrorKind::State,
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
