//! What hyperkit can do and QEMU cannot, or not on this host.

use std::path::Path;

use super::network::{VMNET, preferred_address};
use super::vsock_device;
use crate::config::disk::{Driver, SectorSize};
use crate::config::{HyperKit, Server9p, Socket9p, VpnKit};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::plan::limits::MAX_SOCKET;
use crate::plan::serial_ports::ports;
use crate::plan::text::{at_most, utf8};
use crate::state::EVENTS_SOCKET;

/// QEMU's limit on a mount tag, in bytes.
const MAX_TAG: usize = 31;
/// QEMU's limit on the size of a sector, in bytes.
const MAX_SECTOR: u32 = 2 * 1024 * 1024;
/// Linux's limit on the name of an interface, in bytes.
const MAX_TAP: usize = 15;
/// In the user-mode network .1 is unused, .2 the gateway and .3 the name server.
const HOSTS: std::ops::RangeInclusive<u8> = 4..=254;
/// The first byte of addresses of single hosts; those from 224 on are for groups.
const NETWORKS: std::ops::RangeInclusive<u8> = 1..=223;
const LOOPBACK: u8 = 127;

pub(super) const NO_9P_PORT: &str = "9p from a TCP port (`sockets_9p`; a directory is shared by QEMU itself)";

pub(super) fn unsupported(feature: &'static str) -> Error {
    Error::Unsupported { engine: Engine::Qemu, feature }
}

/// Refuses what hyperkit can do and QEMU cannot.
pub(crate) fn supports(machine: &HyperKit) -> Result<()> {
    let no = |feature| Err(unsupported(feature));
    if matches!(machine.vpnkit, VpnKit::Socket(_)) {
        return no("a network on a VPNKit socket (`vpnkit`; `Auto` takes QEMU's own network)");
    }
    if let Some([a, b, c, d]) = preferred_address(machine) {
        if !HOSTS.contains(&d) {
            return no("a preferred address that ends in less than 4 or in 255 (`vpnkit_preferred_ipv4`)");
        }
        if !NETWORKS.contains(&a) || a == LOOPBACK || (machine.vmnet && [a, b, c] == VMNET) {
            return no(
                "a preferred address that is none for a guest, or in the network of `vmnet` (`vpnkit_preferred_ipv4`)",
            );
        }
    }
    if ports(machine)?.iter().any(|port| port.asl) {
        return no("the Apple System Log (`console`, `serials`; a log in the state directory keeps the output)");
    }
    let has_port = |share: &Socket9p| matches!(share.server, Server9p::Port(_));
    if machine.sockets_9p.iter().any(has_port) {
        return no(NO_9P_PORT);
    }
    if machine.x2apic {
        return no("x2APIC mode from the start (`x2apic`; where the processor has it the guest turns it on itself)");
    }
    if !machine.msix {
        return no("virtio with single-vector MSI (`msix`)");
    }
    if !machine.mptable {
        return no("a machine without an MPtable (`mptable`)");
    }
    let modules = machine.multiboot.iter().flat_map(|multiboot| &multiboot.modules);
    if modules.into_iter().any(|module| module.path.as_os_str().as_encoded_bytes().contains(&b' ')) {
        return no("a module with a space in its path (`multiboot`; QEMU takes the rest for its command line)");
    }
    for disk in &machine.disks {
        let size = disk.sector_size.unwrap_or(SectorSize { logical: 512, physical: 512 });
        if disk.driver == Driver::Ahci && disk.read_only {
            return no("a SATA disk that is read-only (`disks`; virtio-blk can be)");
        }
        if disk.driver == Driver::Ahci && size.logical != 512 {
            return no("a SATA disk with logical sectors of other than 512 bytes (`disks`; virtio-blk can have them)");
        }
        if size.physical > MAX_SECTOR {
            return no("sectors of more than 2 MiB (`disks`)");
        }
    }
    if !machine.vsock_ports.is_empty() {
        return no("vsock ports as sockets on the host (`vsock_ports`; `vsock_connect` reaches any port)");
    }
    machine.sockets_9p.iter().try_for_each(|share| at_most(MAX_TAG, "sockets_9p", &share.tag))
}

/// Refuses what QEMU cannot do on this host.
pub(crate) fn check(machine: &HyperKit) -> Result<()> {
    if let Some(dir) = &machine.state_dir {
        at_most(MAX_SOCKET - "/".len() - EVENTS_SOCKET.len(), "state_dir", utf8("state_dir", dir)?)?;
    }
    if let Some(name) = &machine.tap {
        tap(name)?;
    }
    if machine.vsock {
        vsock_device::check(machine)?;
    }
    for share in &machine.sockets_9p {
        match &share.server {
            Server9p::Path(path) if !path.exists() => {
                return Err(Error::NotFound { field: "sockets_9p", path: path.clone() });
            }
            Server9p::Path(path) if path.is_dir() => {}
            _ => return Err(unsupported("9p from anything but a directory (`sockets_9p`)")),
        }
    }
    Ok(())
}

/// A name that is too long is cut by Linux, `%d` is filled in, and an interface that is not there is made: by each of them
/// the machine would be connected with something else.
fn tap(name: &str) -> Result<()> {
    if !cfg!(target_os = "linux") {
        return Err(unsupported("a tap interface on this system (`tap`)"));
    }
    at_most(MAX_TAP, "tap", name)?;
    let flags = Path::new("/sys/class/net").join(name).join("tun_flags");
    if flags.exists() { Ok(()) } else { Err(Error::NotFound { field: "tap", path: flags }) }
}
