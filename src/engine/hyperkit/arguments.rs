//! A description as arguments of `hyperkit`, which has no quoting: a comma always separates.

use std::fmt::Write;
use std::path::Path;

use crate::config::disk::{Disk, DiskFormat};
use crate::config::{HyperKit, Multiboot, Network, Share9pSource};
use crate::engine::hyperkit::{NO_INTERNAL_NETWORK, NO_ROOT, NO_VIRTIOFS, unsupported, vpnkit};
use crate::error::ConfigError;
use crate::plan::kernel_cmdline::with_early_console;
use crate::plan::serial_ports::{Line, Port, ports};
use crate::plan::slots::{Device, NicBackend, layout};
use crate::plan::text::utf8;
use crate::state::PID_FILE;
use crate::sys::path::clean;

type Result<T> = std::result::Result<T, ConfigError>;

/// The arguments, in the order of the Go package.
pub(super) fn arguments(description: &HyperKit, cmdline: &str) -> Result<Vec<String>> {
    let mut args = vec!["-A".to_owned()];
    let switches = [
        (description.utc, "-u"),
        (description.exit_on_hlt, "-H"),
        (description.exit_on_pause, "-P"),
        (description.x2apic, "-x"),
        (!description.msix, "-W"),
        (description.core_dumps, "-C"),
    ];
    args.extend(switches.into_iter().filter(|(on, _)| *on).map(|(_, switch)| switch.to_owned()));
    let mut add = |option: &str, value: String| args.extend([option.to_owned(), value]);
    let state_dir = description.state_dir.as_deref().map(|dir| utf8("state_dir", dir)).transpose()?.unwrap_or_default();

    if !description.mptable {
        add("-Y", "1".to_owned()); // it requires an argument and ignores it
    }
    if let Some(port) = description.gdb_port {
        add("-g", port.to_string());
    }
    if !state_dir.is_empty() {
        // The Go package cleans this path and the paths of disks in the state directory, but no others.
        add("-F", utf8("state_dir", &clean(&Path::new(state_dir).join(PID_FILE)))?.to_owned());
    }
    add("-c", description.cpus.to_string());
    add("-m", format!("{}M", description.memory_mib));
    add("-s", "0:0,hostbridge".to_owned());
    add("-s", "31,lpc".to_owned());

    let mut uuid = description.uuid.clone();
    for (slot, device) in layout(description)? {
        // The Go package puts the UUID between the network cards and everything else.
        if !matches!(device, Device::Nic(_)) {
            uuid.take().into_iter().for_each(|uuid| add("-U", uuid));
        }
        // The Go package writes `1:0` for cards and disks and `1` for other devices. hyperkit treats both alike.
        let function = if matches!(device, Device::Nic(_) | Device::Disk { .. }) { ":0" } else { "" };
        if let Some(config) = device_config(description, device)? {
            add("-s", format!("{slot}{function},{config}"));
        }
    }
    uuid.into_iter().for_each(|uuid| add("-U", uuid));
    for port in ports(description)? {
        add("-l", serial(&port, state_dir));
    }
    add("-f", firmware(description, cmdline)?);
    args.extend(description.extra_arguments.iter().cloned());
    Ok(args)
}

