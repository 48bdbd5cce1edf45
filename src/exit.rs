//! How a VM exited, and what a shutdown did.

use std::fmt;

use serde::Serialize;

/// How a VM exited.
///
/// [`Display`](fmt::Display) prints the words that follow "the VM": "powered off", "was killed by signal 9".
///
/// ```
/// use hyperkit::Exit;
///
/// assert_eq!(format!("the VM {}", Exit::Killed(9)), "the VM was killed by signal 9");
/// assert!(Exit::PowerOff.is_guest() && !Exit::Failed(1).is_guest());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Exit {
    /// The guest powered off or halted. On QEMU without a state directory, a reset is reported as this, too.
    PowerOff,
    /// The guest requested a reset (a reboot). The hypervisor has exited; start the VM again.
    Reset,
    /// The guest triple-faulted: its kernel failed so badly that a real processor would reset. QEMU reports this as a reset.
    TripleFault,
    /// The hypervisor exited with this code.
    Failed(i32),
    /// The hypervisor was killed by this signal.
    Killed(i32),
    /// The hypervisor has exited, but its exit status is not known: another program had started it.
    Unknown,
}

impl Exit {
    /// Returns whether the guest ended the VM: by power-off, reset or triple fault.
    #[must_use]
    pub fn is_guest(self) -> bool {
        matches!(self, Self::PowerOff | Self::Reset | Self::TripleFault)
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff => f.write_str("powered off"),
            Self::Reset => f.write_str("requested a reset"),
            Self::TripleFault => f.write_str("triple-faulted"),
            Self::Failed(code) => write!(f, "failed with exit code {code}"),
            Self::Killed(signal) => write!(f, "was killed by signal {signal}"),
            Self::Unknown => f.write_str("exited with unknown status"),
        }
    }
}

/// What [`Vm::shutdown`](crate::Vm::shutdown) did.
///
/// ```
/// use hyperkit::{Exit, ShutdownOutcome};
///
/// let outcome = ShutdownOutcome::Forced(Exit::Killed(9));
/// assert_eq!(outcome.to_string(), "forced: the VM was killed by signal 9");
/// assert_eq!(outcome.exit(), Exit::Killed(9));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ShutdownOutcome {
    /// The VM had exited before the call.
    AlreadyExited(Exit),
    /// The guest ended by itself, within the grace period.
    Graceful(Exit),
    /// The hypervisor was killed, by this call or by another program, or it failed.
    Forced(Exit),
    /// The VM exited within the grace period, but it is not known whether the guest ended it.
    Unknown,
}

impl ShutdownOutcome {
    /// Returns how the VM exited.
    #[must_use]
    pub fn exit(self) -> Exit {
        match self {
            Self::AlreadyExited(exit) | Self::Graceful(exit) | Self::Forced(exit) => exit,
            Self::Unknown => Exit::Unknown,
        }
    }
}

impl fmt::Display for ShutdownOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AlreadyExited(exit) => write!(f, "already exited: the VM {exit}"),
            Self::Graceful(exit) => write!(f, "graceful: the VM {exit}"),
            Self::Forced(exit) => write!(f, "forced: the VM {exit}"),
            Self::Unknown => f.write_str("the VM exited with unknown status"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_exit_and_outcome_has_words_and_json() {
        for (exit, words, json) in [
            (Exit::PowerOff, "powered off", r#""power-off""#),
            (Exit::Reset, "requested a reset", r#""reset""#),
            (Exit::TripleFault, "triple-faulted", r#""triple-fault""#),
            (Exit::Failed(1), "failed with exit code 1", r#"{"failed":1}"#),
            (Exit::Killed(9), "was killed by signal 9", r#"{"killed":9}"#),
            (Exit::Unknown, "exited with unknown status", r#""unknown""#),
        ] {
            assert_eq!(exit.to_string(), words);
            assert_eq!(serde_json::to_string(&exit).unwrap(), json);
            for outcome in
                [ShutdownOutcome::AlreadyExited(exit), ShutdownOutcome::Graceful(exit), ShutdownOutcome::Forced(exit)]
            {
                assert_eq!(outcome.exit(), exit);
                assert!(outcome.to_string().ends_with(words));
            }
        }
        assert_eq!(ShutdownOutcome::Unknown.exit(), Exit::Unknown);
    }
}
