//! How a program in the guest has ended, and what it wrote.

use std::fmt;

/// How a program in the guest has ended. [`Vm::command`](crate::Vm::command) has an example.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GuestStatus {
    /// The program has exited with this code, 0 to 255. By convention 0 means success.
    Exited(i32),
    /// A signal has killed the program: its number on Linux, for instance 9 for SIGKILL.
    Killed(i32),
}

impl GuestStatus {
    /// Returns whether the program has exited with code 0.
    #[must_use]
    pub fn success(self) -> bool {
        self == Self::Exited(0)
    }

    /// Returns the exit code; `None` if a signal has killed the program.
    #[must_use]
    pub fn code(self) -> Option<i32> {
        match self {
            Self::Exited(code) => Some(code),
            Self::Killed(_) => None,
        }
    }

    /// Returns the signal that has killed the program; `None` if the program has exited by itself. A shell that runs a program
    /// reports the program's signal as its own exit code, 128 plus the signal.
    #[must_use]
    pub fn signal(self) -> Option<i32> {
        match self {
            Self::Exited(_) => None,
            Self::Killed(signal) => Some(signal),
        }
    }
}

impl fmt::Display for GuestStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exited with code {code}"),
            Self::Killed(signal) => write!(f, "was killed by signal {signal}"),
        }
    }
}

/// What [`GuestCommand::output`](crate::GuestCommand::output) returns. [`Vm::command`](crate::Vm::command) has an example.
///
/// `{:?}` prints the output as text, if it is UTF-8, as that of [`std::process::Output`] does.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct GuestOutput {
    /// How the program has ended.
    pub status: GuestStatus,
    /// What it wrote to standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error.
    pub stderr: Vec<u8>,
}

impl fmt::Debug for GuestOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [stdout, stderr] = [&self.stdout, &self.stderr].map(|output| match std::str::from_utf8(output) {
            Ok(text) => format!("{text:?}"),
            Err(_) => format!("{output:?}"),
        });
        f.debug_struct("GuestOutput")
            .field("status", &self.status)
            .field("stdout", &format_args!("{stdout}"))
            .field("stderr", &format_args!("{stderr}"))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::{GuestOutput, GuestStatus};

    #[test]
    fn debug_of_an_output_is_that_of_std() {
        use std::os::unix::process::ExitStatusExt;
        for bytes in [&b""[..], b"a \"quoted\" line\n", b"\xff\0"] {
            let (stdout, stderr) = (bytes.to_vec(), b"err".to_vec());
            let std_status = std::process::ExitStatus::from_raw(0);
            let expected = format!(
                "{:?}",
                std::process::Output { status: std_status, stdout: stdout.clone(), stderr: stderr.clone() }
            );
            let expected =
                expected.replace(&format!("{std_status:?}"), "Exited(0)").replace("Output {", "GuestOutput {");
            assert_eq!(format!("{:?}", GuestOutput { status: GuestStatus::Exited(0), stdout, stderr }), expected);
        }
    }
}
