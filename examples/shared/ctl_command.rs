//! Commands of the example `ctl` that can be pasted into a shell in any directory.

use std::path::{Path, PathBuf};

use crate::shell::quoted;

const MANIFEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");

/// The command line that runs a command of `ctl` for a state directory.
pub fn ctl_command(command: &str, state_dir: &Path) -> String {
    let dir = std::path::absolute(state_dir).unwrap_or_else(|_| state_dir.to_owned());
    let word = |path: &Path| String::from_utf8_lossy(&quoted(path.as_os_str())).into_owned();
    let ctl = match installed_ctl() {
        Some(ctl) => word(&ctl),
        None => format!("cargo run --manifest-path {} --example ctl --", word(MANIFEST.as_ref())),
    };
    format!("{ctl} {command} {}", word(&dir))
}

/// The `ctl` beside this program, if `cargo install` has put it there. What Cargo builds in a checkout, in a directory `examples`, may
/// be older than the source.
fn installed_ctl() -> Option<PathBuf> {
    let ctl = std::env::current_exe().ok()?.with_file_name("ctl");
    (ctl.is_file() && !ctl.parent()?.ends_with("examples")).then_some(ctl)
}
