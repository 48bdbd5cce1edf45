//! Everything that can be refused before anything is created or started.
//!
//! A description is held to hyperkit's limits whichever engine runs it, so that it boots on either. The figures are
//! hyperkit's own, from its argument parsing and device set-up.

mod files;

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use crate::config::{HyperKit, Protocol, Server9p, VpnKit};
use crate::disk::{self, Format, Qcow};
use crate::engine::{self, Engine, vhost_vsock};
use crate::error::{Error, Result};
use crate::image;
use crate::serial::ports;
use crate::slots::layout;

use files::files;
pub(crate) use files::{command_line, open};

const MAX_CPUS: u32 = 64;
/// 1 MiB and 4 KiB, in whole MiB.
const MIN_MEMORY: u64 = 2;
const CIDS: std::ops::RangeInclusive<u32> = 3..=0x7fff_ffff;
const MAX_PORTS: usize = 4;
const MAX_PORT: u32 = u32::MAX - 1;
const MAX_TAG: usize = 256;
/// Of the directory that holds the vsock sockets, so that the longest name in it still fits into a socket address.
const MAX_VSOCK_DIR: usize = 85;
/// Of a tap interface, so that hyperkit's path to it fits into 80 bytes.
const MAX_TAP: usize = 74;
/// What hyperkit keeps of a socket's path; the rest is cut without a word.
pub(crate) const MAX_SOCKET: usize = 103;

impl HyperKit {
    /// Looks whether the machine can be started, as far as that can be told beforehand: the description, the files it
    /// names, and the program. Changes nothing, and so does not find out what others use at the time: whether the machine
    /// runs already, whether another has its images or ports, [`start`](Self::start) says.
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
        machine.paths_mut().try_for_each(make_absolute)?;
        if let Some(dir) = &mut machine.state_dir {
            make_absolute(dir)?;
            *dir = canonical(dir);
        }
        // What is wrong with the description matters more than that a program is missing.
        description(&machine)?;
        machine.hyperkit = Some(engine::find(self.hyperkit.as_deref())?);
        let engine = Engine::of_machine(&machine);
        for index in 0..machine.disks.len() {
            let disk = &machine.disks[index];
            let path = disk.place(index, machine.state_dir.as_deref())?;
            machine.disks[index].format = Some(image::found_format(disk, &path)?);
        }
        if engine == Engine::Qemu {
            machine.vhost_device_vsock = vhost_vsock::find(&machine)?;
        }
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
    let serial_files = ports(machine)?.iter().any(|port| port.has_files());
    if machine.state_dir.is_none() {
        let serials = if machine.serials.is_some() { "serials" } else { "console" };
        let vsock = machine.vsock && machine.vsock_dir.is_none();
        for (field, needed) in [(serials, serial_files), ("vsock", vsock)] {
            if needed {
                return Err(Error::StateDirRequired { field });
            }
        }
    }
    let has_user_network = machine.vmnet || machine.vpnkit != VpnKit::None;
    let has_network = has_user_network || machine.tap.is_some();
    for (field, is_set, needs, is_there) in [
        ("vsock_ports", !machine.vsock_ports.is_empty(), "vsock", machine.vsock),
        ("vsock_dir", machine.vsock_dir.is_some(), "vsock", machine.vsock),
        ("vpnkit_preferred_ipv4", machine.vpnkit_preferred_ipv4.is_some(), "vpnkit_key", machine.vpnkit_key.is_some()),
        ("vpnkit_preferred_ipv4", machine.vpnkit_preferred_ipv4.is_some(), "vpnkit", machine.vpnkit != VpnKit::None),
        ("mac", machine.mac.is_some(), "vpnkit", has_network),
        ("port_forwards", !machine.port_forwards.is_empty(), "vpnkit", has_user_network),
    ] {
        if is_set && !is_there {
            return Err(Error::Needs { field, needs });
        }
    }
    texts(machine)?;
    numbers(machine)?;
    if !(1..=MAX_CPUS).contains(&machine.cpus) {
        return Err(Error::InvalidCpus { value: machine.cpus });
    }
    if machine.memory < MIN_MEMORY || disk::bytes(machine.memory).is_none() {
        return Err(Error::InvalidMemory { value: machine.memory });
    }
    if machine.vsock {
        vsock(machine)?;
    }
    disks(machine)?;
    layout(machine)?;
    let firmwares = [
        ("kernel", machine.kernel.is_some()),
        ("bootrom", machine.bootrom.is_some()),
        ("multiboot", machine.multiboot.is_some()),
    ];
    let mut set = firmwares.into_iter().filter(|(_, is_set)| *is_set).map(|(field, _)| field);
    // Last: what is wrong says more than what is not there yet.
    let first = set.next().ok_or(Error::Missing { field: "kernel" })?;
    let initrd = machine.initrd.as_ref().filter(|_| first != "kernel").map(|_| "initrd");
    match set.next().or(initrd) {
        Some(second) => Err(Error::TwoFirmwares { first, second }),
        None => Ok(()),
    }
}

