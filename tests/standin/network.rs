//! Addresses of the guest's network cards.

use std::fs;

use hyperkit::{Network, NicKind};

use crate::common::TestDir;

const UUID: &str = "1f0e6d3c-5f2b-4b6e-8f11-2a7d9f1c0b55";

/// Only hyperkit can tell which MAC address vmnet will assign. `start` runs hyperkit with `-M` for that, before it starts
/// the VM.
#[test]
fn vmnet_mac_address_and_preferred_address_are_recorded() {
    let test_dir = TestDir::new();
    let _stop = test_dir.stop_on_drop();
    let description = test_dir.description().vmnet(true).uuid(UUID);
    let vm = description.start("guest").unwrap();
    let state: serde_json::Value =
        serde_json::from_slice(&fs::read(test_dir.path("vm/hyperkit.json")).unwrap()).unwrap();
    assert_eq!(state["vmnet_mac"], "02:00:00:00:00:01");
    assert_eq!(vm.addresses().unwrap(), [], "an address without a DHCP lease");
    vm.kill().unwrap();

    let description = test_dir.description().vpnkit_preferred_ipv4("192.168.65.9").vpnkit_key(UUID);
    let socket = test_dir.path("vpnkit.sock");
    let _vpnkit = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let vm = description.network(Network::VpnKit(socket)).start("guest").unwrap();
    assert_eq!(vm.addresses().unwrap(), [(NicKind::Network, "192.168.65.9".parse().unwrap())]);
}
