//! What hyperkit can do and QEMU cannot, or not on this host.

use std::fs;
use std::io;
use std::ops::RangeInclusive;
use std::path::Path;

use crate::config::disk::{Disk, DiskInterface, SectorSize};
use crate::config::{Architecture, HyperKit, Network, Root, Share9p, Share9pSource};
use crate::engine::qemu::host::lacks_host_cpu;
use crate::engine::qemu::machine::{Machine, unsupported};
use crate::engine::qemu::names::{self, Program};
use crate::engine::qemu::network::{VMNET, preferred_address};
use crate::engine::qemu::{virtiofs, vsock_device};
use crate::error::ConfigError;
use crate::plan::limits::MAX_SOCKET;
use crate::plan::root::{hides_system_dir, root_dir};
use crate::plan::serial_ports::ports;
use crate::plan::text::{check_escaped_path, check_length, utf8};
use crate::plan::validate::Violations;
use crate::state::EVENTS_SOCKET;

/// QEMU's limit on a mount tag, in bytes.
const MAX_TAG: usize = 31;
/// QEMU's limit on the size of a sector, in bytes.
const MAX_SECTOR: u32 = 2 * 1024 * 1024;
/// Linux's limit on the name of a network interface, in bytes.
const MAX_TAP: usize = 15;
/// In the user-mode network .1 is unused, .2 the gateway and .3 the name server.
const HOSTS: RangeInclusive<u8> = 4..=254;
/// The first byte of addresses of single hosts; those from 224 on are for groups.
const NETWORKS: RangeInclusive<u8> = 1..=223;
const LOOPBACK: u8 = 127;

const NO_9P_PORT: &str = "9p from a TCP port (`shares_9p`); use `share_dir`";

/// The directory of a share; QEMU has no other source.
pub(super) fn shared_dir(share: &Share9p) -> Result<&Path, ConfigError> {
    match &share.source {
        Share9pSource::Path(path) => Ok(path),
        Share9pSource::Port(_) => Err(unsupported(NO_9P_PORT)),
    }
}

/// The features that QEMU lacks on every host.
pub(super) fn unsupported_features(description: &HyperKit) -> Vec<ConfigError> {
    let mut found = Violations::default();
    let modules = description.multiboot.iter().flat_map(|multiboot| &multiboot.modules);
    let has_space = modules.into_iter().any(|module| module.path.as_os_str().as_encoded_bytes().contains(&b' '));
    let machine = Machine::of(description);
    let program = description.hyperkit.as_deref().and_then(Path::file_name).unwrap_or_default();
    let is_other = names::program(program.as_encoded_bytes()) == Some(Program::Other);
    let lacks_uuid = description.bootrom.is_none() && !machine.has_uuid_without_firmware;
    let apple_log = ports(description).is_ok_and(|ports| ports.iter().any(|port| port.apple_log));
    for (is_set, feature) in [
        (is_other, "VMs in this program of QEMU (`hyperkit`); use qemu-system-x86_64 or qemu-system-aarch64"),
        (
            description.uuid.is_some() && lacks_uuid,
            "a UUID without a boot ROM (`uuid`), since only firmware passes it to the guest; use `bootrom`",
        ),
        (
            description.multiboot.is_some() && !machine.is_pc,
            "multiboot kernels (`multiboot`), which are for x86; use `kernel`",
        ),
        (
            matches!(description.network, Network::VpnKit(_)),
            "a network on a VPNKit socket (`network`); use `Network::Nat`, its user-mode network",
        ),
        (apple_log, "the Apple System Log (`console`, `serials`); use `Console::Pty` for a log in the state directory"),
        (description.x2apic && !machine.is_pc, "x2APIC mode (`x2apic`), which only x86 CPUs have"),
        (
            description.x2apic && machine.is_pc,
            "x2APIC mode from the start (`x2apic`); the guest turns it on by itself if the CPU has it",
        ),
        (!description.msix, "virtio with single-vector MSI (`msix`)"),
        (!description.mptable && machine.is_pc, "a VM without an MPtable (`mptable`)"),
        (
            has_space,
            "a module with a space in its path (`multiboot`); rename the file, since QEMU takes the rest for the module's command line",
        ),
        (
            !description.vsock_ports.is_empty(),
            "sockets on the host for vsock ports (`vsock_ports`); `vsock_connect` reaches any port",
        ),
    ] {
        if is_set {
            found.add(unsupported(feature));
        }
    }
    found.collect(check_preferred_address(description));
    for share in &description.shares_9p {
        found.collect(shared_dir(share));
        found.collect(check_length(MAX_TAG, "shares_9p", &share.tag));
    }
    for disk in &description.disks {
        found.collect(check_disk(disk));
    }
    found.into_iter().collect()
}

