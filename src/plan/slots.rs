//! The PCI slots of a VM's devices, the same for every engine.

use std::path::Path;

use crate::config::disk::Disk;
use crate::config::{HyperKit, InternalNetwork, Network, Share9p, ShareVirtiofs};
use crate::error::ConfigError;
use crate::plan::limits::MAX_DEVICES;
use crate::plan::root::root_dir;

/// A device in a slot.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Device<'a> {
    Nic(NicBackend<'a>),
    Disk {
        image: &'a Disk,
        index: usize,
    },
    Vsock,
    Iso(&'a Path),
    Random,
    Share(&'a Share9p),
    Virtiofs {
        share: &'a ShareVirtiofs,
        index: usize,
    },
    /// The bus of the agent's serial port.
    Agent,
    /// The directory of the host that is the guest's root.
    Root(&'a Path),
    InternalNetwork(&'a InternalNetwork),
}

/// What a network card is connected to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum NicBackend<'a> {
    Network(&'a Network),
    Vmnet,
    Tap(&'a str),
}

/// The devices with their slots, from slot 1 on. The order is the Go package's, so that a guest of that package finds each
/// device in the same slot.
pub(crate) fn layout(description: &HyperKit) -> Result<Vec<(u8, Device<'_>)>, ConfigError> {
    let network = (description.network != Network::None).then_some(NicBackend::Network(&description.network));
    let vmnet = description.vmnet.then_some(NicBackend::Vmnet);
    let tap = description.tap.as_deref().map(NicBackend::Tap);
    let nics = network.into_iter().chain(vmnet).chain(tap).map(Device::Nic);
    let disks = description.disks.iter().enumerate().map(|(index, image)| Device::Disk { image, index });
    let vsock = description.vsock.then_some(Device::Vsock);
    let isos = description.isos.iter().map(|iso| Device::Iso(iso));
    let random = description.random.then_some(Device::Random);
    let shares = description.shares_9p.iter().map(Device::Share);
    // Devices that the Go package does not have are last, so that no other device changes its slot.
    let agent = description.agent.then_some(Device::Agent);
    let root = root_dir(description).map(Device::Root);
    let virtiofs = description.shares_virtiofs.iter().enumerate();
    let virtiofs = virtiofs.map(|(index, share)| Device::Virtiofs { share, index });
    let networks = description.internal_networks.iter().map(Device::InternalNetwork);
    let devices = nics.chain(disks).chain(vsock).chain(isos).chain(random).chain(shares).chain(agent).chain(root);
    let devices = devices.chain(virtiofs).chain(networks);
    let devices: Vec<_> = devices.collect();
    if devices.len() > MAX_DEVICES {
        return Err(ConfigError::TooManyDevices { count: devices.len(), max: MAX_DEVICES });
    }
    Ok((1..).zip(devices).collect())
}
