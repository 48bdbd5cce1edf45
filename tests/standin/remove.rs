//! `remove` deletes what hyperkit and the crate created, and nothing else.

use std::fs;
use std::os::unix::fs::symlink;

use hyperkit::{Disk, Disks, Error, HyperKit};

use crate::common::{TestDir, file_names};

#[test]
fn remove_deletes_only_created_files() {
    let test_dir = TestDir::new();
    fs::create_dir(test_dir.path("vm")).unwrap();
    let own = test_dir.write("vm/own.img", &[0; 4096]);
    let outside = test_dir.path("outside.img");
    let description = test_dir
        .description()
        .disk(Disk::in_state_dir(1))
        .disk(Disk::raw(&own))
        .disk(Disk::raw(test_dir.path("vm/made.img")).size_mib(1))
        .disk(Disk::raw(&outside).size_mib(1))
        .vsock(true)
        .vsock_port(2374);
    let vm = description.start("guest").unwrap();
    assert!(matches!(description.remove(Disks::Delete), Err(Error::StillRunning { pid, .. }) if pid == vm.pid()));
    let all = [
        "00000003.00000946",
        "connect",
        "console-ring",
        "disk.img",
        "guest.00000946",
        "hyperkit.json",
        "hyperkit.log",
        "hyperkit.pid",
        "made.img",
        "own.img",
        "tty",
    ];
    assert_eq!(test_dir.state_files(), all);
    description.stop().unwrap();
    test_dir.write("vm/notes.txt", b"mine");

    description.remove(Disks::Keep).unwrap();
    assert_eq!(test_dir.state_files(), ["disk.img", "made.img", "notes.txt", "own.img"]);
    // A later start uses the disks that are left, but has not created them. So `remove` keeps them, whatever the
    // description records.
    for again in [&description, vm.description()] {
        again.start("guest").unwrap().kill().unwrap();
        HyperKit::from_state(test_dir.path("vm")).unwrap().remove(Disks::Delete).unwrap();
        assert_eq!(test_dir.state_files(), ["disk.img", "made.img", "notes.txt", "own.img"]);
    }
    // If the disks are missing, a start creates them, and `remove` deletes them again.
    for name in ["disk.img", "made.img"] {
        fs::remove_file(test_dir.path("vm").join(name)).unwrap();
    }
    description.start("guest").unwrap().kill().unwrap();
    HyperKit::from_state(test_dir.path("vm")).unwrap().remove(Disks::Delete).unwrap();
    assert_eq!(test_dir.state_files(), ["notes.txt", "own.img"]);
    assert_eq!(fs::read(&own).unwrap(), [0; 4096]);
    assert!(outside.exists());
}

/// The state file records the names of created disks without their directory.
#[test]
fn remove_keeps_a_file_named_like_a_disk_created_elsewhere() {
    let test_dir = TestDir::new();
    fs::create_dir(test_dir.path("vm")).unwrap();
    let own = test_dir.write("vm/d.img", b"precious");
    let description = test_dir.description().disk(Disk::raw(test_dir.path("d.img")).size_mib(1));
    description.start("guest").unwrap().kill().unwrap();
    description.remove(Disks::Delete).unwrap();
    assert_eq!(fs::read(own).unwrap(), b"precious");
}

#[test]
fn created_disk_stays_recorded_across_starts_and_symlinks() {
    let test_dir = TestDir::new();
    fs::create_dir(test_dir.path("vm")).unwrap();
    symlink(test_dir.path("vm"), test_dir.path("alias")).unwrap();
    for _ in 0..2 {
        let description = test_dir.description().disk(Disk::raw(test_dir.path("alias/d.img")).size_mib(1));
        description.start("guest").unwrap().kill().unwrap();
    }
    test_dir.description().remove(Disks::Delete).unwrap();
    assert!(!test_dir.path("vm").exists());
}

#[test]
fn remove_without_a_state_file_deletes_nothing() {
    let test_dir = TestDir::new();
    fs::create_dir(test_dir.path("vm")).unwrap();
    for own in ["tty", "console-ring", "hyperkit.log", "disk.img"] {
        test_dir.write(&format!("vm/{own}"), b"mine");
    }
    test_dir.description().remove(Disks::Delete).unwrap();
    assert_eq!(test_dir.state_files(), ["console-ring", "disk.img", "hyperkit.log", "tty"]);
}

#[test]
fn remove_deletes_an_unfinished_disk_image() {
    let test_dir = TestDir::new();
    let description = test_dir.description().disk(Disk::in_state_dir(1));
    description.start("guest").unwrap().kill().unwrap();
    test_dir.write("vm/.disk.img.new", b"");
    description.remove(Disks::Delete).unwrap();
    assert!(!test_dir.path("vm").exists());
}

#[test]
fn remove_of_inaccessible_directory_is_an_error() {
    let test_dir = TestDir::new();
    let below_a_file = test_dir.path("initrd.img/vm");
    match test_dir.description().state_dir(&below_a_file).remove(Disks::Delete) {
        Err(Error::Io { path, .. }) => assert_eq!(path, below_a_file),
        other => panic!("{other:?}"),
    }
}

#[test]
fn remove_deletes_an_empty_state_directory() {
    let test_dir = TestDir::new();
    let description = test_dir.description().disk(Disk::in_state_dir(1));
    description.start("guest").unwrap().kill().unwrap();
    description.remove(Disks::Delete).unwrap();
    assert_eq!(file_names(&test_dir.dir()), ["initrd.img", "vmlinuz"]);
    description.remove(Disks::Delete).unwrap(); // nothing is left, which is no error
}
