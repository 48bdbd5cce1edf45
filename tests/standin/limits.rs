//! hyperkit's limits. The crate and the stand-in, which has the same limits, accept the last valid value. The crate rejects
//! the first invalid value with an error that names the field.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use hyperkit::{
    Architecture, ConfigError, Disk, HyperKit, InternalNetwork, Multiboot, Network, PortForward, QcowOptions, Root,
    Serial,
};

use crate::common::rejection::{
    assert_boots, assert_boots_with, assert_error, modify, only_violation, rejection_by_arguments, rejection_with, rom,
    without_boot_source,
};
use crate::common::vpnkit::{Handshake, listen_as_vpnkit};
use crate::common::{TestDir, bz_image, qcow2_header, standin_path};

const UUID: &str = "01234567-89ab-cdef-0123-456789abcdef";
const MIB: u64 = 1024 * 1024;
const PAGE: u64 = 4096;

/// Returns a path in a directory that is `length` bytes long.
fn path_of(length: usize, dir: &Path) -> PathBuf {
    dir.join("x".repeat(length - 1 - dir.as_os_str().len()))
}

#[test]
fn vcpu_limits_are_enforced() {
    let test_dir = TestDir::new();
    for count in [1, 64] {
        assert_boots(test_dir.description().cpus(count));
    }
    for count in [0, 65, u32::MAX] {
        assert_error!(rejection_by_arguments(|d| d.cpus(count)), ConfigError::InvalidCpus { value } if value == count);
    }
}

/// On hyperkit, `cpu` is not supported at all.
#[test]
fn cpu_model_must_have_a_name_and_features() {
    let qemu = |cpu: &str| HyperKit::new().hyperkit("qemu-system-x86_64").kernel("/k").cpu(cpu).arguments("");
    for cpu in ["max", "Nehalem,+rdrand", "EPYC-v2,hv-time=on,-avx", "486", "Opteron_G1", "max,model-id=My CPU"] {
        assert!(qemu(cpu).unwrap().windows(2).any(|pair| pair == ["-cpu", cpu]), "{cpu}");
    }
    for cpu in
        ["", "help", "?", "-append", "+rdrand", "a model", "max,", "max,,+avx", ",", "max\0", "max,+a\0", "help,+avx"]
    {
        let expected = ConfigError::InvalidCpu { value: cpu.to_owned() };
        assert_eq!(only_violation(qemu(cpu)), expected);
    }
}

#[test]
fn internal_network_has_numbers_and_a_short_path() {
    let qemu = |d: HyperKit| d.hyperkit("qemu-system-x86_64");
    let network = |dir: &Path, number| InternalNetwork { dir: dir.to_owned(), number };
    let test_dir = TestDir::new();
    let longest = path_of(91, &test_dir.dir());
    for valid in [vec![network(&longest, 1)], vec![network(&longest, 16), network(&test_dir.path("net"), 16)]] {
        let description = modify(qemu(test_dir.description()), |d| d.internal_networks = valid);
        description.check().unwrap();
        description.arguments("").unwrap();
    }
    for number in [0, 17, u8::MAX] {
        let error = rejection_by_arguments(|d| qemu(d).internal_network("net", number));
        assert_error!(error, ConfigError::InvalidInternalNetwork { reason, .. } if reason.ends_with("1 to 16"));
    }
    let error = rejection_by_arguments(|d| qemu(d).internal_network("/net", 1).internal_network("/net", 2));
    assert_error!(error, ConfigError::InvalidInternalNetwork { path, .. } if path == Path::new("/net"));
    let error = rejection_by_arguments(|d| qemu(d).internal_network(path_of(92, &test_dir.dir()), 1));
    assert_error!(error, ConfigError::TooLong { field: "internal_networks", length: 92, limit: 91, .. });
    let error = rejection_by_arguments(|d| qemu(d).internal_network("/a,b", 1));
    assert_error!(error, ConfigError::ForbiddenCharacter { field: "internal_networks", .. });
    let error = rejection_with(&test_dir, "", |d| qemu(d).internal_network(test_dir.path("vmlinuz"), 1));
    assert_error!(error, ConfigError::NotADirectory { field: "internal_networks", .. });
}

