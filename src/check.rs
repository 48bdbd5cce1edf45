//! Everything that can be refused before anything is created or started.
//!
//! A description is held to hyperkit's limits whichever engine runs it, so that it boots on either. The figures are
//! hyperkit's own, from its argument parsing and device set-up.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};
use serde_json::Value;

use crate::config::{Console, HyperKit, VpnKit};
use crate::disk;
use crate::engine::{self, Engine, kernel_command_line};
use crate::error::{Error, Result};
use crate::slots::layout;

const MAX_CPUS: u32 = 64;
const CIDS: std::ops::RangeInclusive<u32> = 3..=0x7fff_ffff;
const MAX_PORTS: usize = 4;
const MAX_PORT: u32 = u32::MAX - 1;
const MAX_TAG: usize = 256;
/// Of the directory that holds the vsock sockets, so that the longest name in it still fits into a socket address.
const MAX_VSOCK_DIR: usize = 85;
/// What hyperkit keeps of a socket's path; the rest is cut without a word.
pub(crate) const MAX_SOCKET: usize = 103;

impl HyperKit {
    /// Looks whether the machine can be started, as far as that can be told beforehand: the description, the files it
    /// names, and the program. Changes nothing.
    ///
    /// ```
    /// use hyperkit::{Error, HyperKit};
    ///
    /// let refused = HyperKit::new().kernel("no-such-file").check();
    /// assert!(matches!(refused, Err(Error::NotFound { field: "kernel", .. } | Error::ProgramNotFound { .. })));
    /// ```
    ///
    /// # Errors
    /// The first thing that is wrong, each its own [`Error`].
    pub fn check(&self) -> Result<()> {
        self.effective()?.check_all()
    }

    /// What has to hold of the description as it would be started.
    pub(crate) fn check_all(&self) -> Result<()> {
        description(self)?;
        Engine::of_machine(self).check(self)?;
        files(self)
    }

    /// This machine as it would be started from here: paths absolute, the program and VPNKit found.
    pub(crate) fn effective(&self) -> Result<Self> {
        let mut machine = self.clone();
        let paths = [&mut machine.state_dir, &mut machine.kernel, &mut machine.initrd].into_iter().flatten();
        let disks = machine.disks.iter_mut().filter_map(|disk| disk.path.as_mut());
        let shares = machine.sockets_9p.iter_mut().map(|share| &mut share.path);
        for path in paths.chain(disks).chain(&mut machine.isos).chain(shares) {
            make_absolute(path)?;
        }
        if let Some(dir) = &mut machine.state_dir {
            *dir = canonical(dir);
        }
        // What is wrong with the description matters more than that a program is missing.
        description(&machine)?;
        machine.hyperkit = Some(engine::find(self.hyperkit.as_deref())?);
        let engine = Engine::of_machine(&machine);
        match &mut machine.vpnkit {
            VpnKit::Socket(path) => make_absolute(path)?,
            auto @ VpnKit::Auto if engine == Engine::HyperKit => {
                let looked = engine::hyperkit::vpnkit_sockets();
                let found = looked.iter().find(|socket| socket.exists()).cloned();
                *auto = VpnKit::Socket(found.ok_or(Error::VpnKitNotFound { looked })?);
            }
            _ => {}
        }
        Ok(machine)
    }
}

fn make_absolute(path: &mut PathBuf) -> Result<()> {
    if !path.as_os_str().is_empty() {
        *path = std::path::absolute(&*path).map_err(Error::io("make absolute", &*path))?;
    }
    Ok(())
}

/// `path` without symlinks, as far as it exists: a directory has one name, however it was reached.
pub(crate) fn canonical(path: &Path) -> PathBuf {
    for existing in path.ancestors() {
        if let (Ok(real), Ok(rest)) = (existing.canonicalize(), path.strip_prefix(existing)) {
            return if rest.as_os_str().is_empty() { real } else { real.join(rest) };
        }
    }
    path.to_owned()
}

/// `path` as text, which arguments and JSON are.
pub(crate) fn utf8<'a>(field: &'static str, path: &'a Path) -> Result<&'a str> {
    path.to_str().ok_or_else(|| Error::NotUtf8 { field, path: path.to_owned() })
}

