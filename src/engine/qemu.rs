//! The same machine as arguments of `qemu-system-x86_64`, each device in the slot that hyperkit gives it.
//!
//! Tried with QEMU 7.2. Commas would have to be doubled in most values; `check` lets none pass, since hyperkit takes none.

use std::fs::{self, OpenOptions};
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;

use serde_json::json;

use super::{Control, Engine, kernel_command_line, qmp::Qmp, vhost_vsock};
use crate::check::{MAX_SOCKET, at_most, utf8};
use crate::config::{HyperKit, Multiboot, PortForward, Protocol, Server9p, Socket9p, VpnKit};
use crate::disk::{Disk, Driver, Format, SectorSize};
use crate::error::{Error, Result};
use crate::serial::{Line, ports};
use crate::slots::{Device, Network, layout};
use crate::state::{EVENTS_SOCKET, PID_FILE, QMP_SOCKET, StateDir};
use crate::vm::Exit;

/// How long a QEMU that is up may take to let us listen.
const PATIENCE: Duration = Duration::from_secs(5);
/// QEMU's limit on a mount tag, in bytes.
const MAX_TAG: usize = 31;
/// QEMU's limit on the size of a sector, in bytes.
const MAX_SECTOR: u32 = 2 * 1024 * 1024;

/// q35 has its LPC bridge in slot 31, as hyperkit; without SATA and SMBus, which share that slot, all others are free.
const MACHINE: &str = "q35,sata=off,smbus=off";
const FIXED: [&str; 5] = ["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"];

/// The arguments, but for those that depend on the host.
pub(crate) fn arguments(machine: &HyperKit, cmdline: &str) -> Result<Vec<String>> {
    let mut args = Arguments(Vec::new());
    let state_dir = machine.state_dir.as_deref().map(|dir| utf8("state_dir", dir)).transpose()?;
    // hyperkit leaves the guest's memory out of core dumps unless it is told to, and QEMU has it in.
    let core_dumps = if machine.core_dumps { "on" } else { "off" };
    let memory = if vhost_user(machine) { ",memory-backend=mem0" } else { "" };
    args.add("-machine", format!("{MACHINE},dump-guest-core={core_dumps}{memory}"));
    args.0.extend(FIXED.map(str::to_owned));

    if let Some(dir) = state_dir {
        args.add("-pidfile", format!("{dir}/{PID_FILE}"));
        // A socket serves one client at a time: one is for whoever has something to say, the other for who listens.
        for (id, socket) in [("qmp", QMP_SOCKET), ("events", EVENTS_SOCKET)] {
            args.add("-chardev", format!("socket,id={id},path={dir}/{socket},server=on,wait=off"));
            args.add("-mon", format!("chardev={id},mode=control"));
        }
    }
    args.add("-smp", machine.cpus.to_string());
    args.add("-m", format!("{}M", machine.memory));
    args.add("-rtc", format!("base={}", if machine.utc { "utc" } else { "localtime" }));
    if let Some(uuid) = &machine.uuid {
        args.add("-uuid", uuid.clone());
    }
    if let Some(port) = machine.gdb_port {
        args.add("-gdb", format!("tcp:127.0.0.1:{port}"));
    }
    for (slot, device) in layout(machine)? {
        args.add_device(machine, slot, device)?;
    }
    args.add_serials(machine, state_dir.unwrap_or_default())?;
    args.add_firmware(machine, cmdline)?;
    args.0.extend(machine.extra_arguments.iter().cloned());
    Ok(args.0)
}

/// The arguments so far.
struct Arguments(Vec<String>);

impl Arguments {
    fn add(&mut self, option: &str, value: String) {
        self.0.extend([option.to_owned(), value]);
    }

