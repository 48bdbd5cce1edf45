//! Disks whose writes go to an overlay of their image. The stand-in refuses them, so programs here only have QEMU's name, and end at
//! once. Tests with QEMU are in `tests/guest/overlays.rs`.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use hyperkit::{ConfigError, Disk, Disks, Engine, Error, HyperKit, QcowOptions, create_disk_image};
use rustix::process::{Signal, getpid, kill_process};
use serde_json::json;

use crate::common::child_process::in_child_process;
use crate::common::rejection::{assert_error, only_violation, rejection_by_arguments, rejection_with};
use crate::common::tools::run_tool;
use crate::common::{StopOnDrop, TestDir, file_names, make_fifo};

const OVERLAY: &str = "hyperkit.overlay0";

/// Returns a directory with a raw image `base` of 1 MiB, and a description with QEMU's name.
fn with_base() -> (TestDir, PathBuf, HyperKit) {
    let test_dir = TestDir::new();
    let base = test_dir.path("base");
    create_disk_image(&base, 1).unwrap();
    let qemu = test_dir.write_executable("qemu-system-x86_64", b"#!/bin/sh\nexit 9\n");
    let description = test_dir.description().hyperkit(qemu);
    (test_dir, base, description)
}

fn qcow2(path: &Path) -> Disk {
    Disk::qcow2(path, QcowOptions::default())
}

/// Spawns a hypervisor that fails at once, and calls `look` when everything is created.
fn spawn(description: &HyperKit, look: impl FnOnce()) -> hyperkit::Result<()> {
    description.spawn_with("", |_| look()).map(drop)
}

/// Returns the JSON that `qemu-img info` prints.
fn info(image: &Path) -> serde_json::Value {
    let image = image.to_str().unwrap();
    let info = run_tool("qemu-img", &["info", "-U", "--output=json", image], Path::new("/"));
    serde_json::from_slice(&info).unwrap()
}

#[test]
fn overlay_is_unsupported_by_hyperkit() {
    let elsewhere = TestDir::new();
    let base = elsewhere.write("base", &[0; 512]);
    let error = rejection_by_arguments(|d| d.disk(Disk::raw(&base).overlay()));
    assert_error!(error, ConfigError::Unsupported { engine: Engine::HyperKit, feature } if feature.contains("overlay"));
}

