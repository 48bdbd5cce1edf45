//! The arguments of QEMU for a description, with each device in the PCI slot that hyperkit uses.
//!
//! Commas have to be doubled in most values. Validation refuses them, since hyperkit cannot escape them, except
//! in directories, which hyperkit cannot share.

use std::path::Path;

use crate::config::disk::{Disk, DiskFormat, DiskInterface};
use crate::config::{HyperKit, Multiboot, Network};
use crate::engine::qemu::internal_network;
use crate::engine::qemu::limits::shared_dir;
use crate::engine::qemu::machine::Machine;
use crate::engine::qemu::network::{VMNET, forwards, subnet};
use crate::engine::qemu::{virtiofs, vsock_device};
use crate::error::ConfigError;
use crate::plan::root::{ROOT_TAG, with_root};
use crate::plan::serial_ports::{Line, ports};
use crate::plan::slots::{Device, NicBackend, layout};
use crate::plan::text::utf8;
use crate::state::{AGENT_SOCKET, EVENTS_SOCKET, PID_FILE, QMP_SOCKET};

type Result<T> = std::result::Result<T, ConfigError>;

/// The guest finds the port by this name, as `/dev/virtio-ports/org.hyperkit.agent` or in `/sys/class/virtio-ports`.
const PORT_NAME: &str = "org.hyperkit.agent";
/// The name of the port's socket in QMP.
pub(super) const AGENT_CHARDEV: &str = "agent";
const FIXED: [&str; 5] = ["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"];

/// The arguments, except those that depend on the host.
pub(super) fn arguments(description: &HyperKit, cmdline: &str) -> Result<Vec<String>> {
    let mut args = Arguments(Vec::new());
    let state_dir = description.state_dir.as_deref().map(|dir| utf8("state_dir", dir)).transpose()?;
    // By default hyperkit leaves the guest's memory out of core dumps, and QEMU includes it.
    let core_dumps = if description.core_dumps { "on" } else { "off" };
    let memory = if virtiofs::shares_memory(description) { ",memory-backend=mem0" } else { "" };
    let machine = Machine::of(description);
    args.add("-machine", format!("{},dump-guest-core={core_dumps}{memory}", machine.options));
    args.0.extend(FIXED.map(str::to_owned));

    if let Some(dir) = state_dir {
        args.add("-pidfile", format!("{dir}/{PID_FILE}"));
        // A socket serves one client at a time: one is for commands, the other for the client that waits for events.
        for (id, socket) in [("qmp", QMP_SOCKET), ("events", EVENTS_SOCKET)] {
            args.add("-chardev", format!("socket,id={id},path={dir}/{socket},server=on,wait=off"));
            args.add("-mon", format!("chardev={id},mode=control"));
        }
    }
    args.add("-smp", description.cpus.to_string());
    if let Some(cpu) = &description.cpu {
        args.add("-cpu", cpu.clone());
    }
    args.add("-m", format!("{}M", description.memory_mib));
    args.add("-rtc", format!("base={}", if description.utc { "utc" } else { "localtime" }));
    if let Some(uuid) = &description.uuid {
        args.add("-uuid", uuid.clone());
    }
    if let Some(port) = description.gdb_port {
        args.add("-gdb", format!("tcp:127.0.0.1:{port}"));
    }
    if virtiofs::shares_memory(description) {
        for (option, value) in virtiofs::arguments_for_daemons(description, state_dir.unwrap_or_default()) {
            args.add(option, value);
        }
    }
    for (slot, device) in layout(description)? {
        args.add_device(description, slot, device)?;
    }
    args.add_serials(description, machine, state_dir.unwrap_or_default())?;
    args.add_firmware(description, cmdline)?;
    args.0.extend(description.extra_arguments.iter().cloned());
    Ok(args.0)
}

/// A list of arguments.
struct Arguments(Vec<String>);

impl Arguments {
    /// Not inlined: there are many callers.
    #[inline(never)]
    fn add(&mut self, option: &str, value: String) {
        self.0.extend([option.to_owned(), value]);
    }