    fn add_device(&mut self, machine: &HyperKit, slot: u8, device: Device<'_>) -> Result<()> {
        let at = format!("bus=pcie.0,addr={slot:x}.0"); // hexadecimal: slot 10 is a.0
        match device {
            Device::Network(network) => {
                let backend = match network {
                    Network::Tap(name) => format!("tap,id=net{slot},ifname={name},script=no,downscript=no"),
                    Network::VpnKit(_) => format!("user,id=net{slot}{}{}", subnet(machine), forwards(machine, slot)?),
                    Network::Vmnet => format!("user,id=net{slot}{}", forwards(machine, slot)?),
                };
                let mac = machine.mac.as_ref().filter(|_| slot == 1).map(|mac| format!(",mac={mac}"));
                self.add("-netdev", backend);
                let device = format!("virtio-net-pci,netdev=net{slot},{at},romfile={}", mac.unwrap_or_default());
                self.add("-device", device);
            }
            Device::Disk { image, index } => {
                let path = image.place(index, machine.state_dir.as_deref())?;
                self.add("-drive", drive(image, slot, utf8("disks", &path)?));
                let size = image
                    .sector_size
                    .map(|size| format!(",logical_block_size={},physical_block_size={}", size.logical, size.physical));
                let size = size.unwrap_or_default();
                if image.driver == Driver::Ahci {
                    self.add("-device", format!("ich9-ahci,id=ahci{slot},{at}"));
                    self.add("-device", format!("ide-hd,drive=disk{slot},bus=ahci{slot}.0{size}"));
                } else {
                    self.add("-device", format!("virtio-blk-pci,drive=disk{slot},{at}{size}"));
                }
            }
            Device::Vsock if vhost_user(machine) => {
                let dir = machine.state_dir.as_deref().unwrap_or(Path::new(""));
                for argument in vhost_vsock::arguments(machine, utf8("state_dir", dir)?) {
                    self.add(argument.0, argument.1);
                }
                self.add("-device", format!("vhost-user-vsock-pci,chardev=vsock,{at}"));
            }
            Device::Vsock => {
                self.add("-device", format!("vhost-vsock-pci,guest-cid={},{at}", machine.vsock_guest_cid));
            }
            Device::Iso(image) => {
                let image = utf8("isos", image)?;
                self.add("-device", format!("ich9-ahci,id=ahci{slot},{at}"));
                self.add("-drive", format!("if=none,id=cd{slot},format=raw,readonly=on,media=cdrom,file={image}"));
                self.add("-device", format!("ide-cd,drive=cd{slot},bus=ahci{slot}.0"));
            }
            Device::Random => {
                self.add("-object", "rng-random,id=rng0,filename=/dev/urandom".to_owned());
                self.add("-device", format!("virtio-rng-pci,rng=rng0,{at}"));
            }
            Device::Share(share) => {
                let Server9p::Path(path) = &share.server else { return Err(unsupported(NO_9P_PORT)) };
                let path = utf8("sockets_9p", path)?;
                self.add("-fsdev", format!("local,id=share{slot},path={path},security_model=none"));
                self.add("-device", format!("virtio-9p-pci,fsdev=share{slot},mount_tag={},{at}", share.tag));
            }
        }
        Ok(())
    }

    fn add_serials(&mut self, machine: &HyperKit, state_dir: &str) -> Result<()> {
        for port in ports(machine)? {
            let line = match port.line {
                Line::None => "null",
                Line::Stdio => "stdio,signal=off", // so ^C reaches the guest
                Line::Tty(_) => "pty",
            };
            let (kind, options) = line.split_once(',').map_or((line, String::new()), |(k, o)| (k, format!(",{o}")));
            let log = port.log.map(|file| format!(",logfile={state_dir}/{file},logappend=off")).unwrap_or_default();
            self.add("-chardev", format!("{kind},id={}{options}{log}", port.name));
            self.add("-serial", format!("chardev:{}", port.name));
        }
        Ok(())
    }

    fn add_firmware(&mut self, machine: &HyperKit, cmdline: &str) -> Result<()> {
        if let Some(rom) = &machine.bootrom {
            // `-bios` takes only some of the images that a flash takes.
            let rom = utf8("bootrom", rom)?;
            self.add("-drive", format!("if=pflash,unit=0,format=raw,readonly=on,file={rom}"));
            return Ok(());
        }
        if let Some(Multiboot { kernel, modules }) = &machine.multiboot {
            self.add("-kernel", utf8("multiboot", kernel)?.to_owned());
            let modules = modules.iter().map(|module| {
                let path = utf8("multiboot", &module.path)?;
                Ok(if module.cmdline.is_empty() { path.to_owned() } else { format!("{path} {}", module.cmdline) })
            });
            let modules = modules.collect::<Result<Vec<_>>>()?;
            if !modules.is_empty() {
                self.add("-initrd", modules.join(","));
            }
            self.add("-append", cmdline.to_owned());
            return Ok(());
        }
        let kernel = machine.kernel.as_deref().ok_or(Error::Missing { field: "kernel" })?;
        self.add("-kernel", utf8("kernel", kernel)?.to_owned());
        if let Some(initrd) = machine.initrd.as_deref() {
            self.add("-initrd", utf8("initrd", initrd)?.to_owned());
        }
        self.add("-append", kernel_command_line(cmdline));
        Ok(())
    }
}

