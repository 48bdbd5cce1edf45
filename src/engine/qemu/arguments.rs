//! A machine as arguments of `qemu-system-x86_64`, each device in the slot that hyperkit gives it.
//!
//! Tried with QEMU 7.2. Commas would have to be doubled in most values; `check` lets none pass, since hyperkit takes none.

use std::path::Path;

use super::limits::{NO_9P_PORT, unsupported};
use super::network::{VMNET, forwards, subnet};
use super::vsock_device;
use crate::config::disk::{Disk, Driver, Format};
use crate::config::{HyperKit, Multiboot, Server9p};
use crate::error::{Error, Result};
use crate::plan::kernel_cmdline::kernel_command_line;
use crate::plan::serial_ports::{Line, ports};
use crate::plan::slots::{Device, Network, layout};
use crate::plan::text::utf8;
use crate::state::PID_FILE;
use crate::state::{EVENTS_SOCKET, QMP_SOCKET};

/// q35 has its LPC bridge in slot 31, as hyperkit; without SATA and SMBus, which share that slot, all others are free.
/// QEMU takes a boot ROM of 8 MiB at most if it is not told otherwise, and hyperkit one of 16 MiB.
const MACHINE: &str = "q35,sata=off,smbus=off,max-fw-size=16777216";
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
                    Network::Vmnet => {
                        let [a, b, c] = VMNET;
                        format!("user,id=net{slot},net={a}.{b}.{c}.0/24{}", forwards(machine, slot)?)
                    }
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
                for argument in vsock_device::arguments(machine, utf8("state_dir", dir)?) {
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

/// Whether the vsock device is a program of its own, which shares the guest's memory.
fn vhost_user(machine: &HyperKit) -> bool {
    machine.vsock && machine.vhost_device_vsock.is_some()
}
