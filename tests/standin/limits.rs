//! Every limit of hyperkit: the last value within it is taken, by the crate and by the stand-in, which has the same limits;
//! the first beyond it is refused, by an error that names the field.

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use hyperkit::{Disk, Error, HyperKit, Multiboot, PortForward, Qcow, Serial, VpnKit};

use crate::common::rejection::{
    assert_refused, bare, changed, file_of, refused_at_sight, refused_with, runs, runs_with,
};
use crate::common::{Files, bz_image, standin};

const UUID: &str = "01234567-89ab-cdef-0123-456789abcdef";
const MIB: u64 = 1024 * 1024;
const PAGE: u64 = 4096;

/// A path of so many bytes below a directory.
fn path_of(length: usize, dir: &Path) -> PathBuf {
    dir.join("x".repeat(length - 1 - dir.as_os_str().len()))
}

#[test]
fn vcpus() {
    let files = Files::new();
    for count in [1, 64] {
        runs(files.machine().cpus(count));
    }
    for count in [0, 65, u32::MAX] {
        assert_refused!(refused_at_sight(|m| m.cpus(count)), Error::InvalidCpus { value } if value == count);
    }
}

#[test]
fn memory() {
    let files = Files::new();
    let mut low = bz_image(2047);
    low[0x230..0x234].copy_from_slice(&0x10_0000_u32.to_le_bytes()); // alignment
    files.write("vmlinuz", &low);
    for mebibytes in [2, (1 << 43) - 1] {
        runs(files.machine().memory(mebibytes));
    }
    for mebibytes in [0, 1, 1 << 43, u64::MAX] {
        assert_refused!(refused_at_sight(|m| m.memory(mebibytes)), Error::InvalidMemory { value } if value == mebibytes);
    }
}

#[test]
fn the_kernel_command_line() {
    let files = Files::new();
    files.write("vmlinuz", &bz_image(100)); // with the NUL at its end
    let fixed = "earlyprintk=serial ".len();
    runs_with(files.machine(), &"x".repeat(99 - fixed));
    let error = refused_with(&files, &"x".repeat(100 - fixed), |m| m);
    assert_refused!(error, Error::CommandLineTooLong { length: 100, limit: 99 });
}

#[test]
fn uuids_and_addresses() {
    let files = Files::new();
    let socket = files.path("vpnkit");
    let _listener = UnixListener::bind(&socket).unwrap();
    let network = |m: HyperKit| m.vpnkit(VpnKit::Socket(socket.clone())).vpnkit_key(UUID);
    runs(network(files.machine()).uuid(UUID.to_uppercase()).vpnkit_preferred_ipv4("255.255.255.255"));
    let bad = ["", &UUID[1..], &format!("{UUID}0"), &UUID.replace('-', ""), &UUID.replace('a', "g")];
    for bad in [&bad[..], &["0123456-789ab-cdef-0123-456789abcdef0"]].concat() {
        assert_refused!(refused_at_sight(|m| m.uuid(bad)), Error::InvalidUuid { field: "uuid", value } if value == bad);
        let error = refused_at_sight(|m| m.vpnkit_key(bad));
        assert_refused!(error, Error::InvalidUuid { field: "vpnkit_key", value } if value == bad);
    }
    for bad in ["", "1.2.3", "1.2.3.4.5", "1.2.3.256", "::1", " 1.2.3.4", "vm.local"] {
        let error = refused_at_sight(|m| network(m).vpnkit_preferred_ipv4(bad));
        assert_refused!(error, Error::InvalidIpv4 { value } if value == bad);
    }
}

#[test]
fn tap_interfaces_and_mac_addresses() {
    let files = Files::new();
    for good in ["02:00:00:00:00:01", "FE:ff:FF:ff:FF:ff"] {
        runs(files.machine().tap("t".repeat(74)).mac(good));
    }
    let error = refused_at_sight(|m| m.tap("t".repeat(75)));
    assert_refused!(error, Error::TooLong { field: "tap", length: 75, limit: 74, .. });
    let error = refused_at_sight(|m| m.tap("../tap0"));
    assert_refused!(error, Error::ForbiddenCharacter { field: "tap", character: '/', .. });
    assert_refused!(refused_at_sight(|m| m.tap("")), Error::Missing { field: "tap" });
    let (groups, nobodys) = ("01:00:00:00:00:01", "00:00:00:00:00:00");
    let misspelt = ["02:00:00:00:00", "02:00:00:00:00:01:02", "02-00-00-00-00-01", "02:00:00:00:00:0g", "2:0:0:0:0:1"];
    for bad in [&[groups, nobodys, "", "02:00:00:00:00:+1"], &misspelt[..]].concat() {
        assert_refused!(refused_at_sight(|m| m.tap("tap0").mac(bad)), Error::InvalidMac { value } if value == bad);
    }
}