fn disks(machine: &HyperKit) -> Result<()> {
    let mut places = Vec::<(PathBuf, bool)>::new();
    for (index, image) in machine.disks.iter().enumerate() {
        let path = image.place(index, machine.state_dir.as_deref())?;
        places.push((path.clone(), image.read_only));
        if let Some(value) = image.size.filter(|&size| disk::bytes(size).is_none()) {
            return Err(Error::InvalidDiskSize { path, value });
        }
        if let Some(value) = image.sector_size.filter(|size| !size.is_valid()) {
            return Err(Error::InvalidSectorSize { path, value });
        }
        // Values of other versions that would make another disk of it.
        if let Some((key, value)) =
            image.unknown.iter().find(|(key, _)| ["format", "driver", "OnFlush"].contains(&key.as_str()))
        {
            return Err(Error::UnknownSetting { key: format!("disks.{key}: {value}") });
        }
    }
    not_twice(&places, |path, other| path == other)
}

/// Refuses an image that is there twice, unless both only read.
fn not_twice(images: &[(PathBuf, bool)], is_same: impl Fn(&Path, &Path) -> bool) -> Result<()> {
    for (index, (path, read_only)) in images.iter().enumerate() {
        let is_twice = |(other, other_reads): &(PathBuf, bool)| !(*read_only && *other_reads) && is_same(path, other);
        if images[..index].iter().any(is_twice) {
            return Err(Error::DiskTwice { path: path.clone() });
        }
    }
    Ok(())
}

