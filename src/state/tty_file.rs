//! The files that name the ptys of serial ports.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use crate::sys::file::read_at_most;

/// A path is shorter than this, in bytes.
const LONGEST_PATH: u64 = 4096;

/// The pty that a `tty` file leads to: it is a symlink to it up to v0.20200224 of hyperkit, and a text file since.
pub(crate) fn pty_in(file: &Path) -> Option<PathBuf> {
    let path = match file.read_link() {
        Ok(link) => link,
        Err(_) => PathBuf::from(OsString::from_vec(read_at_most(file, LONGEST_PATH).ok()?.trim_ascii_end().to_vec())),
    };
    let mut below = path.strip_prefix("/dev").ok()?.components().peekable();
    let is_device = below.peek().is_some() && below.all(|component| matches!(component, Component::Normal(_)));
    (is_device && !path.as_os_str().as_encoded_bytes().contains(&0)).then_some(path)
}
