//! Everything that can be refused before anything is created or started.
//!
//! A description is held to hyperkit's limits whichever engine runs it, so that it boots on either. The figures are
//! hyperkit's own, from its argument parsing and device set-up.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use crate::config::disk;
use crate::config::disk::{Format, Qcow};
use crate::config::{HyperKit, Protocol, Server9p, VpnKit};
use crate::error::{Error, Result};
use crate::plan::limits::{
    CIDS, MAX_CPUS, MAX_PORT, MAX_PORTS, MAX_SOCKET, MAX_TAG, MAX_TAP, MAX_VSOCK_DIR, MIN_MEMORY,
};
use crate::plan::serial_ports::ports;
use crate::plan::slots::layout;
use crate::plan::text::{at_most, is_mac, is_uuid, path_text, plain, utf8, without};

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
pub(crate) fn not_twice(images: &[(PathBuf, bool)], is_same: impl Fn(&Path, &Path) -> bool) -> Result<()> {
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

/// What can be told of the kernel's command line without looking at the kernel.
pub(crate) fn command_line_text(machine: &HyperKit, cmdline: &str) -> Result<()> {
    without(&['\0'], "cmdline", cmdline)?;
    if machine.bootrom.is_some() && !cmdline.is_empty() {
        return Err(Error::CommandLineForRom { value: cmdline.to_owned() });
    }
    Ok(())
}