#[test]
fn unusable_base_is_rejected_before_anything_is_created() {
    let (test_dir, base, description) = with_base();
    let qemu = description.hyperkit.unwrap();
    let path = |name: &str| test_dir.path(name);
    for arguments in [
        &["create", "-q", "-f", "qcow2", "-F", "raw", "-b", "base", "has-base"][..],
        &["create", "-q", "-f", "vmdk", "vmdk", "1M"],
        &["create", "-q", "-f", "qcow2", "-o", "data_file=data", "has-data", "1M"],
    ] {
        run_tool("qemu-img", arguments, &test_dir.dir());
    }
    test_dir.write("empty", b"");
    make_fifo(&path("fifo"));
    test_dir.write("damaged", b"QFI\xfb\0\0\0\x03");
    let reject = |disk: Disk| rejection_with(&test_dir, "", |d| d.hyperkit(&qemu).disk(disk.overlay()));
    let (disks, name) = ("disks", |name: &str| path(name));
    let missing = ConfigError::NotFound { field: disks, path: name("missing") };
    for disk in [Disk::new(name("missing")), Disk::raw(name("missing")).size_mib(2), qcow2(&name("missing"))] {
        assert_eq!(reject(disk), missing);
    }
    for disk in [Disk::new(name("empty")), Disk::raw(name("empty")).size_mib(2)] {
        assert_eq!(reject(disk), ConfigError::EmptyFile { field: disks, path: name("empty") });
    }
    assert_eq!(reject(Disk::new(name("fifo"))), ConfigError::NotAFile { field: disks, path: name("fifo") });
    assert_eq!(reject(Disk::new(test_dir.dir())), ConfigError::NotAFile { field: disks, path: test_dir.dir() });
    assert_eq!(reject(Disk::new(name("has-base"))), ConfigError::DiskHasBackingFile { path: name("has-base") });
    assert_eq!(reject(Disk::new(name("has-data"))), ConfigError::DiskHasBackingFile { path: name("has-data") });
    assert_eq!(reject(Disk::new(name("vmdk"))), ConfigError::ForeignImage { path: name("vmdk"), format: "vmdk" });
    assert_error!(reject(Disk::new(name("damaged"))), ConfigError::InvalidQcow2 { .. });
    assert_eq!(reject(qcow2(&base)), ConfigError::NotQcow2 { path: base.clone() });
    create_disk_image(path("large"), 3).unwrap();
    let shrinks = ConfigError::DiskShrinks { path: name("large"), from: 3, to: 2 };
    assert_eq!(reject(Disk::raw(name("large")).size_mib(2)), shrinks);
    let too_large = ConfigError::InvalidDiskSize { path: base.clone(), value: 1 << 32 };
    assert_eq!(reject(Disk::raw(&base).size_mib(1 << 32)), too_large);
    let comma = test_dir.path("a,b");
    fs::copy(&base, &comma).unwrap();
    assert_error!(reject(Disk::raw(&comma)), ConfigError::ForbiddenCharacter { field: "disks", character: ',', .. });
    assert_error!(reject(Disk::raw("nbd://host/x")), ConfigError::UnsupportedUrl { .. });
    fs::create_dir(path("sub")).unwrap();
    let long = path(&format!("{}base", "sub/../".repeat(200)));
    assert_error!(reject(Disk::raw(&long)), ConfigError::TooLong { field: "disks", limit: 1023, .. });
}

#[test]
fn image_that_a_disk_writes_to_is_no_base_of_another_disk() {
    let (test_dir, base, description) = with_base();
    symlink(&base, test_dir.path("link")).unwrap();
    for other in [&base, &test_dir.path("link")] {
        let overlay = || Disk::raw(other).overlay();
        for disks in [[Disk::raw(&base), overlay()], [overlay(), Disk::raw(&base)]] {
            let both = disks.into_iter().fold(description.clone(), HyperKit::disk).check();
            assert_error!(only_violation(both), ConfigError::DuplicateDisk { .. });
        }
        // Two overlays and a reader share it.
        let readers = [overlay(), overlay(), Disk::raw(&base).read_only()];
        readers.into_iter().fold(description.clone(), HyperKit::disk).iso(&base).check().unwrap();
    }
    // It may be what a chain of backing files ends with.
    run_tool("qemu-img", &["create", "-q", "-f", "qcow2", "-F", "raw", "-b", "base", "middle"], &test_dir.dir());
    let chain = description.disk(qcow2(&test_dir.path("middle")).overlay());
    chain.check().unwrap();
    assert_error!(only_violation(chain.disk(Disk::raw(&base)).check()), ConfigError::DuplicateDisk { .. });
}

#[test]
fn overlay_requires_a_state_directory() {
    let (_test_dir, base, mut description) = with_base();
    description.state_dir = None;
    description = description.console(hyperkit::Console::Stdio).disk(Disk::raw(base).overlay());
    let expected = ConfigError::StateDirRequired { field: "disks" };
    assert_eq!(only_violation(description.check()), expected);
    assert_eq!(only_violation(description.arguments("")), expected);
}

/// A start deletes it.
#[test]
fn overlay_of_an_earlier_run_cannot_be_a_disk_of_the_same_vm() {
    let (test_dir, base, description) = with_base();
    fs::create_dir(test_dir.path("vm")).unwrap();
    let old = test_dir.path("vm").join(OVERLAY);
    fs::copy(&base, &old).unwrap();
    let error = only_violation(description.clone().disk(Disk::raw(&old)).check());
    assert_error!(error, ConfigError::Inaccessible { path, .. } if path == old);
    description.state_dir(test_dir.path("vm2")).disk(Disk::raw(&old)).check().unwrap();
}

