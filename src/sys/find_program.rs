//! Searching for programs.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};

/// The first of these programs that exists, or else all places that were searched.
pub(crate) fn first_program(candidates: &[&Path]) -> Result<PathBuf, Vec<PathBuf>> {
    let path_variable = std::env::var_os("PATH").unwrap_or_default();
    let mut searched = Vec::new();
    for place in candidates.iter().flat_map(|candidate| places(candidate, &path_variable)) {
        if place.is_file() && access(&place, Access::EXEC_OK).is_ok() {
            return Ok(place);
        }
        if !searched.contains(&place) {
            searched.push(place);
        }
    }
    Err(searched)
}

/// Where a program can be: a path is taken as it is, a name is searched in each directory of `PATH`.
fn places(program: &Path, path_variable: &OsStr) -> Vec<PathBuf> {
    if program.components().count() > 1 || program.is_absolute() {
        return vec![program.to_owned()];
    }
    std::env::split_paths(path_variable).filter(|dir| dir.is_absolute()).map(|dir| dir.join(program)).collect()
}
