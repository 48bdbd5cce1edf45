//! State directories with corrupt files.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::sync::mpsc::channel;

use hyperkit::{ConfigError, Disk, Disks, Error, HyperKit};
use serde_json::json;

use crate::common::rejection::only_violation;
use crate::common::{TEST_TIMEOUT, TestDir, hypervisors_in, make_fifo, start_vm};
use crate::state_directory::edit_state;

/// Returns corrupt variants of a state file: truncated at every length, with wrong types, nested too deeply, or not JSON.
fn corrupt_variants(whole: &[u8]) -> Vec<Vec<u8>> {
    let cut = (0..whole.len()).map(|length| whole[..length].to_vec());
    let wrong =
        [r#"{"cpus":"two"}"#, r#"{"pid":-1}"#, r#"{"pid":1e99}"#, "[]", "null", "\"\"", "\0", "{\"disks\":[[]]}"];
    let deep = "[".repeat(100_000);
    cut.chain(wrong.map(|text| text.as_bytes().to_vec())).chain([deep.into_bytes(), vec![0xff; 1000]]).collect()
}

#[test]
fn corrupt_state_file_is_an_error_and_start_replaces_it() {
    let test_dir = TestDir::new();
    let (description, vm, _stop) = start_vm(&test_dir, "guest");
    vm.kill().unwrap();
    let whole = fs::read(test_dir.path("vm/hyperkit.json")).unwrap();
    for (count, content) in corrupt_variants(&whole).into_iter().enumerate() {
        test_dir.write("vm/hyperkit.json", &content);
        match HyperKit::from_state(test_dir.path("vm")) {
            Err(Error::DamagedState { path, .. }) => assert_eq!(path, test_dir.path("vm/hyperkit.json")),
            other => panic!("{count}: {other:?}"),
        }
        if count % 97 == 0 || content.is_empty() {
            description.start("guest").unwrap().kill().unwrap();
        }
    }
    // The file is too large, missing, or a directory.
    fs::File::create(test_dir.path("vm/hyperkit.json")).unwrap().set_len(1 << 40).unwrap();
    assert!(matches!(HyperKit::from_state(test_dir.path("vm")), Err(Error::Io { .. })));
    description.start("guest").unwrap().kill().unwrap();
    fs::remove_file(test_dir.path("vm/hyperkit.json")).unwrap();
    fs::create_dir(test_dir.path("vm/hyperkit.json")).unwrap();
    assert!(matches!(HyperKit::from_state(test_dir.path("vm")), Err(Error::Io { .. })));
    match description.start("guest") {
        Err(Error::Io { path, .. }) => assert_eq!(path, test_dir.path("vm/hyperkit.json")),
        other => panic!("{other:?}"),
    }
    assert_eq!(hypervisors_in(&test_dir.path("vm")), [] as [u32; 0]);
}

#[test]
fn running_vm_with_a_corrupt_state_file_prevents_a_second_start() {
    let test_dir = TestDir::new();
    let (description, vm, _stop) = start_vm(&test_dir, "guest");
    let whole = fs::read(test_dir.path("vm/hyperkit.json")).unwrap();
    for content in corrupt_variants(&whole).into_iter().step_by(61) {
        test_dir.write("vm/hyperkit.json", &content);
        assert!(matches!(description.start("guest"), Err(Error::AlreadyRunning { pid, .. }) if pid == vm.pid()));
    }
    fs::remove_file(test_dir.path("vm/hyperkit.json")).unwrap();
    assert!(matches!(description.start("guest"), Err(Error::AlreadyRunning { pid, .. }) if pid == vm.pid()));
    fs::remove_file(test_dir.path("vm/hyperkit.pid")).unwrap();
    let without_files = test_dir.description().start("guest");
    assert!(matches!(without_files, Err(Error::AlreadyRunning { pid, .. }) if pid == vm.pid()), "{without_files:?}");
    assert!(description.is_running().unwrap());
    description.stop().unwrap();
}

#[test]
fn corrupt_pid_file_neither_hides_a_vm_nor_prevents_a_start() {
    let contents: [&[u8]; 10] =
        [b"", b"\n", b"garbage", b"-1", b"0", b"1", b"99999999999999999999", b"\xff\xfe", b"12 34", &[b'1'; 10_000]];
    let test_dir = TestDir::new();
    let (description, vm, _stop) = start_vm(&test_dir, "guest");
    for content in contents {
        test_dir.write("vm/hyperkit.pid", content);
        assert!(description.is_running().unwrap(), "{content:?}");
        assert!(
            matches!(test_dir.description().start("guest"), Err(Error::AlreadyRunning { pid, .. }) if pid == vm.pid())
        );
    }
    vm.kill().unwrap();
    for content in contents {
        test_dir.write("vm/hyperkit.pid", content);
        assert!(!description.is_running().unwrap(), "{content:?}");
        description.start("guest").unwrap().kill().unwrap();
    }
    // A VM without a record is found by a pid file with and without a newline.
    let vm = description.start("guest").unwrap();
    edit_state(&test_dir, |state| {
        state["pid"] = json!(null);
        state["arguments"] = json!([]);
    });
    for newline in ["", "\n"] {
        test_dir.write("vm/hyperkit.pid", format!("{}{newline}", vm.pid()).as_bytes());
        let unrecorded = HyperKit::from_state(test_dir.path("vm")).unwrap();
        assert_eq!((unrecorded.recorded_pid(), unrecorded.recorded_arguments()), (None, &[][..]));
        assert_eq!(unrecorded.vm().unwrap().unwrap().pid(), vm.pid());
    }
    vm.kill().unwrap();
}

/// `remove` ignores recorded names of disks outside of the state directory.
#[test]
fn remove_deletes_no_recorded_disk_outside_the_state_directory() {
    let test_dir = TestDir::new();
    let (_, vm, _stop) = start_vm(&test_dir, "guest");
    vm.kill().unwrap();
    let precious = test_dir.write("precious", b"precious");
    edit_state(&test_dir, |state| state["made_disks"] = json!(["../precious", precious]));
    HyperKit::from_state(test_dir.path("vm")).unwrap().remove(Disks::Delete).unwrap();
    assert_eq!(fs::read(&precious).unwrap(), b"precious");
    assert!(!test_dir.path("vm").exists());
}

/// Names that no file in the directory can have, and that of a directory.
#[test]
fn remove_succeeds_although_recorded_disks_are_no_files() {
    let test_dir = TestDir::new();
    let (_, vm, _stop) = start_vm(&test_dir, "guest");
    vm.kill().unwrap();
    fs::create_dir(test_dir.path("vm/directory")).unwrap();
    edit_state(&test_dir, |state| state["made_disks"] = json!(["", ".", "..", "with\0nul", "directory", "missing"]));
    HyperKit::from_state(test_dir.path("vm")).unwrap().remove(Disks::Delete).unwrap();
    assert_eq!(test_dir.state_files(), ["directory"]);
}

/// `remove` reads from the state file which disks the crate created. The description with which it is called does not count.
#[test]
fn remove_with_a_corrupt_state_file_deletes_no_disk() {
    let test_dir = TestDir::new();
    let _stop = test_dir.stop_on_drop();
    let vm = test_dir.description().disk(Disk::in_state_dir(1)).start("guest").unwrap();
    let loaded = HyperKit::from_state(test_dir.path("vm")).unwrap();
    vm.kill().unwrap();
    for description in [vm.description(), &loaded] {
        test_dir.write("vm/hyperkit.json", b"{");
        description.remove(Disks::Delete).unwrap();
        assert_eq!(test_dir.state_files(), ["disk.img"]);
    }
}

/// `hyperkit.new` is the name of the state file while it is written.
#[test]
fn link_at_the_name_of_the_unfinished_state_file_is_not_written_through() {
    let test_dir = TestDir::new();
    let precious = test_dir.write("precious", b"precious");
    fs::create_dir(test_dir.path("vm")).unwrap();
    let unfinished = test_dir.path("vm/hyperkit.new");
    let link_to = |link: &dyn Fn()| {
        let _ = fs::remove_file(&unfinished);
        link();
    };
    for is_hard in [true, false] {
        let link = || match is_hard {
            true => fs::hard_link(&precious, &unfinished).unwrap(),
            false => symlink(&precious, &unfinished).unwrap(),
        };
        link_to(&link);
        test_dir.description().define().unwrap();
        link_to(&link);
        test_dir.description().start("guest").unwrap().kill().unwrap();
        assert_eq!(fs::read(&precious).unwrap(), b"precious");
        assert!(test_dir.path("vm/hyperkit.json").metadata().unwrap().is_file());
        assert!(!test_dir.path("vm/hyperkit.json").is_symlink());
    }
}

/// An image that a symlink leads to is used, but not changed in its size.
#[test]
fn symlink_in_the_state_directory_leads_to_no_image_that_is_grown() {
    let test_dir = TestDir::new();
    let precious = test_dir.write("precious", b"precious");
    fs::create_dir(test_dir.path("vm")).unwrap();
    symlink(&precious, test_dir.path("vm/disk.img")).unwrap();
    let violation = only_violation(test_dir.description().disk(Disk::in_state_dir(1)).start("guest"));
    assert!(matches!(violation, ConfigError::Inaccessible { field: "disks", .. }), "{violation}");
    assert_eq!(fs::read(&precious).unwrap(), b"precious");
    fs::File::options().write(true).open(&precious).unwrap().set_len(1 << 20).unwrap();
    test_dir.description().disk(Disk::in_state_dir(1)).start("guest").unwrap().kill().unwrap();
}

/// Opening a FIFO for reading waits for a writer, and opening a socket fails.
#[test]
fn fifo_or_socket_in_place_of_any_file_blocks_no_call() {
    let names = ["hyperkit.json", "hyperkit.pid", "hyperkit.log", "console-ring", "tty", "vhost.line"];
    for name in names {
        for is_fifo in [true, false] {
            let test_dir = TestDir::new();
            let (description, vm, _stop) = start_vm(&test_dir, "guest");
            let found = description.vm().unwrap().unwrap();
            let kind = if is_fifo { "FIFO" } else { "socket" };
            let (send, ends) = channel();
            std::thread::spawn(move || {
                let path = test_dir.path("vm").join(name);
                for is_running in [true, false] {
                    if !is_running {
                        vm.kill().unwrap();
                    }
                    let _ = fs::remove_file(&path);
                    if is_fifo {
                        make_fifo(&path)
                    } else {
                        drop(UnixListener::bind(&path).unwrap())
                    }
                    assert_eq!(description.is_running().unwrap(), is_running, "{name}");
                    assert_eq!(description.vm().unwrap().map(|vm| vm.pid()), is_running.then_some(vm.pid()), "{name}");
                    assert_eq!(HyperKit::from_state(test_dir.path("vm")).is_err(), name == "hyperkit.json");
                    assert_eq!(HyperKit::list(test_dir.dir()).unwrap().len(), 1, "{name}");
                    assert_eq!(description.console_log().is_err(), name == "console-ring");
                    let tail = found.log_tail();
                    assert!(name != "hyperkit.log" || tail.hypervisor.is_empty(), "{tail}");
                    if is_running {
                        assert!(description.start("guest").is_err() && description.remove(Disks::Delete).is_err());
                    }
                }
                description.start("guest").unwrap().kill().unwrap();
                description.remove(Disks::Delete).unwrap();
                send.send(()).unwrap();
            });
            assert_eq!(ends.recv_timeout(TEST_TIMEOUT), Ok(()), "{kind} {name}");
        }
    }
}
