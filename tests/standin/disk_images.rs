//! Disk images: creating, growing and format detection.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Barrier;

use hyperkit::{ConfigError, Disk, DiskFormat, Disks, Error, HyperKit, QcowOptions, create_disk_image};

use crate::common::rejection::{assert_error, only_violation};
use crate::common::tools::run_tool;
use crate::common::{TestDir, file_names};

const MIB: u64 = 1024 * 1024;

#[test]
fn new_raw_image_is_sparse_and_has_the_requested_size() {
    let dir = tempfile::tempdir().unwrap();
    for size in [1, 3, 64 * 1024] {
        let path = dir.path().join(format!("{size}.img"));
        create_disk_image(&path, size).unwrap();
        let metadata = path.metadata().unwrap();
        assert_eq!(metadata.len(), size * MIB);
        assert_eq!(metadata.blocks(), 0, "the image is not sparse");
        assert_eq!(metadata.mode() & 0o777, 0o600);
    }
    assert_eq!(file_names(dir.path()).len(), 3);
}

#[test]
fn create_creates_parent_directories() {
    let dir = tempfile::tempdir().unwrap();
    create_disk_image(dir.path().join("a/b/c.img"), 1).unwrap();
    assert_eq!(file_names(&dir.path().join("a/b")), ["c.img"]);
}

#[test]
fn create_does_not_overwrite_an_existing_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("d.img");
    fs::write(&path, "precious").unwrap();
    symlink("nowhere", dir.path().join("link")).unwrap();
    for taken in [path.clone(), dir.path().join("link"), dir.path().to_owned()] {
        assert!(matches!(create_disk_image(&taken, 1), Err(Error::DiskExists { path }) if path == taken));
    }
    assert_eq!(fs::read(&path).unwrap(), b"precious");
    assert_eq!(file_names(dir.path()), ["d.img", "link"]);
}

#[test]
fn invalid_size_is_rejected_and_creates_nothing() {
    let dir = tempfile::tempdir().unwrap();
    for size in [0, 1 << 43, u64::MAX] {
        let result = create_disk_image(dir.path().join("sub/d.img"), size);
        assert_error!(only_violation(result), ConfigError::InvalidDiskSize { value, .. } if value == size);
    }
    assert!(file_names(dir.path()).is_empty());
}

#[test]
fn create_error_names_the_path() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    let result = create_disk_image(dir.path().join("file/d.img"), 1);
    assert!(matches!(result, Err(Error::Io { path, .. }) if path.starts_with(dir.path().join("file"))));
}

#[test]
fn one_of_many_concurrent_creates_succeeds() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("d.img");
    let all = Barrier::new(8);
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads = (0..8).map(|_| scope.spawn(|| (all.wait(), create_disk_image(&path, 2)).1));
        threads.collect::<Vec<_>>().into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
    assert!(results.iter().all(|result| matches!(result, Ok(()) | Err(Error::DiskExists { .. }))), "{results:?}");
    assert_eq!(path.metadata().unwrap().len(), 2 * MIB);
    assert_eq!(file_names(dir.path()), ["d.img"]);
}

/// A process that was killed while it created the image has left a file.
#[test]
fn create_replaces_an_unfinished_image() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(".d.img.new"), "half a disk").unwrap();
    create_disk_image(dir.path().join("d.img"), 1).unwrap();
    assert_eq!(fs::read(dir.path().join("d.img")).unwrap(), vec![0; MIB as usize]);
    assert_eq!(file_names(dir.path()), ["d.img"]);
}

/// In a directory that others can write to, another user may have created the symlink.
#[test]
fn create_does_not_follow_a_symlink_to_the_unfinished_image() {
    let test_dir = TestDir::new();
    let precious = test_dir.write("precious", b"precious");
    symlink(&precious, test_dir.path(".d.img.new")).unwrap();
    assert!(matches!(create_disk_image(test_dir.path("d.img"), 1), Err(Error::Io { .. })));
    assert_eq!(fs::read(&precious).unwrap(), b"precious");
    assert!(!test_dir.path("d.img").exists());
}

/// Returns the format and the virtual size of an image, as `qemu-img` reports them.
fn image_info(path: &Path) -> (String, u64) {
    let path = path.to_str().unwrap();
    let output = run_tool("qemu-img", &["info", "--output=json", path], Path::new("/"));
    let info: serde_json::Value = serde_json::from_slice(&output).unwrap();
    (info["format"].as_str().unwrap().to_owned(), info["virtual-size"].as_u64().unwrap())
}

