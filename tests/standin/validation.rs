//! Invalid descriptions: each is rejected before anything is created, with its own error, which contains the field and the
//! value.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::net::{TcpListener, UdpSocket};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use hyperkit::{ConfigError, Console, Disk, Error, ErrorKind, HyperKit, Multiboot, Network, PortForward, Root, Serial};

use crate::common::rejection::{
    assert_error, error_of_start, modify, only_violation, rejection, rejection_by_arguments, rejection_with, rom,
    violations_of_start,
};
use crate::common::{TestDir, bz_image, file_names, qcow2_header, standin_path};

#[test]
fn unchanged_description_of_these_tests_is_valid() {
    let test_dir = TestDir::new();
    test_dir.description().check().unwrap();
    assert_eq!(file_names(&test_dir.dir()), ["initrd.img", "vmlinuz"]);
}

#[test]
fn description_of_a_started_vm_is_the_resolved_one() {
    let test_dir = TestDir::new();
    let _stop = test_dir.stop_on_drop();
    let image = test_dir.write("image", &qcow2_header());
    let description = test_dir.description().console(Console::Pty).disk(&image).label("owner", "me");
    let resolved = description.resolve().unwrap();
    let vm = description.start("guest").unwrap();
    let without_record = |description: &HyperKit| {
        let mut form = serde_json::to_value(description).unwrap();
        form.as_object_mut()
            .unwrap()
            .retain(|key, _| !["pid", "arguments", "cmdline", "pid_started", "pid_identity"].contains(&&**key));
        form
    };
    assert_eq!(without_record(vm.description()), without_record(&resolved));
    assert_eq!(vm.description().engine().unwrap(), description.engine().unwrap());
    vm.kill().unwrap();
}

#[test]
fn pty_logs_and_vsock_require_a_state_directory() {
    let without = |description| modify(description, |d| d.state_dir = None);
    for console in [Console::Pty, Console::AppleLog] {
        let error = rejection_by_arguments(|d| without(d.console(console)));
        assert_error!(error, ConfigError::StateDirRequired { field: "console" });
    }
    let error = rejection_by_arguments(|d| without(d.console(Console::Stdio).vsock(true)));
    assert_error!(error, ConfigError::StateDirRequired { field: "vsock" });
    // On QEMU; hyperkit refuses it anyway.
    let error =
        rejection_by_arguments(|d| without(d.hyperkit("qemu-system-x86_64").console(Console::Stdio).agent(true)));
    assert_error!(error, ConfigError::StateDirRequired { field: "agent" });
    let error = rejection_by_arguments(|d| {
        without(d.hyperkit("qemu-system-x86_64").console(Console::Stdio).internal_network("net", 1))
    });
    assert_error!(error, ConfigError::StateDirRequired { field: "internal_networks" });
    let serials = [Serial::pty(), Serial::none().log(), Serial::stdio().log()];
    for serial in serials {
        let error = rejection_by_arguments(|d| without(d.serial(serial)));
        assert_error!(error, ConfigError::StateDirRequired { field: "serials" });
    }
    without(TestDir::new().description().serial(Serial::stdio()).serial(Serial::none())).arguments("").unwrap();
}

#[test]
fn missing_prerequisite_is_rejected() {
    const KEY: &str = "0f0e6d3c-5f2b-4b6e-8f11-2a7d9f1c0b55";
    // QEMU forwards ports, and needs no VPNKit for `Network::Nat`. It is never started.
    const QEMU: &str = "/no/such/qemu-system-x86_64";
    type Change = fn(HyperKit) -> HyperKit;
    let all: [(&str, &str, Change); 8] = [
        ("vsock_ports", "vsock", |d| d.vsock_port(1)),
        ("vsock_dir", "vsock", |d| d.vsock_dir("/tmp")),
        ("vpnkit_preferred_ipv4", "vpnkit_key", |d| {
            d.hyperkit(QEMU).network(Network::Nat).vpnkit_preferred_ipv4("10.0.2.4")
        }),
        ("vpnkit_preferred_ipv4", "network", |d| d.vmnet(true).vpnkit_key(KEY).vpnkit_preferred_ipv4("10.0.2.4")),
        ("mac", "network", |d| d.mac("02:00:00:00:00:01")),
        ("port_forwards", "network", |d| d.hyperkit(QEMU).tap("tap0").port_forward(PortForward::tcp(0, 80))),
        ("root", "agent", |d| d.hyperkit(QEMU).root(Root::Dir("/".into()))),
        ("root", "initrd", |d| modify(d.hyperkit(QEMU).agent(true).root(Root::Dir("/".into())), |d| d.initrd = None)),
    ];
    for (name, other, change) in all {
        assert_error!(rejection_by_arguments(change), ConfigError::MissingPrerequisite { field, requires } if (field, requires) == (name, other));
    }
}