#[test]
fn thirty_devices() {
    let files = Files::new();
    let disks = |machine: HyperKit, count: usize| {
        let image = |index| Disk::raw(files.write(&format!("{index}.img"), b"disk"));
        (0..count).map(image).fold(machine, HyperKit::disk)
    };
    runs(disks(files.machine(), 29)); // and the random number generator
    runs(disks(files.machine().random(false), 30));
    assert_refused!(refused_at_sight(|m| disks(m, 30)), Error::TooManyDevices { count: 31 });
    assert_refused!(refused_at_sight(|m| disks(m.random(false), 31)), Error::TooManyDevices { count: 31 });
    let shares =
        |machine: HyperKit, count: usize| (0..count).fold(machine, |m, index| m.socket_9p("/s", format!("{index}")));
    assert_refused!(refused_at_sight(|m| shares(m.vsock(true).vmnet(true), 28)), Error::TooManyDevices { count: 31 });
}

#[test]
fn sectors() {
    let files = Files::new();
    let image = files.write("d.img", b"disk");
    for (logical, physical) in [(512, 512), (512, 4096), (4096, 4096), (512, 1 << 30), (1 << 30, 1 << 30)] {
        runs(files.machine().disk(Disk::raw(&image).sector_size(logical, physical)));
    }
    for sizes in
        [(0, 0), (256, 256), (256, 512), (512, 513), (513, 1024), (4096, 512), (512, 1 << 31), (1 << 31, 1 << 31)]
    {
        let error = refused_at_sight(|m| m.disk(Disk::raw(&image).sector_size(sizes.0, sizes.1)));
        assert_refused!(
            error,
            Error::InvalidSectorSize { path, value } if path == image && (value.logical, value.physical) == sizes
        );
    }
}

#[test]
fn vsock() {
    let files = Files::new();
    let vsock = |machine: HyperKit| machine.vsock(true);
    let ports = |machine: HyperKit, count: u32| (1..=count).fold(vsock(machine), HyperKit::vsock_port);
    runs(ports(files.machine(), 4).vsock_guest_cid(3));
    runs(vsock(files.machine()).vsock_port(0).vsock_port(u32::MAX - 1).vsock_guest_cid(0x7fff_ffff));
    for cid in [0, 2, 0x8000_0000, u32::MAX] {
        assert_refused!(refused_at_sight(|m| vsock(m).vsock_guest_cid(cid)), Error::InvalidCid { value } if value == cid);
    }
    assert_refused!(refused_at_sight(|m| ports(m, 5)), Error::TooManyPorts { count: 5 });
    assert_refused!(refused_at_sight(|m| vsock(m).vsock_port(u32::MAX)), Error::InvalidPort { value: u32::MAX });
}

#[test]
fn the_directory_of_the_vsock_sockets() {
    let files = Files::new();
    let [longest, too_long] = [85, 86].map(|length| path_of(length, &files.dir()));
    runs(files.machine().vsock(true).state_dir(&longest));
    runs(files.machine().state_dir(&too_long)); // without vsock nothing is made there that is connected to
    let error = refused_with(&files, "", |m| m.vsock(true).state_dir(&too_long));
    assert_refused!(error, Error::TooLong { field: "state_dir", length: 86, limit: 85, .. });
    runs(files.machine().vsock(true).state_dir(&too_long).vsock_dir(&longest));
    let error = refused_with(&files, "", |m| m.vsock(true).vsock_dir(&too_long));
    assert_refused!(error, Error::TooLong { field: "vsock_dir", length: 86, limit: 85, .. });
}

#[test]
fn sockets_tags_and_ports_of_9p_and_the_socket_of_vpnkit() {
    let files = Files::new();
    let [longest, too_long] = [103, 104].map(|length| path_of(length, &files.dir()));
    let _listener = UnixListener::bind(&longest).unwrap();
    runs(files.machine().vpnkit(VpnKit::Socket(longest.clone())).socket_9p(&longest, "t".repeat(256)));
    runs(files.machine().port_9p(1, "t").port_9p(65535, "u"));
    let error = refused_at_sight(|m| m.vpnkit(VpnKit::Socket(too_long.clone())));
    assert_refused!(error, Error::TooLong { field: "vpnkit", length: 104, limit: 103, .. });
    let error = refused_at_sight(|m| m.socket_9p(&too_long, "tag"));
    assert_refused!(error, Error::TooLong { field: "sockets_9p", length: 104, limit: 103, .. });
    for with_tag in [|m: HyperKit, tag| m.socket_9p("/s", tag), |m: HyperKit, tag| m.port_9p(1, tag)] {
        let error = refused_at_sight(|m| with_tag(m, "t".repeat(257)));
        assert_refused!(error, Error::TooLong { field: "sockets_9p", length: 257, limit: 256, .. });
    }
    assert_refused!(refused_at_sight(|m| m.port_9p(0, "tag")), Error::ZeroPort { field: "sockets_9p" });
}