/// What can be told without looking at any file.
pub(crate) fn description(machine: &HyperKit) -> Result<()> {
    if machine.state_dir.is_none() {
        for (field, needed) in [
            ("console", machine.console != Console::Stdio),
            ("vsock", machine.vsock),
            ("vsock_ports", !machine.vsock_ports.is_empty()),
        ] {
            if needed {
                return Err(Error::StateDirRequired { field });
            }
        }
    }
    if !machine.vsock && !machine.vsock_ports.is_empty() {
        return Err(Error::VsockRequired);
    }
    texts(machine)?;
    if !(1..=MAX_CPUS).contains(&machine.cpus) {
        return Err(Error::InvalidCpus { value: machine.cpus });
    }
    if disk::bytes(machine.memory).is_none() {
        return Err(Error::InvalidMemory { value: machine.memory });
    }
    if machine.vsock {
        vsock(machine)?;
    }
    later_settings(machine)?;
    let mut places = Vec::new();
    for (index, image) in machine.disks.iter().enumerate() {
        let path = image.place(index, machine.state_dir.as_deref())?;
        if places.contains(&path) {
            return Err(Error::DiskTwice { path });
        }
        places.push(path.clone());
        if let Some(value) = image.size.filter(|&size| disk::bytes(size).is_none()) {
            return Err(Error::InvalidDiskSize { path, value });
        }
    }
    layout(machine)?;
    // Last: what is wrong says more than what is not there yet.
    machine.kernel.as_ref().map(drop).ok_or(Error::Missing { field: "kernel" })
}

/// Every path, tag and UUID.
fn texts(machine: &HyperKit) -> Result<()> {
    if let Some(program) = &machine.hyperkit {
        utf8("hyperkit", program)?;
    }
    let path = |field, path: &Option<PathBuf>| path.iter().try_for_each(|path| path_text(field, path).map(drop));
    path("state_dir", &machine.state_dir)?;
    path("kernel", &machine.kernel)?;
    path("initrd", &machine.initrd)?;
    machine.disks.iter().try_for_each(|disk| path("disks", &disk.path))?;
    machine.isos.iter().try_for_each(|iso| path_text("isos", iso).map(drop))?;
    if let VpnKit::Socket(socket) = &machine.vpnkit {
        at_most(MAX_SOCKET, "vpnkit", path_text("vpnkit", socket)?)?;
    }
    for share in &machine.sockets_9p {
        at_most(MAX_SOCKET, "sockets_9p", path_text("sockets_9p", &share.path)?)?;
        at_most(MAX_TAG, "sockets_9p", plain("sockets_9p", &share.tag)?)?;
    }
    for (field, uuid) in [("uuid", &machine.uuid), ("vpnkit_key", &machine.vpnkit_key)] {
        if let Some(value) = uuid.as_ref().filter(|uuid| !is_uuid(uuid)) {
            return Err(Error::InvalidUuid { field, value: value.clone() });
        }
    }
    Ok(())
}

/// Settings of later generations of `hyperkit.json` that would make another machine of it.
fn later_settings(machine: &HyperKit) -> Result<()> {
    let later = ["argv0", "vpnkit_uuid", "vpnkit_preferred_ipv4", "vsock_dir", "vmnet", "bootrom", "serials"]
        .map(str::to_owned);
    let is_set = |value: &Value| ![Value::Null, "".into(), false.into()].contains(value);
    if let Some(key) = later.into_iter().find(|key| machine.unknown.get(key).is_some_and(is_set)) {
        return Err(Error::UnknownSetting { key });
    }
    let formats = machine.disks.iter().filter_map(|disk| disk.unknown.get("format"));
    match formats.into_iter().find(|format| is_set(format) && *format != "raw") {
        Some(format) => Err(Error::UnknownSetting { key: format!("disks.format: {format}") }),
        None => Ok(()),
    }
}

fn path_text<'a>(field: &'static str, path: &'a Path) -> Result<&'a str> {
    plain(field, utf8(field, path)?)
}

/// Something, and nothing in it that hyperkit would split at or the system would end it at.
fn plain<'a>(field: &'static str, text: &'a str) -> Result<&'a str> {
    match text.chars().find(|character| [',', '\0'].contains(character)) {
        Some(character) => Err(Error::ForbiddenCharacter { field, value: text.to_owned(), character }),
        None if text.is_empty() => Err(Error::Missing { field }),
        None => Ok(text),
    }
}

pub(crate) fn at_most(limit: usize, field: &'static str, text: &str) -> Result<()> {
    if text.len() > limit {
        return Err(Error::TooLong { field, value: text.to_owned(), length: text.len(), limit });
    }
    Ok(())
}