#[test]
fn memory_limits_are_enforced() {
    let test_dir = TestDir::new();
    let mut low = bz_image(2047);
    low[0x230..0x234].copy_from_slice(&0x10_0000_u32.to_le_bytes()); // alignment
    test_dir.write("vmlinuz", &low);
    let most = (1 << 43) - 1;
    test_dir.description().memory_mib(most).arguments("").unwrap();
    assert_boots(test_dir.description().memory_mib(2));
    // hyperkit aborts if it cannot map all memory. The host's is not a round number of MiB.
    let error = rejection_with(&test_dir, "", |d| d.memory_mib(most));
    let ConfigError::MemoryExceedsHost { value, host } = error else { panic!("{error:?}") };
    assert_eq!(value, most);
    assert_boots(test_dir.description().memory_mib(host));
    let error = rejection_with(&test_dir, "", |d| d.memory_mib(host + 1));
    assert_error!(error, ConfigError::MemoryExceedsHost { value, .. } if value == host + 1);
    let qemu = test_dir.write_executable("qemu-system-x86_64", b"");
    test_dir.description().hyperkit(qemu).memory_mib(host + 1).check().unwrap(); // it takes memory when the guest uses it
    for memory_mib in [0, 1, 1 << 43, u64::MAX] {
        assert_error!(rejection_by_arguments(|d| d.memory_mib(memory_mib)), ConfigError::InvalidMemory { value } if value == memory_mib);
    }
}

#[test]
fn kernel_command_line_limit_is_enforced() {
    let test_dir = TestDir::new();
    test_dir.write("vmlinuz", &bz_image(100)); // the limit counts the NUL at the end
    let fixed = "earlyprintk=serial ".len();
    assert_boots_with(test_dir.description(), &"x".repeat(99 - fixed));
    let error = rejection_with(&test_dir, &"x".repeat(100 - fixed), |d| d);
    assert_error!(error, ConfigError::CommandLineTooLong { length: 100, limit: 99 });
    // The agent's parameters count, too.
    let qemu = test_dir.write_executable("qemu-system-x86_64", b"#!/bin/sh\nexit 9\n");
    let root = "hyperkit.root=hyperkit-root ".len();
    let error = rejection_with(&test_dir, &"x".repeat(100 - fixed - root), |d| {
        d.hyperkit(&qemu).agent(true).root(Root::Dir(test_dir.dir()))
    });
    assert_error!(error, ConfigError::CommandLineTooLong { length: 100, limit: 99 });
}

#[test]
fn uuid_and_ipv4_syntax_is_checked() {
    let test_dir = TestDir::new();
    let socket = test_dir.path("vpnkit");
    listen_as_vpnkit(&socket, Handshake::All);
    let network = |d: HyperKit| d.network(Network::VpnKit(socket.clone())).vpnkit_key(UUID);
    assert_boots(network(test_dir.description()).uuid(UUID.to_uppercase()).vpnkit_preferred_ipv4("255.255.255.255"));
    let bad = ["", &UUID[1..], &format!("{UUID}0"), &UUID.replace('-', ""), &UUID.replace('a', "g")];
    for bad in [&bad[..], &["0123456-789ab-cdef-0123-456789abcdef0"]].concat() {
        assert_error!(rejection_by_arguments(|d| d.uuid(bad)), ConfigError::InvalidUuid { field: "uuid", value } if value == bad);
        let error = rejection_by_arguments(|d| d.vpnkit_key(bad));
        assert_error!(error, ConfigError::InvalidUuid { field: "vpnkit_key", value } if value == bad);
    }
    // hyperkit aborts at a variant that it does not know, and VPNKit accepts any.
    for variant in ["e", "F"] {
        let uuid = &format!("1f0e6d3c-5f2b-4b6e-{variant}f11-2a7d9f1c0b55");
        assert_error!(rejection_by_arguments(|d| d.uuid(uuid)), ConfigError::InvalidUuid { field: "uuid", value } if value == *uuid);
        assert_boots(network(test_dir.description()).vpnkit_key(uuid));
    }
    assert_boots(test_dir.description().uuid("1f0e6d3c-5f2b-4b6e-df11-2a7d9f1c0b55"));
    for bad in ["", "1.2.3", "1.2.3.4.5", "1.2.3.256", "::1", " 1.2.3.4", "vm.local"] {
        let error = rejection_by_arguments(|d| network(d).vpnkit_preferred_ipv4(bad));
        assert_error!(error, ConfigError::InvalidIpv4 { value } if value == bad);
    }
}

