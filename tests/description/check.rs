//! `check` and `arguments` report everything that is wrong with a description, not only the first violation.

use std::fs;
use std::path::Path;

use hyperkit::{
    ConfigError, Console, Disk, Error, ErrorKind, HyperKit, Multiboot, Network, PortForward, QcowOptions, SectorSize,
    Serial,
};
use proptest::prelude::*;
use proptest::sample::subsequence;

use crate::common::rejection::without_boot_source;
use crate::common::{TestDir, file_names};

/// Returns a valid description. Any executable file can be the hypervisor, since nothing is started.
fn valid(test_dir: &TestDir) -> HyperKit {
    let (kernel, initrd) = (test_dir.path("vmlinuz"), test_dir.path("initrd.img"));
    HyperKit::new().hyperkit("sh").state_dir(test_dir.path("vm")).kernel(kernel).initrd(initrd)
}

/// Returns what `check` reports, after asserting that it changes neither the description nor a file.
fn checked(test_dir: &TestDir, description: &HyperKit) -> Result<(), Error> {
    let (before, files) = (description.clone(), file_names(&test_dir.dir()));
    let result = description.check();
    assert_eq!((description, file_names(&test_dir.dir())), (&before, files));
    result
}

fn violations(test_dir: &TestDir, description: &HyperKit) -> Vec<ConfigError> {
    checked(test_dir, description).map_or_else(|error| error.violations().to_vec(), |()| Vec::new())
}

#[test]
fn wrong_fields_and_missing_files_are_reported_together() {
    let test_dir = TestDir::new();
    let [kernel, iso, disk] = ["no-kernel", "no.iso", "no.img"].map(|name| test_dir.path(name));
    let mut wrong = valid(&test_dir).cpus(0).memory_mib(1).uuid("x").mac("y").network(Network::VpnKit("".into()));
    wrong = wrong.serial(Serial::stdio()).serial(Serial::stdio()).vsock(true).vsock_guest_cid(1).gdb_port(0);
    wrong = wrong.socket_9p("/s", "tag").socket_9p("/t", "tag").port_forward(PortForward::tcp(0, 0));
    wrong = wrong.kernel(&kernel).iso(&iso).iso(&iso).disk(&disk).disk(Disk::default());
    wrong.state_dir = None;
    let expected = [
        ConfigError::DuplicateStdio,
        ConfigError::StateDirRequired { field: "vsock" },
        ConfigError::InvalidMac { value: "y".to_owned() },
        ConfigError::Missing { field: "network" },
        ConfigError::InvalidUuid { field: "uuid", value: "x".to_owned() },
        ConfigError::DuplicateMountTag { tag: "tag".to_owned() },
        ConfigError::ZeroPort { field: "gdb_port" },
        ConfigError::ZeroPort { field: "port_forwards" },
        ConfigError::InvalidCpus { value: 0 },
        ConfigError::InvalidMemory { value: 1 },
        ConfigError::InvalidCid { value: 1, min: 3, max: 0x7fff_ffff },
        ConfigError::MissingDiskPath,
    ];
    assert_eq!(violations(&test_dir, &wrong)[..expected.len()], expected);
    let (pure, all) = (wrong.arguments("").unwrap_err(), violations(&test_dir, &wrong));
    assert!(pure.violations().starts_with(&expected), "{pure:?}");
    for violation in pure.violations() {
        assert!(all.contains(violation), "{violation:?}");
    }
    let missing = [
        ConfigError::NotFound { field: "kernel", path: kernel },
        ConfigError::NotFound { field: "isos", path: iso },
        ConfigError::DiskSizeMissing { path: disk },
    ];
    for violation in missing {
        assert_eq!(all.iter().filter(|found| **found == violation).count(), 1, "{violation:?}: {all:#?}");
        assert!(!pure.violations().contains(&violation), "`arguments` has looked at a file");
    }
}

