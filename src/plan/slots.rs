//! The devices of a machine in their PCI slots, the same for every engine.

use std::path::Path;

use crate::config::disk::Disk;
use crate::config::{HyperKit, Socket9p, VpnKit};
use crate::error::{Error, Result};

/// Slots 1 to 30: the host bridge is in slot 0, the LPC bridge with the serial ports in slot 31.
const FIRST: u8 = 1;
const LAST: u8 = 30;

/// What can be in a slot.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Device<'a> {
    Network(Network<'a>),
    Disk { image: &'a Disk, index: usize },
    Vsock,
    Iso(&'a Path),
    Random,
    Share(&'a Socket9p),
}

/// What a network card is connected with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Network<'a> {
    VpnKit(&'a VpnKit),
    Vmnet,
    Tap(&'a str),
}

/// The devices in order with their slots. The order is the Go package's, so that a guest finds each where it was.
pub(crate) fn layout(machine: &HyperKit) -> Result<Vec<(u8, Device<'_>)>> {
    let vpnkit = (machine.vpnkit != VpnKit::None).then_some(Network::VpnKit(&machine.vpnkit));
    let vmnet = machine.vmnet.then_some(Network::Vmnet);
    let tap = machine.tap.as_deref().map(Network::Tap);
    let networks = vpnkit.into_iter().chain(vmnet).chain(tap).map(Device::Network);
    let disks = machine.disks.iter().enumerate().map(|(index, image)| Device::Disk { image, index });
    let vsock = machine.vsock.then_some(Device::Vsock);
    let isos = machine.isos.iter().map(|iso| Device::Iso(iso));
    let random = machine.random.then_some(Device::Random);
    let shares = machine.sockets_9p.iter().map(Device::Share);
    let devices: Vec<_> = networks.chain(disks).chain(vsock).chain(isos).chain(random).chain(shares).collect();
    if devices.len() > usize::from(LAST - FIRST + 1) {
        return Err(Error::TooManyDevices { count: devices.len() });
    }
    Ok((FIRST..=LAST).zip(devices).collect())
}
