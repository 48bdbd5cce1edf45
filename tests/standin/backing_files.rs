//! qcow2 images with backing files: a VM must not write to the backing file of an image of the same VM or of another VM. Several
//! images can use one backing file.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use hyperkit::{ConfigError, Disk, Disks, Error, HyperKit, QcowOptions};
use serde_json::json;

use crate::common::rejection::{assert_error, only_violation, rejection_with};
use crate::common::tools::run_tool;
use crate::common::{StopOnDrop, TEST_TIMEOUT, TestDir, make_fifo, standin_path};

fn qcow2(path: impl Into<PathBuf>) -> Disk {
    Disk::qcow2(path, QcowOptions::default())
}

fn qemu_img(arguments: &[&str], dir: &Path) {
    run_tool("qemu-img", arguments, dir);
}

/// Creates a backing file of this format, and an overlay that names it by `name`.
fn overlay(test_dir: &TestDir, format: &str, name: &str) -> (PathBuf, PathBuf) {
    let dir = test_dir.dir();
    qemu_img(&["create", "-q", "-f", format, "base", "1M"], &dir);
    qemu_img(&["create", "-q", "-f", "qcow2", "-F", format, "-b", name, "top"], &dir);
    (dir.join("base"), dir.join("top"))
}

fn base_disk(format: &str, base: &Path) -> Disk {
    if format == "raw" { Disk::raw(base) } else { qcow2(base) }
}

#[test]
fn overlay_together_with_its_backing_file_is_a_duplicate() {
    let test_dir = TestDir::new();
    for format in ["raw", "qcow2"] {
        let absolute = test_dir.path("base").to_str().unwrap().to_owned();
        let (url, json) = (format!("file:{absolute}"), json!({ "file": { "driver": "file", "filename": absolute } }));
        for name in ["base", "./base", &absolute, &url, &format!("json:{json}")] {
            let (base, top) = overlay(&test_dir, format, name);
            let writer = base_disk(format, &base);
            for disks in [
                [qcow2(&top), writer.clone()],
                [writer.clone(), qcow2(&top)],
                [writer.clone(), qcow2(&top).read_only()],
            ] {
                let violation = rejection_with(&test_dir, "", |d| disks.into_iter().fold(d, HyperKit::disk));
                assert_error!(violation, ConfigError::DuplicateDisk { path } if path.canonicalize().unwrap() == base);
            }
            let readers = test_dir.description().disk(qcow2(&top)).disk(writer.read_only());
            readers.check().unwrap();
        }
    }
}

