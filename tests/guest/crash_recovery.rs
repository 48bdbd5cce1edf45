//! Killed hypervisors and killed starters.

use std::process::Command;
use std::time::Duration;

use hyperkit::{Error, Exit, HyperKit, ShutdownOutcome};
use rustix::process::{Signal, kill_process};

use crate::common::guest::{Guest, QUIET_CMDLINE};
use crate::common::platform::PLATFORM;
use crate::common::{example_path, guest, to_pid};

#[test]
fn killed_vm_starts_again_and_forced_shutdown_is_reported() {
    let guest = Guest::new();
    for _ in 0..5 {
        let vm = guest.description.start(QUIET_CMDLINE).unwrap();
        kill_process(to_pid(vm.pid()), Signal::KILL).unwrap();
        assert_eq!(vm.wait(), Exit::Killed(9));
        assert!(guest.state_dir.join("hyperkit.pid").exists() && !guest.description.is_running().unwrap());
    }
    let vm = guest.description.start(QUIET_CMDLINE).unwrap();
    kill_process(to_pid(vm.pid()), Signal::TERM).unwrap(); // ends the guest without a shutdown, although QEMU exits with code 0
    assert_eq!(vm.wait(), Exit::Killed(15));
    let vm = guest.description.start(QUIET_CMDLINE).unwrap();
    assert_eq!(vm.shutdown(Duration::ZERO).unwrap(), ShutdownOutcome::Forced(Exit::Killed(9)));
}

/// Each starter is killed at another moment of the start. Afterwards the VM is found, or no VM runs and the next start
/// succeeds.
#[test]
fn killed_starter_leaves_no_vm_or_one_that_is_found() {
    let guest = Guest::new();
    for delay in [2, 5, 10, 20, 40, 60, 80, 120] {
        let mut boot = Command::new(example_path("boot"));
        boot.args(["--background", "--hyperkit", PLATFORM.qemu]).arg("--state-dir").arg(&guest.state_dir);
        boot.arg("--kernel").arg(guest::guest_file("vmlinuz")).arg("--initrd").arg(guest::guest_file("initrd.img"));
        let mut starter = boot.spawn().unwrap();
        std::thread::sleep(Duration::from_millis(delay));
        starter.kill().unwrap();
        starter.wait().unwrap();
        match guest.description.start(QUIET_CMDLINE) {
            Ok(vm) => vm.kill().unwrap(),
            Err(Error::AlreadyRunning { pid, .. }) => {
                let found = HyperKit::from_state(&guest.state_dir).unwrap();
                assert_eq!(found.vm().unwrap().map(|vm| vm.pid()), Some(pid));
                found.stop().unwrap();
            }
            Err(error) => panic!("killed after {delay} ms: {error}"),
        }
    }
}
