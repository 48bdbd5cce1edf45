//! Programs of the host.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

/// Runs a program that `examples/setup.sh --tests` installs, and returns its output.
pub fn run_tool<S: AsRef<OsStr>>(program: &str, arguments: &[S], dir: &Path) -> Vec<u8> {
    let output = Command::new(program).args(arguments).current_dir(dir).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}: run examples/setup.sh --tests first"));
    assert!(output.status.success(), "{program}: {output:?}");
    output.stdout
}
