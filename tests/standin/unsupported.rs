//! TODO

use std::fs::{self};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;

use hyperkit::{Console, Disk, Engine, Error, HyperKit, Multiboot, PortForward, Serial, VpnKit};

use crate::common::rejection::{assert_refused, changed, refused_at_sight, refused_with};
use crate::common::{Files, standin};

/// It is for QEMU, and for vsock.
#[test]
fn a_vsock_program_that_nobody_needs_is_not_looked_for() {
    let files = Files::new();
    let qemu = files.path("qemu-system-x86_64");
    symlink(standin(), &qemu).unwrap(); // never started: its name decides
    let machine = files.machine().vhost_device_vsock("/no/such");
    machine.clone().vsock(true).check().unwrap();
    machine.hyperkit(&qemu).check().unwrap();
}

#[test]
fn what_hyperkit_cannot_do() {
    let refuse = |change: &dyn Fn(HyperKit) -> HyperKit, words: &str| {
        let error = refused_at_sight(change);
        assert_refused!(error, Error::Unsupported { engine: Engine::HyperKit, feature } if feature.contains(words));
    };
    refuse(&|m| m.vmnet(true).port_forward(PortForward::tcp(0, 80)), "port_forwards");
    refuse(&|m| m.vmnet(true).mac("02:00:00:00:00:01"), "MAC address");
    refuse(&|m| m.vmnet(true).tap("tap0").mac("02:00:00:00:00:01"), "MAC address");
}

/// The shortest multiboot kernel that says where it goes.
fn multiboot() -> Vec<u8> {
    let [magic, flags] = [0x1bad_b002_u32, 1 << 16];
    let header = [magic, flags, 0_u32.wrapping_sub(magic).wrapping_sub(flags)];
    header.into_iter().chain([0; 10]).flat_map(u32::to_le_bytes).collect()
}