fn check_preferred_address(description: &HyperKit) -> Result<(), ConfigError> {
    let Some([a, b, c, d]) = preferred_address(description) else { return Ok(()) };
    if !HOSTS.contains(&d) {
        return Err(unsupported("a preferred address that ends in less than 4 or in 255 (`vpnkit_preferred_ipv4`)"));
    }
    if !NETWORKS.contains(&a) || a == LOOPBACK || (description.vmnet && [a, b, c] == VMNET) {
        return Err(unsupported(
            "a preferred address (`vpnkit_preferred_ipv4`) that is not a host address, or that is in the network of \
             `vmnet`",
        ));
    }
    Ok(())
}

fn check_disk(disk: &Disk) -> Result<(), ConfigError> {
    let size = disk.sector_size.unwrap_or(SectorSize { logical: 512, physical: 512 });
    if disk.interface == DiskInterface::Ahci && disk.read_only {
        return Err(unsupported("a read-only SATA disk (`disks`); virtio-blk disks can be read-only"));
    }
    if disk.interface == DiskInterface::Ahci && size.logical != 512 {
        return Err(unsupported("a SATA disk with logical sectors of other than 512 bytes (`disks`); use virtio-blk"));
    }
    if size.physical > MAX_SECTOR {
        return Err(unsupported("sectors of more than 2 MiB (`disks`)"));
    }
    Ok(())
}

/// What QEMU cannot do on this host.
pub(super) fn check_host(description: &HyperKit) -> Vec<ConfigError> {
    let mut found = Violations::default();
    if let Some(dir) = &description.state_dir {
        let limit = MAX_SOCKET - "/".len() - EVENTS_SOCKET.len();
        found.collect(utf8("state_dir", dir).and_then(|dir| check_length(limit, "state_dir", dir)));
    }
    if lacks_host_cpu(description) {
        found.add(unsupported("the host's CPU (`cpu`) without KVM or HVF; leave `cpu` unset, or choose another model"));
    }
    if let Some(name) = &description.tap {
        found.collect(check_tap(name));
    }
    if description.vsock {
        found.collect(vsock_device::check_host(description));
    }
    let is_of_host = cfg!(target_os = "linux") && Architecture::host() == Some(Machine::of(description).architecture);
    if description.root == Root::Host && !is_of_host {
        found.add(unsupported(
            "the programs of this host (`root`) in guests of another architecture or system; use `Root::Dir`",
        ));
    } else if let Some(dir) = root_dir(description) {
        found.collect(check_escaped_path("root", dir).and_then(|_| check_readable("root", dir)));
    }
    found.extend(virtiofs::check_host(description));
    for share in &description.shares_9p {
        let Share9pSource::Path(path) = &share.source else { continue };
        if hides_system_dir(&description.root, path) {
            found.add(unsupported("sharing /proc, /sys or /dev of the guest's root (`shares_9p`)"));
        }
        found.collect(check_readable("shares_9p", path).map_err(|error| match error {
            ConfigError::NotADirectory { .. } => {
                unsupported("9p from anything but a directory (`shares_9p`); use the path of a directory")
            }
            error => error,
        }));
    }
    found.into_iter().collect()
}

/// Checks that QEMU can read the directory, which it opens when it starts (local_init in hw/9pfs/9p-local.c).
fn check_readable(field: &'static str, dir: &Path) -> Result<(), ConfigError> {
    match fs::read_dir(dir) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(ConfigError::NotFound { field, path: dir.to_owned() })
        }
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            Err(ConfigError::NotADirectory { field, path: dir.to_owned() })
        }
        Err(error) => Err(ConfigError::inaccessible(field, dir, &error)),
    }
}

/// Linux truncates a name that is too long, replaces `%d`, and creates an interface that does not exist: each would
/// connect the VM to something else.
fn check_tap(name: &str) -> Result<(), ConfigError> {
    if !cfg!(target_os = "linux") {
        return Err(unsupported("a tap interface on this operating system (`tap`)"));
    }
    check_length(MAX_TAP, "tap", name)?;
    let flags = Path::new("/sys/class/net").join(name).join("tun_flags");
    if flags.exists() { Ok(()) } else { Err(ConfigError::NotFound { field: "tap", path: flags }) }
}
