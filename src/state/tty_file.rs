//! The files in a state directory that name the ptys of serial ports.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use crate::sys::file::read_at_most;

const MAX_PATH_BYTES: u64 = 4096;

/// The pty that the file names. Up to v0.20200224 hyperkit creates a symlink to the pty, since then a text file.
pub(crate) fn read_pty_path(file: &Path) -> Option<PathBuf> {
    let path = match file.read_link() {
        Ok(target) => target,
        Err(_) => {
            let content = read_at_most(file, MAX_PATH_BYTES).ok()?;
            PathBuf::from(OsString::from_vec(content.trim_ascii_end().to_vec()))
        }
    };
    let mut below = path.strip_prefix("/dev").ok()?.components().peekable();
    let is_device = below.peek().is_some() && below.all(|component| matches!(component, Component::Normal(_)));
    (is_device && !path.as_os_str().as_encoded_bytes().contains(&0)).then_some(path)
}
