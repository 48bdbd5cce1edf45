//! TODO

use std::fs;

use crate::common::Files;

const UUID: &str = "1f0e6d3c-5f2b-4b6e-8f11-2a7d9f1c0b55";

/// hyperkit alone knows which address vmnet will give the guest, and is asked before the machine is there.
#[test]
fn the_mac_address_of_vmnet_is_recorded() {
    let files = Files::new();
    let _end = files.ended();
    let mut machine = files.machine().vmnet(true).uuid(UUID);
    let vm = machine.start("guest").unwrap();
    let state: serde_json::Value = serde_json::from_slice(&fs::read(files.path("vm/hyperkit.json")).unwrap()).unwrap();
    assert_eq!(state["vmnet_mac"], "02:00:00:00:00:01");
    assert_eq!(vm.addresses().unwrap(), [], "no lease was given here");
    vm.stop().unwrap();

    let machine = files.machine().vpnkit_preferred_ipv4("192.168.65.9").vpnkit_key(UUID);
    let socket = files.path("vpnkit.sock");
    let _vpnkit = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let vm = machine.vpnkit(hyperkit::VpnKit::Socket(socket)).start("guest").unwrap();
    assert_eq!(vm.addresses().unwrap(), [(hyperkit::Card::VpnKit, "192.168.65.9".parse().unwrap())]);
}
