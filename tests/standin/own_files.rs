//! Kernels and images with the names of files that a start deletes or replaces in the state directory.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use hyperkit::{ConfigError, Disk, HyperKit, QcowOptions};

use crate::common::TestDir;
use crate::common::rejection::rejection_with;
use crate::common::tools::run_tool;

const NAMES: [&str; 6] =
    ["hyperkit.overlay0", "hyperkit.overlay7", "hyperkit.json", "hyperkit.log", "console-ring", "tty"];

/// Returns a directory in which the state directory has a file of this name, and paths that lead to the file.
fn with_file(name: &str, content: &[u8]) -> (TestDir, Vec<PathBuf>) {
    let test_dir = TestDir::new();
    let state_dir = test_dir.path("vm");
    fs::create_dir(&state_dir).unwrap();
    let file = state_dir.join(name);
    fs::write(&file, content).unwrap();
    let link = |target: &Path, name: &str| symlink(target, test_dir.path(name)).unwrap();
    link(Path::new("vm"), "dir");
    link(&file, "link");
    link(Path::new("link"), "second");
    fs::write(test_dir.path("elsewhere"), content).unwrap();
    let paths = ["dir/../vm", "dir"].map(|dir| test_dir.path(dir).join(name)).into_iter();
    let paths = paths.chain(["link", "second"].map(|name| test_dir.path(name))).chain([file]).collect();
    (test_dir, paths)
}

/// Asserts that the description is rejected because of this file, which stays.
fn assert_rejected(test_dir: &TestDir, name: &str, field: &str, change: impl FnOnce(HyperKit) -> HyperKit) {
    let file = test_dir.path("vm").join(name);
    let before = fs::read(&file).unwrap();
    let error = rejection_with(test_dir, "", change);
    assert_eq!(error.field(), field, "{error:?}");
    assert!(matches!(&error, ConfigError::Inaccessible { reason, .. } if reason.contains("copy it")), "{error:?}");
    assert_eq!(fs::read(&file).unwrap(), before);
}

#[test]
fn image_that_a_start_would_delete_is_rejected_by_whatever_path_it_is_named() {
    for name in NAMES.into_iter().filter(|name| *name != "hyperkit.json") {
        let (test_dir, paths) = with_file(name, &[7; 1024]);
        let qemu = test_dir.write_executable("qemu-system-x86_64", b"#!/bin/sh\nexit 9\n");
        for path in &paths {
            assert_rejected(&test_dir, name, "disks", |d| d.disk(Disk::raw(path)));
            assert_rejected(&test_dir, name, "disks", |d| d.hyperkit(&qemu).disk(Disk::raw(path).overlay()));
            assert_rejected(&test_dir, name, "isos", |d| d.iso(path));
            assert_rejected(&test_dir, name, "initrd", |d| d.initrd(path));
        }
    }
}

#[test]
fn kernel_that_a_start_would_delete_is_rejected() {
    let kernel = fs::read(TestDir::new().description().kernel.unwrap()).unwrap();
    for name in NAMES.into_iter().filter(|name| *name != "hyperkit.json") {
        let (test_dir, paths) = with_file(name, &kernel);
        for path in &paths {
            assert_rejected(&test_dir, name, "kernel", |d| d.kernel(path));
        }
    }
}

#[test]
fn backing_file_that_a_start_would_delete_is_rejected() {
    let (test_dir, paths) = with_file("hyperkit.overlay0", &[7; 1024]);
    let qemu = test_dir.write_executable("qemu-system-x86_64", b"#!/bin/sh\nexit 9\n");
    for path in &paths {
        let arguments = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b", path.to_str().unwrap(), "image"];
        run_tool("qemu-img", &arguments, &test_dir.dir());
        let disk = Disk::qcow2(test_dir.path("image"), QcowOptions::default());
        assert_rejected(&test_dir, "hyperkit.overlay0", "disks", |d| d.hyperkit(&qemu).disk(disk.clone()));
        assert_rejected(&test_dir, "hyperkit.overlay0", "disks", |d| d.hyperkit(&qemu).disk(disk.overlay()));
    }
}

/// The symlink would be deleted, and the start would fail.
#[test]
fn symlink_with_such_a_name_is_rejected() {
    let test_dir = TestDir::new();
    fs::create_dir(test_dir.path("vm")).unwrap();
    fs::write(test_dir.path("image"), [7; 1024]).unwrap();
    let link = test_dir.path("vm").join("hyperkit.overlay0");
    symlink(test_dir.path("image"), &link).unwrap();
    assert_rejected(&test_dir, "hyperkit.overlay0", "disks", |d| d.disk(Disk::raw(&link)));
    assert!(link.is_symlink());
}