#[test]
fn create_and_grow_do_not_change_the_image_of_an_overlay() {
    let (test_dir, base, _) = with_base();
    let expected = |path: &Path| ConfigError::DiskHasOverlay { path: path.to_owned() };
    let grown = Disk::raw(&base).size_mib(2).overlay();
    assert_eq!(only_violation(grown.grow()), expected(&base));
    let new = test_dir.path("new");
    assert_eq!(only_violation(Disk::raw(&new).size_mib(2).overlay().create()), expected(&new));
    assert!(base.metadata().unwrap().len() == 1 << 20 && !new.exists());
}

/// `qemu-img` reads it as the crate means it.
#[test]
fn overlay_states_path_and_format_of_its_base() {
    let (test_dir, base, description) = with_base();
    let qcow2_base = test_dir.path("a:b c%20.img");
    run_tool("qemu-img", &["create", "-q", "-f", "qcow2", qcow2_base.to_str().unwrap(), "3M"], &test_dir.dir());
    let odd = test_dir.write("json:{", &[7; 1000]);
    fs::create_dir(test_dir.path("sub")).unwrap();
    let url = format!("file://{}/a:b%20c%2520.img", test_dir.dir().display());
    // A raw image stays raw, whatever a guest has written to it.
    let header = test_dir.path("header");
    run_tool("qemu-img", &["create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", "header", "8M"], &test_dir.dir());
    let header_bytes = header.metadata().unwrap().len();
    for (disk, base, format, length) in [
        (Disk::new(&base), &base, "raw", 1 << 20),
        (Disk::raw(test_dir.path("sub/../base")).size_mib(5), &base, "raw", 5 << 20),
        (Disk::new(&qcow2_base), &qcow2_base, "qcow2", 3 << 20),
        (qcow2(&qcow2_base).size_mib(4).read_only(), &qcow2_base, "qcow2", 4 << 20),
        (Disk::new(&url), &qcow2_base, "qcow2", 3 << 20),
        (Disk::raw(&odd), &odd, "raw", 1024),
        (Disk::raw(&header), &header, "raw", header_bytes.next_multiple_of(512)),
    ] {
        let overlay = test_dir.path("vm").join(OVERLAY);
        let spawned = spawn(&description.clone().disk(disk.overlay()), || {
            let info = info(&overlay);
            assert_eq!(info["virtual-size"], length, "{info}");
            assert_eq!(info["backing-filename-format"], format);
            let name = PathBuf::from(info["full-backing-filename"].as_str().unwrap());
            assert_eq!(name.canonicalize().unwrap(), *base);
            assert_eq!(overlay.metadata().unwrap().permissions().mode() & 0o777, 0o600);
            run_tool("qemu-img", &["check", "-q", overlay.to_str().unwrap()], &test_dir.dir());
        });
        spawned.unwrap();
        assert!(!overlay.exists(), "a start that failed has left its overlay");
    }
}

/// hyperkit's stand-in is not executable here.
#[test]
fn failed_start_leaves_nothing_and_keeps_the_earlier_record() {
    let (test_dir, base, description) = with_base();
    let before = file_names(&test_dir.dir());
    fs::set_permissions(test_dir.path("qemu-system-x86_64"), fs::Permissions::from_mode(0o755)).unwrap();
    let disks = || description.clone().disk(Disk::new(&base).overlay());
    let last = disks().disk(
        Disk::qcow2(test_dir.path("new.qcow2"), {
            let mut options = QcowOptions::default();
            options.tool = Some(test_dir.write_executable("tool", b"#!/bin/sh\nexit 1\n"));
            options
        })
        .size_mib(1),
    );
    let before = [before, vec!["tool".to_owned()]].concat();
    assert!(matches!(last.start(""), Err(Error::ImageToolFailed { .. })));
    let mut now = file_names(&test_dir.dir());
    now.sort();
    let mut sorted = before.clone();
    sorted.sort();
    assert_eq!(now, sorted);
    assert!(matches!(disks().start(""), Err(Error::HypervisorFailed { .. })));
    assert!(!file_names(&test_dir.path("vm")).contains(&OVERLAY.to_owned()), "{:?}", file_names(&test_dir.path("vm")));
}