#[test]
fn ports() {
    let files = Files::new();
    for port in [1, 65535] {
        runs(files.machine().gdb_port(port));
    }
    assert_refused!(refused_at_sight(|m| m.gdb_port(0)), Error::ZeroPort { field: "gdb_port" });
    for forward in [PortForward::tcp, PortForward::udp] {
        // Only QEMU forwards ports.
        let forwarding =
            |m: HyperKit, guest| m.hyperkit("qemu-system-x86_64").vmnet(true).port_forward(forward(0, guest));
        forwarding(files.machine(), 1).arguments("").unwrap();
        assert_refused!(refused_at_sight(|m| forwarding(m, 0)), Error::ZeroPort { field: "port_forwards" });
    }
}

#[test]
fn serial_ports() {
    let files = Files::new();
    runs(files.machine().serial(Serial::tty().log()).serial(Serial::none().log()));
    let serials = |m: HyperKit, all: &[Serial]| all.iter().fold(m, |m, &serial| m.serial(serial));
    let error = refused_at_sight(|m| serials(m, &[Serial::none(); 3]));
    assert_refused!(error, Error::TooManySerials { count: 3 });
    assert_refused!(refused_at_sight(|m| serials(m, &[Serial::stdio(); 2])), Error::StdioTwice);

    // Run as it is, and not started: the port is the standard output.
    let one = changed(files.machine(), |m| m.state_dir = None).serial(Serial::none()).serial(Serial::stdio());
    let arguments = one.arguments("guest.exit=0").unwrap();
    let ended = Command::new(standin()).args(arguments).stdin(Stdio::null()).output().unwrap();
    assert!(ended.status.success(), "{ended:?}");
}

#[test]
fn boot_roms() {
    let files = Files::new();
    let rom = files.path("rom");
    let with_rom = |m| bare(m).bootrom(&rom);
    for length in [PAGE, 16 * MIB] {
        file_of(length, &files, "rom");
        runs(with_rom(files.machine()));
    }
    for bad in [0, PAGE - 1, PAGE + 1, 2 * PAGE - 1, 16 * MIB + 1, 16 * MIB + PAGE] {
        file_of(bad, &files, "rom");
        let error = refused_with(&files, "", with_rom);
        assert_refused!(error, Error::InvalidBootrom { path, length } if path == rom && length == bad);
    }
    file_of(PAGE, &files, "rom");
    let error = refused_with(&files, "x", with_rom);
    assert_refused!(error, Error::CommandLineForRom { value } if value == "x");
}

fn qcow(change: impl FnOnce(&mut Qcow)) -> Disk {
    let mut qcow = Qcow::default();
    change(&mut qcow);
    Disk::qcow2("/q.qcow2", qcow)
}

/// Nothing can be quoted, so a comma would separate, and a NUL would end it all.
#[test]
fn commas_and_nuls() {
    type Change = fn(HyperKit, &str) -> HyperKit;
    let fields: [(&str, Change); 16] = [
        ("state_dir", |m, text| m.state_dir(text)),
        ("kernel", |m, text| m.kernel(text)),
        ("initrd", |m, text| m.initrd(text)),
        ("bootrom", |m, text| bare(m).bootrom(text)),
        ("multiboot", |m, text| bare(m).multiboot(Multiboot::new(text))),
        ("disks", |m, text| m.disk(Disk::raw(text).size(1))),
        ("disks", |m, text| m.disk(Disk::qcow2(text, Qcow::default()))),
        ("disks", |m, text| m.disk(qcow(|qcow| qcow.stats = Some(text.to_owned())))),
        ("disks", |m, text| m.disk(qcow(|qcow| qcow.tool = Some(text.into())))),
        ("isos", |m, text| m.iso(text)),
        ("tap", |m, text| m.tap(text.trim_start_matches('/'))),
        ("vpnkit", |m, text| m.vpnkit(VpnKit::Socket(text.into()))),
        ("vsock_dir", |m, text| m.vsock(true).vsock_dir(text)),
        ("vhost_device_vsock", |m, text| m.vhost_device_vsock(text)),
        ("sockets_9p", |m, text| m.socket_9p(text, "tag")),
        ("sockets_9p", |m, text| m.socket_9p("/socket", text)),
    ];
    for (name, change) in fields {
        for forbidden in [',', '\0'] {
            let value = format!("/a{forbidden}b");
            assert_refused!(
                refused_at_sight(|m| change(m, &value)),
                Error::ForbiddenCharacter { field, value: v, character } if field == name && value.ends_with(&v) && character == forbidden
            );
        }
    }
    let whole: [(&str, Change); 2] =
        [("argv0", |m, text| m.argv0(text)), ("extra_arguments", |m, text| m.extra_argument(text))];
    for (name, change) in whole {
        change(Files::new().machine(), "a,b").check().unwrap();
        let error = refused_at_sight(|m| change(m, "a\0b"));
        assert_refused!(error, Error::ForbiddenCharacter { field, character: '\0', .. } if field == name);
    }
    let error = refused_with(&Files::new(), "a\0b", |m| m);
    assert_refused!(error, Error::ForbiddenCharacter { field: "cmdline", character: '\0', .. });
}