#[test]
fn conflicting_boot_sources_are_rejected() {
    let files = TestDir::new();
    let file = rom(4096, &files, "rom");
    let rom = |d: HyperKit| d.bootrom(&file);
    let error = rejection_by_arguments(rom);
    assert_error!(error, ConfigError::ConflictingBootSources { first: "kernel", second: "bootrom" });
    let error = rejection_by_arguments(|d| modify(rom(d), |d| d.kernel = None));
    assert_error!(error, ConfigError::ConflictingBootSources { first: "bootrom", second: "initrd" });
    let two = |d| modify(rom(d), |d| d.kernel = None).multiboot(Multiboot::new("/no/such"));
    let conflict = ConfigError::ConflictingBootSources { first: "bootrom", second: "multiboot" };
    assert_eq!(only_violation(two(files.description()).arguments("")), conflict);
    let missing = ConfigError::NotFound { field: "multiboot", path: "/no/such".into() };
    assert_eq!(violations_of_start(&TestDir::new(), "", two), [conflict, missing]);
}

/// The description would be invalid with any hypervisor.
#[test]
fn invalid_description_is_reported_before_a_missing_hypervisor() {
    assert_error!(rejection(|d| d.hyperkit("/no/such").cpus(0)), ConfigError::InvalidCpus { value: 0 });
}

