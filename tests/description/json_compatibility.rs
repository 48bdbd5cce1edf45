//! Compatibility with earlier versions of this crate: the same JSON, byte for byte.
//!
//! The lines of `tests/recorded/states.jsonl` were written by the crate before its API was rebuilt (commit 39de20d). In
//! this order, they are the states of the Go packages in `argv-2017.jsonl` and `argv-2020.jsonl`, a state with all keys,
//! and the three descriptions that [`descriptions`] returns.

use hyperkit::{Console, Disk, FlushMode, HyperKit, Multiboot, Network, PortForward, QcowOptions, Serial};
use serde_json::Value;

const STATES: &str = include_str!("../recorded/states.jsonl");

fn go_states() -> Vec<Value> {
    let recorded = [include_str!("../recorded/argv-2017.jsonl"), include_str!("../recorded/argv-2020.jsonl")];
    let cases = recorded.iter().flat_map(|year| year.lines());
    cases.map(|line| serde_json::from_str::<Value>(line).unwrap()["state"].take()).collect()
}

fn descriptions() -> [HyperKit; 3] {
    let plain = HyperKit::new().state_dir("/vm").kernel("/vmlinuz").initrd("/initrd.img").cpus(2).memory_mib(2048);
    let plain = plain.disk(Disk::raw("/root.img").size_mib(4096)).console(Console::Pty);

    let qemu = HyperKit::new().hyperkit("/usr/bin/qemu-system-x86_64").state_dir("/vm").kernel("/vmlinuz");
    let qemu = qemu.network(Network::Nat).mac("02:00:00:00:00:01");
    let qemu = qemu.port_forward(PortForward::tcp(0, 22)).port_forward(PortForward::udp(53, 53));
    let qemu = qemu.disk(Disk::in_state_dir(64));
    let qemu = qemu.disk(Disk::new("/data").read_only().sync().trim().sector_size(512, 4096));
    let qemu = qemu.iso("/a.iso").iso("/b.iso").vsock(true).vsock_port(1024).vsock_guest_cid(9).vsock_dir("/sockets");
    let qemu = qemu.vhost_device_vsock("/bin/vhost-device-vsock").share_dir("/srv", "data");
    let qemu = qemu.console(Console::Stdio).serial(Serial::pty().log()).serial(Serial::none());
    let qemu = qemu.gdb_port(1234).core_dumps(true).extra_argument("-cpu").extra_argument("max");

    let mut options = QcowOptions::default();
    (options.flush, options.compact_after, options.keep_erased) = (FlushMode::Drive, 1, 2);
    let multiboot = HyperKit::new().argv0("name").console(Console::AppleLog).state_dir("/vm");
    let multiboot = multiboot.vpnkit("/vpnkit.sock").vpnkit_key("0f0e6d3c-5f2b-4b6e-8f11-2a7d9f1c0b55");
    let multiboot = multiboot.vpnkit_preferred_ipv4("10.0.2.4").vmnet(true).tap("tap0");
    let multiboot = multiboot.uuid("1f0e6d3c-5f2b-4b6e-8f11-2a7d9f1c0b55");
    let multiboot = multiboot.disk(Disk::qcow2("/d.qcow2", options).size_mib(8).ahci()).port_9p(564, "net");
    let multiboot = multiboot.multiboot(Multiboot::new("/kernel").module("/module", "words"));
    let multiboot = multiboot.random(false).utc(false).exit_on_hlt(true).exit_on_pause(true).x2apic(true);
    [plain, qemu, multiboot.msix(false).mptable(false)]
}

#[test]
fn recorded_states_are_written_byte_for_byte() {
    for state in STATES.lines() {
        assert_eq!(serde_json::from_str::<HyperKit>(state).unwrap().to_string(), state);
    }
}

#[test]
fn go_states_are_written_as_by_the_earlier_version() {
    let states = go_states();
    assert_eq!((states.len(), STATES.lines().count()), (35, 39));
    for (state, written) in states.into_iter().zip(STATES.lines()) {
        assert_eq!(serde_json::from_value::<HyperKit>(state).unwrap().to_string(), written);
    }
}

#[test]
fn descriptions_are_written_as_by_the_earlier_version() {
    for (description, written) in descriptions().into_iter().zip(STATES.lines().skip(36)) {
        assert_eq!(description.to_string(), written);
        assert_eq!(serde_json::from_str::<HyperKit>(written).unwrap(), description);
    }
}
