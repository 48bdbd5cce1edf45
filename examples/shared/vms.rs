//! Where `exec` puts its state directories, and `ctl list` looks.

use std::env::{temp_dir, var_os};
use std::path::PathBuf;

/// Returns `$XDG_STATE_HOME/hyperkit/exec`; the default is `~/.local/state/hyperkit/exec`.
pub fn exec_dir() -> PathBuf {
    let absolute = |name| var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state_home = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")));
    // Without a home, another user may have created a directory with a name that can be guessed: `exec` checks the owner.
    let uid = rustix::process::getuid().as_raw();
    state_home.unwrap_or_else(|| temp_dir().join(format!("user-{uid}"))).join("hyperkit/exec")
}