#[test]
fn tap_name_limit_and_mac_syntax_are_checked() {
    let test_dir = TestDir::new();
    for good in ["02:00:00:00:00:01", "FE:ff:FF:ff:FF:ff"] {
        assert_boots(test_dir.description().tap("t".repeat(74)).mac(good));
    }
    let error = rejection_by_arguments(|d| d.tap("t".repeat(75)));
    assert_error!(error, ConfigError::TooLong { field: "tap", length: 75, limit: 74, .. });
    let error = rejection_by_arguments(|d| d.tap("../tap0"));
    assert_error!(error, ConfigError::ForbiddenCharacter { field: "tap", character: '/', .. });
    assert_error!(rejection_by_arguments(|d| d.tap("")), ConfigError::Missing { field: "tap" });
    let (multicast, zero) = ("01:00:00:00:00:01", "00:00:00:00:00:00");
    let misspelt = ["02:00:00:00:00", "02:00:00:00:00:01:02", "02-00-00-00-00-01", "02:00:00:00:00:0g", "2:0:0:0:0:1"];
    for bad in [&[multicast, zero, "", "02:00:00:00:00:+1"], &misspelt[..]].concat() {
        assert_error!(rejection_by_arguments(|d| d.tap("tap0").mac(bad)), ConfigError::InvalidMac { value } if value == bad);
    }
}

#[test]
fn at_most_thirty_devices_are_accepted() {
    let test_dir = TestDir::new();
    let disks = |description: HyperKit, count: usize| {
        let image = |index| Disk::raw(test_dir.write(&format!("{index}.img"), b"disk"));
        (0..count).map(image).fold(description, HyperKit::disk)
    };
    assert_boots(disks(test_dir.description(), 29)); // the random number generator is the thirtieth device
    assert_boots(disks(test_dir.description().random(false), 30));
    assert_error!(rejection_by_arguments(|d| disks(d, 30)), ConfigError::TooManyDevices { count: 31, max: 30 });
    assert_error!(
        rejection_by_arguments(|d| disks(d.random(false), 31)),
        ConfigError::TooManyDevices { count: 31, max: 30 }
    );
    let shares = |description: HyperKit, count: usize| {
        (0..count).fold(description, |d, index| d.socket_9p("/s", format!("{index}")))
    };
    assert_error!(
        rejection_by_arguments(|d| shares(d.vsock(true).vmnet(true), 28)),
        ConfigError::TooManyDevices { count: 31, max: 30 }
    );
    assert_error!(
        rejection_by_arguments(|d| disks(d.hyperkit("qemu-system-x86_64").agent(true), 29)),
        ConfigError::TooManyDevices { count: 31, max: 30 }
    );
}

#[test]
fn sector_size_limits_are_enforced() {
    let test_dir = TestDir::new();
    let image = test_dir.write("d.img", b"disk");
    for (logical, physical) in [(512, 512), (512, 4096), (4096, 4096), (512, 1 << 30), (1 << 30, 1 << 30)] {
        assert_boots(test_dir.description().disk(Disk::raw(&image).sector_size(logical, physical)));
    }
    for sizes in
        [(0, 0), (256, 256), (256, 512), (512, 513), (513, 1024), (4096, 512), (512, 1 << 31), (1 << 31, 1 << 31)]
    {
        let error = rejection_by_arguments(|d| d.disk(Disk::raw(&image).sector_size(sizes.0, sizes.1)));
        assert_error!(
            error,
            ConfigError::InvalidSectorSize { path, value } if path == image && (value.logical, value.physical) == sizes
        );
    }
}

#[test]
fn vsock_cid_and_port_limits_are_enforced() {
    let test_dir = TestDir::new();
    let vsock = |description: HyperKit| description.vsock(true);
    let ports = |description: HyperKit, count: u32| (1..=count).fold(vsock(description), HyperKit::vsock_port);
    assert_boots(ports(test_dir.description(), 4).vsock_guest_cid(3));
    assert_boots(vsock(test_dir.description()).vsock_port(0).vsock_port(u32::MAX - 1).vsock_guest_cid(0x7fff_ffff));
    for cid in [0, 2, 0x8000_0000, u32::MAX] {
        assert_error!(rejection_by_arguments(|d| vsock(d).vsock_guest_cid(cid)), ConfigError::InvalidCid { value, min: 3, max: 0x7fff_ffff } if value == cid);
    }
    assert_error!(
        rejection_by_arguments(|d| ports(d, 5)),
        ConfigError::TooManyPorts { field: "vsock_ports", count: 5, max: 4 }
    );
    assert_error!(
        rejection_by_arguments(|d| vsock(d).vsock_port(u32::MAX)),
        ConfigError::InvalidVsockPort { value: u32::MAX, max: 0xffff_fffe }
    );
}

