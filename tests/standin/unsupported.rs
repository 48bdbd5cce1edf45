//! Features that one of the engines does not support.

use std::fs::{self};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;

use hyperkit::{ConfigError, Console, Disk, Engine, HyperKit, Multiboot, Network, PortForward, Root, Serial};

use crate::common::arm_image::ArmImage;
use crate::common::rejection::{
    assert_error, modify, only_violation, rejection_by_arguments, rejection_with, violations_of_start,
};
use crate::common::{TestDir, standin_path};

/// vhost-device-vsock is needed only for vsock, and only on QEMU. Otherwise a missing daemon is no error.
#[test]
fn missing_vsock_daemon_is_no_error_if_it_is_not_needed() {
    let test_dir = TestDir::new();
    let qemu = test_dir.path("qemu-system-x86_64");
    symlink(standin_path(), &qemu).unwrap(); // it is never started; its name makes QEMU the engine
    let description = test_dir.description().vhost_device_vsock("/no/such");
    description.clone().vsock(true).check().unwrap();
    description.hyperkit(&qemu).check().unwrap();
}

#[test]
fn features_unsupported_by_hyperkit_are_rejected() {
    let refuse = |change: &dyn Fn(HyperKit) -> HyperKit, words: &str| {
        let error = rejection_by_arguments(change);
        assert_error!(error, ConfigError::Unsupported { engine: Engine::HyperKit, feature } if feature.contains(words));
    };
    refuse(&|d| d.vmnet(true).port_forward(PortForward::tcp(0, 80)), "port_forwards");
    refuse(&|d| d.cpu("max"), "cpu");
    refuse(&|d| d.network(Network::Isolated), "network");
    let both = violations_of_start(&TestDir::new(), "", |d| d.agent(true).root(Root::Host));
    assert!(
        matches!(&both[..], [ConfigError::Unsupported { feature, .. }, ConfigError::MissingPrerequisite { .. }] if feature.contains("`root`"))
    );
    refuse(&|d| d.internal_network("net", 1), "`internal_networks`");
    refuse(&|d| d.vmnet(true).mac("02:00:00:00:00:01"), "MAC address");
    refuse(&|d| d.vmnet(true).tap("tap0").mac("02:00:00:00:00:01"), "MAC address");
}

/// These programs emulate another CPU, or are not hypervisors.
#[test]
fn other_programs_of_qemu_are_unsupported() {
    for name in ["qemu-system-riscv64", "qemu-system-i386", "qemu-system-x86_64le", "qemu-img", "qemu-x86_64", "qemu-x"]
    {
        let test_dir = TestDir::new();
        let program = test_dir.write_executable(name, b"#!/bin/sh\nexit 9\n");
        assert_eq!(Engine::of(&program), Engine::Qemu, "{name}");
        let error = rejection_with(&test_dir, "", |d| d.hyperkit(&program));
        assert_eq!(error.field(), "hyperkit", "{error:?}");
        assert_error!(error, ConfigError::Unsupported { engine: Engine::Qemu, .. });
        let pure = only_violation(test_dir.description().hyperkit(name).arguments(""));
        assert_error!(pure, ConfigError::Unsupported { engine: Engine::Qemu, .. });
    }
}

/// Settings of x86's interrupt hardware, and what a guest without firmware cannot see.
#[test]
fn features_unsupported_for_arm64_guests_are_rejected() {
    let test_dir = TestDir::new();
    let qemu = test_dir.path("qemu-system-aarch64");
    symlink(standin_path(), &qemu).unwrap(); // it is never started; its name makes QEMU for arm64 the engine
    let kernel = test_dir.write("Image", &ArmImage::new(1 << 20).0);
    let description = || test_dir.description().hyperkit(&qemu).kernel(&kernel);
    let refuse = |change: &dyn Fn(HyperKit) -> HyperKit, words: &str| {
        let error = rejection_with(&test_dir, "", |d| change(d.hyperkit(&qemu).kernel(&kernel)));
        assert!(error.to_string().starts_with("QEMU for arm64 does not support "), "{error}");
        assert_error!(error, ConfigError::Unsupported { engine: Engine::QemuArm64, feature } if feature.contains(words));
        let pure = only_violation(change(description()).arguments(""));
        assert_error!(pure, ConfigError::Unsupported { engine: Engine::QemuArm64, feature } if feature.contains(words));
    };
    refuse(&|d| d.uuid("0f0e6d3c-5f2b-4b6e-8f11-2a7d9f1c0b55"), "`uuid`");
    refuse(&|d| d.x2apic(true), "`x2apic`");
    refuse(&|d| d.msix(false), "`msix`");
    let multiboot = test_dir.write("kernel", &multiboot());
    refuse(
        &|d| modify(d, |d| (d.kernel, d.initrd) = (None, None)).multiboot(Multiboot::new(&multiboot)),
        "`multiboot`",
    );
    if cfg!(not(all(target_os = "linux", target_arch = "aarch64"))) {
        let error = rejection_with(&test_dir, "", |d| d.hyperkit(&qemu).kernel(&kernel).agent(true).root(Root::Host));
        assert_error!(error, ConfigError::Unsupported { engine: Engine::QemuArm64, feature } if feature.contains("`root`"));
    }
    // These have no meaning for arm64, or the same one.
    description().mptable(false).exit_on_hlt(true).exit_on_pause(true).check().unwrap();
    description().utc(false).cpus(64).memory_mib(8192).gdb_port(1234).check().unwrap();
}

