//! Opening, reading and removing files.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::error::{ConfigError, Error, Result};

/// Opens a file of a description for reading, if it is of the right kind: opening a FIFO would block.
pub(crate) fn open(
    field: &'static str,
    path: &Path,
    is_right_kind: impl Fn(&Metadata) -> bool,
) -> Result<(File, Metadata), ConfigError> {
    let inaccessible = |error: io::Error| match error.kind() {
        // A dangling symlink is reported as such: no file can be created there.
        io::ErrorKind::NotFound if !path.is_symlink() => ConfigError::NotFound { field, path: path.to_owned() },
        _ => ConfigError::inaccessible(field, path, &error),
    };
    let metadata = path.metadata().map_err(inaccessible)?;
    if !is_right_kind(&metadata) {
        return Err(ConfigError::NotAFile { field, path: path.to_owned() });
    }
    Ok((File::open(path).map_err(inaccessible)?, metadata))
}

/// The length of a file of a description, which must not be empty.
pub(crate) fn nonzero_length(field: &'static str, path: &Path) -> Result<u64, ConfigError> {
    match open(field, path, Metadata::is_file)?.1.len() {
        0 => Err(ConfigError::EmptyFile { field, path: path.to_owned() }),
        length => Ok(length),
    }
}

/// Refuses a length above this process's limit on the size of files. If a file grows beyond the limit, the system sends SIGXFSZ,
/// which ends the program.
pub(crate) fn check_file_size_limit(length: u64) -> io::Result<()> {
    match file_size_limit() {
        Some(limit) if length > limit => {
            let reason =
                format!("{length} bytes are more than the limit on the size of files, {limit} bytes (ulimit -f)");
            Err(io::Error::new(io::ErrorKind::FileTooLarge, reason))
        }
        _ => Ok(()),
    }
}

/// The soft limit, in bytes; `None` if there is none, or if it cannot be read. `getrlimit` of rustix panics where a sandbox forbids the
/// system call.
#[cfg(target_os = "linux")]
fn file_size_limit() -> Option<u64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max file size"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(not(target_os = "linux"))]
fn file_size_limit() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::Fsize).current
}

/// Device and inode, which identify a file that may have several names. `None` if the file cannot be read about.
pub(crate) fn inode(path: &Path) -> Option<(u64, u64)> {
    path.metadata().ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Inode and change time of a file or directory. Programs cannot set the change time. So two files with the same inode and change
/// time are one file, even if they are on different devices: an overlay shows a file of the file system below it.
pub(crate) fn inode_and_change_time(path: &Path) -> Option<(u64, i64, i64)> {
    path.metadata().ok().map(|metadata| (metadata.ino(), metadata.ctime(), metadata.ctime_nsec()))
}

/// Removes a file. It is no error if there is none.
pub(crate) fn remove_file(path: impl AsRef<Path>) -> Result<()> {
    match fs::remove_file(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(Error::io("remove", path)),
    }
}

/// Opens a regular file for reading. Opening a FIFO would wait for a writer, and a state directory may contain files of any kind:
/// all others are errors of the kind `InvalidData`.
pub(crate) fn open_regular(path: &Path) -> io::Result<File> {
    let not_a_file = || io::Error::new(io::ErrorKind::InvalidData, "not a file");
    let file = match OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(path) {
        // A socket, or a device that is missing.
        Err(error) if Errno::from_io_error(&error) == Some(Errno::NXIO) => return Err(not_a_file()),
        file => file?,
    };
    if file.metadata()?.is_file() { Ok(file) } else { Err(not_a_file()) }
}

/// Opens a directory, to lock it. Anything else is an error: opening a FIFO in its place would block.
pub(crate) fn open_dir(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(OFlags::DIRECTORY.bits() as i32).open(path)
}

/// Reads a regular file of at most `limit` bytes.
pub(crate) fn read_at_most(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let file = open_regular(path)?;
    let length = file.metadata()?.len();
    if length > limit {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("not a file of at most {limit} bytes")));
    }
    // These files are only ever replaced as a whole, so nothing that is appended meanwhile belongs to them.
    let mut content = Vec::with_capacity(length as usize);
    file.take(length).read_to_end(&mut content)?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fifo_in_place_of_a_directory_is_an_error_and_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        assert_eq!(open_dir(&fifo).unwrap_err().kind(), io::ErrorKind::NotADirectory);
        open_dir(dir.path()).unwrap();
    }

    #[test]
    fn only_regular_files_up_to_the_limit_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "12345").unwrap();
        assert_eq!(read_at_most(&file, 5).unwrap(), b"12345");
        assert_eq!(read_at_most(&file, 6).unwrap(), b"12345");
        assert_eq!(read_at_most(&file, 4).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(read_at_most(dir.path(), 1000).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn removing_a_missing_file_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "12345").unwrap();
        remove_file(&file).unwrap();
        remove_file(&file).unwrap();
        assert!(matches!(remove_file(dir.path()), Err(Error::Io { action: "remove", .. })));
    }
}
