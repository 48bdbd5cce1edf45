//! Files: opened, read and removed.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::error::{Error, Result};

/// Opens a file for reading, if it is of the right kind: a pipe, for one, would block.
pub(crate) fn open(field: &'static str, path: &Path, right: impl Fn(&Metadata) -> bool) -> Result<(File, Metadata)> {
    let inaccessible = |source: io::Error| match source.kind() {
        // A link that leads nowhere is a file that does not exist, but none that could be made either.
        io::ErrorKind::NotFound if !path.is_symlink() => Error::NotFound { field, path: path.to_owned() },
        _ => Error::Inaccessible { field, path: path.to_owned(), source },
    };
    let metadata = path.metadata().map_err(inaccessible)?;
    if !right(&metadata) {
        return Err(Error::NotAFile { field, path: path.to_owned() });
    }
    Ok((File::open(path).map_err(inaccessible)?, metadata))
}

/// A file with something in it; how much.
pub(crate) fn not_empty(field: &'static str, path: &Path) -> Result<u64> {
    match open(field, path, Metadata::is_file)?.1.len() {
        0 => Err(Error::EmptyFile { field, path: path.to_owned() }),
        length => Ok(length),
    }
}

/// What a file is, whatever it is called.
pub(crate) fn inode(path: &Path) -> Option<(u64, u64)> {
    path.metadata().ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

pub(crate) fn remove_file(path: impl AsRef<Path>) -> Result<()> {
    match fs::remove_file(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(Error::io("remove", path)),
    }
}

/// A regular file's content, if it has no more than `limit` bytes: what is in the directory may be anything.
pub(crate) fn read_at_most(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let metadata = path.metadata()?;
    if !metadata.is_file() || metadata.len() > limit {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a file of a reasonable size"));
    }
    fs::read(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_may_be_anything() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "12345").unwrap();
        assert_eq!(read_at_most(&file, 5).unwrap(), b"12345");
        assert_eq!(read_at_most(&file, 6).unwrap(), b"12345");
        assert_eq!(read_at_most(&file, 4).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(read_at_most(dir.path(), 1000).unwrap_err().kind(), io::ErrorKind::InvalidData);
        remove_file(&file).unwrap();
        remove_file(&file).unwrap();
        assert!(matches!(remove_file(dir.path()), Err(Error::Io { action: "remove", .. })));
    }
}