fn drive(image: &Disk, slot: u8, path: &str) -> String {
    let format = if matches!(image.format_by_name(), Format::Raw) { "raw" } else { "qcow2" };
    let options =
        [(image.read_only, ",readonly=on"), (image.sync, ",cache=writethrough"), (image.trim, ",discard=unmap")];
    let options: String = options.into_iter().filter(|(on, _)| *on).map(|(_, option)| option).collect();
    format!("if=none,id=disk{slot},format={format}{options},file={path}")
}

/// In the user-mode network .1 is unused, .2 the gateway and .3 the name server.
const HOSTS: std::ops::RangeInclusive<u8> = 4..=254;

fn preferred_address(machine: &HyperKit) -> Option<[u8; 4]> {
    Some(machine.vpnkit_preferred_ipv4.as_ref()?.parse::<Ipv4Addr>().ok()?.octets())
}

/// The network of the preferred address, in which DHCP gives that one first.
fn subnet(machine: &HyperKit) -> String {
    match preferred_address(machine) {
        Some([a, b, c, d]) => format!(",net={a}.{b}.{c}.0/24,dhcpstart={a}.{b}.{c}.{d}"),
        None => String::new(),
    }
}

/// Ports lead to the first card on the user-mode network.
fn forwards(machine: &HyperKit, slot: u8) -> Result<String> {
    let is_user = |device: &Device<'_>| matches!(device, Device::Network(Network::VpnKit(_) | Network::Vmnet));
    let first = layout(machine)?.into_iter().find(|(_, device)| is_user(device));
    if first.is_none_or(|(first, _)| first != slot) {
        return Ok(String::new());
    }
    let forward = |to: &PortForward| format!(",hostfwd={}:127.0.0.1:{}-:{}", to.protocol, to.host, to.guest);
    Ok(machine.port_forwards.iter().map(forward).collect())
}

/// Whether the vsock device is a program of its own, which shares the guest's memory.
fn vhost_user(machine: &HyperKit) -> bool {
    machine.vsock && machine.vhost_device_vsock.is_some()
}

const NO_9P_PORT: &str = "9p from a TCP port (`sockets_9p`; a directory is shared by QEMU itself)";

fn unsupported(feature: &'static str) -> Error {
    Error::Unsupported { engine: Engine::Qemu, feature }
}