#[test]
fn what_qemu_cannot_do() {
    let files = Files::new();
    let qemu = files.path("qemu-system-x86_64");
    symlink(standin(), &qemu).unwrap(); // never started: its name decides
    let socket = files.path("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    let refuse = |change: &dyn Fn(HyperKit) -> HyperKit, words: &str| {
        let error = refused_with(&files, "", |m| change(m.hyperkit(&qemu)));
        assert_refused!(error, Error::Unsupported { engine: Engine::Qemu, feature } if feature.contains(words));
    };
    files.machine().hyperkit(&qemu).vpnkit(VpnKit::Auto).socket_9p(files.dir(), "tag").check().unwrap();
    refuse(&|m| m.vpnkit(VpnKit::Socket(socket.clone())), "VPNKit socket");
    refuse(&|m| m.console(Console::Log), "Apple System Log");
    refuse(&|m| m.socket_9p(&socket, "tag"), "9p");
    refuse(&|m| m.port_9p(564, "tag"), "9p from a TCP port");
    let error = refused_with(&files, "", |m| m.hyperkit(&qemu).socket_9p("/no/such", "tag"));
    assert_refused!(error, Error::NotFound { field: "sockets_9p", .. });
    let bare = |m: HyperKit| changed(m, |m| (m.kernel, m.initrd) = (None, None));
    let multiboot = files.write("kernel", &multiboot());
    let module = files.write("a module", b"module");
    refuse(&|m| bare(m).multiboot(Multiboot::new(&multiboot).module(&module, "")), "module with a space");
    refuse(&|m| m.serial(Serial::tty().asl()), "Apple System Log");
    refuse(&|m| m.x2apic(true), "x2APIC");
    refuse(&|m| m.msix(false), "MSI");
    refuse(&|m| m.mptable(false), "MPtable");
    let disk = Disk::raw(files.write("d.img", &[0; 512]));
    refuse(&|m| m.disk(disk.clone().ahci().read_only()), "read-only");
    refuse(&|m| m.disk(disk.clone().ahci().sector_size(4096, 4096)), "logical sectors");
    refuse(&|m| m.disk(disk.clone().sector_size(512, 1 << 22)), "2 MiB");
    files.machine().hyperkit(&qemu).disk(disk.clone().sector_size(512, 1 << 21)).check().unwrap();
    let address = |m: HyperKit, address: &str| {
        m.vpnkit(VpnKit::Auto).vpnkit_key("0f0e6d3c-5f2b-4b6e-8f11-2a7d9f1c0b55").vpnkit_preferred_ipv4(address)
    };
    for used_by_the_network in ["10.0.2.0", "10.0.2.3", "10.0.2.255"] {
        refuse(&|m| address(m, used_by_the_network), "preferred address");
    }
    address(files.machine().hyperkit(&qemu), "10.0.2.4").check().unwrap();
    refuse(&|m| address(m, "127.0.0.10"), "none for a guest");
    refuse(&|m| address(m, "224.0.0.10"), "none for a guest");
    refuse(&|m| address(m, "0.0.0.10"), "none for a guest");
    address(files.machine().hyperkit(&qemu), "192.168.64.10").check().unwrap();
    refuse(&|m| address(m.vmnet(true), "192.168.64.10"), "network of `vmnet`");
    if cfg!(target_os = "linux") {
        // QEMU would cut it, or fill it in, or make it.
        for other_interface in ["no-such-tap", "tap%d", "lo"] {
            let error = refused_with(&files, "", |m| m.hyperkit(&qemu).tap(other_interface));
            assert_refused!(error, Error::NotFound { field: "tap", path } if path.to_str().unwrap().contains(other_interface));
        }
        let error = refused_with(&files, "", |m| m.hyperkit(&qemu).tap("t".repeat(16)));
        assert_refused!(error, Error::TooLong { field: "tap", limit: 15, .. });
    } else {
        refuse(&|m| m.tap("tap0"), "tap");
    }
    // What no host changes, the arguments refuse, too.
    let arguments = files.machine().hyperkit(&qemu).x2apic(true).arguments("");
    assert!(matches!(arguments, Err(Error::Unsupported { .. })), "{arguments:?}");
    let error = refused_with(&files, "", |m| m.hyperkit(&qemu).socket_9p(files.dir(), "t".repeat(32)));
    assert_refused!(error, Error::TooLong { field: "sockets_9p", limit: 31, .. });
    let has_device = fs::OpenOptions::new().read(true).write(true).open("/dev/vhost-vsock").is_ok();
    let path = std::env::var_os("PATH").unwrap();
    match std::env::split_paths(&path).any(|dir| dir.join("vhost-device-vsock").exists()) || has_device {
        true => files.machine().hyperkit(&qemu).vsock(true).check().unwrap(),
        false => refuse(&|m| m.vsock(true), "/dev/vhost-vsock"),
    }
    if cfg!(target_os = "linux") {
        let program = standin(); // any program would pass: it is never started
        files.machine().hyperkit(&qemu).vsock(true).vhost_device_vsock(&program).check().unwrap();
        refuse(&|m| m.vsock(true).vhost_device_vsock(&program).vsock_port(1), "vsock_ports");
        let kept_nowhere =
            |m: HyperKit| changed(m.console(Console::Stdio).vsock_dir(files.dir()), |m| m.state_dir = None);
        let error =
            refused_with(&files, "", |m| kept_nowhere(m.hyperkit(&qemu).vsock(true).vhost_device_vsock(&program)));
        assert_refused!(error, Error::StateDirRequired { field: "vsock" });
    }
    let error = refused_with(&files, "", |m| m.hyperkit(&qemu).vsock(true).vhost_device_vsock("/no/such"));
    assert_refused!(error, Error::ToolNotFound { looked, .. } if looked == [Path::new("/no/such")]);
    let long = files.dir().join("x".repeat(100));
    let error = refused_with(&files, "", |m| m.hyperkit(&qemu).state_dir(&long));
    assert_refused!(error, Error::TooLong { field: "state_dir", limit: 91, .. });
}
