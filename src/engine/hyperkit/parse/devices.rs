//! The devices in their slots, as fields of a description.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use super::{Slots, check_so_far, device, extra, invalid};
use crate::config::disk::{Disk, DiskFormat, DiskInterface, FlushMode, QcowOptions};
use crate::config::file_url::{file_url, percent_decoded};
use crate::config::{HyperKit, Network, Share9p, Share9pSource};
use crate::error::Result;
use crate::sys::path::clean;

/// `key=value` between separators, each key once.
fn keys(text: &str, separator: char) -> Option<BTreeMap<&str, &str>> {
    let mut keys = BTreeMap::new();
    for option in text.split(separator).filter(|_| !text.is_empty()) {
        let (key, value) = option.split_once('=')?;
        if keys.insert(key, value).is_some() {
            return None;
        }
    }
    Some(keys)
}

/// Reads the devices from slot 1 on into fields, as long as they come in the order of
/// [`layout`](crate::plan::slots::layout). All others, and those on functions and buses other than 0, become extra
/// arguments.
///
/// Refuses a raw disk whose path is an unsupported URL: hyperkit would take the URL for a path.
pub(super) fn read(slots: &Slots, description: &mut HyperKit) -> Result<()> {
    let mut last = Rank::Network;
    let mut next_slot = 1;
    for (&(bus, slot, function), value) in slots {
        if bus == 0 && function == 0 && (slot == 0 || slot == 31) {
            continue;
        }
        let fits = (bus, slot, function) == (0, next_slot, 0);
        if let Some(("virtio-blk" | "ahci-hd", config)) = device(value).split_once(',') {
            let path = config.split(',').next().unwrap_or_default();
            if let (false, Err(violation)) = (config.contains(",format=qcow"), file_url(Path::new(path))) {
                return invalid(value, violation.to_string());
            }
        }
        let described = if fits { add(device(value), description, slot == 1) } else { None };
        match described {
            Some((rank, changed))
                if (rank > last || (rank == last && (slot == 1 || rank.repeats())))
                    && check_so_far(&changed, value).is_ok() =>
            {
                (last, *description) = (rank, changed);
                next_slot += 1;
            }
            _ => extra(description, "-s", value),
        }
    }
    Ok(())
}

/// The order of devices.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
enum Rank {
    Network,
    Vmnet,
    Tap,
    Disk,
    Vsock,
    Iso,
    Random,
    Share,
}

impl Rank {
    fn repeats(self) -> bool {
        matches!(self, Self::Disk | Self::Iso | Self::Share)
    }
}

