//! A machine as arguments of `hyperkit`, which has no quoting: a comma always separates.

use std::fmt::Write;
use std::path::Path;

use crate::config::disk::{Disk, Format};
use crate::config::{HyperKit, Multiboot, Server9p, VpnKit};
use crate::engine::hyperkit::vpnkit_sockets;
use crate::error::{Error, Result};
use crate::plan::kernel_cmdline::kernel_command_line;
use crate::plan::serial_ports::{Line, Port, ports};
use crate::plan::slots::{Device, Network, layout};
use crate::plan::text::utf8;
use crate::state::PID_FILE;

/// The arguments, in the order of the Go package.
pub(crate) fn arguments(machine: &HyperKit, cmdline: &str) -> Result<Vec<String>> {
    let mut args = vec!["-A".to_owned()];
    let switches = [
        (machine.utc, "-u"),
        (machine.exit_on_hlt, "-H"),
        (machine.exit_on_pause, "-P"),
        (machine.x2apic, "-x"),
        (!machine.msix, "-W"),
        (machine.core_dumps, "-C"),
    ];
    args.extend(switches.into_iter().filter(|(on, _)| *on).map(|(_, switch)| switch.to_owned()));
    let mut add = |option: &str, value: String| args.extend([option.to_owned(), value]);
    let state_dir = machine.state_dir.as_deref().map(|dir| utf8("state_dir", dir)).transpose()?.unwrap_or_default();

    if !machine.mptable {
        add("-Y", "1".to_owned()); // it takes an argument, and looks at none
    }
    if let Some(port) = machine.gdb_port {
        add("-g", port.to_string());
    }
    if !state_dir.is_empty() {
        add("-F", utf8("state_dir", &Path::new(state_dir).join(PID_FILE))?.to_owned());
    }
    add("-c", machine.cpus.to_string());
    add("-m", format!("{}M", machine.memory));
    add("-s", "0:0,hostbridge".to_owned());
    add("-s", "31,lpc".to_owned());

    let mut uuid = machine.uuid.clone();
    for (slot, device) in layout(machine)? {
        // The Go package puts the UUID behind the network cards and before everything else.
        if !matches!(device, Device::Network(_)) {
            uuid.take().into_iter().for_each(|uuid| add("-U", uuid));
        }
        // It gives a function to some and not to others, which means the same.
        let function = if matches!(device, Device::Network(_) | Device::Disk { .. }) { ":0" } else { "" };
        add("-s", format!("{slot}{function},{}", config(machine, device)?));
    }
    uuid.into_iter().for_each(|uuid| add("-U", uuid));
    for port in ports(machine)? {
        add("-l", serial(&port, state_dir));
    }
    add("-f", firmware(machine, cmdline)?);
    args.extend(machine.extra_arguments.iter().cloned());
    Ok(args)
}

/// The driver of a device and its options.
fn config(machine: &HyperKit, device: Device<'_>) -> Result<String> {
    let option = |name: &str, value: &Option<String>| value.as_ref().map(|value| format!(",{name}={value}"));
    Ok(match device {
        Device::Network(Network::VpnKit(network)) => {
            let path = match network {
                VpnKit::Socket(path) => path.clone(),
                _ => vpnkit_sockets().swap_remove(0),
            };
            let uuid = option("uuid", &machine.vpnkit_key).unwrap_or_default();
            let address = option("preferred_ipv4", &machine.vpnkit_preferred_ipv4).unwrap_or_default();
            format!("virtio-vpnkit,path={}{uuid}{address}", utf8("vpnkit", &path)?)
        }
        Device::Network(Network::Vmnet) => "virtio-net".to_owned(),
        Device::Network(Network::Tap(name)) => {
            format!("virtio-tap,{name}{}", option("mac", &machine.mac).unwrap_or_default())
        }
        Device::Disk { image, index } => {
            let path = image.place(index, machine.state_dir.as_deref())?;
            disk(image, utf8("disks", &path)?)?
        }
        Device::Vsock => {
            let dir = machine.vsock_place();
            let ports: Vec<_> = machine.vsock_ports.iter().map(u32::to_string).collect();
            let forwards =
                if ports.is_empty() { String::new() } else { format!(",guest_forwards={}", ports.join(";")) };
            format!("virtio-sock,guest_cid={},path={}{forwards}", machine.vsock_guest_cid, utf8("vsock_dir", dir)?)
        }
        Device::Iso(image) => format!("ahci-cd,{}", utf8("isos", image)?),
        Device::Random => "virtio-rnd".to_owned(),
        Device::Share(share) => match &share.server {
            Server9p::Path(path) => format!("virtio-9p,path={},tag={}", utf8("sockets_9p", path)?, share.tag),
            Server9p::Port(port) => format!("virtio-9p,port={port},tag={}", share.tag),
        },
    })
}