#[test]
fn vsock_directory_path_limit_is_enforced() {
    let test_dir = TestDir::new();
    let [longest, too_long] = [85, 86].map(|length| path_of(length, &test_dir.dir()));
    assert_boots(test_dir.description().vsock(true).state_dir(&longest));
    assert_boots(test_dir.description().state_dir(&too_long)); // without vsock, no socket is in it
    let error = rejection_with(&test_dir, "", |d| d.vsock(true).state_dir(&too_long));
    assert_error!(error, ConfigError::TooLong { field: "state_dir", length: 86, limit: 85, .. });
    assert_boots(test_dir.description().vsock(true).state_dir(&too_long).vsock_dir(&longest));
    let error = rejection_with(&test_dir, "", |d| d.vsock(true).vsock_dir(&too_long));
    assert_error!(error, ConfigError::TooLong { field: "vsock_dir", length: 86, limit: 85, .. });
}

#[test]
fn socket_path_tag_and_port_limits_of_9p_and_vpnkit_are_enforced() {
    let test_dir = TestDir::new();
    let [longest, too_long] = [103, 104].map(|length| path_of(length, &test_dir.dir()));
    listen_as_vpnkit(&longest, Handshake::All);
    assert_boots(test_dir.description().network(Network::VpnKit(longest.clone())).socket_9p(&longest, "t".repeat(256)));
    assert_boots(test_dir.description().port_9p(1, "t").port_9p(65535, "u"));
    let error = rejection_by_arguments(|d| d.network(Network::VpnKit(too_long.clone())));
    assert_error!(error, ConfigError::TooLong { field: "network", length: 104, limit: 103, .. });
    let error = rejection_by_arguments(|d| d.socket_9p(&too_long, "tag"));
    assert_error!(error, ConfigError::TooLong { field: "shares_9p", length: 104, limit: 103, .. });
    for with_tag in [|d: HyperKit, tag| d.socket_9p("/s", tag), |d: HyperKit, tag| d.port_9p(1, tag)] {
        let error = rejection_by_arguments(|d| with_tag(d, "t".repeat(257)));
        assert_error!(error, ConfigError::TooLong { field: "shares_9p", length: 257, limit: 256, .. });
    }
    assert_error!(rejection_by_arguments(|d| d.port_9p(0, "tag")), ConfigError::ZeroPort { field: "shares_9p" });
}

#[test]
fn port_limits_are_enforced() {
    let test_dir = TestDir::new();
    for port in [1, 65535] {
        assert_boots(test_dir.description().gdb_port(port));
    }
    assert_error!(rejection_by_arguments(|d| d.gdb_port(0)), ConfigError::ZeroPort { field: "gdb_port" });
    for forward in [PortForward::tcp, PortForward::udp] {
        // Only QEMU forwards ports.
        let forwarding =
            |d: HyperKit, guest| d.hyperkit("qemu-system-x86_64").vmnet(true).port_forward(forward(0, guest));
        forwarding(test_dir.description(), 1).arguments("").unwrap();
        assert_error!(rejection_by_arguments(|d| forwarding(d, 0)), ConfigError::ZeroPort { field: "port_forwards" });
    }
}