#[test]
fn violations_are_reported_before_a_missing_hypervisor() {
    let test_dir = TestDir::new();
    let missing = valid(&test_dir).hyperkit("/no/such");
    let error = checked(&test_dir, &missing).unwrap_err();
    assert!(matches!(&error, Error::HypervisorNotFound { searched } if *searched == [Path::new("/no/such")]));
    assert_eq!(error.violations(), []);
    let initrd = test_dir.path("none");
    let wrong = missing.cpus(65).initrd(&initrd);
    let expected = [ConfigError::InvalidCpus { value: 65 }, ConfigError::NotFound { field: "initrd", path: initrd }];
    assert_eq!(violations(&test_dir, &wrong), expected);
}

#[test]
fn violations_of_the_engine_are_reported_with_the_others() {
    let test_dir = TestDir::new();
    let qemu = test_dir.write_executable("qemu-system-x86_64", b"");
    let wrong = valid(&test_dir).hyperkit(qemu).cpus(0).x2apic(true).msix(false).kernel(test_dir.path("none"));
    let fields: Vec<_> = violations(&test_dir, &wrong).iter().map(|found| found.field().to_owned()).collect();
    assert_eq!(fields, ["cpus", "x2apic", "msix", "kernel"]);
}

/// One mistake must not cause a second violation: `check` looks for no file with an invalid path, and compares nothing with
/// an invalid memory size or a missing file.
#[test]
fn one_mistake_causes_one_violation() {
    let test_dir = TestDir::new();
    let forbidden =
        |field, value: &str, character| ConfigError::ForbiddenCharacter { field, value: value.to_owned(), character };
    let too_long = format!("/{}", "x".repeat(103));
    let with_tool = |tool: &str| {
        let mut options = QcowOptions::default();
        options.tool = Some(tool.into());
        Disk::qcow2(test_dir.path("new.qcow2"), options).size_mib(1)
    };
    let other_boot_source = without_boot_source(valid(&test_dir));
    let [magic, flags] = [0x1bad_b002_u32, 1 << 16];
    let header = [magic, flags, 0_u32.wrapping_sub(magic).wrapping_sub(flags)].into_iter().chain([0; 10]);
    let kernel = test_dir.write("multiboot", &header.flat_map(u32::to_le_bytes).collect::<Vec<_>>());
    let none = test_dir.path("none");
    for (description, expected) in [
        (valid(&test_dir).kernel(""), ConfigError::Missing { field: "kernel" }),
        (valid(&test_dir).initrd("/a,b"), forbidden("initrd", "/a,b", ',')),
        (other_boot_source.clone().bootrom("/a,b"), forbidden("bootrom", "/a,b", ',')),
        (other_boot_source.clone().multiboot("/a,b"), forbidden("multiboot", "/a,b", ',')),
        (other_boot_source.multiboot(Multiboot::new(kernel).module("/a;b", "")), forbidden("multiboot", "/a;b", ';')),
        (valid(&test_dir).iso("/a,b"), forbidden("isos", "/a,b", ',')),
        (valid(&test_dir).disk("/a,b"), forbidden("disks", "/a,b", ',')),
        (valid(&test_dir).disk(with_tool("/a,b")), forbidden("disks", "/a,b", ',')),
        (valid(&test_dir).state_dir("/a\0b"), forbidden("state_dir", "/a\0b", '\0')),
        (valid(&test_dir).vsock(true).vsock_dir("/a\0b"), forbidden("vsock_dir", "/a\0b", '\0')),
        (
            valid(&test_dir).network(Network::VpnKit(too_long.clone().into())),
            ConfigError::TooLong { field: "network", value: too_long, length: 104, limit: 103 },
        ),
        (valid(&test_dir).memory_mib(0), ConfigError::InvalidMemory { value: 0 }),
        (
            valid(&test_dir).mac("02:00:00:00:00:01"),
            ConfigError::MissingPrerequisite { field: "mac", requires: "network" },
        ),
        (valid(&test_dir).memory_mib(2).initrd(&none), ConfigError::NotFound { field: "initrd", path: none.clone() }),
    ] {
        assert_eq!(violations(&test_dir, &description), [expected]);
    }
}