#[test]
fn backing_file_is_found_through_a_chain_and_by_other_names() {
    let test_dir = TestDir::new();
    let (base, _) = overlay(&test_dir, "qcow2", "base");
    qemu_img(&["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "top", "topmost"], &test_dir.dir());
    let topmost = qcow2(test_dir.path("topmost"));
    fs::hard_link(&base, test_dir.path("hard-link")).unwrap();
    symlink(&base, test_dir.path("link")).unwrap();
    for other in ["base", "top", "hard-link", "link"] {
        let description = test_dir.description().disk(topmost.clone()).disk(qcow2(test_dir.path(other)));
        assert_error!(only_violation(description.check()), ConfigError::DuplicateDisk { .. });
    }
    // Two overlays share a backing file.
    qemu_img(&["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "base", "sibling"], &test_dir.dir());
    test_dir.description().disk(topmost).disk(qcow2(test_dir.path("sibling"))).check().unwrap();
}

/// QEMU looks in the directory of the path by which the overlay was opened.
#[test]
fn relative_backing_file_is_relative_to_the_overlay() {
    let test_dir = TestDir::new();
    fs::create_dir(test_dir.path("sub")).unwrap();
    let (base, top) = overlay(&test_dir, "raw", "base");
    let description = |top: &Path| test_dir.description().disk(qcow2(top)).disk(Disk::raw(&base));
    assert_error!(only_violation(description(&top).check()), ConfigError::DuplicateDisk { .. });
    symlink(&top, test_dir.path("sub/link")).unwrap();
    let violation = only_violation(description(&test_dir.path("sub/link")).check());
    assert_eq!(violation, ConfigError::NotFound { field: "disks", path: test_dir.path("sub/base") });
}

/// QEMU looks for these in the working directory, which is that of the caller.
#[test]
fn relative_backing_file_with_a_protocol_is_relative_to_the_working_directory() {
    let test_dir = TestDir::new();
    test_dir.write("base", &[0; 512]);
    assert!(Path::new("Cargo.toml").exists() && !Path::new("base").exists());
    let json =
        |name: &str| format!("json:{}", json!({ "driver": "raw", "file": { "driver": "file", "filename": name } }));
    for (name, exists) in
        [("file:Cargo.toml", true), (&json("Cargo.toml"), true), ("file:base", false), (&json("base"), false)]
    {
        qemu_img(&["create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", name, "top", "1M"], &test_dir.dir());
        let checked = test_dir.description().disk(qcow2(test_dir.path("top"))).check();
        match exists {
            true => checked.unwrap(),
            false => {
                assert_eq!(only_violation(checked), ConfigError::NotFound { field: "disks", path: "base".into() });
            }
        }
    }
}

/// QEMU does not look for it beside the image.
#[test]
fn relative_data_file_is_relative_to_the_working_directory() {
    let test_dir = TestDir::new();
    qemu_img(&["create", "-q", "-f", "qcow2", "-o", "data_file=data.img", "image", "1M"], &test_dir.dir());
    let violation = rejection_with(&test_dir, "", |d| d.disk(qcow2(test_dir.path("image"))));
    assert_eq!(violation, ConfigError::NotFound { field: "disks", path: "data.img".into() });
}

#[test]
fn backing_file_must_have_the_format_that_the_image_names() {
    let test_dir = TestDir::new();
    let base = test_dir.write("base", &[0; 512]);
    qemu_img(&["create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "base", "top", "1M"], &test_dir.dir());
    let violation = rejection_with(&test_dir, "", |d| d.disk(qcow2(test_dir.path("top"))));
    assert_eq!(violation, ConfigError::NotQcow2 { path: base });
}

#[test]
fn missing_or_unusable_backing_file_is_rejected() {
    let test_dir = TestDir::new();
    let (base, top) = overlay(&test_dir, "qcow2", "base");
    let rejection = || rejection_with(&test_dir, "", |d| d.disk(qcow2(&top)));
    let mut header = fs::read(&base).unwrap();
    header[35] = 1;
    fs::write(&base, header).unwrap();
    assert_eq!(rejection(), ConfigError::InvalidQcow2 { path: base.clone(), reason: "encrypted" });
    fs::remove_file(&base).unwrap();
    assert_eq!(rejection(), ConfigError::NotFound { field: "disks", path: base.clone() });
    make_fifo(&base);
    assert_eq!(rejection(), ConfigError::NotAFile { field: "disks", path: base });
}

#[test]
fn cycle_of_backing_files_is_rejected() {
    let test_dir = TestDir::new();
    for (name, backing) in [("one", "two"), ("two", "three"), ("three", "one"), ("self", "./self")] {
        qemu_img(&["create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", backing, name, "1M"], &test_dir.dir());
    }
    for name in ["one", "two", "three", "self"] {
        let violation = rejection_with(&test_dir, "", |d| d.disk(qcow2(test_dir.path(name))));
        assert_error!(violation, ConfigError::InvalidQcow2 { reason: "its backing files form a cycle", .. });
    }
}

/// Only the engine connects to the server.
#[test]
fn backing_file_of_a_protocol_is_left_to_the_engine() {
    let test_dir = TestDir::new();
    for (index, name) in
        ["nbd://host/x", "nbd:host:1", "https://host/x", r#"json:{"driver":"nbd","host":"h"}"#].iter().enumerate()
    {
        let image = format!("image{index}");
        qemu_img(&["create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", name, &image, "1M"], &test_dir.dir());
        test_dir.description().disk(qcow2(test_dir.path(&image))).check().unwrap();
    }
}

#[test]
fn external_data_file_together_with_its_image_is_a_duplicate() {
    let test_dir = TestDir::new();
    let (image, data) = (test_dir.path("image"), test_dir.path("data"));
    let options = format!("data_file={},data_file_raw=on", data.display());
    qemu_img(&["create", "-q", "-f", "qcow2", "-o", &options, "image", "1M"], &test_dir.dir());
    for disk in [Disk::raw(&data), Disk::raw(&data).read_only()] {
        let violation = rejection_with(&test_dir, "", |d| d.disk(qcow2(&image)).disk(disk));
        assert_eq!(violation, ConfigError::DuplicateDisk { path: data.clone() });
    }
}

#[test]
fn backing_file_in_use_by_another_vm_is_rejected_before_start() {
    let test_dir = TestDir::new();
    for format in ["raw", "qcow2"] {
        let (base, top) = overlay(&test_dir, format, "base");
        let writer = test_dir.description().state_dir(test_dir.path("writer")).disk(base_disk(format, &base));
        let reader = test_dir.description().state_dir(test_dir.path("reader")).disk(qcow2(&top));
        let _stops = ["writer", "reader", "third"].map(|name| StopOnDrop(test_dir.path(name)));
        for (first, second) in [(&writer, &reader), (&reader, &writer)] {
            let vm = first.start("guest").unwrap();
            match second.start("guest") {
                Err(Error::DiskInUse { path }) => assert_eq!(path, base),
                other => panic!("{format}: {other:?}"),
            }
            vm.kill().unwrap();
            for description in [first, second] {
                let _ = description.remove(Disks::Keep);
            }
        }
        // Overlays share the backing file, also with a VM that only reads it.
        let vm = reader.start("guest").unwrap();
        qemu_img(&["create", "-q", "-f", "qcow2", "-F", format, "-b", "base", "sibling"], &test_dir.dir());
        let sibling = qcow2(test_dir.path("sibling"));
        let third = test_dir.description().state_dir(test_dir.path("third")).disk(sibling);
        third.disk(base_disk(format, &base).read_only()).start("guest").unwrap().kill().unwrap();
        vm.kill().unwrap();
    }
}

/// The first VM's hypervisor does not run yet.
#[test]
fn backing_file_is_locked_until_the_hypervisor_runs() {
    let test_dir = TestDir::new();
    let (base, top) = overlay(&test_dir, "raw", "base");
    let fifo = test_dir.path("fifo");
    make_fifo(&fifo);
    let script = format!("#!/bin/sh\nread line <{}\nexec {} \"$@\"\n", fifo.display(), standin_path().display());
    let slow = test_dir.write_executable("slow", script.as_bytes());
    let first = test_dir.description().disk(qcow2(&top)).hyperkit(slow).spawn("guest").unwrap();
    let _stops = ["vm", "vm2"].map(|name| StopOnDrop(test_dir.path(name)));
    let second = test_dir.description().state_dir(test_dir.path("vm2")).disk(Disk::raw(&base)).start("guest");
    assert!(matches!(second, Err(Error::DiskInUse { ref path }) if *path == base), "{second:?}");
    fs::write(&fifo, "\n").unwrap();
    first.wait_ready(TEST_TIMEOUT).unwrap();
}

/// Another VM's disk has the file as its backing file.
#[test]
fn remove_keeps_a_backing_file_in_use() {
    let test_dir = TestDir::new();
    let _stop = StopOnDrop(test_dir.path("vm2"));
    let description = test_dir.description().disk(Disk::in_state_dir(1));
    description.start("guest").unwrap().kill().unwrap();
    let base = test_dir.path("vm/disk.img");
    qemu_img(&["create", "-q", "-f", "qcow2", "-F", "raw", "-b", base.to_str().unwrap(), "top"], &test_dir.dir());
    let other = test_dir.description().state_dir(test_dir.path("vm2")).disk(qcow2(test_dir.path("top")));
    let vm = other.start("guest").unwrap();
    assert!(matches!(description.remove(Disks::Delete), Err(Error::DiskInUse { path }) if path == base));
    vm.kill().unwrap();
    description.remove(Disks::Delete).unwrap();
}