    fn add_device(&mut self, description: &HyperKit, slot: u8, device: Device<'_>) -> Result<()> {
        let at = address(slot);
        match device {
            Device::Nic(nic) => {
                let backend = match nic {
                    NicBackend::Tap(name) => format!("tap,id=net{slot},ifname={name},script=no,downscript=no"),
                    NicBackend::Network(network) => {
                        let restrict = if *network == Network::Isolated { ",restrict=on" } else { "" };
                        format!("user,id=net{slot}{restrict}{}{}", subnet(description), forwards(description, slot)?)
                    }
                    NicBackend::Vmnet => {
                        let [a, b, c] = VMNET;
                        format!("user,id=net{slot},net={a}.{b}.{c}.0/24{}", forwards(description, slot)?)
                    }
                };
                let mac = description.mac.as_ref().filter(|_| slot == 1).map(|mac| format!(",mac={mac}"));
                self.add("-netdev", backend);
                let device = format!("virtio-net-pci,netdev=net{slot},{at},romfile={}", mac.unwrap_or_default());
                self.add("-device", device);
            }
            Device::Disk { image, index } => {
                let path = image.attached_path(index, description.state_dir.as_deref())?;
                let id = disk_id(slot);
                self.add("-drive", drive(image, slot, utf8("disks", &path)?));
                let size = image
                    .sector_size
                    .map(|size| format!(",logical_block_size={},physical_block_size={}", size.logical, size.physical));
                let size = size.unwrap_or_default();
                if image.interface == DiskInterface::Ahci {
                    self.add("-device", format!("ich9-ahci,id=ahci{slot},{at}"));
                    self.add("-device", format!("ide-hd,drive={id},bus=ahci{slot}.0{size}"));
                } else {
                    self.add("-device", format!("virtio-blk-pci,drive={id},{at}{size}"));
                }
            }
            Device::Vsock if vsock_device::uses_daemon(description) => {
                let dir = description.state_dir.as_deref().unwrap_or(Path::new(""));
                self.add("-chardev", vsock_device::chardev(utf8("state_dir", dir)?));
                self.add("-device", format!("vhost-user-vsock-pci,chardev=vsock,{at}"));
            }
            Device::Vsock => {
                self.add("-device", format!("vhost-vsock-pci,guest-cid={},{at}", description.vsock_guest_cid));
            }
            Device::Iso(image) => {
                let (image, id) = (utf8("isos", image)?, cd_id(slot));
                self.add("-device", format!("ich9-ahci,id=ahci{slot},{at}"));
                self.add("-drive", format!("if=none,id={id},format=raw,readonly=on,media=cdrom,file={image}"));
                self.add("-device", format!("ide-cd,drive={id},bus=ahci{slot}.0"));
            }
            Device::Random => {
                self.add("-object", "rng-random,id=rng0,filename=/dev/urandom".to_owned());
                self.add("-device", format!("virtio-rng-pci,rng=rng0,{at}"));
            }
            Device::Share(share) => {
                let path = escaped("shares_9p", shared_dir(share)?)?;
                // Where several file systems are mounted in the directory, their inode numbers would collide, and the guest's kernel
                // would take two files for one.
                self.add("-fsdev", format!("local,id=share{slot},path={path},security_model=none,multidevs=remap"));
                self.add("-device", format!("virtio-9p-pci,fsdev=share{slot},mount_tag={},{at}", share.tag));
            }
            Device::Root(dir) => {
                let dir = escaped("root", dir)?;
                let options = "security_model=none,multidevs=remap,readonly=on";
                self.add("-fsdev", format!("local,id=root,path={dir},{options}"));
                self.add("-device", format!("virtio-9p-pci,fsdev=root,mount_tag={ROOT_TAG},{at}"));
            }
            Device::Virtiofs { share, index } => {
                let dir = utf8("state_dir", description.state_dir.as_deref().unwrap_or(Path::new("")))?;
                for (option, value) in virtiofs::arguments(share, index, dir, &at) {
                    self.add(option, value);
                }
            }
            Device::Agent => {
                let dir = description.state_dir.as_deref().unwrap_or(Path::new(""));
                let dir = utf8("state_dir", dir)?;
                self.add("-device", format!("virtio-serial-pci,id=agent-bus,{at}"));
                self.add("-chardev", format!("socket,id={AGENT_CHARDEV},path={dir}/{AGENT_SOCKET},server=on,wait=off"));
                // Without an id, QEMU sends no event when the guest opens the port.
                let port = format!("bus=agent-bus.0,nr=1,chardev={AGENT_CHARDEV},name={PORT_NAME},id=agent0");
                self.add("-device", format!("virtserialport,{port}"));
            }
            Device::InternalNetwork(network) => {
                for netdev in internal_network::arguments(network, slot)? {
                    self.add("-netdev", netdev);
                }
                let mac = network.mac();
                self.add("-device", format!("virtio-net-pci,netdev=net{slot},{at},romfile=,mac={mac}"));
            }
        }
        Ok(())
    }

