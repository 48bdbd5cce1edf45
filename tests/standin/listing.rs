//! `HyperKit::list`: the state directories in a directory.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use hyperkit::{Disks, Error, Found, HyperKit};
use rustix::process::{Signal, kill_process};

use crate::common::{TestDir, hypervisors_in, to_pid};

/// A directory `root` that contains state directories. On drop, the VMs in it are killed, also those without a readable
/// record.
struct Root {
    test_dir: TestDir,
}

impl Drop for Root {
    fn drop(&mut self) {
        for found in HyperKit::list(self.test_dir.path("root")).into_iter().flatten() {
            let _ = found.vm.ok().flatten().map(|vm| vm.kill());
        }
    }
}

impl Root {
    fn new() -> Self {
        let test_dir = TestDir::new();
        fs::create_dir(test_dir.path("root")).unwrap();
        Self { test_dir }
    }

    fn dir(&self, name: &str) -> PathBuf {
        self.test_dir.path("root").join(name)
    }

    fn description(&self, name: &str) -> HyperKit {
        self.test_dir.description().state_dir(self.dir(name)).label("name", name)
    }

    fn list(&self) -> Vec<Found> {
        HyperKit::list(self.test_dir.path("root")).unwrap()
    }
}

/// Returns the name of a state directory, the label of its description or a word for the error, and the process ID of its
/// VM.
fn summary(found: &Found) -> (&str, &str, Option<u32>) {
    let description = match &found.description {
        Ok(description) => &*description.labels["name"],
        Err(Error::DamagedState { .. }) => "damaged",
        Err(Error::StateNotFound { .. }) => "missing",
        Err(error) => panic!("{error:#}"),
    };
    let vm = found.vm.as_ref().unwrap().as_ref();
    (found.dir.file_name().unwrap().to_str().unwrap(), description, vm.map(hyperkit::Vm::pid))
}

#[test]
fn list_finds_running_stopped_defined_and_damaged_vms() {
    let root = Root::new();
    let pids: Vec<_> = ["damaged-running", "missing-running", "running"]
        .map(|name| root.description(name).start("guest").unwrap().pid())
        .to_vec();
    root.description("stopped").start("guest").unwrap().kill().unwrap();
    root.description("defined").define().unwrap();
    let vm = root.description("killed").start("guest").unwrap();
    kill_process(to_pid(vm.pid()), Signal::KILL).unwrap();
    let _ = vm.wait();
    root.description("damaged").define().unwrap();
    for name in ["damaged", "damaged-running"] {
        fs::write(root.dir(name).join("hyperkit.json"), "{ damaged").unwrap();
    }
    fs::remove_file(root.dir("missing-running").join("hyperkit.json")).unwrap();
    // `list` does not return these.
    fs::create_dir_all(root.dir("below/further-down")).unwrap();
    root.description("below/further-down").define().unwrap();
    fs::create_dir(root.dir("empty")).unwrap();
    fs::create_dir(root.dir("stale-pid-file")).unwrap();
    fs::write(root.dir("stale-pid-file/hyperkit.pid"), std::process::id().to_string()).unwrap();
    fs::write(root.dir("file"), "").unwrap();
    symlink("nowhere", root.dir("dangling")).unwrap();

    let list = root.list();
    assert_eq!(
        list.iter().map(summary).collect::<Vec<_>>(),
        [
            ("damaged", "damaged", None),
            ("damaged-running", "damaged", Some(pids[0])),
            ("defined", "defined", None),
            ("killed", "killed", None),
            ("missing-running", "missing", Some(pids[1])),
            ("running", "running", Some(pids[2])),
            ("stopped", "stopped", None),
        ]
    );
    for found in &list {
        assert_eq!(found.dir.parent(), Some(&*root.test_dir.path("root")));
        if let Ok(description) = &found.description {
            assert_eq!(description.state_dir.as_ref(), Some(&found.dir));
        }
        if let Ok(Some(vm)) = &found.vm {
            assert_eq!((vm.state_dir(), hypervisors_in(&found.dir)), (Some(&*found.dir), vec![vm.pid()]));
            let program = vm.description().hyperkit.as_ref().unwrap();
            assert_eq!(program, &crate::common::standin_path(), "the program is not known without a state file");
        }
    }
}