/// The description with one more device, if a field can express it.
fn add(device: &str, description: &HyperKit, is_first: bool) -> Option<(Rank, HyperKit)> {
    let mut description = description.clone();
    let (driver, config) = device.split_once(',').unwrap_or((device, ""));
    let rank = match driver {
        "virtio-vpnkit" => {
            let mut keys = keys(config, ',')?;
            description.network = Network::VpnKit(keys.remove("path")?.into());
            description.vpnkit_key = keys.remove("uuid").map(str::to_owned);
            description.vpnkit_preferred_ipv4 = keys.remove("preferred_ipv4").map(str::to_owned);
            keys.is_empty().then_some(Rank::Network)?
        }
        "virtio-net" if config.is_empty() => {
            description.vmnet = true;
            Rank::Vmnet
        }
        "virtio-tap" => {
            let (name, mac) = config.split_once(',').map_or((config, None), |(name, mac)| (name, Some(mac)));
            description.tap = Some(name.to_owned());
            description.mac = match mac {
                Some(mac) => Some(mac.strip_prefix("mac=").filter(|_| is_first)?.to_owned()),
                None => None,
            };
            Rank::Tap
        }
        "virtio-blk" | "ahci-hd" => {
            description.disks.push(disk(DiskInterface::from_word(driver)?, config)?);
            Rank::Disk
        }
        "virtio-sock" => {
            let mut keys = keys(config, ',')?;
            description.vsock = true;
            description.vsock_guest_cid = keys.remove("guest_cid")?.parse().ok()?;
            let dir = Path::new(keys.remove("path")?);
            let is_own = description.state_dir.as_deref().is_none_or(|state| clean(state) != clean(dir));
            description.vsock_dir = is_own.then(|| dir.to_owned());
            let ports = keys.remove("guest_forwards").filter(|ports| !ports.is_empty());
            let ports = ports.into_iter().flat_map(|ports| ports.split(';')).map(str::parse);
            description.vsock_ports = ports.collect::<Result<_, _>>().ok()?;
            keys.is_empty().then_some(Rank::Vsock)?
        }
        "ahci-cd" if !config.is_empty() && !config.contains(',') => {
            description.isos.push(config.into());
            Rank::Iso
        }
        "virtio-rnd" if config.is_empty() => {
            description.random = true;
            Rank::Random
        }
        "virtio-9p" => {
            let mut keys = keys(config, ',')?;
            let source = match (keys.remove("path"), keys.remove("port")) {
                (Some(path), None) => Share9pSource::Path(path.into()),
                (None, Some(port)) => Share9pSource::Port(port.parse().ok()?),
                _ => return None,
            };
            let tag = keys.remove("tag").unwrap_or("plan9").to_owned();
            description.shares_9p.push(Share9p { source, tag });
            keys.is_empty().then_some(Rank::Share)?
        }
        _ => return None,
    };
    Some((rank, description))
}

fn disk(interface: DiskInterface, config: &str) -> Option<Disk> {
    let mut options = config.split(',');
    let path = options.next()?;
    let mut disk = Disk { interface, ..Disk::raw(path) };
    let (mut is_qcow, mut stats, mut options_text) = (false, None, None);
    for option in options {
        // hyperkit compares whole words: `ro=` is not `ro` (blockif_open in block_if.c).
        let Some((key, value)) = option.split_once('=') else {
            match option {
                "ro" => disk.read_only = true,
                "sync" | "direct" => disk.sync = true,
                _ => return None,
            }
            continue;
        };
        match (key, value) {
            ("sectorsize", size) => disk.sector_size = Some(size.parse().ok()?),
            ("format", "raw") => {} // hyperkit refuses it, though the Go package passes it on
            ("format", "qcow") => is_qcow = true,
            ("qcow-stats-config", stats_config) => stats = Some(stats_config.to_owned()),
            ("qcow-config", config) => options_text = Some(config),
            _ => return None,
        }
    }
    match (is_qcow, stats, options_text) {
        (false, None, None) => disk.without_url(|disk| Ok(disk.format_by_name())).ok().map(Cow::into_owned),
        (true, stats, text) => qcow2(disk, path, stats, text.unwrap_or_default()),
        _ => None,
    }
}

/// The disk with a qcow2 image, which is named by a URL.
fn qcow2(mut disk: Disk, url: &str, stats: Option<String>, options: &str) -> Option<Disk> {
    let (path, query) = url.strip_prefix("file://")?.split_once('?')?;
    disk.path = Some(percent_decoded(path).filter(|path| path.starts_with('/'))?.into());
    let mut query = keys(query, '&')?;
    let mut qcow = QcowOptions { flush: FlushMode::from_word(query.remove("sync")?)?, stats, ..QcowOptions::default() };
    (query.remove("buffered") == Some("1") && query.is_empty()).then_some(())?;
    for (key, value) in keys(options, ';')? {
        match key {
            "discard" => disk.trim = value.parse().ok()?,
            "compact_after_unmaps" => qcow.compact_after = value.parse().ok()?,
            "keep_erased" => qcow.keep_erased = value.parse().ok()?,
            "runtime_asserts" => qcow.runtime_asserts = value.parse().ok()?,
            _ => return None,
        }
    }
    Some(Disk { format: Some(DiskFormat::Qcow2(qcow)), ..disk })
}