    fn add_serials(&mut self, description: &HyperKit, machine: &Machine, state_dir: &str) -> Result<()> {
        for (index, port) in ports(description)?.into_iter().enumerate() {
            let line = match port.line {
                Line::None => "null",
                Line::Stdio => "stdio,signal=off", // so ^C reaches the guest
                Line::Pty(_) => "pty",
            };
            let (kind, options) = line.split_once(',').map_or((line, String::new()), |(k, o)| (k, format!(",{o}")));
            let log = port.log.map(|file| format!(",logfile={state_dir}/{file},logappend=off")).unwrap_or_default();
            self.add("-chardev", format!("{kind},id={}{options}{log}", port.name));
            match machine.second_serial_slot.filter(|_| index == 1) {
                Some(slot) => self.add("-device", format!("pci-serial,chardev={},{}", port.name, address(slot))),
                None => self.add("-serial", format!("chardev:{}", port.name)),
            }
        }
        Ok(())
    }

    fn add_firmware(&mut self, description: &HyperKit, cmdline: &str) -> Result<()> {
        if let Some(rom) = &description.bootrom {
            // `-bios` takes only some of the images that a flash takes.
            let rom = utf8("bootrom", rom)?;
            self.add("-drive", format!("if=pflash,unit=0,format=raw,readonly=on,file={rom}"));
            return Ok(());
        }
        if let Some(Multiboot { kernel, modules }) = &description.multiboot {
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
        let kernel = description.kernel.as_deref().ok_or(ConfigError::Missing { field: "kernel" })?;
        self.add("-kernel", utf8("kernel", kernel)?.to_owned());
        if let Some(initrd) = description.initrd.as_deref() {
            self.add("-initrd", utf8("initrd", initrd)?.to_owned());
        }
        self.add("-append", with_root(description, cmdline));
        Ok(())
    }
}

/// The PCI address of a slot. It is hexadecimal: slot 10 is a.0.
fn address(slot: u8) -> String {
    format!("bus=pcie.0,addr={slot:x}.0")
}

/// The path as a value of an option. A comma would end the value; two of them are one in it.
fn escaped(field: &'static str, path: &Path) -> Result<String> {
    Ok(utf8(field, path)?.replace(',', ",,"))
}

/// The name of a disk's drive.
pub(super) fn disk_id(slot: u8) -> String {
    format!("disk{slot}")
}

/// The name of the drive of an ISO image.
pub(super) fn cd_id(slot: u8) -> String {
    format!("cd{slot}")
}

fn drive(image: &Disk, slot: u8, path: &str) -> String {
    let is_raw = matches!(image.format_by_name(), DiskFormat::Raw) && !image.overlay;
    let format = if is_raw { "raw" } else { "qcow2" };
    let options = [
        (image.read_only, ",readonly=on"),
        (image.sync, ",cache=writethrough"),
        // Nobody reads the overlay after a crash of the host. `-snapshot` does the same (bdrv_temp_snapshot_options in QEMU's
        // block.c).
        (image.overlay && !image.sync, ",cache=unsafe"),
        (image.trim, ",discard=unmap"),
    ];
    let options: String = options.into_iter().filter(|(on, _)| *on).map(|(_, option)| option).collect();
    // By default QEMU stops the vCPUs when the host's disk is full, and the guest freezes.
    let errors = "werror=report,rerror=report";
    format!("if=none,id={},format={format}{options},{errors},file={path}", disk_id(slot))
}