fn disk(image: &Disk, path: &str) -> Result<String> {
    let mut config = image.driver.word().to_owned();
    match image.format_by_name() {
        // `format=raw` is what hyperkit refuses, though the Go package passes it on.
        Format::Raw => write!(config, ",{path}"),
        Format::Qcow2(qcow) => {
            if !path.starts_with('/') {
                return Err(Error::Relative { field: "disks", path: path.into() });
            }
            let stats = qcow.stats.as_ref().map(|stats| format!(",qcow-stats-config={stats}")).unwrap_or_default();
            write!(
                config,
                ",{}?sync={}&buffered=1,format=qcow{stats},qcow-config=discard={};compact_after_unmaps={};keep_erased={};runtime_asserts={}",
                url(path),
                qcow.on_flush.word(),
                image.trim,
                qcow.compact_after,
                qcow.keep_erased,
                qcow.runtime_asserts
            )
        }
    }
    .unwrap_or_default(); // a String takes everything
    let sector_size = image.sector_size.map(|size| format!(",sectorsize={size}")).unwrap_or_default();
    let options = [(image.read_only, ",ro"), (image.sync, ",sync")];
    let options: String = options.into_iter().filter(|(on, _)| *on).map(|(_, option)| option).collect();
    Ok(config + &options + &sector_size)
}

/// A path as the URL that a qcow2 image is named by. What has a meaning in URLs is escaped, which the Go package forgot.
pub(super) fn url(path: &str) -> String {
    let mut url = "file://".to_owned();
    for byte in path.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'/' | b'-' | b'.' | b'_' | b'~' => url.push(byte.into()),
            other => write!(url, "%{other:02X}").unwrap_or_default(),
        }
    }
    url
}

fn serial(port: &Port, state_dir: &str) -> String {
    let line = match port.line {
        Line::None => "null".to_owned(),
        Line::Stdio => "stdio".to_owned(),
        Line::Tty(file) => format!("autopty={state_dir}/{file}"),
    };
    let log = port.log.map(|file| format!(",log={state_dir}/{file}")).unwrap_or_default();
    format!("{},{line}{log}{}", port.name, if port.asl { ",asl" } else { "" })
}

fn firmware(machine: &HyperKit, cmdline: &str) -> Result<String> {
    if let Some(rom) = &machine.bootrom {
        return Ok(format!("bootrom,{},,", utf8("bootrom", rom)?));
    }
    if let Some(Multiboot { kernel, modules }) = &machine.multiboot {
        let modules = modules.iter().map(|module| {
            let args = if module.cmdline.is_empty() { String::new() } else { format!(";{}", module.cmdline) };
            Ok(format!("{}{args}", utf8("multiboot", &module.path)?))
        });
        let modules = modules.collect::<Result<Vec<_>>>()?.join(":");
        return Ok(format!("multiboot,{},{modules},{cmdline}", utf8("multiboot", kernel)?));
    }
    let kernel = machine.kernel.as_deref().ok_or(Error::Missing { field: "kernel" })?;
    let initrd = machine.initrd.as_deref().unwrap_or(Path::new(""));
    let cmdline = kernel_command_line(cmdline);
    Ok(format!("kexec,{},{},{cmdline}", utf8("kernel", kernel)?, utf8("initrd", initrd)?))
}
