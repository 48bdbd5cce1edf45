//! `ScopedVm` and `run`: the VM is killed with the process that owns it, together with its vsock daemon.

use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use hyperkit::{Console, Disks, Exit, HyperKit, Vm, VmStatus};

use crate::common::guest::{BOOT_TIMEOUT, Guest, QUIET_CMDLINE, description_in, processes_in, setup_file};
use crate::common::{TEST_TIMEOUT, vsock_daemons_in, wait_until};
use crate::owner::Owner;

/// On Linux, adds vsock, for which the crate starts a daemon.
fn with_vsock(description: HyperKit) -> HyperKit {
    if cfg!(target_os = "linux") {
        description.vsock(true).vhost_device_vsock(setup_file("target/tools/bin", "vhost-device-vsock"))
    } else {
        description
    }
}

/// Returns whether the VM's vsock daemon runs. Other systems than Linux have no daemon, which counts as running.
fn has_daemon(state_dir: &Path) -> bool {
    !vsock_daemons_in(state_dir).is_empty() || !cfg!(target_os = "linux")
}

/// Asserts that the VM, its vsock daemon and its watchers exit, and that the state directory can be used again and removed.
fn assert_ends(vm: &Vm) {
    assert_eq!(vm.wait_timeout(TEST_TIMEOUT), Some(Exit::Unknown));
    let state_dir = vm.state_dir().unwrap();
    wait_until("the daemon and the watchers have exited", || processes_in(state_dir).is_empty());
    let next = with_vsock(description_in(state_dir)).start(QUIET_CMDLINE).unwrap();
    next.kill().unwrap();
    next.remove(Disks::Delete).unwrap();
    assert!(!state_dir.exists());
}

#[test]
fn scoped_vm_and_its_vsock_daemon_exit_with_a_killed_owner() {
    let mut owner = Owner::start("scoped::scoped_vm_and_its_vsock_daemon_exit_with_a_killed_owner", |state_dir| {
        with_vsock(description_in(state_dir)).start_scoped(QUIET_CMDLINE).unwrap()
    });
    let vm = owner.vm();
    assert!(vm.try_wait().is_none() && has_daemon(&owner.state_dir));
    owner.kill();
    assert_ends(&vm);
}

#[test]
fn foreground_vm_and_its_vsock_daemon_exit_with_a_killed_owner() {
    let mut owner = Owner::start("scoped::foreground_vm_and_its_vsock_daemon_exit_with_a_killed_owner", |state_dir| {
        with_vsock(description_in(state_dir)).run(QUIET_CMDLINE).unwrap()
    });
    let vm = owner.vm();
    assert_eq!(vm.description().console, Some(Console::Stdio));
    assert!(vm.try_wait().is_none() && has_daemon(&owner.state_dir));
    owner.kill();
    assert_ends(&vm);
}

#[test]
fn kept_vm_and_its_vsock_daemon_outlive_a_killed_owner() {
    let mut owner = Owner::start("scoped::kept_vm_and_its_vsock_daemon_outlive_a_killed_owner", |state_dir| {
        with_vsock(description_in(state_dir)).start_scoped(QUIET_CMDLINE).unwrap().keep()
    });
    let vm = owner.vm();
    owner.kill();
    vm.wait_for_console("is up", BOOT_TIMEOUT).unwrap();
    assert_eq!(vm.status().unwrap(), VmStatus::Running);
    assert!(has_daemon(&owner.state_dir));
    vm.kill().unwrap();
    assert_ends(&vm);
}

/// Each owner is killed at another moment of the start. Afterwards no process is left, and the next start succeeds.
#[test]
fn owner_killed_during_a_scoped_start_leaves_no_process() {
    for delay in [5, 10, 20, 40, 60, 80, 120, 200] {
        let mut owner = Owner::spawn("scoped::owner_killed_during_a_scoped_start_leaves_no_process", |state_dir| {
            with_vsock(description_in(state_dir)).start_scoped(QUIET_CMDLINE).unwrap()
        });
        sleep(Duration::from_millis(delay));
        owner.kill();
        wait_until("no process is left", || processes_in(&owner.state_dir).is_empty());
        with_vsock(description_in(&owner.state_dir)).start(QUIET_CMDLINE).unwrap().kill().unwrap();
    }
}

#[test]
fn dropped_scoped_vm_is_killed_with_its_vsock_daemon() {
    let guest = Guest::new();
    let scoped = with_vsock(guest.description.clone()).start_scoped(QUIET_CMDLINE).unwrap();
    let vm = Vm::clone(&scoped);
    assert!(vm.try_wait().is_none() && has_daemon(&guest.state_dir));
    drop(scoped);
    assert_eq!(vm.try_wait(), Some(Exit::Killed(9)));
    wait_until("the watchers have exited", || processes_in(&guest.state_dir).is_empty());
}