/// hyperkit locks raw images by itself, so only the starter's lock protects the base.
#[test]
fn base_is_locked_until_the_hypervisor_runs() {
    let (test_dir, base, description) = with_base();
    let writer = test_dir.description().state_dir(test_dir.path("vm2")).disk(Disk::raw(&base));
    let _stop = StopOnDrop(test_dir.path("vm2"));
    let description = description.disk(Disk::new(&base).overlay());
    let look = || {
        let started = writer.start("guest");
        assert!(matches!(started, Err(Error::DiskInUse { ref path }) if *path == base), "{started:?}");
        // Another overlay is no writer.
        spawn(&description.clone().state_dir(test_dir.path("vm3")), || {}).unwrap();
    };
    spawn(&description, look).unwrap();
    let vm = writer.start("guest").unwrap();
    assert!(matches!(description.start(""), Err(Error::DiskInUse { path }) if path == base));
    vm.kill().unwrap();
}

/// The starter is killed when the overlay exists and no hypervisor runs.
#[test]
fn overlay_of_a_killed_starter_is_deleted_by_remove_and_by_the_next_start() {
    let (test_dir, base, description) = with_base();
    let description = description.disk(Disk::new(&base).overlay());
    let (state_dir, overlay) = (test_dir.path("vm"), test_dir.path("vm").join(OVERLAY));
    let json = test_dir.write("description.json", description.to_string().as_bytes());
    let kill = || {
        let mut starter = Command::new(std::env::current_exe().unwrap());
        starter.args(["--exact", "overlays::starter_that_kills_itself"]).env("OVERLAY_STARTER", &json);
        assert!(!starter.output().unwrap().status.success());
        assert!(overlay.exists() && state_dir.join("hyperkit.json").exists());
    };
    let keep = state_dir.join("hyperkit.overlay");
    for next_start in [false, true] {
        kill();
        fs::write(&keep, "not the crate's").unwrap();
        if next_start {
            let old = fs::File::open(&overlay).unwrap(); // so that its inode is not used again
            let id = |metadata: fs::Metadata| std::os::unix::fs::MetadataExt::ino(&metadata);
            spawn(&description, || assert_ne!(id(overlay.metadata().unwrap()), id(old.metadata().unwrap()))).unwrap();
        }
        HyperKit::from_state(&state_dir).unwrap().remove(Disks::Keep).unwrap();
        assert_eq!(file_names(&state_dir), ["hyperkit.overlay"]);
        fs::remove_file(&keep).unwrap();
    }
    assert_eq!(fs::read(&base).unwrap(), vec![0; 1 << 20]);
}

/// A part of the test above, in its child process.
#[test]
fn starter_that_kills_itself() {
    if let Some(json) = std::env::var_os("OVERLAY_STARTER") {
        let description: HyperKit = serde_json::from_slice(&fs::read(json).unwrap()).unwrap();
        let _ = spawn(&description, || kill_process(getpid(), Signal::KILL).unwrap());
        unreachable!("the starter was not killed");
    }
}