#[test]
fn found_vms_can_be_killed_and_removed() {
    let root = Root::new();
    for name in ["damaged", "missing", "whole"] {
        root.description(name).start("guest").unwrap();
    }
    fs::write(root.dir("damaged/hyperkit.json"), "").unwrap();
    fs::remove_file(root.dir("missing/hyperkit.json")).unwrap();
    for found in root.list() {
        let vm = found.vm.unwrap().expect("the VM runs");
        assert!(matches!(vm.remove(Disks::Delete), Err(Error::StillRunning { pid, .. }) if pid == vm.pid()));
        vm.kill().unwrap();
        assert_eq!(hypervisors_in(&found.dir), [0; 0]);
        vm.remove(Disks::Delete).unwrap();
    }
    let left = root.list();
    assert!(left.is_empty(), "{left:?}");
    assert!(!root.dir("damaged").exists() && !root.dir("whole").exists());
}

#[test]
fn found_description_starts_another_vm_in_another_directory() {
    let root = Root::new();
    root.description("a").disk(hyperkit::Disk::in_state_dir(1)).define().unwrap();
    let description = root.list().remove(0).description.unwrap();
    assert_eq!(description.disks[0].path, None);
    let vm = description.state_dir(root.dir("b")).start("guest").unwrap();
    assert!(root.dir("b/disk.img").exists() && !root.dir("a/disk.img").exists());
    vm.kill().unwrap();
}

#[test]
fn list_of_a_missing_directory_is_empty_and_of_a_file_an_error() {
    let test_dir = TestDir::new();
    assert!(HyperKit::list(test_dir.path("missing")).unwrap().is_empty());
    let error = HyperKit::list(test_dir.path("vmlinuz")).unwrap_err();
    assert!(matches!(error, Error::Io { action: "list", .. }), "{error:?}");
    fs::create_dir(test_dir.path("empty")).unwrap();
    assert!(HyperKit::list(test_dir.path("empty")).unwrap().is_empty());
}

/// `list` returns the directory with the error, and the other directories as usual.
#[test]
fn unreadable_state_directory_is_listed_with_its_error() {
    let root = Root::new();
    root.description("a").define().unwrap();
    // A symlink to itself cannot be read, not even by root.
    fs::create_dir(root.dir("b")).unwrap();
    symlink("hyperkit.json", root.dir("b/hyperkit.json")).unwrap();
    symlink("hyperkit.pid", root.dir("b/hyperkit.pid")).unwrap();
    let list = root.list();
    assert_eq!(list.len(), 2);
    assert_eq!(summary(&list[0]), ("a", "a", None));
    assert_eq!(list[1].dir, root.dir("b"));
    assert!(matches!(list[1].description, Err(Error::Io { .. })), "{:?}", list[1]);
    assert!(matches!(list[1].vm, Err(Error::CannotTell { .. })), "{:?}", list[1]);
}

/// Only the hypervisor's command line tells that a VM runs there.
#[test]
fn list_finds_the_vm_of_a_directory_that_was_emptied() {
    let root = Root::new();
    let vm = root.description("emptied").start("guest").unwrap();
    fs::create_dir(root.dir("other")).unwrap();
    fs::remove_dir_all(root.dir("emptied")).unwrap();
    fs::create_dir(root.dir("emptied")).unwrap();
    let found = root.list();
    assert_eq!(found.iter().map(summary).collect::<Vec<_>>(), [("emptied", "missing", Some(vm.pid()))]);
    vm.kill().unwrap();
    assert!(root.list().is_empty());
}
