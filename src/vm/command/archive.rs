//! Files and directories as a stream of bytes, for `copy_in` and `copy_out`. The agent compiles this file, too, so it uses
//! only `std` and `rustix`.
//!
//! The sender of an archive may be a hostile guest. So [`unpack`] accepts only names without `/`, creates each file and
//! directory anew in a directory that it has created itself, and follows no symlink below the target's parent.
//!
//! Others may change a directory while it is packed or removed. So both open each entry in its directory, by descriptors, and follow
//! no symlink.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, chmodat, fchmod, fstat, mkdirat, openat, readlinkat, renameat, statat,
    symlinkat, unlinkat,
};
use rustix::io::Errno;

/// Set-user-ID and set-group-ID are not copied: the owner of the copy is another one.
const MODE_BITS: u32 = 0o777;
/// Nested directories. Each of them takes a file descriptor.
const MAX_DEPTH: usize = 128;
/// Names and the targets of symlinks.
const MAX_NAME: usize = 4096;
const CHUNK: usize = 64 * 1024;
/// With `NONBLOCK`, opening a FIFO that has replaced a file does not wait.
const READ: OFlags = OFlags::RDONLY.union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);
const NO_FILE: &str = "not a file, directory or symlink";

const FILE: u8 = b'F';
const DIRECTORY: u8 = b'D';
const SYMLINK: u8 = b'L';
const END: u8 = b'E';

/// Names the file that an error is about.
fn with_path(path: &Path) -> impl FnOnce(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn refused(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("invalid archive: {what}"))
}

/// Writes a file, or a directory with everything in it, to `out`. A symlink at `path` itself is followed, others are kept.
pub fn pack(path: &Path, out: &mut impl Write) -> io::Result<()> {
    let kind = fs::metadata(path).map_err(with_path(path))?.file_type();
    if !kind.is_file() && !kind.is_dir() {
        return Err(with_path(path)(refused(NO_FILE)));
    }
    let file = openat(CWD, path, READ, Mode::empty()).map_err(|error| with_path(path)(error.into()))?;
    pack_opened(file, path, b"", 0, out)?;
    out.flush()
}

/// Writes an entry of a directory.
fn pack_entry(dir: &OwnedFd, name: &OsStr, path: &Path, depth: usize, out: &mut impl Write) -> io::Result<()> {
    let failed = |error: Errno| with_path(path)(error.into());
    let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Symlink => {
            let target = readlinkat(dir, name, Vec::new()).map_err(failed)?;
            put_head(out, SYMLINK, 0, name.as_bytes())?;
            put_text(out, target.as_bytes())
        }
        // Opening a device could have an effect.
        FileType::RegularFile | FileType::Directory => {
            let file = openat(dir, name, READ | OFlags::NOFOLLOW, Mode::empty()).map_err(failed)?;
            pack_opened(file, path, name.as_bytes(), depth, out)
        }
        _ => Err(with_path(path)(refused(NO_FILE))),
    }
}

/// Writes an open file or directory. The path is for messages.
fn pack_opened(file: OwnedFd, path: &Path, name: &[u8], depth: usize, out: &mut impl Write) -> io::Result<()> {
    let failed = |error: Errno| with_path(path)(error.into());
    let stat = fstat(&file).map_err(failed)?;
    let mode = Mode::from_raw_mode(stat.st_mode).bits() as u32;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {
            put_head(out, FILE, mode, name)?;
            let (mut file, mut chunk) = (File::from(file), vec![0; CHUNK]);
            loop {
                let length = file.read(&mut chunk).map_err(with_path(path))?;
                put_text(out, &chunk[..length])?;
                if length == 0 {
                    return Ok(());
                }
            }
        }
        FileType::Directory if depth == MAX_DEPTH => Err(with_path(path)(refused("too many nested directories"))),
        FileType::Directory => {
            put_head(out, DIRECTORY, mode, name)?;
            for name in names_in(&file).map_err(failed)? {
                pack_entry(&file, &name, &path.join(&name), depth + 1, out)?;
            }
            out.write_all(&[END])
        }
        _ => Err(with_path(path)(refused(NO_FILE))),
    }
}

/// The names of a directory's entries. They are read at once, so that each open directory takes one descriptor.
fn names_in(dir: &OwnedFd) -> rustix::io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name.to_vec()));
        }
    }
    Ok(names)
}

fn put_head(out: &mut impl Write, kind: u8, mode: u32, name: &[u8]) -> io::Result<()> {
    out.write_all(&[kind])?;
    out.write_all(&(mode & MODE_BITS).to_le_bytes())?;
    put_text(out, name)
}

fn put_text(out: &mut impl Write, text: &[u8]) -> io::Result<()> {
    out.write_all(&(text.len() as u32).to_le_bytes())?;
    out.write_all(text)
}

