//! `resolve` returns the description as it would be started, `engine` the engine that would run it. Both change nothing.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use hyperkit::{
    ConfigError, Disk, DiskFormat, Engine, Error, HyperKit, Multiboot, Network, QcowOptions, Share9pSource,
};

use crate::common::{TestDir, file_names, qcow2_header};

/// Returns what `resolve` returns, after asserting that it changes neither the description nor a file.
fn resolved(test_dir: &TestDir, description: &HyperKit) -> Result<HyperKit, Error> {
    let (before, files) = (description.clone(), file_names(&test_dir.dir()));
    let result = description.resolve();
    assert_eq!((description, file_names(&test_dir.dir())), (&before, files));
    result
}

fn absolute(path: &str) -> PathBuf {
    std::path::absolute(path).unwrap()
}

#[test]
fn paths_become_absolute() {
    let test_dir = TestDir::new();
    let linux = HyperKit::new().hyperkit("sh").state_dir("vm").kernel("k").initrd("i").iso("a.iso").iso("/b.iso");
    let linux = linux.disk(Disk::raw("d.img")).vsock(true).vsock_dir("sockets");
    let linux = linux.socket_9p("9p.sock", "tag").port_9p(564, "net").network(Network::VpnKit("net.sock".into()));
    let found = resolved(&test_dir, &linux).unwrap();
    let mut expected = linux.state_dir(absolute("vm").as_path()).kernel(absolute("k")).initrd(absolute("i"));
    expected.hyperkit.clone_from(&found.hyperkit);
    expected.isos[0] = absolute("a.iso");
    expected.disks[0].path = Some(absolute("d.img"));
    expected.vsock_dir = Some(absolute("sockets"));
    expected.shares_9p[0].source = Share9pSource::Path(absolute("9p.sock"));
    expected.network = Network::VpnKit(absolute("net.sock"));
    assert_eq!(found, expected);
    assert_eq!(resolved(&test_dir, &found).unwrap(), found, "resolving a second time changes the description");

    let multiboot = HyperKit::new().hyperkit("sh").multiboot(Multiboot::new("k").module("m", "words"));
    let found = resolved(&test_dir, &multiboot).unwrap().multiboot.unwrap();
    assert_eq!(found, Multiboot::new(absolute("k")).module(absolute("m"), "words"));
    let rom = HyperKit::new().hyperkit("sh").bootrom("rom");
    assert_eq!(resolved(&test_dir, &rom).unwrap().bootrom, Some(absolute("rom")));
}

/// If a state directory had two names, two VMs could run in it.
#[test]
fn state_directory_is_resolved_through_symlinks() {
    let test_dir = TestDir::new();
    symlink(test_dir.dir(), test_dir.path("link")).unwrap();
    let description = HyperKit::new().hyperkit("sh").kernel("/k").state_dir(test_dir.path("link/new/vm"));
    assert_eq!(resolved(&test_dir, &description).unwrap().state_dir, Some(test_dir.path("new/vm")));
}

#[test]
fn hypervisor_is_found_on_the_path_or_is_an_error() {
    let test_dir = TestDir::new();
    let description = HyperKit::new().kernel("/k");
    let sh = resolved(&test_dir, &description.clone().hyperkit("sh")).unwrap().hyperkit.unwrap();
    assert!(sh.is_absolute() && sh.file_name() == Some("sh".as_ref()) && sh.exists(), "{}", sh.display());
    let error = resolved(&test_dir, &description.hyperkit("/no/such")).unwrap_err();
    assert!(matches!(error, Error::HypervisorNotFound { searched } if searched == [Path::new("/no/such")]));
}

#[test]
fn formats_of_disks_are_probed() {
    let test_dir = TestDir::new();
    let [qcow2, raw] =
        [("a", qcow2_header()), ("b.qcow2", vec![0; 512])].map(|(name, image)| test_dir.write(name, &image));
    let options = QcowOptions::default();
    let disks = [
        (Disk::new(&qcow2), DiskFormat::Qcow2(options.clone())),
        (Disk::new(&raw), DiskFormat::Raw),
        (Disk::raw(&qcow2), DiskFormat::Raw),
        (Disk::new(test_dir.path("new.qcow2")).size_mib(1), DiskFormat::Qcow2(options)),
        (Disk::new(test_dir.path("new.img")).size_mib(1), DiskFormat::Raw),
        (Disk::in_state_dir(1), DiskFormat::Raw),
    ];
    for (disk, format) in disks {
        let description = HyperKit::new().hyperkit("sh").kernel("/k").state_dir(test_dir.path("vm"));
        let found = resolved(&test_dir, &description.disk(disk.clone())).unwrap();
        assert_eq!(found.disks, [disk.format(format)], "something else than the format has changed");
    }
    // The default name of an image depends on its format, so `resolve` sets both.
    let probed =
        HyperKit::new().hyperkit("sh").kernel("/k").state_dir(test_dir.path("vm")).disk(Disk::default().size_mib(1));
    let place = test_dir.path("vm").join("disk.img");
    assert_eq!(resolved(&test_dir, &probed).unwrap().disks, [Disk::raw(place).size_mib(1)]);
}

