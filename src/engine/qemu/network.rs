//! QEMU's user-mode networks: addresses and forwarded ports.

use std::net::Ipv4Addr;

use crate::config::{HyperKit, PortForward};
use crate::error::Result;
use crate::plan::slots::{Device, Network, layout};

/// The network that Apple's vmnet has, so that a guest with two cards is not twice in one.
pub(super) const VMNET: [u8; 3] = [192, 168, 64];

/// What the user-mode network's DHCP gives first, and to its only guest: .15.
pub(crate) const VMNET_ADDRESS: Ipv4Addr = Ipv4Addr::new(VMNET[0], VMNET[1], VMNET[2], 15);

/// The same on the card that is in VPNKit's place, where QEMU's own network is 10.0.2.0.
pub(crate) fn vpnkit_address(machine: &HyperKit) -> Ipv4Addr {
    preferred_address(machine).map_or(Ipv4Addr::new(10, 0, 2, 15), Ipv4Addr::from)
}

pub(super) fn preferred_address(machine: &HyperKit) -> Option<[u8; 4]> {
    Some(machine.vpnkit_preferred_ipv4.as_ref()?.parse::<Ipv4Addr>().ok()?.octets())
}

/// The network of the preferred address, in which DHCP gives that one first.
pub(super) fn subnet(machine: &HyperKit) -> String {
    match preferred_address(machine) {
        Some([a, b, c, d]) => format!(",net={a}.{b}.{c}.0/24,dhcpstart={a}.{b}.{c}.{d}"),
        None => String::new(),
    }
}

/// Ports lead to the first card on the user-mode network.
pub(super) fn forwards(machine: &HyperKit, slot: u8) -> Result<String> {
    let is_user = |device: &Device<'_>| matches!(device, Device::Network(Network::VpnKit(_) | Network::Vmnet));
    let first = layout(machine)?.into_iter().find(|(_, device)| is_user(device));
    if first.is_none_or(|(first, _)| first != slot) {
        return Ok(String::new());
    }
    let forward = |to: &PortForward| format!(",hostfwd={}:127.0.0.1:{}-:{}", to.protocol, to.host, to.guest);
    Ok(machine.port_forwards.iter().map(forward).collect())
}