/// Creates what `input` contains at `target`, whose parent directory must exist. It gets its name when it is complete.
/// Replaces a file, and an empty directory by a directory, and nothing else.
pub fn unpack(target: &Path, input: &mut impl Read) -> io::Result<()> {
    let (Some(name), Some(parent)) = (target.file_name(), target.parent()) else {
        return Err(with_path(target)(refused("not the path of a file")));
    };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let dir = openat(CWD, parent, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let dir = dir.map_err(|error| with_path(parent)(error.into()))?;
    let mut entry = Entry::read(input)?.ok_or_else(|| invalid("no file"))?;
    if entry.kind == SYMLINK {
        return Err(invalid("a symlink instead of a file"));
    }
    let unfinished = unfinished_name(parent, name);
    entry.name.clone_from(&unfinished);
    let unfinished_path = parent.join(&unfinished);
    let complete = create(dir.as_fd(), &unfinished_path, &entry, 0, input)
        .and_then(|()| renameat(&dir, &unfinished, &dir, name).map_err(|error| with_path(target)(error.into())));
    if complete.is_err() {
        let _ = remove(&dir, &unfinished, 0);
    }
    complete
}

/// Removes a file, or a directory with everything in it. Directories may have got modes that keep the owner, who may not be root,
/// from removing what is in them.
fn remove(dir: &OwnedFd, name: &OsStr, depth: usize) -> rustix::io::Result<()> {
    let Err(error) = unlinkat(dir, name, AtFlags::empty()) else { return Ok(()) };
    let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
    // Someone else may have added directories.
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory || depth > MAX_DEPTH {
        return Err(error);
    }
    let open = || openat(dir, name, READ | OFlags::DIRECTORY | OFlags::NOFOLLOW, Mode::empty());
    let opened = open().or_else(|_| chmodat(dir, name, Mode::RWXU, AtFlags::empty()).and_then(|()| open()))?;
    let _ = fchmod(&opened, Mode::RWXU);
    for name in names_in(&opened)? {
        let _ = remove(&opened, &name, depth + 1);
    }
    unlinkat(dir, name, AtFlags::REMOVEDIR)
}

/// A name that no file has. Several threads may write to the same target.
fn unfinished_name(parent: &Path, name: &OsStr) -> OsString {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let short = &name.as_bytes()[..name.len().min(200)];
    loop {
        let suffix = format!(".{}-{}.unfinished", std::process::id(), NEXT.fetch_add(1, Relaxed));
        let unfinished = OsString::from_vec([b".", short, suffix.as_bytes()].concat());
        if parent.join(&unfinished).symlink_metadata().is_err() {
            return unfinished;
        }
    }
}

/// The beginning of a file, directory or symlink.
struct Entry {
    kind: u8,
    mode: u32,
    name: OsString,
}

impl Entry {
    /// `None` at the end of a directory.
    fn read(input: &mut impl Read) -> io::Result<Option<Self>> {
        let mut kind = [0];
        input.read_exact(&mut kind)?;
        if kind == [END] {
            return Ok(None);
        }
        let mode = read_u32(input)? & MODE_BITS;
        let name = OsString::from_vec(read_text(input, MAX_NAME)?);
        match kind[0] {
            kind @ (FILE | DIRECTORY | SYMLINK) => Ok(Some(Self { kind, mode, name })),
            _ => Err(invalid("an entry of an unknown kind")),
        }
    }

    fn has_plain_name(&self) -> bool {
        let name = self.name.as_bytes();
        !name.is_empty() && name != b"." && name != b".." && !name.contains(&b'/') && !name.contains(&0)
    }
}

fn create(dir: BorrowedFd<'_>, path: &Path, entry: &Entry, depth: usize, input: &mut impl Read) -> io::Result<()> {
    let failed = |error: rustix::io::Errno| with_path(path)(error.into());
    let mode = Mode::from_bits_truncate(entry.mode as _);
    match entry.kind {
        SYMLINK => {
            let target = read_text(input, MAX_NAME)?;
            symlinkat(OsStr::from_bytes(&target), dir, &entry.name).map_err(failed)
        }
        FILE => {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = openat(dir, &entry.name, flags, Mode::RUSR | Mode::WUSR).map_err(failed)?;
            let mut file = File::from(file);
            loop {
                let chunk = read_text(input, CHUNK)?;
                if chunk.is_empty() {
                    return fchmod(&file, mode).map_err(failed);
                }
                file.write_all(&chunk).map_err(with_path(path))?;
            }
        }
        _ => {
            mkdirat(dir, &entry.name, Mode::RWXU).map_err(failed)?;
            let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let created = openat(dir, &entry.name, flags, Mode::empty()).map_err(failed)?;
            create_contents(&created, path, depth, input)?;
            fchmod(&created, mode).map_err(failed)
        }
    }
}

fn create_contents(dir: &OwnedFd, path: &Path, depth: usize, input: &mut impl Read) -> io::Result<()> {
    if depth == MAX_DEPTH {
        return Err(invalid("too many nested directories"));
    }
    while let Some(entry) = Entry::read(input)? {
        if !entry.has_plain_name() {
            return Err(invalid("a name that leads to another directory"));
        }
        let path: PathBuf = path.join(&entry.name);
        create(dir.as_fd(), &path, &entry, depth + 1, input)?;
    }
    Ok(())
}

fn read_u32(input: &mut impl Read) -> io::Result<u32> {
    let mut bytes = [0; 4];
    input.read_exact(&mut bytes)?;
    Ok(u32::from_le_bytes(bytes))
}

fn read_text(input: &mut impl Read, limit: usize) -> io::Result<Vec<u8>> {
    let length = usize::try_from(read_u32(input)?).unwrap_or(usize::MAX);
    if length > limit {
        return Err(invalid("a text that is too long"));
    }
    let mut text = vec![0; length];
    input.read_exact(&mut text)?;
    Ok(text)
}