/// The image of a disk without a path is in the state directory. If the description is started in another one, so is the
/// image.
#[test]
fn disk_in_the_state_directory_gets_no_path() {
    let test_dir = TestDir::new();
    let description = HyperKit::new().hyperkit("sh").kernel("/k").state_dir(test_dir.path("vm"));
    let description = description.disk(Disk::in_state_dir(64));
    assert_eq!(resolved(&test_dir, &description).unwrap().disks, [Disk::in_state_dir(64)]);
}

/// `resolve` does not check whether the files exist. `check` does.
#[test]
fn invalid_description_is_an_error_but_missing_files_are_not() {
    let test_dir = TestDir::new();
    let missing = HyperKit::new().hyperkit("sh").kernel("/no/such").initrd("/no/such").iso("/no/such");
    resolved(&test_dir, &missing).unwrap();
    let image = test_dir.write("image", &[0; 512]);
    let wrong = missing.cpus(0).disk(Disk::qcow2(&image, QcowOptions::default()));
    let error = resolved(&test_dir, &wrong).unwrap_err();
    let expected = [ConfigError::InvalidCpus { value: 0 }, ConfigError::NotQcow2 { path: image }];
    assert_eq!(error.violations(), expected);
}

/// On hyperkit, `Nat` is the VPNKit of Docker Desktop, whose socket has to be found. Few hosts have it. On QEMU nothing has
/// to be found.
#[test]
fn nat_is_resolved_to_a_vpnkit_socket_on_hyperkit_only() {
    let test_dir = TestDir::new();
    let description = HyperKit::new().kernel("/k").network(Network::Nat);
    match resolved(&test_dir, &description.clone().hyperkit("sh")) {
        Ok(found) => assert!(matches!(found.network, Network::VpnKit(socket) if socket.exists())),
        Err(error) => {
            assert!(matches!(error.violations(), [ConfigError::VpnKitNotFound { searched }] if !searched.is_empty()));
        }
    }
    let qemu = test_dir.write_executable("qemu-system-x86_64", b"");
    assert_eq!(resolved(&test_dir, &description.hyperkit(qemu)).unwrap().network, Network::Nat);
}

#[test]
fn file_name_of_the_hypervisor_decides_the_engine() {
    for (program, engine) in [
        ("hyperkit", Engine::HyperKit),
        ("/opt/qemu/com.docker.hyperkit", Engine::HyperKit),
        ("sh", Engine::HyperKit),
        ("qemu-system-x86_64", Engine::Qemu),
        ("no-such-dir/qemu-system-x86_64", Engine::Qemu),
        ("/opt/hyperkit/qemu-system-x86_64", Engine::Qemu),
    ] {
        assert_eq!(HyperKit::new().hyperkit(program).engine().unwrap(), engine, "{program}");
        assert_eq!(Engine::of(program), engine, "{program}");
    }
}

/// Whether a hypervisor is found depends on the host. But `engine` and `resolve` have to find the same one.
#[test]
fn engine_of_an_unset_hypervisor_is_that_of_the_resolved_one() {
    let test_dir = TestDir::new();
    let description = HyperKit::new().kernel("/k");
    match (description.engine(), resolved(&test_dir, &description)) {
        (Ok(engine), Ok(found)) => assert_eq!(engine, Engine::of(found.hyperkit.unwrap())),
        (Err(Error::HypervisorNotFound { searched }), Err(Error::HypervisorNotFound { searched: places })) => {
            assert_eq!(searched, places);
            assert!(!searched.is_empty());
        }
        other => panic!("{other:?}"),
    }
    assert!(fs::read_dir(test_dir.path("vm")).is_err(), "something was created");
}