/// Ports, which are not 0, and of the host's each one once.
fn numbers(machine: &HyperKit) -> Result<()> {
    let mut ports: Vec<_> = machine.port_forwards.iter().map(|forward| (forward.protocol, forward.host)).collect();
    ports.extend(machine.gdb_port.map(|port| (Protocol::Tcp, port)));
    for (index, &(protocol, port)) in ports.iter().enumerate() {
        if port != 0 && ports[..index].contains(&(protocol, port)) {
            return Err(Error::PortTwice { port });
        }
    }
    let zero_9p = machine.sockets_9p.iter().any(|share| share.server == Server9p::Port(0));
    let zero_forward = machine.port_forwards.iter().any(|forward| forward.guest == 0);
    let zeros = [("gdb_port", machine.gdb_port == Some(0)), ("sockets_9p", zero_9p), ("port_forwards", zero_forward)];
    match zeros.into_iter().find(|(_, is_zero)| *is_zero) {
        Some((field, _)) => Err(Error::ZeroPort { field }),
        None => Ok(()),
    }
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
    path("bootrom", &machine.bootrom)?;
    path("vsock_dir", &machine.vsock_dir)?;
    path("vhost_device_vsock", &machine.vhost_device_vsock)?;
    for disk in &machine.disks {
        path("disks", &disk.path)?;
        if let Some(Format::Qcow2(Qcow { stats, tool, .. })) = &disk.format {
            stats.iter().try_for_each(|stats| plain("disks", stats).map(drop))?;
            path("disks", tool)?;
        }
    }
    for module in machine.multiboot.iter().flat_map(|multiboot| &multiboot.modules) {
        without(&[',', '\0', ':', ';'], "multiboot", path_text("multiboot", &module.path)?)?;
        without(&[',', '\0', ':'], "multiboot", &module.cmdline)?;
    }
    machine.multiboot.iter().try_for_each(|multiboot| path_text("multiboot", &multiboot.kernel).map(drop))?;
    let whole = |field, text: &String| without(&['\0'], field, text).map(drop);
    machine.argv0.iter().try_for_each(|text| whole("argv0", text))?;
    machine.extra_arguments.iter().try_for_each(|text| whole("extra_arguments", text))?;
    // A name that is blank is none to the system, and not to be told from no name in hyperkit.json.
    if machine.argv0.as_ref().is_some_and(|name| name.trim().is_empty()) {
        return Err(Error::Missing { field: "argv0" });
    }
    if let Some(tap) = &machine.tap {
        at_most(MAX_TAP, "tap", without(&['/', ','], "tap", plain("tap", tap)?)?)?;
    }
    if let Some(value) = machine.mac.as_ref().filter(|mac| !is_mac(mac)) {
        return Err(Error::InvalidMac { value: value.clone() });
    }
    if let Some(value) = machine.vpnkit_preferred_ipv4.as_ref().filter(|ip| ip.parse::<Ipv4Addr>().is_err()) {
        return Err(Error::InvalidIpv4 { value: value.clone() });
    }
    machine.isos.iter().try_for_each(|iso| path_text("isos", iso).map(drop))?;
    if let VpnKit::Socket(socket) = &machine.vpnkit {
        at_most(MAX_SOCKET, "vpnkit", path_text("vpnkit", socket)?)?;
    }
    for (index, share) in machine.sockets_9p.iter().enumerate() {
        // The guest would find the first under it only.
        if machine.sockets_9p[..index].iter().any(|other| other.tag == share.tag) {
            return Err(Error::TagTwice { tag: share.tag.clone() });
        }
        if let Server9p::Path(path) = &share.server {
            at_most(MAX_SOCKET, "sockets_9p", path_text("sockets_9p", path)?)?;
        }
        at_most(MAX_TAG, "sockets_9p", plain("sockets_9p", &share.tag)?)?;
    }
    for (field, uuid) in [("uuid", &machine.uuid), ("vpnkit_key", &machine.vpnkit_key)] {
        if let Some(value) = uuid.as_ref().filter(|uuid| !is_uuid(uuid)) {
            return Err(Error::InvalidUuid { field, value: value.clone() });
        }
    }
    Ok(())
}

fn path_text<'a>(field: &'static str, path: &'a Path) -> Result<&'a str> {
    plain(field, utf8(field, path)?)
}

/// Something, and nothing in it that hyperkit would split at or the system would end it at.
fn plain<'a>(field: &'static str, text: &'a str) -> Result<&'a str> {
    without(&[',', '\0'], field, text)?;
    if text.is_empty() { Err(Error::Missing { field }) } else { Ok(text) }
}

fn without<'a>(forbidden: &[char], field: &'static str, text: &'a str) -> Result<&'a str> {
    match text.chars().find(|character| forbidden.contains(character)) {
        Some(character) => Err(Error::ForbiddenCharacter { field, value: text.to_owned(), character }),
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
    let field = if machine.vsock_dir.is_some() { "vsock_dir" } else { "state_dir" };
    at_most(MAX_VSOCK_DIR, field, utf8(field, machine.vsock_place())?)
}

fn is_mac(text: &str) -> bool {
    let bytes: Option<Vec<_>> = text
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).ok().filter(|_| byte.len() == 2 && !byte.starts_with('+')))
        .collect();
    // Bit 0 of the first byte is for groups.
    bytes.is_some_and(|bytes| bytes.len() == 6 && bytes[0] % 2 == 0 && bytes.iter().any(|&byte| byte != 0))
}

/// What can be told of the kernel's command line without looking at the kernel.
pub(crate) fn command_line_text(machine: &HyperKit, cmdline: &str) -> Result<()> {
    without(&['\0'], "cmdline", cmdline)?;
    if machine.bootrom.is_some() && !cmdline.is_empty() {
        return Err(Error::CommandLineForRom { value: cmdline.to_owned() });
    }
    Ok(())
}