/// Returns the shortest multiboot kernel that specifies its load address.
fn multiboot() -> Vec<u8> {
    let [magic, flags] = [0x1bad_b002_u32, 1 << 16];
    let header = [magic, flags, 0_u32.wrapping_sub(magic).wrapping_sub(flags)];
    header.into_iter().chain([0; 10]).flat_map(u32::to_le_bytes).collect()
}

#[test]
fn features_unsupported_by_qemu_are_rejected() {
    let test_dir = TestDir::new();
    let qemu = test_dir.path("qemu-system-x86_64");
    symlink(standin_path(), &qemu).unwrap(); // it is never started; its name makes QEMU the engine
    let socket = test_dir.path("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    let refuse = |change: &dyn Fn(HyperKit) -> HyperKit, words: &str| {
        let error = rejection_with(&test_dir, "", |d| change(d.hyperkit(&qemu)));
        assert_error!(error, ConfigError::Unsupported { engine: Engine::Qemu, feature } if feature.contains(words));
    };
    test_dir.description().hyperkit(&qemu).network(Network::Nat).socket_9p(test_dir.dir(), "tag").check().unwrap();
    refuse(&|d| d.network(Network::VpnKit(socket.clone())), "VPNKit socket");
    refuse(&|d| d.console(Console::AppleLog), "Apple System Log");
    refuse(&|d| d.socket_9p(&socket, "tag"), "9p");
    refuse(&|d| d.port_9p(564, "tag"), "9p from a TCP port");
    let error = rejection_with(&test_dir, "", |d| d.hyperkit(&qemu).socket_9p("/no/such", "tag"));
    assert_error!(error, ConfigError::NotFound { field: "shares_9p", .. });
    let with_root = |d: HyperKit, dir: &Path| d.agent(true).root(Root::Dir(dir.to_owned()));
    with_root(test_dir.description().hyperkit(&qemu), &test_dir.dir()).check().unwrap();
    let error = rejection_with(&test_dir, "", |d| with_root(d.hyperkit(&qemu), Path::new("/no/such")));
    assert_error!(error, ConfigError::NotFound { field: "root", .. });
    let error = rejection_with(&test_dir, "", |d| with_root(d.hyperkit(&qemu), &test_dir.path("vmlinuz")));
    assert_error!(error, ConfigError::NotADirectory { field: "root", .. });
    let error = rejection_with(&test_dir, "", |d| with_root(d.hyperkit(&qemu), Path::new("/a\0b")));
    assert_error!(error, ConfigError::ForbiddenCharacter { field: "root", character: '\0', .. });
    let tagged = |d: HyperKit| with_root(d.hyperkit(&qemu), &test_dir.dir()).share_dir(test_dir.dir(), "hyperkit-root");
    assert_error!(rejection_with(&test_dir, "", tagged), ConfigError::DuplicateMountTag { .. });
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        refuse(&|d| d.agent(true).root(Root::Host), "the programs of this host");
    }
    let bare = |d: HyperKit| modify(d, |d| (d.kernel, d.initrd) = (None, None));
    let multiboot = test_dir.write("kernel", &multiboot());
    let module = test_dir.write("a module", b"module");
    refuse(&|d| bare(d).multiboot(Multiboot::new(&multiboot).module(&module, "")), "module with a space");
    refuse(&|d| d.serial(Serial::pty().apple_log()), "Apple System Log");
    refuse(&|d| d.x2apic(true), "x2APIC");
    refuse(&|d| d.msix(false), "MSI");
    refuse(&|d| d.mptable(false), "MPtable");
    let disk = Disk::raw(test_dir.write("d.img", &[0; 512]));
    refuse(&|d| d.disk(disk.clone().ahci().read_only()), "read-only");
    refuse(&|d| d.disk(disk.clone().ahci().sector_size(4096, 4096)), "logical sectors");
    refuse(&|d| d.disk(disk.clone().sector_size(512, 1 << 22)), "2 MiB");
    test_dir.description().hyperkit(&qemu).disk(disk.clone().sector_size(512, 1 << 21)).check().unwrap();
    let address = |d: HyperKit, address: &str| {
        d.network(Network::Nat).vpnkit_key("0f0e6d3c-5f2b-4b6e-8f11-2a7d9f1c0b55").vpnkit_preferred_ipv4(address)
    };
    for used_by_the_network in ["10.0.2.0", "10.0.2.3", "10.0.2.255"] {
        refuse(&|d| address(d, used_by_the_network), "preferred address");
    }
    address(test_dir.description().hyperkit(&qemu), "10.0.2.4").check().unwrap();
    refuse(&|d| address(d, "127.0.0.10"), "not a host address");
    refuse(&|d| address(d, "224.0.0.10"), "not a host address");
    refuse(&|d| address(d, "0.0.0.10"), "not a host address");
    address(test_dir.description().hyperkit(&qemu), "192.168.64.10").check().unwrap();
    refuse(&|d| address(d.vmnet(true), "192.168.64.10"), "network of `vmnet`");
    if cfg!(target_os = "linux") {
        // Linux would create the interface, replace `%d` by a number, or use an interface that is no tap.
        for other_interface in ["no-such-tap", "tap%d", "lo"] {
            let error = rejection_with(&test_dir, "", |d| d.hyperkit(&qemu).tap(other_interface));
            assert_error!(error, ConfigError::NotFound { field: "tap", path } if path.to_str().unwrap().contains(other_interface));
        }
        let error = rejection_with(&test_dir, "", |d| d.hyperkit(&qemu).tap("t".repeat(16)));
        assert_error!(error, ConfigError::TooLong { field: "tap", limit: 15, .. });
    } else {
        refuse(&|d| d.tap("tap0"), "tap");
    }
    // `arguments` rejects features that QEMU lacks on every host.
    let arguments = test_dir.description().hyperkit(&qemu).x2apic(true).arguments("");
    assert_error!(only_violation(arguments), ConfigError::Unsupported { engine: Engine::Qemu, .. });
    let error = rejection_with(&test_dir, "", |d| d.hyperkit(&qemu).socket_9p(test_dir.dir(), "t".repeat(32)));
    assert_error!(error, ConfigError::TooLong { field: "shares_9p", limit: 31, .. });
    let has_device = fs::OpenOptions::new().read(true).write(true).open("/dev/vhost-vsock").is_ok();
    let path = std::env::var_os("PATH").unwrap();
    match std::env::split_paths(&path).any(|dir| dir.join("vhost-device-vsock").exists()) || has_device {
        true => test_dir.description().hyperkit(&qemu).vsock(true).check().unwrap(),
        false => refuse(&|d| d.vsock(true), "/dev/vhost-vsock"),
    }
    if cfg!(target_os = "linux") {
        let program = standin_path(); // any executable file will do, since it is never started
        test_dir.description().hyperkit(&qemu).vsock(true).vhost_device_vsock(&program).check().unwrap();
        refuse(&|d| d.vsock(true).vhost_device_vsock(&program).vsock_port(1), "vsock_ports");
        let without_state_dir =
            |d: HyperKit| modify(d.console(Console::Stdio).vsock_dir(test_dir.dir()), |d| d.state_dir = None);
        let error = rejection_with(&test_dir, "", |d| {
            without_state_dir(d.hyperkit(&qemu).vsock(true).vhost_device_vsock(&program))
        });
        assert_error!(error, ConfigError::StateDirRequired { field: "vsock" });
    }
    let error = rejection_with(&test_dir, "", |d| d.hyperkit(&qemu).vsock(true).vhost_device_vsock("/no/such"));
    assert_error!(error, ConfigError::ToolNotFound { searched, .. } if searched == [Path::new("/no/such")]);
    let long = test_dir.dir().join("x".repeat(100));
    let error = rejection_with(&test_dir, "", |d| d.hyperkit(&qemu).state_dir(&long));
    assert_error!(error, ConfigError::TooLong { field: "state_dir", limit: 91, .. });
}