/// An earlier version of this crate refuses an unknown format, and the Go package finds no path to which it would write.
#[test]
fn json_of_an_overlay_has_no_path_that_other_programs_would_write_to() {
    let disk = Disk::raw("/base.img").size_mib(5).overlay();
    let description = HyperKit::new()
        .hyperkit("qemu-system-x86_64")
        .state_dir("/vm")
        .kernel("/k")
        .disk(disk.clone())
        .disk(Disk::new("/b").overlay());
    let json: serde_json::Value = serde_json::from_str(&description.to_string()).unwrap();
    assert_eq!(
        json["disks"],
        json!([
            { "path": "", "size": 5, "format": "overlay", "base": "/base.img", "base_format": "raw" },
            { "path": "", "size": 0, "format": "overlay", "base": "/b" },
        ])
    );
    assert_eq!(serde_json::from_value::<HyperKit>(json.clone()).unwrap(), description);
    // By hand.
    let read = |disk: serde_json::Value| serde_json::from_value::<Disk>(disk).unwrap();
    assert_eq!(read(json!({ "FORMAT": "overlay", "path": "/b" })), Disk::new("/b").overlay());
    assert_eq!(
        read(json!({ "format": "overlay", "Base": "/b", "base_format": "qcow2" })),
        qcow2(Path::new("/b")).overlay()
    );
    let unknown = read(json!({ "format": "overlay", "base": "/b", "base_format": "vmdk" }));
    let again: Disk = serde_json::from_value(serde_json::to_value(&unknown).unwrap()).unwrap();
    assert_eq!(again, unknown);
    let error = only_violation(description.disk(unknown).arguments(""));
    assert_error!(error, ConfigError::UnknownSetting { key } if key == "disks.base_format: \"vmdk\"" );
}

/// The image is not the VM's own, even if its name is that of a disk in the state directory.
#[test]
fn description_of_another_state_directory_keeps_the_base() {
    let (test_dir, _, description) = with_base();
    fs::create_dir(test_dir.path("vm")).unwrap();
    let own = test_dir.path("vm/disk.img");
    create_disk_image(&own, 1).unwrap();
    description.disk(Disk::raw(&own).size_mib(1).overlay()).define().unwrap();
    let second = HyperKit::from_state(test_dir.path("vm")).unwrap().state_dir(test_dir.path("vm2"));
    assert_eq!(second.resolve().unwrap().disks[0].path, Some(own.clone()));
    // A moved directory takes the base with it.
    fs::rename(test_dir.path("vm"), test_dir.path("moved")).unwrap();
    let moved = HyperKit::from_state(test_dir.path("moved")).unwrap();
    assert_eq!(moved.disks[0].path, Some(test_dir.path("moved/disk.img")));
    moved.check().unwrap();
}

#[test]
fn overlay_beyond_the_limit_on_file_sizes_is_an_error() {
    in_child_process("overlays::overlay_beyond_the_limit_on_file_sizes_is_an_error", || {
        let (test_dir, base, description) = with_base();
        let limit = rustix::process::Rlimit { current: Some(100_000), maximum: Some(100_000) };
        rustix::process::setrlimit(rustix::process::Resource::Fsize, limit).unwrap();
        let started = description.disk(Disk::raw(base).overlay()).start("");
        assert!(matches!(started, Err(Error::Io { action: "create the overlay", .. })), "{started:?}");
        assert!(!test_dir.path("vm").exists());
    });
}

/// The file system of the state directory is full.
#[cfg(target_os = "linux")]
#[test]
fn full_disk_is_an_error_that_leaves_nothing() {
    crate::common::child_process::in_mount_namespace("overlays::full_disk_is_an_error_that_leaves_nothing", || {
        let (test_dir, base, description) = with_base();
        let small = test_dir.path("small");
        fs::create_dir(&small).unwrap();
        // Room for the record, and not for the three pages of an overlay, which is sparse.
        run_tool("mount", &["-t", "tmpfs", "-o", "size=12k", "none", "small"], &test_dir.dir());
        let _stop = StopOnDrop(small.join("vm"));
        let started = description.disk(Disk::raw(base).overlay()).state_dir(small.join("vm")).start("");
        let is_full = |source: &std::io::Error| source.kind() == std::io::ErrorKind::StorageFull;
        assert!(
            matches!(&started, Err(Error::Io { action: "create the overlay", source, .. }) if is_full(source)),
            "{started:?}"
        );
        assert_eq!(file_names(&small), [""; 0]);
        run_tool("umount", &["small"], &test_dir.dir()); // the test's directory is removed
    });
}