fn is_uuid(text: &str) -> bool {
    let groups: Vec<_> = text.split('-').collect();
    groups.iter().map(|group| group.len()).eq([8, 4, 4, 4, 12])
        && groups.iter().all(|group| group.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

fn vsock(machine: &HyperKit) -> Result<()> {
    let (cid, ports) = (machine.vsock_guest_cid, &machine.vsock_ports);
    if !CIDS.contains(&cid) {
        return Err(Error::InvalidCid { value: cid });
    }
    if ports.len() > MAX_PORTS {
        return Err(Error::TooManyPorts { count: ports.len() });
    }
    if let Some(&value) = ports.iter().find(|&&port| port > MAX_PORT) {
        return Err(Error::InvalidPort { value });
    }
    let dir = machine.state_dir.as_deref().unwrap_or(Path::new(""));
    at_most(MAX_VSOCK_DIR, "state_dir", utf8("state_dir", dir)?)
}

/// The files that the description names.
fn files(machine: &HyperKit) -> Result<()> {
    if let Some(dir) = &machine.state_dir {
        directory("state_dir", dir)?;
    }
    if let Some(path) = &machine.kernel {
        bz_image(path)?;
    }
    if let Some(path) = &machine.initrd {
        let (_, metadata) = open("initrd", path, Metadata::is_file)?;
        if metadata.len() == 0 {
            return Err(Error::EmptyInitrd { path: path.clone() });
        }
    }
    let file_or_device = |metadata: &Metadata| {
        let kind = metadata.file_type();
        kind.is_file() || kind.is_block_device() || kind.is_char_device()
    };
    for iso in &machine.isos {
        open("isos", iso, file_or_device)?;
    }
    for (index, image) in machine.disks.iter().enumerate() {
        let path = image.place(index, machine.state_dir.as_deref())?;
        match open("disks", &path, file_or_device) {
            Err(Error::NotFound { path, .. }) if image.size.is_none() => return Err(Error::DiskSizeMissing { path }),
            Err(Error::NotFound { path, .. }) => directory("disks", path.parent().unwrap_or(&path))?,
            opened => drop(opened?),
        }
    }
    match &machine.vpnkit {
        VpnKit::Socket(path) if !path.exists() => Err(Error::NotFound { field: "vpnkit", path: path.clone() }),
        _ => Ok(()),
    }
}

/// A directory, or as much as there is of it, has to be one to make files in.
fn directory(field: &'static str, dir: &Path) -> Result<()> {
    for existing in dir.ancestors() {
        match existing.metadata() {
            Ok(metadata) if !metadata.is_dir() => {
                return Err(Error::NotADirectory { field, path: existing.to_owned() });
            }
            Ok(_) => {
                return access(existing, Access::WRITE_OK | Access::EXEC_OK).map_err(|error| Error::Inaccessible {
                    field,
                    path: existing.to_owned(),
                    source: error.into(),
                });
            }
            // A link that leads nowhere is no place to make a directory at.
            Err(source) if source.kind() != io::ErrorKind::NotFound || existing.is_symlink() => {
                return Err(Error::Inaccessible { field, path: existing.to_owned(), source });
            }
            Err(_) => {}
        }
    }
    Ok(())
}

/// Opens a file for reading, if it is of the right kind: a pipe, for one, would block.
fn open(field: &'static str, path: &Path, right: impl Fn(&Metadata) -> bool) -> Result<(File, Metadata)> {
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

/// The boot protocol's header at 0x1f1 of an x86 bzImage, and what kexec wants of it. Returns the longest command line.
fn bz_image(path: &Path) -> Result<usize> {
    let (mut file, metadata) = open("kernel", path, Metadata::is_file)?;
    let no = |reason| Err(Error::NotABzImage { path: path.to_owned(), reason });
    let mut header = [0; 0x264];
    if let Err(source) = file.read_exact(&mut header) {
        return match source.kind() {
            io::ErrorKind::UnexpectedEof => no("it is too short"),
            _ => Err(Error::Inaccessible { field: "kernel", path: path.to_owned(), source }),
        };
    }
    let u16_at = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    let u32_at = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let setup_sectors = u64::from(header[0x1f1]);
    if u16_at(0x1fe) != 0xaa55 || &header[0x202..0x206] != b"HdrS" {
        return no("it has no boot header");
    }
    if u16_at(0x206) < 0x020a {
        return no("its boot protocol is older than 2.10");
    }
    if setup_sectors == 0 || header[0x211] & 1 == 0 {
        return no("it is a zImage");
    }
    if metadata.len() < (setup_sectors + 1) * 512 + u64::from(u32_at(0x1f4)) * 16 {
        return no("its end is missing");
    }
    Ok(u32_at(0x238) as usize)
}

/// The kernel's command line has to fit, with its final NUL, into what the kernel has room for.
pub(crate) fn command_line(machine: &HyperKit, cmdline: &str) -> Result<()> {
    let line = kernel_command_line(cmdline);
    if line.contains('\0') {
        return Err(Error::ForbiddenCharacter { field: "cmdline", value: cmdline.to_owned(), character: '\0' });
    }
    let limit = machine.kernel.as_deref().map_or(Ok(usize::MAX), bz_image)?.saturating_sub(1);
    if line.len() > limit {
        return Err(Error::CommandLineTooLong { length: line.len(), limit });
    }
    Ok(())
}
