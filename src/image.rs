//! Disk images as files: what is in them, whether somebody uses them, how they are made and grown.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{CWD, FlockOperation, OFlags, RenameFlags, flock, renameat_with};

use crate::disk::{Disk, Format, Qcow, bytes};
use crate::engine;
use crate::error::{Error, Result};
use crate::lock::open_locked;

const MIB: u64 = 1024 * 1024;
/// The Go package of 2017 makes images this much too long for each MiB: they have the size they were asked for.
const GO_EXCESS: u64 = 100;
/// The step in which sparse files grow on APFS, which refuses to let a file grow by much more than there is room at once.
const APFS_STEP: u64 = 1024 * MIB;

/// What an image file says about itself.
#[derive(Debug, PartialEq)]
pub(crate) struct Content {
    pub is_qcow2: bool,
    /// A qcow2 image of which more is in other files.
    pub rests_on_others: bool,
    /// The size of the disk in it, in bytes.
    pub length: u64,
}

impl Content {
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        let metadata = path.metadata()?;
        let mut header = Vec::new();
        // To open a pipe, for one, would block.
        if metadata.is_file() {
            File::open(path)?.take(80).read_to_end(&mut header)?;
        }
        Ok(Self::parse(&header, metadata.len()))
    }

    /// The header of qcow2: magic, version, offset of the backing file's name, …, bits of a cluster at 20, size at 24, and from version 3 on
    /// incompatible features at 72, bit 2 of which is an external data file.
    fn parse(header: &[u8], length: u64) -> Self {
        let u64_at =
            |at: usize| header.get(at..at + 8).map_or(0, |bytes| bytes.iter().fold(0, |n, &b| (n << 8) | u64::from(b)));
        let version = u64_at(0) & 0xffff_ffff;
        let cluster_bits = u64_at(16) & 0xffff_ffff;
        // Of clusters of any other size it cannot be.
        if u64_at(0) >> 32 != 0x5146_49fb || version < 2 || header.len() < 72 || !(9..=21).contains(&cluster_bits) {
            return Self { is_qcow2: false, rests_on_others: false, length };
        }
        let rests_on_others = u64_at(8) != 0 || (version >= 3 && u64_at(72) & 4 != 0);
        Self { is_qcow2: true, rests_on_others, length: u64_at(24) }
    }
}

/// What has to be done to a disk's image before the machine starts.
#[derive(Debug, PartialEq)]
pub(crate) enum Work {
    Nothing,
    Make { mebibytes: u64 },
    Grow { mebibytes: u64 },
}

impl Work {
    /// Of a disk whose image is, or should be, at `path`.
    pub(crate) fn on(disk: &Disk, path: &Path) -> Result<Self> {
        let Some(mebibytes) = disk.size else { return Ok(Self::Nothing) };
        match growth(path, mebibytes) {
            Err(Error::NotFound { .. }) => Ok(Self::Make { mebibytes }),
            Ok(true) => Ok(Self::Grow { mebibytes }),
            grows => grows.map(|_| Self::Nothing),
        }
    }
}

/// Whether an image has less than `mebibytes`. To have more is an error.
fn growth(path: &Path, mebibytes: u64) -> Result<bool> {
    let wanted = bytes(mebibytes).ok_or_else(|| Error::InvalidDiskSize { path: path.to_owned(), value: mebibytes })?;
    let length = match Content::of(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Error::NotFound { field: "disks", path: path.to_owned() });
        }
        content => content.map_err(Error::io("read", path))?.length,
    };
    // A block device has the size it has.
    if !path.is_file() {
        return Ok(false);
    }
    if length > wanted.saturating_add(mebibytes.saturating_mul(GO_EXCESS)) {
        return Err(Error::DiskShrinks { path: path.to_owned(), from: length.div_ceil(MIB), to: mebibytes });
    }
    Ok(length < wanted)
}

/// Makes a raw disk image of exactly `mebibytes` MiB at `path`, and the directories above it.
///
/// The file is sparse: it takes no room before something is written to it. It appears whole or not at all.
/// [`Disk::create`] makes qcow2 images, too.
///
/// ```
/// let dir = tempfile::tempdir()?;
/// let path = dir.path().join("images/data.img");
/// hyperkit::create_disk_image(&path, 64)?;
/// assert_eq!(path.metadata()?.len(), 64 * 1024 * 1024);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`Error::DiskExists`] if there is something at `path`, which is not touched; [`Error::InvalidDiskSize`];
/// [`Error::Io`] if the system refuses.
pub fn create_disk_image(path: impl AsRef<Path>, mebibytes: u64) -> Result<()> {
    create(path.as_ref(), &Format::Raw, mebibytes)
}

