//! QEMU's user-mode networks: addresses and forwarded ports.

use std::net::Ipv4Addr;

use crate::config::{HyperKit, PortForward};
use crate::error::ConfigError;
use crate::plan::slots::{Device, NicBackend, layout};

/// The network of Apple's vmnet, so that the two cards of a guest are in different networks.
pub(super) const VMNET: [u8; 3] = [192, 168, 64];

/// The first address of the user-mode network's DHCP, which its only guest gets, is .15.
pub(super) const VMNET_ADDRESS: Ipv4Addr = Ipv4Addr::new(VMNET[0], VMNET[1], VMNET[2], 15);

/// The guest's address on the card of `network`; QEMU's default network is 10.0.2.0.
pub(super) fn network_address(description: &HyperKit) -> Ipv4Addr {
    preferred_address(description).map_or(Ipv4Addr::new(10, 0, 2, 15), Ipv4Addr::from)
}

pub(super) fn preferred_address(description: &HyperKit) -> Option<[u8; 4]> {
    Some(description.vpnkit_preferred_ipv4.as_ref()?.parse::<Ipv4Addr>().ok()?.octets())
}

/// The network of the preferred address, whose DHCP hands out that address first.
pub(super) fn subnet(description: &HyperKit) -> String {
    match preferred_address(description) {
        Some([a, b, c, d]) => format!(",net={a}.{b}.{c}.0/24,dhcpstart={a}.{b}.{c}.{d}"),
        None => String::new(),
    }
}

/// The forwarded ports, for the first card on a user-mode network; none for other slots.
pub(super) fn forwards(description: &HyperKit, slot: u8) -> Result<String, ConfigError> {
    let is_user = |device: &Device<'_>| matches!(device, Device::Nic(NicBackend::Network(_) | NicBackend::Vmnet));
    let first = layout(description)?.into_iter().find(|(_, device)| is_user(device));
    if first.is_none_or(|(first, _)| first != slot) {
        return Ok(String::new());
    }
    let forward = |to: &PortForward| format!(",hostfwd={}:127.0.0.1:{}-:{}", to.protocol, to.host, to.guest);
    Ok(description.port_forwards.iter().map(forward).collect())
}
