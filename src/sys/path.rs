//! Absolute and canonical paths.

use std::path::{Component, Path, PathBuf};

use crate::error::{Error, Result};

/// Makes a path absolute without looking at the file system. An empty path stays empty.
pub(crate) fn make_absolute(path: &mut PathBuf) -> Result<()> {
    if !path.as_os_str().is_empty() {
        *path = std::path::absolute(&*path).map_err(Error::io("make absolute", &*path))?;
    }
    Ok(())
}

/// As [`make_absolute`], but leaves a name without directories, which is searched on `PATH`.
pub(crate) fn make_program_absolute(program: &mut PathBuf) -> Result<()> {
    if program.components().count() > 1 { make_absolute(program) } else { Ok(()) }
}

/// `path` with the symlinks of its existing part resolved, so that a directory has one name however it was reached.
pub(crate) fn canonical(path: &Path) -> PathBuf {
    for existing in path.ancestors() {
        if let (Ok(real), Ok(rest)) = (existing.canonicalize(), path.strip_prefix(existing)) {
            return if rest.as_os_str().is_empty() { real } else { real.join(rest) };
        }
    }
    path.to_owned()
}

/// `path` without `.` and `..`, as Go's `filepath.Clean`: without looking at any file. An empty path becomes `.`.
pub(crate) fn clean(path: &Path) -> PathBuf {
    let mut cleaned = PathBuf::new();
    for component in path.components() {
        match (component, cleaned.components().next_back()) {
            (Component::CurDir, _) | (Component::ParentDir, Some(Component::RootDir)) => {}
            (Component::ParentDir, Some(Component::Normal(_))) => drop(cleaned.pop()),
            (other, _) => cleaned.push(other),
        }
    }
    if cleaned.as_os_str().is_empty() { PathBuf::from(".") } else { cleaned }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clean_matches_go() {
        for (path, cleaned) in [
            ("", "."),
            ("./a/b", "a/b"),
            ("a/..", "."),
            ("../../a", "../../a"),
            ("a/../../b", "../b"),
            ("/../a", "/a"),
            ("/a/b/../../..", "/"),
            ("/a//b/./c/", "/a/b/c"),
        ] {
            assert_eq!(clean(Path::new(path)).to_str(), Some(cleaned), "{path:?}");
        }
    }
}