impl Disk {
    /// Makes the image at [`path`](Self#structfield.path) with [`size`](Self#structfield.size), and the directories above
    /// it: raw and sparse, or qcow2 with `qemu-img` or `qcow-tool`, whichever is there. It appears whole or not at all.
    ///
    /// The start of a machine does so for a disk that is missing.
    ///
    /// ```
    /// use hyperkit::Disk;
    ///
    /// let dir = tempfile::tempdir()?;
    /// let disk = Disk::raw(dir.path().join("data.img")).size(64);
    /// disk.create()?;
    /// disk.size(128).grow()?;
    /// assert_eq!(dir.path().join("data.img").metadata()?.len(), 128 * 1024 * 1024);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::DiskPlaceMissing`] without a path and [`Error::DiskSizeMissing`] without a size;
    /// [`Error::DiskExists`] if there is something already, which is not touched; [`Error::InvalidDiskSize`];
    /// [`Error::ToolNotFound`] and [`Error::ToolFailed`] for qcow2; [`Error::Io`].
    pub fn create(&self) -> Result<()> {
        let (path, mebibytes) = self.path_and_size()?;
        create(path, &self.format_by_name(), mebibytes)
    }

    /// Grows the image to [`size`](Self#structfield.size). One that has this size already is left alone.
    ///
    /// The start of a machine does so for a disk that is smaller than described.
    ///
    /// # Errors
    /// [`Error::DiskShrinks`] if the image is larger, and nothing is done; [`Error::DiskInUse`] if a machine uses it;
    /// otherwise those of [`create`](Self::create).
    pub fn grow(&self) -> Result<()> {
        let (path, mebibytes) = self.path_and_size()?;
        if !growth(path, mebibytes)? {
            return Ok(());
        }
        let format = found_format(self, path)?;
        let _held = refuse_if_in_use(path, &format, false)?;
        grow(path, &format, mebibytes)
    }

    fn path_and_size(&self) -> Result<(&Path, u64)> {
        let path = self.path.as_deref().ok_or(Error::DiskPlaceMissing)?;
        Ok((path, self.size.ok_or_else(|| Error::DiskSizeMissing { path: path.to_owned() })?))
    }
}

/// What is in the image at `path`: what was said, or else its content, or if there is none its name.
pub(crate) fn found_format(disk: &Disk, path: &Path) -> Result<Format> {
    // What is wrong with a file that cannot be read, the checks say.
    let Ok(content) = Content::of(path) else { return Ok(disk.format_by_name()) };
    match &disk.format {
        Some(Format::Qcow2(_)) if !content.is_qcow2 => Err(Error::NotAQcow2 { path: path.to_owned() }),
        Some(said) => {
            if content.is_qcow2 && *said == Format::Raw {
                log::warn!(target: "hyperkit", "{} looks like qcow2 and is attached as raw", path.display());
            }
            Ok(said.clone())
        }
        None if content.rests_on_others => Err(Error::DiskRestsOnOthers { path: path.to_owned() }),
        None if content.is_qcow2 => Ok(Format::Qcow2(Qcow::default())),
        None => Ok(Format::Raw),
    }
}

/// Refuses an image that a machine uses, unless both only read. As long as what this returns is held, no other start gets
/// past here with the image.
///
/// It can disturb a machine that starts at the same moment with the same image, of which one has to lose anyway; so it is
/// no part of a check.
pub(crate) fn refuse_if_in_use(path: &Path, format: &Format, read_only: bool) -> Result<Option<Held>> {
    let in_use = || Error::DiskInUse { path: path.to_owned() };
    // Whether an image can be read at all, the checks have said.
    let Ok(file) = OpenOptions::new().read(true).write(!read_only).open(path) else { return Ok(None) };
    if !path.is_file() {
        return Ok(None);
    }
    let held = Held(file);
    if is_locked(&held.0, read_only) {
        return Err(in_use());
    }
    if *format == Format::Raw {
        // hyperkit locks it itself.
        return Ok(None);
    }
    if engine::hyperkit::uses_qcow2(path, read_only) { Err(in_use()) } else { Ok(Some(held)) }
}