/// The driver of a device and its options. `None` if hyperkit needs no device for it.
fn device_config(description: &HyperKit, device: Device<'_>) -> Result<Option<String>> {
    let option = |name: &str, value: &Option<String>| value.as_ref().map(|value| format!(",{name}={value}"));
    Ok(Some(match device {
        Device::Nic(NicBackend::Network(network)) => {
            let path = match network {
                Network::VpnKit(path) => path.clone(),
                _ => vpnkit::sockets().swap_remove(0),
            };
            let uuid = option("uuid", &description.vpnkit_key).unwrap_or_default();
            let address = option("preferred_ipv4", &description.vpnkit_preferred_ipv4).unwrap_or_default();
            format!("virtio-vpnkit,path={}{uuid}{address}", utf8("network", &path)?)
        }
        Device::Nic(NicBackend::Vmnet) => "virtio-net".to_owned(),
        Device::Nic(NicBackend::Tap(name)) => {
            format!("virtio-tap,{name}{}", option("mac", &description.mac).unwrap_or_default())
        }
        Device::Disk { image, index } => {
            let path = image.image_path(index, description.state_dir.as_deref())?;
            let path = if image.path.is_none() { clean(&path) } else { path };
            disk(image, utf8("disks", &path)?)?
        }
        Device::Vsock => {
            let dir = description.vsock_sockets_dir();
            let ports: Vec<_> = description.vsock_ports.iter().map(u32::to_string).collect();
            let forwards =
                if ports.is_empty() { String::new() } else { format!(",guest_forwards={}", ports.join(";")) };
            format!("virtio-sock,guest_cid={},path={}{forwards}", description.vsock_guest_cid, utf8("vsock_dir", dir)?)
        }
        Device::Agent => return Ok(None), // it uses vsock
        // `unsupported` refuses these. hyperkit has no virtiofs, and shares no directory by itself.
        Device::Root(_) => return Err(unsupported(NO_ROOT)),
        Device::Virtiofs { .. } => return Err(unsupported(NO_VIRTIOFS)),
        Device::InternalNetwork(_) => return Err(unsupported(NO_INTERNAL_NETWORK)),
        Device::Iso(image) => format!("ahci-cd,{}", utf8("isos", image)?),
        Device::Random => "virtio-rnd".to_owned(),
        Device::Share(share) => match &share.source {
            Share9pSource::Path(path) => format!("virtio-9p,path={},tag={}", utf8("shares_9p", path)?, share.tag),
            Share9pSource::Port(port) => format!("virtio-9p,port={port},tag={}", share.tag),
        },
    }))
}

fn disk(image: &Disk, path: &str) -> Result<String> {
    let mut config = image.interface.word().to_owned();
    match image.format_by_name() {
        // hyperkit refuses `format=raw`, though the Go package passes it.
        DiskFormat::Raw => write!(config, ",{path}"),
        DiskFormat::Qcow2(qcow) => {
            if !path.starts_with('/') {
                return Err(ConfigError::RelativePath { field: "disks", path: path.into() });
            }
            let stats = qcow.stats.as_ref().map(|stats| format!(",qcow-stats-config={stats}")).unwrap_or_default();
            write!(
                config,
                ",{}?sync={}&buffered=1,format=qcow{stats},qcow-config=discard={};compact_after_unmaps={};keep_erased={};runtime_asserts={}",
                escape_url(path),
                qcow.flush.word(),
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

/// The URL by which hyperkit names a qcow2 image. Characters with a meaning in URLs are escaped, which the Go package forgot.
pub(super) fn escape_url(path: &str) -> String {
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
        Line::Pty(file) => format!("autopty={state_dir}/{file}"),
    };
    let log = port.log.map(|file| format!(",log={state_dir}/{file}")).unwrap_or_default();
    // The order is that of the newest Go package. The package of 2018 writes the log first.
    format!("{},{line}{}{log}", port.name, if port.apple_log { ",asl" } else { "" })
}

fn firmware(description: &HyperKit, cmdline: &str) -> Result<String> {
    if let Some(rom) = &description.bootrom {
        return Ok(format!("bootrom,{},,", utf8("bootrom", rom)?));
    }
    if let Some(Multiboot { kernel, modules }) = &description.multiboot {
        let modules = modules.iter().map(|module| {
            let args = if module.cmdline.is_empty() { String::new() } else { format!(";{}", module.cmdline) };
            Ok(format!("{}{args}", utf8("multiboot", &module.path)?))
        });
        let modules = modules.collect::<Result<Vec<_>>>()?.join(":");
        return Ok(format!("multiboot,{},{modules},{cmdline}", utf8("multiboot", kernel)?));
    }
    let kernel = description.kernel.as_deref().ok_or(ConfigError::Missing { field: "kernel" })?;
    let initrd = description.initrd.as_deref().unwrap_or(Path::new(""));
    let cmdline = with_early_console(description, cmdline);
    Ok(format!("kexec,{},{},{cmdline}", utf8("kernel", kernel)?, utf8("initrd", initrd)?))
}
