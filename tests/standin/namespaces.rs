//! One state directory under several names: bind mounts and overlays. VMs in other pid namespaces, as in containers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use hyperkit::{Disk, Disks, Error, HyperKit};

use crate::cannot_tell::{answer_in_starter, check_refusals};
use crate::common::child_process::in_mount_namespace;
use crate::common::{KillOnDrop, TEST_TIMEOUT, TestDir, hypervisors_in, start_vm};
use crate::starter::{self, Starter, report, wait_for_test};

/// Removes a mount on drop: a mount point cannot be deleted.
struct Mount(PathBuf);

impl Mount {
    fn new(arguments: &[&str], place: PathBuf) -> Self {
        let status = Command::new("mount").args(arguments).arg(&place).status();
        assert!(status.unwrap().success(), "mount {arguments:?} {}", place.display());
        Self(place)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazily, since files may still be open.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// Asserts that every call finds the VM in the directory, and that none starts another one or deletes anything.
fn assert_is_running_in(dir: &Path, description: &HyperKit, pid: u32) {
    let context = dir.display();
    assert!(description.is_running().unwrap(), "{context}");
    assert_eq!(description.vm().unwrap().expect("it runs").pid(), pid, "{context}");
    let start = description.start("guest");
    assert!(matches!(start, Err(Error::AlreadyRunning { pid: found, .. }) if found == pid), "{context}: {start:?}");
    let remove = description.remove(Disks::Delete);
    assert!(matches!(remove, Err(Error::StillRunning { pid: found, .. }) if found == pid), "{context}: {remove:?}");
    let listed = HyperKit::list(dir.parent().unwrap()).unwrap();
    let found = listed.into_iter().find(|found| found.dir == dir).expect("it is listed");
    assert_eq!(found.vm.unwrap().expect("it runs").pid(), pid, "{context}");
}

#[test]
fn vm_is_found_through_bind_mounts_of_its_directory_and_of_the_parent() {
    in_mount_namespace("namespaces::vm_is_found_through_bind_mounts_of_its_directory_and_of_the_parent", || {
        let test_dir = TestDir::new();
        for name in ["root/vm", "binds/vm", "binds/root"] {
            fs::create_dir_all(test_dir.path(name)).unwrap();
        }
        let real = test_dir.path("root/vm");
        let bind = |from: PathBuf, to| Mount::new(&["--bind", from.to_str().unwrap()], test_dir.path(to));
        let _mounts = [bind(real.clone(), "binds/vm"), bind(test_dir.path("root"), "binds/root")];
        let names = [real, test_dir.path("binds/vm"), test_dir.path("binds/root/vm")];
        let at = |dir: &Path| test_dir.description().state_dir(dir).disk(Disk::in_state_dir(1));
        for (started, stopped) in [(0, 1), (1, 0), (2, 1), (1, 2)] {
            for lost in [&[][..], &["hyperkit.pid"], &["hyperkit.json", "hyperkit.pid"]] {
                let vm = at(&names[started]).start("guest").unwrap();
                let _kill = KillOnDrop(&vm);
                lost.iter().for_each(|name| fs::remove_file(names[0].join(name)).unwrap());
                for dir in &names {
                    assert_is_running_in(dir, &at(dir), vm.pid());
                }
                at(&names[stopped]).stop().unwrap();
                assert!(vm.wait_timeout(TEST_TIMEOUT).is_some(), "it runs on");
                assert!(names.iter().all(|dir| !at(dir).is_running().unwrap()));
            }
        }
    });
}

/// Below an overlay, the files have other inodes. A VM that runs in the overlay uses the files in the upper directory, and one that
/// runs in the lower directory uses those that the overlay shows.
#[test]
fn overlay_of_a_running_vm_is_neither_started_nor_removed() {
    in_mount_namespace("namespaces::overlay_of_a_running_vm_is_neither_started_nor_removed", || {
        for (runs_in, looks_in) in [("merged", "upper"), ("lower", "merged")] {
            let below = TestDir::new();
            let _tmpfs = Mount::new(&["-t", "tmpfs", "none"], below.dir());
            let test_dir = TestDir::in_dir(&below.dir());
            for name in ["lower", "upper", "work", "merged"] {
                fs::create_dir(test_dir.path(name)).unwrap();
            }
            let path = |name| test_dir.path(name).display().to_string();
            let dirs = format!("lowerdir={},upperdir={},workdir={}", path("lower"), path("upper"), path("work"));
            let _overlay = Mount::new(&["-t", "overlay", "overlay", "-o", &dirs], test_dir.path("merged"));
            let at = |name: &str| {
                test_dir.description().state_dir(test_dir.path(name).join("vm")).disk(Disk::in_state_dir(1))
            };
            let vm = at(runs_in).start("guest").unwrap();
            let _kill = KillOnDrop(&vm);
            let other = at(looks_in);
            let answers = [
                other.is_running().map(drop),
                other.vm().map(drop),
                other.stop(),
                other.start("guest").map(drop),
                other.define(),
                other.remove(Disks::Delete),
            ];
            for answer in answers {
                assert!(matches!(answer, Err(Error::CannotTell { .. })), "{runs_in}: {answer:?}");
            }
            assert!(test_dir.path(looks_in).join("vm/disk.img").exists() && vm.try_wait().is_none());
            vm.kill().unwrap();
            assert!(!other.is_running().unwrap());
        }
    });
}

/// A command that runs this program in a new pid namespace.
fn in_a_container() -> Command {
    let mut unshare = Command::new("unshare");
    unshare.args(["--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    unshare
}

#[test]
fn vm_in_a_container_is_found_from_the_host_and_is_cannot_tell_in_another_container() {
    const TEST: &str = "namespaces::vm_in_a_container_is_found_from_the_host_and_is_cannot_tell_in_another_container";
    match starter::arguments_of(TEST).as_deref() {
        Some([dir, call]) if call == "start" => {
            report(starter::description_in(dir).start("guest").unwrap().pid());
            return wait_for_test();
        }
        Some(arguments) => return answer_in_starter(arguments),
        None => {}
    }
    for lost in [&[][..], &["hyperkit.pid"]] {
        let test_dir = TestDir::new();
        let _stop = test_dir.stop_on_drop();
        let mut command = in_a_container();
        command.arg(std::env::current_exe().unwrap());
        let dir = test_dir.dir();
        let mut container = Starter::spawn_with(&mut command, TEST, &[dir.to_str().unwrap(), "start"]);
        container.report(); // a process ID of the container
        let [pid] = hypervisors_in(&test_dir.path("vm"))[..] else { panic!("it does not run") };
        lost.iter().for_each(|name| fs::remove_file(test_dir.path("vm").join(name)).unwrap());
        let description = test_dir.description();
        assert_is_running_in(&test_dir.path("vm"), &description, pid);
        check_refusals(&description, in_a_container(), TEST);
        assert_is_running_in(&test_dir.path("vm"), &description, pid);

        // The end of a container ends its processes.
        let vm = description.vm().unwrap().unwrap();
        drop(container);
        assert!(vm.wait_timeout(TEST_TIMEOUT).is_some());
        assert!(!description.is_running().unwrap());
        description.remove(Disks::Delete).unwrap();
    }
}

/// For instance, a container is started again on the same volume.
#[test]
fn vm_that_has_exited_with_its_container_is_started_in_the_next_one() {
    const TEST: &str = "namespaces::vm_that_has_exited_with_its_container_is_started_in_the_next_one";
    if let Some([dir]) = starter::arguments_of(TEST).as_deref() {
        report(starter::description_in(dir).start("guest").unwrap().pid());
        return wait_for_test();
    }
    let (test_dir, mut last) = (TestDir::new(), None);
    for _ in 0..3 {
        let mut command = in_a_container();
        command.arg(std::env::current_exe().unwrap());
        let dir = test_dir.dir();
        let mut container = Starter::spawn_with(&mut command, TEST, &[dir.to_str().unwrap()]);
        container.report();
        let vm = test_dir.description().vm().unwrap().expect("it runs");
        assert_ne!(last.replace(vm.pid()), Some(vm.pid()));
        drop(container);
        assert!(vm.wait_timeout(TEST_TIMEOUT).is_some());
    }
    let (_, vm, _stop) = start_vm(&test_dir, "guest");
    vm.kill().unwrap();
}
