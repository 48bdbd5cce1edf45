//! Reads descriptions and records.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::{self, DeserializeOwned, Deserializer};
use serde_json::{Map, Value};

use super::folding::{DESCRIPTION, RECORD, folded};
use super::{disk, optional};
use crate::config::HyperKit;
use crate::config::disk::{Disk, DiskInterface};
use crate::config::record::{Home, Record};

pub(super) type Object = Map<String, Value>;

/// Removes a key and returns its value, if it is set.
pub(super) fn take<T: DeserializeOwned, E: de::Error>(from: &mut Object, key: &str) -> Result<Option<T>, E> {
    let value = from.remove(key).unwrap_or_default();
    optional(value).map_err(|error| E::custom(format_args!("`{key}`: {error}")))
}

/// Like [`take`], with the default of the type if the key is not set.
pub(super) fn take_or_default<T: DeserializeOwned + Default, E: de::Error>(
    from: &mut Object,
    key: &str,
) -> Result<T, E> {
    Ok(take(from, key)?.unwrap_or_default())
}

/// Like [`take`], for a number that is unset if it is 0.
pub(super) fn take_count<T, E>(from: &mut Object, key: &str) -> Result<Option<T>, E>
where
    T: DeserializeOwned + Default + PartialEq,
    E: de::Error,
{
    Ok(take(from, key)?.filter(|count| *count != T::default()))
}

/// `iso`: a string, or a list of two or more images.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a path or a list of paths")]
enum Isos {
    One(PathBuf),
    Many(Vec<Option<PathBuf>>),
}

impl<'de> Deserialize<'de> for HyperKit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let from = &mut folded(deserializer, &DESCRIPTION, false)?;
        let default = Self::default();
        let mut isos = match take(from, "iso")? {
            None => Vec::new(),
            Some(Isos::One(one)) => vec![one],
            Some(Isos::Many(many)) => many.into_iter().flatten().collect(),
        };
        isos.retain(|iso| !iso.as_os_str().is_empty());
        // Later versions of the Go package call `vpnkit_key` `vpnkit_uuid`.
        let (vpnkit_key, vpnkit_uuid) = (take(from, "vpnkit_key")?, take(from, "vpnkit_uuid")?);
        let is_later_go = !from.contains_key("disk");
        let has_driver = |disk: &Value| disk["driver"].as_str().is_some_and(|driver| !driver.is_empty());
        let disks = from.get("disks").and_then(Value::as_array).into_iter().flatten();
        let may_be_ahci: Vec<_> = disks.map(|disk| is_later_go && !has_driver(disk)).collect();
        let mut description = Self {
            hyperkit: take(from, "hyperkit")?,
            argv0: take(from, "argv0")?,
            state_dir: take(from, "state_dir")?,
            network: take_or_default(from, "vpnkit_sock")?,
            vpnkit_key: vpnkit_key.or(vpnkit_uuid),
            vpnkit_preferred_ipv4: take(from, "vpnkit_preferred_ipv4")?,
            vmnet: take_or_default(from, "vmnet")?,
            tap: take(from, "tap")?,
            mac: take(from, "mac")?,
            port_forwards: take_or_default(from, "port_forwards")?,
            internal_networks: take_or_default(from, "internal_networks")?,
            uuid: take(from, "uuid")?,
            disks: disk::read_disks(from)?,
            isos,
            vsock: take_or_default(from, "vsock")?,
            vsock_dir: take(from, "vsock_dir")?,
            vsock_ports: take_or_default(from, "vsock_ports")?,
            vsock_guest_cid: take(from, "vsock_guest_cid")?.unwrap_or(default.vsock_guest_cid),
            vhost_device_vsock: take(from, "vhost_device_vsock")?,
            random: take(from, "random")?.unwrap_or(default.random),
            agent: take_or_default(from, "agent")?,
            root: take_or_default(from, "root")?,
            shares_9p: take_or_default(from, "9p_sockets")?,
            shares_virtiofs: take_or_default(from, "virtiofs")?,
            virtiofsd: take(from, "virtiofsd")?,
            kernel: take(from, "kernel")?,
            initrd: take(from, "initrd")?,
            bootrom: take(from, "bootrom")?,
            multiboot: take(from, "multiboot")?,
            cpus: take(from, "cpus")?.unwrap_or(default.cpus),
            cpu: take(from, "cpu")?,
            memory_mib: take(from, "memory")?.unwrap_or(default.memory_mib),
            console: take(from, "console")?,
            serials: take(from, "serials")?,
            utc: take(from, "utc")?.unwrap_or(default.utc),
            exit_on_hlt: take_or_default(from, "exit_on_hlt")?,
            exit_on_pause: take_or_default(from, "exit_on_pause")?,
            x2apic: take_or_default(from, "x2apic")?,
            msix: take(from, "msix")?.unwrap_or(default.msix),
            mptable: take(from, "mptable")?.unwrap_or(default.mptable),
            core_dumps: take_or_default(from, "core_dumps")?,
            sandbox: take(from, "sandbox")?.unwrap_or(default.sandbox),
            gdb_port: take_count(from, "gdb_port")?,
            extra_arguments: take_or_default(from, "extra_arguments")?,
            labels: take_or_default(from, "labels")?,
            record: take_record(from)?,
            unknown: std::mem::take(from),
        };
        let may_be_ahci =
            description.disks.iter_mut().zip(may_be_ahci).filter_map(|(disk, may_be)| may_be.then_some(disk));
        restore_interfaces(may_be_ahci, &description.record.arguments);
        Ok(description)
    }
}

impl<'de> Deserialize<'de> for Record {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        take_record(&mut folded(deserializer, &RECORD, true)?)
    }
}

fn take_record<E: de::Error>(from: &mut Object) -> Result<Record, E> {
    Ok(Record {
        pid: take_count(from, "pid")?,
        arguments: take_or_default(from, "arguments")?,
        cmdline: take_or_default(from, "cmdline")?,
        pid_started: take_count(from, "pid_started")?,
        pid_identity: take(from, "pid_identity")?,
        killed: take_or_default(from, "killed")?,
        vmnet_mac: take(from, "vmnet_mac")?,
        created_disks: take_or_default(from, "made_disks")?,
        home: Home::default(),
    })
}

/// Between 2017-11-23 and 2020-03-06 the Go package attached a disk with `trim` as `ahci-hd`, and afterwards as `virtio-blk`. The
/// state files do not contain the interface, but the recorded arguments do. Without recorded arguments, the disk counts as
/// attached by the later package.
fn restore_interfaces<'a>(disks: impl Iterator<Item = &'a mut Disk>, arguments: &[String]) {
    let ahci = arguments.windows(2).filter(|pair| pair[0] == "-s").filter_map(|pair| {
        let (_, device) = pair[1].split_once(',')?;
        let config = device.strip_prefix("ahci-hd,")?;
        let path = config.split(',').next().unwrap_or_default();
        Some(path.strip_prefix("file://").map_or(path, |url| url.split_once('?').map_or(url, |(path, _)| path)))
    });
    let ahci: Vec<_> = ahci.collect();
    for disk in disks.filter(|disk| disk.trim) {
        if disk.path.as_deref().is_some_and(|path| ahci.iter().any(|other| Path::new(other) == path)) {
            disk.interface = DiskInterface::Ahci;
        }
    }
}
