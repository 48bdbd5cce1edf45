//! Commands of the example `ctl` that can be pasted into a shell in any directory.

use std::path::Path;

use crate::shell::quoted;

const MANIFEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");

/// The command line that runs a command of `ctl` for a state directory.
pub fn ctl_command(command: &str, state_dir: &Path) -> String {
    let dir = std::path::absolute(state_dir).unwrap_or_else(|_| state_dir.to_owned());
    let [manifest, dir] = [MANIFEST.as_ref(), dir.as_os_str()].map(quoted);
    let (manifest, dir) = (String::from_utf8_lossy(&manifest), String::from_utf8_lossy(&dir));
    format!("cargo run --manifest-path {manifest} --example ctl -- {command} {dir}")
}
