//! TODO

use std::fs;
use std::os::unix::fs::symlink;

use hyperkit::{Disk, Error, HyperKit};

use crate::common::{Files, names};

#[test]
fn remove_deletes_what_was_made_and_nothing_else() {
    let files = Files::new();
    fs::create_dir(files.path("vm")).unwrap();
    let own = files.write("vm/own.img", &[0; 4096]);
    let outside = files.path("outside.img");
    let mut machine = files
        .machine()
        .disk(Disk::in_state_dir(1))
        .disk(Disk::raw(&own))
        .disk(Disk::raw(files.path("vm/made.img")).size(1))
        .disk(Disk::raw(&outside).size(1))
        .vsock(true)
        .vsock_port(2374);
    machine.start("guest").unwrap();
    assert!(matches!(machine.remove(false), Err(Error::StillRunning { pid }) if Some(pid) == machine.pid));
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
    assert_eq!(files.state_files(), all);
    machine.stop().unwrap();
    files.write("vm/notes.txt", b"mine");

    machine.remove(true).unwrap();
    assert_eq!(files.state_files(), ["disk.img", "made.img", "notes.txt", "own.img"]);
    // A start over what was left does not make it the crate's own.
    machine.start("guest").unwrap().stop().unwrap();
    HyperKit::from_state(files.path("vm")).unwrap().remove(false).unwrap();
    assert_eq!(files.state_files(), ["notes.txt", "own.img"]);
    assert_eq!(fs::read(&own).unwrap(), [0; 4096]);
    assert!(outside.exists());
}

/// Of those that were made only the names are remembered.
#[test]
fn remove_deletes_no_namesake_of_a_disk_that_was_made_elsewhere() {
    let files = Files::new();
    fs::create_dir(files.path("vm")).unwrap();
    let own = files.write("vm/d.img", b"precious");
    let mut machine = files.machine().disk(Disk::raw(files.path("d.img")).size(1));
    machine.start("guest").unwrap().stop().unwrap();
    machine.remove(false).unwrap();
    assert_eq!(fs::read(own).unwrap(), b"precious");
}

#[test]
fn a_disk_that_was_made_is_remembered_by_whatever_way_and_by_whomever_it_is_used_next() {
    let files = Files::new();
    fs::create_dir(files.path("vm")).unwrap();
    symlink(files.path("vm"), files.path("alias")).unwrap();
    for _ in 0..2 {
        let mut machine = files.machine().disk(Disk::raw(files.path("alias/d.img")).size(1));
        machine.start("guest").unwrap().stop().unwrap();
    }
    files.machine().remove(false).unwrap();
    assert!(!files.path("vm").exists());
}

#[test]
fn remove_without_a_state_file_touches_nothing() {
    let files = Files::new();
    fs::create_dir(files.path("vm")).unwrap();
    for own in ["tty", "console-ring", "hyperkit.log", "disk.img"] {
        files.write(&format!("vm/{own}"), b"mine");
    }
    files.machine().remove(false).unwrap();
    assert_eq!(files.state_files(), ["console-ring", "disk.img", "hyperkit.log", "tty"]);
}

#[test]
fn remove_takes_what_a_crash_has_left_of_the_making_of_a_disk() {
    let files = Files::new();
    let mut machine = files.machine().disk(Disk::in_state_dir(1));
    machine.start("guest").unwrap().stop().unwrap();
    files.write("vm/.disk.img.new", b"");
    machine.remove(false).unwrap();
    assert!(!files.path("vm").exists());
}

#[test]
fn remove_says_when_it_cannot_tell_what_is_there() {
    let files = Files::new();
    let below_a_file = files.path("initrd.img/vm");
    match files.machine().state_dir(&below_a_file).remove(false) {
        Err(Error::Io { path, .. }) => assert_eq!(path, below_a_file),
        other => panic!("{other:?}"),
    }
}

#[test]
fn remove_takes_the_directory_if_that_leaves_it_empty() {
    let files = Files::new();
    let mut machine = files.machine().disk(Disk::in_state_dir(1));
    machine.start("guest").unwrap().stop().unwrap();
    machine.remove(false).unwrap();
    assert_eq!(names(&files.dir()), ["initrd.img", "vmlinuz"]);
    machine.remove(false).unwrap(); // there is nothing left to do
}