#[test]
fn serial_port_limits_are_enforced() {
    let test_dir = TestDir::new();
    assert_boots(test_dir.description().serial(Serial::pty().log()).serial(Serial::none().log()));
    let serials = |d: HyperKit, all: &[Serial]| all.iter().fold(d, |d, &serial| d.serial(serial));
    let error = rejection_by_arguments(|d| serials(d, &[Serial::none(); 3]));
    assert_error!(error, ConfigError::TooManyPorts { field: "serials", count: 3, max: 2 });
    assert_error!(rejection_by_arguments(|d| serials(d, &[Serial::stdio(); 2])), ConfigError::DuplicateStdio);

    // The test runs the stand-in itself: `start` cannot capture a serial port that leads to stdout.
    let one = modify(test_dir.description(), |d| d.state_dir = None).serial(Serial::none()).serial(Serial::stdio());
    let arguments = one.arguments("guest.exit=0").unwrap();
    let output = Command::new(standin_path()).args(arguments).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn boot_rom_size_limits_are_enforced() {
    let test_dir = TestDir::new();
    let path = test_dir.path("rom");
    let with_rom = |d| without_boot_source(d).bootrom(&path);
    for length in [PAGE, 16 * MIB] {
        rom(length, &test_dir, "rom");
        assert_boots(with_rom(test_dir.description()));
    }
    for bad in [0, PAGE - 1, PAGE + 1, 2 * PAGE - 1, 16 * MIB + 1, 16 * MIB + PAGE] {
        rom(bad, &test_dir, "rom");
        let error = rejection_with(&test_dir, "", with_rom);
        assert!(error.to_string().contains("must be 4 KiB to 16 MiB long"), "{bad}: {error}");
        assert_error!(error, ConfigError::InvalidBootrom { path: p, architecture: Architecture::X86_64, .. } if p == path);
    }
    rom(PAGE, &test_dir, "rom");
    let error = rejection_with(&test_dir, "x", with_rom);
    assert_error!(error, ConfigError::CommandLineForRom { value } if value == "x");
}

fn qcow(change: impl FnOnce(&mut QcowOptions)) -> Disk {
    let mut qcow = QcowOptions::default();
    change(&mut qcow);
    Disk::qcow2("/q.qcow2", qcow).size_mib(1)
}

#[test]
fn qcow2_options_are_checked() {
    let test_dir = TestDir::new();
    test_dir.write("q.qcow2", &qcow2_header());
    type Change = fn(&mut QcowOptions, &str);
    let with = |d: HyperKit, change: Change, value: &str| {
        let mut options = QcowOptions::default();
        change(&mut options, value);
        d.disk(Disk::qcow2(test_dir.path("q.qcow2"), options))
    };
    let (largest, too_large) = ("9223372036854775807", "9223372036854775808");
    let fields: [(&str, Change, &[&str], &[&str]); 3] = [
        ("compact_after", |q, n| q.compact_after = n.parse().unwrap(), &["0", largest], &[too_large]),
        ("keep_erased", |q, n| q.keep_erased = n.parse().unwrap(), &["0", largest], &[too_large]),
        (
            "stats",
            |q, address| q.stats = Some(address.to_owned()),
            &["tcp:9090", "tcp:65535", "unix:/a b:c"],
            &["9090", "tcp:", "tcp:65536", "tcp:+1", "tcp:localhost:1", "unix:", "udp:1", "/socket"],
        ),
    ];
    for (name, change, good, bad) in fields {
        for value in good {
            assert_boots(with(test_dir.description(), change, value));
        }
        for bad in bad {
            let error = rejection_by_arguments(|d| with(d, change, bad));
            assert_error!(error, ConfigError::InvalidQcowOption { option, value, .. } if option == name && value == *bad);
        }
    }
}

/// hyperkit cannot escape them: a comma separates options, and a NUL byte ends an argument.
#[test]
fn commas_and_nul_bytes_are_rejected() {
    type Change = fn(HyperKit, &str) -> HyperKit;
    let fields: [(&str, Change); 16] = [
        ("state_dir", |d, text| d.state_dir(text)),
        ("kernel", |d, text| d.kernel(text)),
        ("initrd", |d, text| d.initrd(text)),
        ("bootrom", |d, text| without_boot_source(d).bootrom(text)),
        ("multiboot", |d, text| without_boot_source(d).multiboot(Multiboot::new(text))),
        ("disks", |d, text| d.disk(Disk::raw(text).size_mib(1))),
        ("disks", |d, text| d.disk(Disk::qcow2(text, QcowOptions::default()).size_mib(1))),
        ("disks", |d, text| d.disk(qcow(|qcow| qcow.stats = Some(text.to_owned())))),
        ("disks", |d, text| d.disk(qcow(|qcow| qcow.tool = Some(text.into())))),
        ("isos", |d, text| d.iso(text)),
        ("tap", |d, text| d.tap(text.trim_start_matches('/'))),
        ("network", |d, text| d.network(Network::VpnKit(text.into()))),
        ("vsock_dir", |d, text| d.vsock(true).vsock_dir(text)),
        ("vhost_device_vsock", |d, text| d.vhost_device_vsock(text)),
        ("shares_9p", |d, text| d.socket_9p(text, "tag")),
        ("shares_9p", |d, text| d.socket_9p("/socket", text)),
    ];
    for (name, change) in fields {
        for forbidden in [',', '\0'] {
            let value = format!("/a{forbidden}b");
            assert_error!(
                rejection_by_arguments(|d| change(d, &value)),
                ConfigError::ForbiddenCharacter { field, value: v, character } if field == name && value.ends_with(&v) && character == forbidden
            );
        }
    }
    let whole: [(&str, Change); 2] =
        [("argv0", |d, text| d.argv0(text)), ("extra_arguments", |d, text| d.extra_argument(text))];
    for (name, change) in whole {
        change(TestDir::new().description(), "a,b").check().unwrap();
        let error = rejection_by_arguments(|d| change(d, "a\0b"));
        assert_error!(error, ConfigError::ForbiddenCharacter { field, character: '\0', .. } if field == name);
    }
    let error = rejection_with(&TestDir::new(), "a\0b", |d| d);
    assert_error!(error, ConfigError::ForbiddenCharacter { field: "kernel_cmdline", character: '\0', .. });
}
