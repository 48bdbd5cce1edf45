//! The console of a description's VM, also after it has exited.

use std::path::PathBuf;

use crate::config::HyperKit;
use crate::error::Result;
use crate::vm::{console, console_log};

/// # Console
///
/// These work without a [`Vm`](crate::Vm), and `console_log` also after the VM has exited. As in
/// [`vm`](HyperKit::vm), the record in the state directory counts, and not this description.
impl HyperKit {
    /// Returns the console's output, oldest first: on QEMU the last MiB of it, on hyperkit the last 64 KiB.
    ///
    /// hyperkit writes the log as a ring, which does not say where it starts. Once the ring is full, this finds the start
    /// by the times that Linux puts before its lines. Without such times, the output may begin in the middle.
    ///
    /// ```
    /// # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
    /// # let _here = here::running();
    /// let output = hyperkit::HyperKit::from_state("vm")?.console_log()?;
    /// print!("{}", String::from_utf8_lossy(&output));
    /// # Ok::<(), hyperkit::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`ConfigError::StateDirRequired`](crate::ConfigError::StateDirRequired);
    /// [`Error::NoConsoleLog`](crate::Error::NoConsoleLog) if no serial port has a log;
    /// [`Error::Io`](crate::Error::Io) if there is no log yet.
    #[doc(alias = "log")]
    #[doc(alias = "output")]
    pub fn console_log(&self) -> Result<Vec<u8>> {
        console_log::read(self)
    }

    /// Returns the paths of the ptys (pseudo-terminals) of the VM's serial ports, com1 first. Ports that are connected to
    /// something else have none.
    ///
    /// ```
    /// # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
    /// # let _here = here::running();
    /// for pty in hyperkit::HyperKit::from_state("vm")?.pty_paths()? {
    ///     println!("screen {}", pty.display());
    /// }
    /// # Ok::<(), hyperkit::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`ConfigError::StateDirRequired`](crate::ConfigError::StateDirRequired);
    /// [`Error::PtyNotFound`](crate::Error::PtyNotFound) if the VM does not run, or the file in its state directory names
    /// no pty.
    #[doc(alias = "tty")]
    #[doc(alias = "serial")]
    pub fn pty_paths(&self) -> Result<Vec<PathBuf>> {
        console::pty_paths(self)
    }
}
