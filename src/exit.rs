//! How a VM ended.

use std::fmt;

/// How a machine ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Exit {
    /// The guest powered off or halted. With QEMU and no state directory, also when it asked for a reset.
    PowerOff,
    /// The guest asked for a reset. No machine does that in place: start it again.
    Reset,
    /// The guest's processor gave up. QEMU tells it as a reset.
    TripleFault,
    /// The program ended with this exit code.
    Failed(i32),
    /// The program was ended by this signal.
    Killed(i32),
    /// It is gone, and nobody could learn how: another program had started it.
    Unknown,
}

impl Exit {
    /// Whether the guest brought it about, and not the program or someone outside.
    pub(crate) fn is_the_guests(self) -> bool {
        matches!(self, Self::PowerOff | Self::Reset | Self::TripleFault)
    }
}

/// What [`Vm::shutdown`] took to end the machine, and how it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Shutdown {
    /// It had ended before.
    Ended(Exit),
    /// The power button did.
    PowerButton(Exit),
    /// The guest did not power off in time, and the plug was pulled.
    Plug(Exit),
}

impl Shutdown {
    /// How the machine ended.
    #[must_use]
    pub fn exit(self) -> Exit {
        match self {
            Self::Ended(exit) | Self::PowerButton(exit) | Self::Plug(exit) => exit,
        }
    }
}

impl fmt::Display for Exit {
    /// What the machine did, to stand behind its name: `powered off`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff => f.write_str("powered off"),
            Self::Reset => f.write_str("asked for a reset"),
            Self::TripleFault => f.write_str("had a triple fault"),
            Self::Failed(code) => write!(f, "failed with exit code {code}"),
            Self::Killed(signal) => write!(f, "was killed by signal {signal}"),
            Self::Unknown => f.write_str("ended, how is not known"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_told_in_words_and_a_shutdown_has_one() {
        for (exit, told) in [
            (Exit::PowerOff, "powered off"),
            (Exit::Reset, "asked for a reset"),
            (Exit::TripleFault, "had a triple fault"),
            (Exit::Failed(1), "failed with exit code 1"),
            (Exit::Killed(9), "was killed by signal 9"),
            (Exit::Unknown, "ended, how is not known"),
        ] {
            assert_eq!(exit.to_string(), told);
            for shutdown in [Shutdown::Ended(exit), Shutdown::PowerButton(exit), Shutdown::Plug(exit)] {
                assert_eq!(shutdown.exit(), exit);
            }
        }
    }
}
