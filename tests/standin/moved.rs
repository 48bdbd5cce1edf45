//! A state directory that is moved or copied while its VM runs.

use std::fs;
use std::process::Command;

use hyperkit::{Disks, Error, HyperKit};

use crate::common::{KillOnDrop, TEST_TIMEOUT, TestDir, start_vm};

/// The hypervisor's command line still has the old path.
#[test]
fn vm_whose_directory_was_moved_is_found_in_the_new_place() {
    let test_dir = TestDir::new();
    let (_, vm, _stop) = start_vm(&test_dir, "guest");
    let _kill = KillOnDrop(&vm);
    fs::rename(test_dir.path("vm"), test_dir.path("moved")).unwrap();
    let moved = HyperKit::from_state(test_dir.path("moved")).unwrap();
    assert!(moved.is_running().unwrap());
    assert!(matches!(moved.start("guest"), Err(Error::AlreadyRunning { pid, .. }) if pid == vm.pid()));
    assert!(matches!(moved.remove(Disks::Delete), Err(Error::StillRunning { pid, .. }) if pid == vm.pid()));
    let listed = HyperKit::list(test_dir.dir()).unwrap().remove(0);
    assert_eq!(listed.vm.unwrap().expect("it runs").pid(), vm.pid());
    fs::remove_file(test_dir.path("moved/hyperkit.pid")).unwrap();
    moved.stop().unwrap();
    assert!(vm.wait_timeout(TEST_TIMEOUT).is_some());
    moved.remove(Disks::Delete).unwrap();
    assert!(!test_dir.path("moved").exists());
}

/// A backup of the state directory has the same record and pid file.
#[test]
fn copy_of_the_directory_of_a_running_vm_has_no_vm() {
    let test_dir = TestDir::new();
    let (description, vm, _stop) = start_vm(&test_dir, "guest");
    let (from, to) = (test_dir.path("vm"), test_dir.path("copy"));
    assert!(Command::new("cp").arg("-a").args([&from, &to]).status().unwrap().success());
    let copy = HyperKit::from_state(&to).unwrap();
    assert_eq!(copy.recorded_pid(), Some(vm.pid()));
    assert!(!copy.is_running().unwrap());
    copy.stop().unwrap();
    copy.start("guest").unwrap().kill().unwrap();
    copy.remove(Disks::Delete).unwrap();
    assert_eq!(description.vm().unwrap().expect("it runs").pid(), vm.pid());
    assert_eq!(vm.try_wait(), None);
}
