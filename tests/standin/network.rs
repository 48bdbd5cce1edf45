//! Addresses of the guest's network cards.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::time::Duration;

use hyperkit::{ConfigError, Error, Network, NicKind};

use crate::common::rejection::{assert_error, rejection_with};
use crate::common::vpnkit::{Handshake, listen_as_vpnkit};
use crate::common::{TestDir, wait_until};

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
    listen_as_vpnkit(&socket, Handshake::All);
    let vm = description.network(Network::VpnKit(socket)).start("guest").unwrap();
    assert_eq!(vm.addresses().unwrap(), [(NicKind::Network, "192.168.65.9".parse().unwrap())]);
}

/// hyperkit would wait for the greeting forever.
#[test]
fn socket_of_a_program_that_does_not_greet_as_vpnkit_is_rejected() {
    let test_dir = TestDir::new();
    listen_as_vpnkit(&test_dir.path("silent"), Handshake::Nothing);
    let answers_with = |name: &str, answer: &'static [u8]| {
        let listener = UnixListener::bind(test_dir.path(name)).unwrap();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                stream.read_exact(&mut [0; 49]).and_then(|()| stream.write_all(answer)).unwrap();
            }
        });
    };
    answers_with("short", b"VMN3T");
    answers_with("other", &[b'V'; 49]);
    // All bytes would take half a minute.
    let listener = UnixListener::bind(test_dir.path("slow")).unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                b"VMN3T".iter().cycle().take(49).try_for_each(|byte| {
                    std::thread::sleep(Duration::from_millis(600));
                    stream.write_all(&[*byte])
                })
            });
        }
    });
    for (name, part) in [
        ("silent", "the program that listens sends no greeting of VPNKit"),
        ("slow", "the program that listens sends no greeting of VPNKit"),
        ("short", "the program that listens closes the connection without a greeting of VPNKit"),
        ("other", "the program that listens is not VPNKit"),
    ] {
        let error = rejection_with(&test_dir, "", |d| d.network(Network::VpnKit(test_dir.path(name))));
        assert!(error.to_string().contains(part), "{error}");
        assert_error!(error, ConfigError::Inaccessible { field: "network", path, .. } if path == test_dir.path(name));
    }
}

/// VPNKit greets, and then does not answer. hyperkit waits forever.
#[test]
fn start_that_times_out_names_the_vpnkit_that_may_not_answer() {
    let test_dir = TestDir::new();
    let socket = test_dir.path("vpnkit");
    listen_as_vpnkit(&socket, Handshake::Greeting);
    let description = test_dir.description().network(Network::VpnKit(socket.clone()));
    let starting = description.spawn("guest").unwrap();
    wait_until("the hypervisor writes its pid file", || test_dir.path("vm/hyperkit.pid").exists());
    let error = starting.wait_ready(Duration::ZERO).unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&format!("VPNKit may not answer: {}", socket.display())), "{text}");
    assert_error!(error, Error::StartTimedOut { suspect: Some(path), .. } if path == socket);
}
