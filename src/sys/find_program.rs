//! Looking for programs.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};

/// The first of these programs that is there, or else every place looked at.
pub(crate) fn first_program(candidates: &[&Path]) -> std::result::Result<PathBuf, Vec<PathBuf>> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut looked = Vec::new();
    for place in candidates.iter().flat_map(|candidate| places(candidate, &path)) {
        if place.is_file() && access(&place, Access::EXEC_OK).is_ok() {
            return Ok(place);
        }
        if !looked.contains(&place) {
            looked.push(place);
        }
    }
    Err(looked)
}

/// Where a program can be: a path is looked at where it is, a name in each directory of `PATH`.
fn places(program: &Path, path: &OsStr) -> Vec<PathBuf> {
    if program.components().count() > 1 || program.is_absolute() {
        return vec![program.to_owned()];
    }
    std::env::split_paths(path).filter(|dir| dir.is_absolute()).map(|dir| dir.join(program)).collect()
}