fn qcow2(path: impl Into<PathBuf>) -> Disk {
    Disk::qcow2(path, QcowOptions::default())
}

#[test]
fn qcow2_image_is_created_and_grown() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a/d.qcow2");
    for disk in [qcow2(&path), Disk::new(dir.path().join("by-name.qcow2"))] {
        let disk = disk.size_mib(3);
        let path = disk.path.clone().unwrap();
        disk.create().unwrap();
        assert_eq!(image_info(&path), ("qcow2".to_owned(), 3 * MIB));
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
        assert!(matches!(disk.create(), Err(Error::DiskExists { .. })));
        disk.clone().size_mib(70_000).grow().unwrap();
        assert_eq!(image_info(&path), ("qcow2".to_owned(), 70_000 * MIB));
    }
    assert_eq!(file_names(&dir.path().join("a")), ["d.qcow2"]);
}

#[test]
fn grow_never_shrinks() {
    let dir = tempfile::tempdir().unwrap();
    for disk in [Disk::raw(dir.path().join("raw")), qcow2(dir.path().join("qcow2"))] {
        let disk = disk.size_mib(4);
        disk.create().unwrap();
        let path = disk.path.clone().unwrap();
        let before = fs::read(&path).unwrap();
        let violation = only_violation(disk.clone().size_mib(3).grow());
        assert_eq!(violation, ConfigError::DiskShrinks { path: path.clone(), from: 4, to: 3 });
        disk.grow().unwrap();
        assert_eq!(fs::read(&path).unwrap(), before, "an image that has the size already was changed");
        assert_error!(only_violation(disk.size_mib(0).grow()), ConfigError::InvalidDiskSize { value: 0, .. });
    }
    let raw = Disk::raw(dir.path().join("raw"));
    fs::write(dir.path().join("raw"), vec![7; MIB as usize + 1]).unwrap();
    raw.clone().size_mib(5).grow().unwrap();
    let grown = fs::read(dir.path().join("raw")).unwrap();
    assert_eq!((grown.len() as u64, grown[MIB as usize], grown[MIB as usize + 1]), (5 * MIB, 7, 0));
    assert_error!(only_violation(raw.grow()), ConfigError::DiskSizeMissing { .. });
    assert_eq!(only_violation(Disk::in_state_dir(1).create()), ConfigError::MissingDiskPath);
}

fn script(test_dir: &TestDir, name: &str, script: &str) -> PathBuf {
    test_dir.write_executable(name, format!("#!/bin/sh\n{script}\n").as_bytes())
}

fn disk_by_tool(tool: &Path, path: impl Into<PathBuf>) -> Disk {
    let mut qcow = QcowOptions::default();
    qcow.tool = Some(tool.to_owned());
    Disk::qcow2(path, qcow).size_mib(7)
}

/// The tools are scripts: `qemu-img` fails, and `qcow-tool` writes its arguments to the image.
#[test]
fn qcow_tool_and_qemu_img_run_and_a_failure_is_an_error() {
    let test_dir = TestDir::new();
    let script = |name: &str, text: &str| script(&test_dir, name, text);
    let with = |tool: &Path| disk_by_tool(tool, test_dir.path("d.qcow2"));
    let failing = script("qemu-img", "echo no room >&2; exit 1");
    match with(&failing).create() {
        Err(Error::ImageToolFailed { tool, stderr, .. }) => assert_eq!((tool, stderr.as_str()), (failing, "no room")),
        other => panic!("{other:?}"),
    }
    assert_eq!(file_names(&test_dir.dir()), ["initrd.img", "qemu-img", "vmlinuz"], "an unfinished image is left");
    let searched = vec![test_dir.path("none")];
    let violation = only_violation(with(&test_dir.path("none")).create());
    assert_eq!(violation, ConfigError::ToolNotFound { field: "disks", searched });
    let tool = script("qcow-tool", "printf '%s\\n' \"$@\" >\"$2\"");
    with(&tool).create().unwrap();
    let recorded = fs::read_to_string(test_dir.path("d.qcow2")).unwrap();
    assert_eq!(recorded, format!("create\n{}\n--size\n7MiB\n", test_dir.path(".d.qcow2.new").display()));
}