#[test]
fn host_port_in_use_is_rejected() {
    let test_dir = TestDir::new();
    let qemu = test_dir.path("qemu-system-x86_64");
    symlink(standin_path(), &qemu).unwrap(); // it is never started; its name makes QEMU the engine
    let (tcp, udp) = (TcpListener::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
    let (tcp, udp) =
        (tcp.local_addr().map(|a| (tcp, a.port())).unwrap(), udp.local_addr().map(|a| (udp, a.port())).unwrap());
    let description = || test_dir.description().hyperkit(&qemu).vmnet(true);
    for (description, name, taken) in [
        (description().port_forward(PortForward::tcp(tcp.1, 1)), "port_forwards", tcp.1),
        (description().port_forward(PortForward::udp(udp.1, 1)), "port_forwards", udp.1),
        (test_dir.description().gdb_port(tcp.1), "gdb_port", tcp.1),
    ] {
        let error = description.start("").expect_err("it started");
        assert_eq!(error.kind(), ErrorKind::InUse);
        assert_error!(error, Error::PortInUse { field, port, .. } if (field, port) == (name, taken));
        assert!(!test_dir.path("vm").exists());
    }
}

/// The crate cannot create an image where a symlink leads to a missing file.
#[test]
fn new_disk_at_a_dangling_symlink_is_rejected() {
    let test_dir = TestDir::new();
    let link = test_dir.path("d.img");
    symlink("nowhere", &link).unwrap();
    let error = rejection_with(&test_dir, "", |d| d.disk(Disk::raw(&link).size_mib(1)));
    assert_error!(error, ConfigError::Inaccessible { field: "disks", path, .. } if path == link);
}

#[test]
fn vsock_dir_has_to_be_a_directory() {
    let test_dir = TestDir::new();
    let file = test_dir.write("file", b"");
    let error = rejection_with(&test_dir, "", |d| d.vsock(true).vsock_dir(&file));
    assert_error!(error, ConfigError::NotADirectory { field: "vsock_dir", path } if path == file);
    let error = rejection_with(&test_dir, "", |d| d.vsock(true).vsock_dir("/no/such"));
    assert_error!(error, ConfigError::NotFound { field: "vsock_dir", .. });
}

#[test]
fn empty_paths_and_tags_are_rejected() {
    assert_error!(rejection_by_arguments(|d| modify(d, |d| d.kernel = None)), ConfigError::Missing { field: "kernel" });
    assert_error!(rejection_by_arguments(|d| d.kernel("")), ConfigError::Missing { field: "kernel" });
    assert_error!(rejection_by_arguments(|d| d.iso("")), ConfigError::Missing { field: "isos" });
    assert_error!(rejection_by_arguments(|d| d.socket_9p("/s", "")), ConfigError::Missing { field: "shares_9p" });
}

#[test]
fn non_utf8_paths_are_rejected() {
    let path = PathBuf::from(OsStr::from_bytes(b"/\xff"));
    let error = rejection_by_arguments(|d| d.kernel(&path));
    assert_error!(error, ConfigError::NotUtf8 { field: "kernel", path: p } if p == path);
    let error = rejection_by_arguments(|d| d.hyperkit(&path));
    assert_error!(error, ConfigError::NotUtf8 { field: "hyperkit", path: p } if p == path);
    assert!(!HyperKit::new().kernel(&path).iso(&path).to_string().is_empty(), "`Display` prints nothing");
}

#[test]
fn disk_without_path_or_valid_size_is_rejected() {
    let error = rejection_by_arguments(|d| {
        modify(d.console(Console::Stdio), |d| d.state_dir = None).disk(Disk::in_state_dir(1))
    });
    assert_error!(error, ConfigError::MissingDiskPath);
    assert_error!(rejection_by_arguments(|d| d.disk(Disk::default())), ConfigError::MissingDiskPath);
    let error = rejection(|d| d.disk(Disk::raw("/no/such.img")));
    assert_error!(error, ConfigError::DiskSizeMissing { path } if path == Path::new("/no/such.img"));
    for value in [0, u64::MAX] {
        let error = rejection_by_arguments(|d| d.disk(Disk::raw("/no/such.img").size_mib(value)));
        assert_error!(error, ConfigError::InvalidDiskSize { value: v, .. } if v == value);
    }
}

#[test]
fn duplicate_disk_path_is_rejected() {
    let error =
        rejection_by_arguments(|d| d.disk(Disk::raw("/d.img").size_mib(1)).disk(Disk::raw("/d.img").size_mib(1)));
    assert_error!(error, ConfigError::DuplicateDisk { path } if path == Path::new("/d.img"));
}

#[test]
fn disk_in_a_directory_that_is_a_file_is_rejected() {
    let test_dir = TestDir::new();
    let file = test_dir.write("file", b"");
    let error = rejection_with(&test_dir, "", |d| d.disk(Disk::raw(file.join("d.img")).size_mib(1)));
    assert_error!(
        error,
        ConfigError::NotADirectory { field: "disks", .. } | ConfigError::Inaccessible { field: "disks", .. }
    );
}

/// A state file may contain settings of a later version. A VM that is started without them would differ from the described
/// one.
#[test]
fn unknown_settings_are_rejected_and_preserved() {
    let images = TestDir::new();
    let image = images.write("d.qcow2", &qcow2_header());
    for (key, value) in [("format", "vmdk"), ("driver", "virtio-scsi"), ("OnFlush", "sometimes")] {
        let mut disk = serde_json::json!({ "path": image, "format": "qcow" });
        disk[key] = value.into();
        let description: HyperKit = serde_json::from_value(serde_json::json!({ "disks": [disk] })).unwrap();
        let error = rejection_by_arguments(|d| d.disk(description.disks[0].clone()));
        assert_error!(error, ConfigError::UnknownSetting { key: k } if k.contains(key) && k.contains(value));
        assert_eq!(serde_json::to_value(&description).unwrap()["disks"][0][key], value, "the setting is lost");
    }
}

#[test]
fn missing_files_are_rejected() {
    type Change = fn(HyperKit, &Path) -> HyperKit;
    let fields: [(&str, Change); 4] = [
        ("kernel", |d, path| d.kernel(path)),
        ("initrd", |d, path| d.initrd(path)),
        ("isos", |d, path| d.iso(path)),
        ("network", |d, path| d.network(Network::VpnKit(path.into()))),
    ];
    for (name, change) in fields {
        let error = rejection(|d| change(d, Path::new("/no/such")));
        assert_error!(error, ConfigError::NotFound { field, path } if field == name && path == Path::new("/no/such"));
    }
}

#[test]
fn non_regular_and_unreadable_files_are_rejected() {
    type Change = fn(HyperKit, &Path) -> HyperKit;
    let fields: [(&str, Change); 4] = [
        ("kernel", |d, path| d.kernel(path)),
        ("initrd", |d, path| d.initrd(path)),
        ("disks", |d, path| d.disk(Disk::raw(path).size_mib(1))),
        ("isos", |d, path| d.iso(path)),
    ];
    let test_dir = TestDir::new();
    let socket = test_dir.path("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    let pipe = test_dir.path("pipe"); // opening it would block until another process opens it for writing
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    // No user can open a symlink to itself, not even root.
    let loop_symlink = test_dir.path("loop_symlink");
    symlink(&loop_symlink, &loop_symlink).unwrap();
    let locked = test_dir.write("locked", &bz_image(2047));
    fs::set_permissions(&locked, Permissions::from_mode(0o000)).unwrap();
    let is_root = fs::File::open(&locked).is_ok();
    for (name, change) in fields {
        for other in [&test_dir.dir(), &socket, &pipe] {
            let error = rejection_with(&test_dir, "", |d| change(d, other));
            assert_error!(error, ConfigError::NotAFile { field, path } if field == name && path == *other);
        }
        let error = rejection_with(&test_dir, "", |d| change(d, &loop_symlink));
        assert_error!(error, ConfigError::Inaccessible { field, path, reason, .. } if field == name && path == loop_symlink && !reason.is_empty());
        match change(test_dir.description(), &locked).check() {
            Ok(()) => assert!(is_root),
            locked => {
                let violation = only_violation(locked);
                assert_error!(violation, ConfigError::Inaccessible { field, .. } if field == name && !is_root);
            }
        }
    }
}

#[test]
fn invalid_bz_image_is_rejected() {
    let zero = |range: std::ops::Range<usize>| {
        let mut image = bz_image(2047);
        image[range].fill(0);
        image
    };
    let good = bz_image(2047);
    let kernels = [
        (Vec::new(), "file too short"),
        (b"\x7fELF".repeat(1000), "no boot header"),
        (zero(0x1fe..0x200), "no boot header"),
        (zero(0x202..0x203), "no boot header"),
        (zero(0x206..0x207), "boot protocol older than 2.10"),
        (zero(0x1f1..0x1f2), "zImage"),
        (zero(0x211..0x212), "zImage"),
        (good[..good.len() - 1].to_vec(), "truncated"),
        (zero(0x230..0x234), "inconsistent header"),
        (zero(0x260..0x264), "inconsistent header"),
    ];
    for (image, why) in kernels {
        let test_dir = TestDir::new();
        let kernel = test_dir.write("kernel", &image);
        let error = rejection_with(&test_dir, "", |d| d.kernel(&kernel));
        assert_error!(error, ConfigError::InvalidKernel { path, reason, .. } if path == kernel && reason == why);
    }
}

#[test]
fn empty_initrd_is_rejected() {
    let test_dir = TestDir::new();
    let initrd = test_dir.write("empty", b"");
    let error = rejection_with(&test_dir, "", |d| d.initrd(&initrd));
    assert_error!(error, ConfigError::EmptyFile { field: "initrd", path } if path == initrd);
}

#[test]
fn invalid_state_directory_is_rejected() {
    let test_dir = TestDir::new();
    let file = test_dir.write("file", b"");
    let error = rejection_with(&test_dir, "", |d| d.state_dir(&file));
    assert_error!(error, ConfigError::NotADirectory { field: "state_dir", path } if path == file);
    let below = file.join("vm");
    let error = rejection_with(&test_dir, "", |d| d.state_dir(&below));
    assert_error!(error, ConfigError::Inaccessible { field: "state_dir", path, .. } if path == below);
    let nowhere = test_dir.path("nowhere");
    symlink("/no/such", &nowhere).unwrap();
    let error = rejection_with(&test_dir, "", |d| d.state_dir(&nowhere));
    assert_error!(error, ConfigError::Inaccessible { field: "state_dir", path, .. } if path == nowhere);
}

#[test]
fn missing_hypervisor_is_rejected() {
    let error = error_of_start(&TestDir::new(), "", |d| d.hyperkit("/no/such/hyperkit"));
    assert_eq!(error.kind(), ErrorKind::NotInstalled);
    assert_error!(error, Error::HypervisorNotFound { searched } if searched == [Path::new("/no/such/hyperkit")]);
    let test_dir = TestDir::new();
    let not_executable = test_dir.write("hyperkit", b"");
    let error = error_of_start(&test_dir, "", |d| d.hyperkit(&not_executable));
    assert_error!(error, Error::HypervisorNotFound { searched } if searched == [not_executable]);
    let error = error_of_start(&test_dir, "", |d| d.hyperkit("no-such-hyperkit-anywhere"));
    assert_error!(error, Error::HypervisorNotFound { searched } if searched.iter().all(|place| place.ends_with("no-such-hyperkit-anywhere")) && !searched.is_empty());
}

#[test]
fn duplicate_tags_and_ports_and_blank_argv0_are_rejected() {
    for blank in ["", " ", "\t\n"] {
        assert_error!(rejection_by_arguments(|d| d.argv0(blank)), ConfigError::Missing { field: "argv0" });
    }
    let error = rejection_by_arguments(|d| d.socket_9p("/a", "tag").socket_9p("/b", "tag"));
    assert_error!(error, ConfigError::DuplicateMountTag { tag } if tag == "tag");
    let ports = |d: HyperKit, forwards: &[PortForward]| {
        modify(d.hyperkit("/no/such/qemu-system-x86_64").vmnet(true), |d| d.port_forwards = forwards.to_vec())
    };
    let (tcp, udp, any) = (PortForward::tcp(80, 1), PortForward::udp(80, 2), PortForward::tcp(0, 3));
    assert_error!(rejection_by_arguments(|d| ports(d, &[tcp, any, tcp])), ConfigError::DuplicateHostPort { port: 80 });
    assert_error!(
        rejection_by_arguments(|d| ports(d, &[tcp]).gdb_port(80)),
        ConfigError::DuplicateHostPort { port: 80 }
    );
    ports(TestDir::new().description(), &[tcp, udp, any, any]).arguments("").unwrap();
}

/// hyperkit itself would try to connect forever, without a message.
#[test]
fn vpnkit_socket_without_listener_is_rejected() {
    let test_dir = TestDir::new();
    let (plain, stale) = (test_dir.write("file", b""), test_dir.path("socket"));
    drop(UnixListener::bind(&stale).unwrap());
    for socket in [plain, stale] {
        let error = rejection_with(&test_dir, "", |d| d.network(Network::VpnKit(socket.clone())));
        assert_error!(error, ConfigError::Inaccessible { field: "network", path, .. } if path == socket);
    }
}

/// If VPNKit has more waiting connections than fit into its queue, it is running.
#[cfg(target_os = "linux")]
#[test]
fn vpnkit_socket_with_a_full_queue_is_accepted() {
    let test_dir = TestDir::new();
    let listener = UnixListener::bind(test_dir.path("vpnkit")).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let _first = std::os::unix::net::UnixStream::connect(test_dir.path("vpnkit")).unwrap(); // now the queue is full
    test_dir.description().network(Network::VpnKit(test_dir.path("vpnkit"))).check().unwrap();
}

/// The message of the operating system is part of a violation, not its `source()`, so that violations can be compared.
#[test]
fn error_message_is_one_line_with_all_violations() {
    let test_dir = TestDir::new();
    let loop_symlink = test_dir.path("cir\ncle");
    symlink(&loop_symlink, &loop_symlink).unwrap();
    let error = error_of_start(&test_dir, "", |d| d.kernel(&loop_symlink).cpus(0));
    let [cpus, ConfigError::Inaccessible { reason, .. }] = error.violations() else { panic!("{error:?}") };
    let message = error.to_string();
    let path = loop_symlink.to_str().unwrap().replace('\n', "\\n");
    assert_eq!(message, format!("{cpus}; cannot access `kernel`: {path}: {reason}"));
    assert!(!message.contains('\n') && std::error::Error::source(&error).is_none());
    assert_eq!(format!("{error:#}"), message, "a cause is appended");
}