type Change = fn(HyperKit, &Path) -> HyperKit;

/// Returns changes, each with its violation, in the order in which `check` reports them. Any subset of the changes can be
/// combined.
fn independent_changes(test_dir: &TestDir) -> Vec<(Change, ConfigError)> {
    let uuid = |field| ConfigError::InvalidUuid { field, value: "x".to_owned() };
    let not_found = |field, name: &str| ConfigError::NotFound { field, path: test_dir.path(name) };
    vec![
        (
            |d, _| d.serial(Serial::none()).serial(Serial::none()).serial(Serial::none()),
            ConfigError::TooManyPorts { field: "serials", count: 3, max: 2 },
        ),
        (|d, _| d.vsock_port(1), ConfigError::MissingPrerequisite { field: "vsock_ports", requires: "vsock" }),
        (|d, _| d.argv0(" "), ConfigError::Missing { field: "argv0" }),
        (|d, _| d.uuid("x"), uuid("uuid")),
        (|d, _| d.vpnkit_key("x"), uuid("vpnkit_key")),
        (|d, _| d.port_9p(0, "tag"), ConfigError::ZeroPort { field: "shares_9p" }),
        (|d, _| d.cpus(65), ConfigError::InvalidCpus { value: 65 }),
        (|d, _| d.memory_mib(1 << 43), ConfigError::InvalidMemory { value: 1 << 43 }),
        (
            |d, dir| d.disk(Disk::raw(dir.join("new")).size_mib(1).sector_size(1, 1)),
            ConfigError::InvalidSectorSize {
                path: test_dir.path("new"),
                value: SectorSize { logical: 1, physical: 1 },
            },
        ),
        (|d, dir| d.kernel(dir.join("none")), not_found("kernel", "none")),
        (|d, dir| d.initrd(dir.join("none")), not_found("initrd", "none")),
        (|d, dir| d.iso(dir.join("none")), not_found("isos", "none")),
        (|d, dir| d.disk(dir.join("disk")), ConfigError::DiskSizeMissing { path: test_dir.path("disk") }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn check_reports_every_violation_once_and_in_order(chosen in subsequence((0..13).collect::<Vec<_>>(), 0..=13)) {
        let test_dir = TestDir::new();
        let all = independent_changes(&test_dir);
        prop_assert_eq!(all.len(), 13);
        let change = |description, &index: &usize| (all[index].0)(description, &test_dir.dir());
        let expected: Vec<_> = chosen.iter().map(|&index| all[index].1.clone()).collect();
        prop_assert_eq!(violations(&test_dir, &chosen.iter().fold(valid(&test_dir), change)), &expected[..]);
        prop_assert_eq!(violations(&test_dir, &chosen.iter().rev().fold(valid(&test_dir), change)), &expected[..]);
    }
}

/// If the console is unset, it is the caller's terminal in `run`, and a pty, which requires a state directory, in `start`.
/// `check` does not know which of them the caller will use.
#[test]
fn unset_console_requires_a_state_directory_in_start_but_not_in_check() {
    let test_dir = TestDir::new();
    let mut unset = valid(&test_dir);
    unset.state_dir = None;
    checked(&test_dir, &unset).unwrap();
    let error = unset.start("").unwrap_err();
    assert_eq!(error.violations(), [ConfigError::StateDirRequired { field: "console" }]);
    assert_eq!(error.kind(), ErrorKind::Config);
    assert_eq!(violations(&test_dir, &unset.console(Console::Pty)), error.violations());
    assert!(fs::read_dir(test_dir.path("vm")).is_err(), "something was created");
}