/// `qemu-img` could read a relative path as an option or a protocol.
#[test]
fn image_tool_gets_an_absolute_path() {
    let test_dir = TestDir::new();
    let tool = script(&test_dir, "qemu-img", "echo \"$5\" >&2; exit 1");
    match disk_by_tool(&tool, "nbd:no-such.qcow2").create() {
        Err(Error::ImageToolFailed { stderr, .. }) => {
            assert_eq!(Path::new(&stderr), std::path::absolute(".nbd:no-such.qcow2.new").unwrap());
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn create_does_not_replace_a_file_that_appears_meanwhile() {
    let test_dir = TestDir::new();
    let image = test_dir.path("d.qcow2");
    let tool = script(&test_dir, "qemu-img", &format!("echo precious >'{}'", image.display()));
    assert!(matches!(disk_by_tool(&tool, &image).create(), Err(Error::DiskExists { .. })));
    assert_eq!(fs::read(&image).unwrap(), b"precious\n");
    assert_eq!(file_names(&test_dir.dir()), ["d.qcow2", "initrd.img", "qemu-img", "vmlinuz"]);
}

/// If a file with the disk's name exists later, the crate did not create it, so `remove` keeps it.
#[test]
fn failed_create_does_not_record_the_disk() {
    let test_dir = TestDir::new();
    let tool = script(&test_dir, "qemu-img", "exit 1");
    let description = test_dir.description().disk(disk_by_tool(&tool, test_dir.path("vm/d.qcow2")));
    let started = description.start("guest");
    assert!(matches!(started, Err(Error::ImageToolFailed { .. })), "{started:?}");
    assert!(!test_dir.path("vm").exists());
    description.define().unwrap();
    let started = description.start("guest");
    assert!(matches!(started, Err(Error::ImageToolFailed { .. })), "{started:?}");
    let precious = test_dir.write("vm/d.qcow2", b"precious");
    HyperKit::from_state(test_dir.path("vm")).unwrap().remove(Disks::Delete).unwrap();
    assert_eq!(fs::read(precious).unwrap(), b"precious");
}

#[test]
fn missing_image_tool_is_an_error_before_anything_is_created() {
    let test_dir = TestDir::new();
    let description = test_dir.description().disk(disk_by_tool(&test_dir.path("none"), test_dir.path("d.qcow2")));
    let violation = only_violation(description.check());
    assert_error!(&violation, ConfigError::ToolNotFound { field: "disks", .. });
    assert_eq!(only_violation(description.start("guest")), violation);
    assert!(!test_dir.path("vm").exists());
}

#[test]
fn grow_does_not_change_a_device() {
    let test_dir = TestDir::new();
    let device = Disk::raw("/dev/null").size_mib(1);
    device.grow().unwrap();
    test_dir.description().disk(device).start("guest").unwrap().kill().unwrap();
}

#[test]
fn start_creates_and_grows_but_never_shrinks_a_disk() {
    let test_dir = TestDir::new();
    let _stop = test_dir.stop_on_drop();
    let length = || test_dir.path("d.img").metadata().unwrap().len();
    let description = |size| test_dir.description().disk(Disk::raw(test_dir.path("d.img")).size_mib(size));
    for size in [2, 3, 3] {
        description(size).start("guest").unwrap().kill().unwrap();
        assert_eq!(length(), size * MIB);
    }
    let violation = only_violation(description(2).start("guest"));
    assert_error!(&violation, ConfigError::DiskShrinks { from: 3, to: 2, .. });
    assert_eq!(only_violation(description(2).check()), violation);
    // The Go package of 2017 creates images that are 100 bytes per MiB too long. They are accepted.
    fs::File::options().write(true).open(test_dir.path("d.img")).unwrap().set_len(3 * (MIB + 100)).unwrap();
    description(3).start("guest").unwrap().kill().unwrap();
    assert_eq!(length(), 3 * (MIB + 100));
    // Without a size, the image stays unchanged.
    test_dir.description().disk(Disk::raw(test_dir.path("d.img"))).start("guest").unwrap().kill().unwrap();
}

/// Starts a VM with a disk and returns the detected format, which is in the description of the VM.
fn detected_format(test_dir: &TestDir, disk: Disk) -> Result<Option<DiskFormat>, Error> {
    let vm = test_dir.description().disk(disk).start("guest")?;
    vm.kill()?;
    let disks = &vm.description().disks;
    assert_eq!(HyperKit::from_state(test_dir.path("vm"))?.disks, *disks);
    Ok(disks[0].format.clone())
}

#[test]
fn format_is_probed_from_the_content_or_the_name_of_a_new_image() {
    let test_dir = TestDir::new();
    let _stop = test_dir.stop_on_drop();
    let qcow = Some(DiskFormat::Qcow2(QcowOptions::default()));
    // The name of a new image determines its format.
    assert_eq!(detected_format(&test_dir, Disk::new(test_dir.path("new.qcow2")).size_mib(1)).unwrap(), qcow);
    assert_eq!(
        detected_format(&test_dir, Disk::new(test_dir.path("new.img")).size_mib(1)).unwrap(),
        Some(DiskFormat::Raw)
    );
    // The content of an existing image determines its format, whatever its name is.
    fs::rename(test_dir.path("new.qcow2"), test_dir.path("image")).unwrap();
    fs::rename(test_dir.path("new.img"), test_dir.path("image.qcow2")).unwrap();
    assert_eq!(detected_format(&test_dir, Disk::new(test_dir.path("image"))).unwrap(), qcow);
    assert_eq!(detected_format(&test_dir, Disk::new(test_dir.path("image.qcow2"))).unwrap(), Some(DiskFormat::Raw));
    // An explicit format is used, unless the content contradicts it.
    assert_eq!(detected_format(&test_dir, Disk::raw(test_dir.path("image"))).unwrap(), Some(DiskFormat::Raw));
    let path = test_dir.path("image.qcow2");
    assert_eq!(only_violation(detected_format(&test_dir, qcow2(&path))), ConfigError::NotQcow2 { path });
}

/// A guest can write anything to its raw disk, also a qcow2 header that names a file of the host as the backing file.
#[test]
fn probed_qcow2_image_with_backing_file_is_rejected() {
    let test_dir = TestDir::new();
    let _stop = test_dir.stop_on_drop();
    let secret = test_dir.write("secret", &[b's'; 4096]);
    let image = test_dir.path("image");
    let create = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b", secret.to_str().unwrap(), "image"];
    run_tool("qemu-img", &create, &test_dir.dir());
    let violation = only_violation(detected_format(&test_dir, Disk::new(&image)));
    assert_eq!(violation, ConfigError::DiskHasBackingFile { path: image.clone() });
    assert!(detected_format(&test_dir, qcow2(&image)).is_ok(), "a disk that is set to qcow2 may have a backing file");
}

#[test]
fn image_without_write_permission_has_to_be_read_only() {
    let test_dir = TestDir::new();
    let image = test_dir.write("d.img", &[0; 4096]);
    fs::set_permissions(&image, fs::Permissions::from_mode(0o444)).unwrap();
    let is_root = fs::OpenOptions::new().write(true).open(&image).is_ok(); // root can write to every file
    match test_dir.description().disk(Disk::raw(&image)).check() {
        Ok(()) => assert!(is_root),
        unwritable => {
            let violation = only_violation(unwritable);
            assert_error!(violation, ConfigError::DiskNotWritable { path, .. } if !is_root && path == image);
        }
    }
    test_dir.description().disk(Disk::raw(&image).read_only()).check().unwrap();
}

/// The system then reaps every child, and a program's exit status is lost.
#[cfg(target_os = "linux")]
#[test]
fn qcow2_images_are_created_although_sigchld_is_ignored() {
    let test_dir = TestDir::new();
    let _stop = test_dir.stop_on_drop();
    let boot = crate::common::boot_command(&test_dir, "guest");
    let mut env = std::process::Command::new("env");
    env.arg("--ignore-signal=CHLD").arg(boot.get_program()).args(boot.get_args());
    let output = env.arg("--disk").arg(test_dir.path("new.qcow2")).args(["--disk-size", "4"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(fs::read(test_dir.path("new.qcow2")).unwrap().starts_with(b"QFI\xfb"));
}

/// Others may have put it where the crate creates an image before it renames it.
#[test]
fn hard_link_in_the_place_of_an_unfinished_image_is_not_truncated() {
    let test_dir = TestDir::new();
    let precious = test_dir.write("precious", b"precious");
    fs::hard_link(&precious, test_dir.path(".new.img.new")).unwrap();
    create_disk_image(test_dir.path("new.img"), 1).unwrap();
    assert_eq!(fs::read(&precious).unwrap(), b"precious");
    assert_eq!(test_dir.path("new.img").metadata().unwrap().len(), 1 << 20);
}