/// Refuses what hyperkit can do and QEMU cannot, or not on this host.
pub(crate) fn check(machine: &HyperKit) -> Result<()> {
    let no = |feature| Err(unsupported(feature));
    if let Some(dir) = &machine.state_dir {
        at_most(MAX_SOCKET - "/".len() - EVENTS_SOCKET.len(), "state_dir", utf8("state_dir", dir)?)?;
    }
    if matches!(machine.vpnkit, VpnKit::Socket(_)) {
        return no("a network on a VPNKit socket (`vpnkit`; `Auto` takes QEMU's own network)");
    }
    if preferred_address(machine).is_some_and(|[.., host]| !HOSTS.contains(&host)) {
        return no("a preferred address that ends in less than 4 or in 255 (`vpnkit_preferred_ipv4`)");
    }
    if machine.tap.is_some() && !cfg!(target_os = "linux") {
        return no("a tap interface on this system (`tap`)");
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
    if machine.vsock {
        vhost_vsock::check(machine)?;
    }
    if !machine.vsock_ports.is_empty() {
        return no(
            "vsock ports as sockets on the host (`vsock_ports`; the host reaches any port of the guest by vsock)",
        );
    }
    for share in &machine.sockets_9p {
        at_most(MAX_TAG, "sockets_9p", &share.tag)?;
        match &share.server {
            Server9p::Path(path) if !path.exists() => {
                return Err(Error::NotFound { field: "sockets_9p", path: path.clone() });
            }
            Server9p::Path(path) if path.is_dir() => {}
            _ => return no("9p from anything but a directory (`sockets_9p`)"),
        }
    }
    Ok(())
}

/// QEMU answers on its QMP socket when all devices are there. It names the console's pty only there, so the `tty`
/// file that hyperkit makes is made here.
pub(crate) fn is_set_up(machine: &HyperKit, state: &StateDir, patience: Duration) -> Result<bool> {
    let console = Qmp::connect(&state.file(QMP_SOCKET), patience).and_then(|mut qmp| qmp.execute("query-chardev"));
    let chardevs = match console {
        Ok(chardevs) => chardevs,
        Err(error) => {
            log::trace!(target: "hyperkit", "not yet: {error}");
            return Ok(false);
        }
    };
    for port in ports(machine)? {
        let Line::Tty(file) = port.line else { continue };
        let chardev = chardevs.as_array().into_iter().flatten().find(|chardev| chardev["label"] == port.name);
        let pty = chardev.and_then(|chardev| chardev["filename"].as_str()?.strip_prefix("pty:"));
        let pty = pty.ok_or_else(|| Error::Qmp { reason: format!("no pty for {} in {chardevs}", port.name) })?;
        state.write(file, pty.as_bytes())?;
    }
    Ok(true)
}

/// The exit code is 0 for a power-off and for a reset; the event before it says which.
pub(crate) fn listen(state: &StateDir) -> Option<impl FnOnce() -> Option<Exit> + Send + 'static> {
    let mut events = match Qmp::connect(&state.file(EVENTS_SOCKET), PATIENCE) {
        Ok(events) => events,
        Err(error) => {
            log::warn!(target: "hyperkit", "a reset of the guest will pass for a power-off: {error}");
            return None;
        }
    };
    Some(move || {
        let mut told = None;
        while let Some(event) = events.next_event() {
            if event["event"] == "SHUTDOWN" {
                told = match event["data"]["reason"].as_str() {
                    Some("guest-shutdown") => Some(Exit::PowerOff),
                    Some("guest-reset") => Some(Exit::Reset),
                    Some("host-signal") => Some(Exit::Killed(Signal::TERM.as_raw())),
                    _ => Some(Exit::Unknown),
                };
            }
        }
        told
    })
}

pub(crate) fn control(what: Control, state: &StateDir, patience: Duration) -> Result<()> {
    let command = match what {
        Control::PressPowerButton => "system_powerdown",
        Control::Pause => "stop",
        Control::Resume => "cont",
    };
    Qmp::connect(&state.file(QMP_SOCKET), patience)?.execute(command).map(drop)
}

/// A table for people, in which each line of a forwarded port has protocol, descriptor, address, port, address, port.
pub(crate) fn port_forwards(state: &StateDir, patience: Duration) -> Result<Vec<PortForward>> {
    let mut qmp = Qmp::connect(&state.file(QMP_SOCKET), patience)?;
    let table = qmp.execute_with("human-monitor-command", json!({ "command-line": "info usernet" }))?;
    let forward = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let protocol = match words.next()? {
            "TCP[HOST_FORWARD]" => Protocol::Tcp,
            "UDP[HOST_FORWARD]" => Protocol::Udp,
            _ => return None,
        };
        Some(PortForward { protocol, host: words.nth(2)?.parse().ok()?, guest: words.nth(1)?.parse().ok()? })
    };
    Ok(table.as_str().unwrap_or_default().lines().filter_map(forward).collect())
}

/// What runs the guest's instructions. /dev/kvm alone proves nothing: on hosts whose CPU has no virtualization it can
/// open, pass every probe, and then hang the guest.
pub(crate) fn accelerator() -> &'static str {
    if !cfg!(target_arch = "x86_64") {
        return "tcg";
    }
    if cfg!(target_os = "macos") {
        return "hvf";
    }
    let can_virtualize = fs::read_to_string("/proc/cpuinfo").is_ok_and(|cpus| {
        cpus.lines()
            .filter(|line| line.starts_with("flags"))
            .any(|line| line.split_ascii_whitespace().any(|flag| flag == "vmx" || flag == "svm"))
    });
    let opens = || OpenOptions::new().read(true).write(true).open(Path::new("/dev/kvm")).is_ok();
    if can_virtualize && opens() { "kvm" } else { "tcg" }
}