/// An image that is kept from other starts until this goes.
#[must_use]
pub(crate) struct Held(File);

impl Drop for Held {
    fn drop(&mut self) {
        // To close the file would leave the lock with a child that another thread has forked in between, until its `exec`.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

/// Whether somebody has locked an image: hyperkit takes flock, QEMU byte ranges by fcntl. Otherwise we have the flock.
fn is_locked(file: &File, read_only: bool) -> bool {
    let lock = match read_only {
        true => FlockOperation::NonBlockingLockShared,
        false => FlockOperation::NonBlockingLockExclusive,
    };
    is_refused(flock(file, lock)) || qemu_has_locked(file, lock)
}

/// Whether a lock is somebody else's. A file system without locks gives other errors, and tells nothing.
fn is_refused(tried: rustix::io::Result<()>) -> bool {
    matches!(tried, Err(rustix::io::Errno::AGAIN | rustix::io::Errno::ACCESS))
}

/// QEMU's locks are all shared, so that a reader conflicts with none: who writes holds the one on byte 101.
#[cfg(target_os = "linux")]
fn qemu_has_locked(file: &File, lock: FlockOperation) -> bool {
    use rustix::fs::{fcntl_lock, major, minor};

    const WRITER: u64 = 101;
    let tried = fcntl_lock(file, lock);
    let _ = fcntl_lock(file, FlockOperation::Unlock);
    if is_refused(tried) {
        return true;
    }
    let Ok((metadata, locks)) = file.metadata().and_then(|found| Ok((found, fs::read_to_string("/proc/locks")?)))
    else {
        return false;
    };
    let id = format!("{:02x}:{:02x}:{}", major(metadata.dev()), minor(metadata.dev()), metadata.ino());
    locks.lines().any(|line| match line.split_ascii_whitespace().rev().collect::<Vec<_>>()[..] {
        [end, start, file, ..] => {
            let number = |text: &str| text.parse::<u64>().ok();
            file == id && start != "0" && number(start) <= Some(WRITER) && number(end) >= Some(WRITER)
        }
        _ => false,
    })
}

/// Elsewhere QEMU takes no locks, and our own flock would be in the way of a lock by fcntl, as on BSD.
#[cfg(not(target_os = "linux"))]
fn qemu_has_locked(_: &File, _: FlockOperation) -> bool {
    false
}

/// What a file is, whatever it is called.
pub(crate) fn inode(path: &Path) -> Option<(u64, u64)> {
    path.metadata().ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

pub(crate) fn create(path: &Path, format: &Format, mebibytes: u64) -> Result<()> {
    let length = bytes(mebibytes).ok_or_else(|| Error::InvalidDiskSize { path: path.to_owned(), value: mebibytes })?;
    let tool = tool_for(format)?;
    if path.symlink_metadata().is_ok() {
        return Err(Error::DiskExists { path: path.to_owned() });
    }
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        let made = DirBuilder::new().recursive(true).mode(0o777).create(parent);
        made.map_err(Error::io("make the directory", parent))?;
    }
    // Made beside its place and moved there, so that a crash never leaves a disk of the wrong size. What a crash leaves
    // instead takes no room, and the next maker goes on with it.
    let unfinished = path.with_file_name(unfinished_name(path.file_name().unwrap_or_default()));
    let mut open = OpenOptions::new();
    open.write(true).create(true).truncate(false).mode(0o600).custom_flags(OFlags::NOFOLLOW.bits() as i32);
    let file = open_locked(&unfinished, || open.open(&unfinished)).map_err(Error::io("make the disk image", path))?;
    let failed = |error| Error::io("make the disk image", path)(error);
    let made = file.set_len(0).map_err(failed).and_then(|()| match tool {
        Some(tool) => run(&tool, "create", &unfinished, mebibytes),
        None => lengthen(&file, 0, length).map_err(failed),
    });
    let made = made.and_then(|()| move_into_place(&unfinished, path));
    if made.is_err() {
        let _ = fs::remove_file(&unfinished);
    }
    made
}

/// What an image is called while it is made.
pub(crate) fn unfinished_name(name: impl AsRef<OsStr>) -> OsString {
    [OsStr::new("."), name.as_ref(), OsStr::new(".new")].into_iter().collect()
}

/// Grows an image that is known to be smaller.
pub(crate) fn grow(path: &Path, format: &Format, mebibytes: u64) -> Result<()> {
    if let Some(tool) = tool_for(format)? {
        return run(&tool, "resize", path, mebibytes);
    }
    let grown = OpenOptions::new().write(true).open(path).and_then(|file| {
        let before = file.metadata()?.len();
        lengthen(&file, before, bytes(mebibytes).unwrap_or(before)).inspect_err(|_| {
            let _ = file.set_len(before);
        })
    });
    grown.map_err(Error::io("grow", path))
}

fn lengthen(file: &File, from: u64, to: u64) -> io::Result<()> {
    let step = if cfg!(target_os = "macos") { APFS_STEP } else { u64::MAX };
    steps(from, to, step).try_for_each(|length| file.set_len(length))
}

/// The lengths on the way, the last of them `to`.
fn steps(from: u64, to: u64, step: u64) -> impl Iterator<Item = u64> {
    std::iter::successors(Some(from), move |&at| (at < to).then(|| at.saturating_add(step).min(to))).skip(1)
}

/// The program that makes and grows images of this format, where that takes one.
pub(crate) fn tool_for(format: &Format) -> Result<Option<PathBuf>> {
    let Format::Qcow2(qcow) = format else { return Ok(None) };
    let wanted: Vec<&Path> = match &qcow.tool {
        Some(tool) => vec![tool],
        None => vec![Path::new("qemu-img"), Path::new("qcow-tool")],
    };
    engine::first_program(&wanted).map(Some).map_err(|looked| Error::ToolNotFound { field: "disks", looked })
}

/// `create` or `resize` in the language of the tool.
fn run(tool: &Path, verb: &str, image: &Path, mebibytes: u64) -> Result<()> {
    // A name that starts with a dash, or looks like a protocol to qemu-img, is none in an absolute path.
    let image = std::path::absolute(image).map_err(Error::io("make absolute", image))?;
    let mut command = Command::new(tool);
    if tool.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"qcow-tool")) {
        command.args([OsStr::new(verb), image.as_os_str()]).args(["--size", &format!("{mebibytes}MiB")]);
    } else {
        command.args([verb, "-q", "-f", "qcow2"]).arg(&image).arg(format!("{mebibytes}M"));
    }
    let output = command.stdin(Stdio::null()).output().map_err(Error::io("run", tool))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Error::ToolFailed { tool: tool.to_owned(), path: image, said })
}

