//! The guest's serial ports from outside: which ptys they are.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use crate::config::HyperKit;
use crate::error::{Error, Result};
use crate::serial::{Line, ports};
use crate::state::{StateDir, read_at_most};

/// A path is shorter than this, in bytes.
const LONGEST_PATH: u64 = 4096;

impl HyperKit {
    /// The ptys of the machine's serial ports, com1 first; those ports that lead elsewhere have none.
    ///
    /// ```no_run
    /// for pty in hyperkit::HyperKit::from_state("vm")?.ttys()? {
    ///     println!("screen {}", pty.display());
    /// }
    /// # Ok::<(), hyperkit::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::StateDirRequired`]; [`Error::NoTty`] if the machine does not run, or its file does not say.
    pub fn ttys(&self) -> Result<Vec<PathBuf>> {
        let mut ttys = Vec::new();
        for port in ports(self)? {
            let Line::Tty(name) = port.line else { continue };
            let dir = self.state_dir.as_deref().ok_or(Error::StateDirRequired { field: "console" })?;
            let file = StateDir::new(dir)?.file(name);
            ttys.push(pty_in(&file).ok_or(Error::NoTty { path: file })?);
        }
        Ok(ttys)
    }
}

/// The pty that a `tty` file leads to: it is a symlink to it up to v0.20200224 of hyperkit, and a text file since.
fn pty_in(file: &Path) -> Option<PathBuf> {
    let path = match file.read_link() {
        Ok(link) => link,
        Err(_) => PathBuf::from(OsString::from_vec(read_at_most(file, LONGEST_PATH).ok()?.trim_ascii_end().to_vec())),
    };
    let mut below = path.strip_prefix("/dev").ok()?.components().peekable();
    let is_device = below.peek().is_some() && below.all(|component| matches!(component, Component::Normal(_)));
    (is_device && !path.as_os_str().as_encoded_bytes().contains(&0)).then_some(path)
}
