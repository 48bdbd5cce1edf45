//! Why a program in the guest was not started.

use std::fmt;

/// Why a program in the guest was not started. The guest's operating system reports three of these as "not found" (ENOENT).
///
/// ```no_run
/// # use std::time::Duration;
/// # let vm = hyperkit::HyperKit::new().state_dir("vm").kernel("vmlinuz").initrd("initrd.img").agent(true);
/// # let vm = vm.start_scoped("console=ttyS0 no_timer_check")?;
/// use hyperkit::{Error, NotStarted};
///
/// match vm.command("no-such-program").agent_timeout(Duration::from_secs(300)).output() {
///     Err(Error::CommandNotStarted { reason: NotStarted::ProgramNotFound, .. }) => println!("install it"),
///     other => println!("{other:?}"),
/// }
/// # Ok::<(), hyperkit::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum NotStarted {
    /// The program was not found.
    ProgramNotFound,
    /// The program is a directory, is not executable, or is in a format that the guest cannot execute.
    NotExecutable,
    /// The program was found, and the interpreter in its first line (`#!`) or its dynamic loader was not.
    InterpreterNotFound,
    /// The current directory was not found, or cannot be used.
    CurrentDir,
    /// Something else failed: often the guest lacks memory, processes or file descriptors.
    Other,
}

impl fmt::Display for NotStarted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ProgramNotFound => "program not found in the guest",
            Self::NotExecutable => "program not executable in the guest",
            Self::InterpreterNotFound => "interpreter or dynamic loader not found in the guest for the program",
            Self::CurrentDir => "current directory not usable in the guest for the program",
            Self::Other => "cannot start the program in the guest",
        })
    }
}