/// Renames without replacing anything, also where the file system cannot do that in one step.
fn move_into_place(from: &Path, to: &Path) -> Result<()> {
    let moved = match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS | rustix::io::Errno::NOTSUP) => {
            fs::hard_link(from, to).and_then(|()| fs::remove_file(from))
        }
        moved => moved.map_err(io::Error::from),
    };
    moved.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => Error::DiskExists { path: to.to_owned() },
        _ => Error::io("make the disk image", to)(error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_grows_in_steps() {
        assert_eq!(steps(0, 5, 2).collect::<Vec<_>>(), [2, 4, 5]);
        assert_eq!(steps(4, 5, u64::MAX).collect::<Vec<_>>(), [5]);
        assert_eq!(steps(5, 5, 2).count(), 0);
    }

    #[test]
    fn any_beginning_of_a_file_is_something() {
        let mut header = [0; 80];
        header[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
        header[23] = 16;
        header[31] = 1;
        assert_eq!(Content::parse(&header, 9), Content { is_qcow2: true, rests_on_others: false, length: 1 });
        header[79] = 4;
        assert!(Content::parse(&header, 9).rests_on_others);
        header[7] = 2;
        assert!(!Content::parse(&header, 9).rests_on_others, "version 2 has no features");
        header[7] = 3;
        header[79] = 0;
        header[15] = 1;
        assert!(Content::parse(&header, 9).rests_on_others);
        for end in 0..72 {
            let raw = Content { is_qcow2: false, rests_on_others: false, length: 9 };
            assert_eq!(Content::parse(&header[..end], 9), raw);
        }
        header[23] = 22;
        assert!(!Content::parse(&header, 9).is_qcow2, "clusters of 4 MiB are too large");
        header[23] = 16;
        header[7] = 1;
        assert!(!Content::parse(&header, 9).is_qcow2, "version 1 is another format");
    }
}
