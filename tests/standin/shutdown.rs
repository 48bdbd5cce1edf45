//! Graceful and forced shutdown, pause and resume.

use std::process::Command;
use std::time::{Duration, Instant};

use hyperkit::{Error, Exit, HyperKit, ShutdownOutcome};
use rustix::process::{Signal, kill_process};

use crate::common::{
    KillOnDrop, TEST_TIMEOUT, TestDir, boot_command, console_output, example_path, hypervisors_in, start_vm, to_pid,
    wait_until,
};

#[test]
fn power_button_shuts_down_the_guest() {
    let test_dir = TestDir::new();
    let (description, vm, _stop) = start_vm(&test_dir, "guest");
    wait_until("the guest is up", || console_output(&test_dir).contains("Command line"));
    assert_eq!(vm.shutdown(TEST_TIMEOUT).unwrap(), ShutdownOutcome::Graceful(Exit::PowerOff));
    assert!(!description.is_running().unwrap() && !test_dir.path("vm/hyperkit.pid").exists());
    assert_eq!(vm.shutdown(TEST_TIMEOUT).unwrap(), ShutdownOutcome::AlreadyExited(Exit::PowerOff));
}

/// If the guest has not turned on ACPI yet, the press (SIGTERM) kills hyperkit, which leaves its pid file. `shutdown`
/// deletes the file.
#[test]
fn power_button_kills_a_vm_without_acpi() {
    let test_dir = TestDir::new();
    let (_, vm, _stop) = start_vm(&test_dir, "guest.no-acpi");
    wait_until("the guest is up", || console_output(&test_dir).contains("Command line"));
    assert_eq!(vm.shutdown(TEST_TIMEOUT).unwrap(), ShutdownOutcome::Forced(Exit::Killed(15)));
    assert!(!test_dir.path("vm/hyperkit.pid").exists());
}

#[test]
fn guest_that_ignores_the_power_button_is_killed() {
    let test_dir = TestDir::new();
    let (_, vm, _stop) = start_vm(&test_dir, "guest.deaf");
    wait_until("the guest is up", || console_output(&test_dir).contains("Command line"));
    let (began, grace) = (Instant::now(), Duration::from_millis(700));
    assert_eq!(vm.shutdown(grace).unwrap(), ShutdownOutcome::Forced(Exit::Killed(9)));
    assert!(began.elapsed() >= grace);
    assert!(!test_dir.path("vm/hyperkit.pid").exists());
}

/// The guest ignores the presses, as one that is still booting does. Then another thread kills the hypervisor during the
/// grace period.
#[test]
fn shutdown_presses_the_power_button_again_until_the_vm_exits() {
    let test_dir = TestDir::new();
    let (_, vm, _stop) = start_vm(&test_dir, "guest.deaf");
    wait_until("the guest is up", || console_output(&test_dir).contains("Command line"));
    std::thread::scope(|scope| {
        let outcome = scope.spawn(|| vm.shutdown(TEST_TIMEOUT).unwrap());
        let killed = KillOnDrop(&vm);
        wait_until("the button is pressed again", || {
            console_output(&test_dir).matches("power button, ignored").count() >= 2
        });
        drop(killed);
        assert_eq!(outcome.join().unwrap(), ShutdownOutcome::Forced(Exit::Killed(9)));
    });
}

#[test]
fn shutdown_of_a_vm_of_another_process_is_graceful() {
    let test_dir = TestDir::new();
    let _stop = test_dir.stop_on_drop();
    assert!(boot_command(&test_dir, "guest").output().unwrap().status.success());
    wait_until("the guest is up", || console_output(&test_dir).contains("Command line"));
    let vm = HyperKit::from_state(test_dir.path("vm")).unwrap().vm().unwrap().unwrap();
    assert_eq!(vm.shutdown(TEST_TIMEOUT).unwrap(), ShutdownOutcome::Graceful(Exit::Unknown));
    assert!(console_output(&test_dir).contains("power button"));
    assert_eq!(hypervisors_in(&test_dir.path("vm")), [] as [u32; 0]);
    assert!(!test_dir.path("vm/hyperkit.pid").exists());
}

/// Only the starter learns the exit status. Other processes conclude from the pid file, which a killed hyperkit leaves,
/// that it was killed.
#[test]
fn power_button_kills_a_vm_without_acpi_of_another_process() {
    let test_dir = TestDir::new();
    let _stop = test_dir.stop_on_drop();
    assert!(boot_command(&test_dir, "guest.no-acpi").output().unwrap().status.success());
    wait_until("the guest is up", || console_output(&test_dir).contains("Command line"));
    let vm = HyperKit::from_state(test_dir.path("vm")).unwrap().vm().unwrap().unwrap();
    assert_eq!(vm.shutdown(TEST_TIMEOUT).unwrap(), ShutdownOutcome::Forced(Exit::Unknown));
    assert!(!test_dir.path("vm/hyperkit.pid").exists());
}

/// Only its starter learns that another program has killed the VM. For others, the record tells.
#[test]
fn shutdown_during_a_kill_by_another_program_is_forced() {
    let test_dir = TestDir::new();
    let _stop = test_dir.stop_on_drop();
    assert!(boot_command(&test_dir, "guest.deaf").output().unwrap().status.success());
    wait_until("the guest is up", || console_output(&test_dir).contains("Command line"));
    let find = || HyperKit::from_state(test_dir.path("vm")).unwrap().vm().unwrap().unwrap();
    let (waiting, killing) = (find(), find());
    std::thread::scope(|scope| {
        let outcome = scope.spawn(|| waiting.shutdown(TEST_TIMEOUT).unwrap());
        let _kill = KillOnDrop(&waiting);
        wait_until("the button is pressed", || console_output(&test_dir).contains("power button, ignored"));
        killing.kill().unwrap();
        assert_eq!(outcome.join().unwrap(), ShutdownOutcome::Forced(Exit::Unknown));
    });
}

/// hyperkit dies of the signal that resumes it if its first vCPU does not run yet.
#[test]
fn shutdown_right_after_the_start_does_not_resume_the_vm() {
    for _ in 0..20 {
        let test_dir = TestDir::new();
        let (_, vm, _stop) = start_vm(&test_dir, "guest");
        let outcome = vm.shutdown(TEST_TIMEOUT).unwrap();
        assert!(outcome.exit() != Exit::Killed(12), "{outcome}");
    }
}

#[test]
fn concurrent_stop_and_shutdown_from_several_processes_succeed() {
    for _ in 0..10 {
        let test_dir = TestDir::new();
        let (description, vm, _stop) = start_vm(&test_dir, "guest.deaf");
        let spawn = |command: &str| {
            let mut ctl = Command::new(example_path("ctl"));
            ctl.arg(command).arg(test_dir.path("vm")).spawn().unwrap()
        };
        let programs = [spawn("shutdown"), spawn("stop"), spawn("stop")];
        for mut program in programs {
            assert!(program.wait().unwrap().success());
        }
        assert!(!description.is_running().unwrap());
        assert!(vm.wait_timeout(TEST_TIMEOUT).is_some(), "the hypervisor was not reaped");
        assert!(!test_dir.path("vm/hyperkit.pid").exists());
    }
}

#[test]
fn paused_vm_is_running_and_can_be_resumed_after_reattach() {
    let test_dir = TestDir::new();
    let (description, vm, _stop) = start_vm(&test_dir, "guest");
    wait_until("the guest is up", || console_output(&test_dir).contains("Command line"));
    vm.pause().unwrap();
    wait_until("the VM is paused", || console_output(&test_dir).contains("paused"));
    assert!(description.is_running().unwrap());
    let attached = HyperKit::from_state(test_dir.path("vm")).unwrap().vm().unwrap().unwrap();
    attached.resume().unwrap();
    wait_until("the VM is resumed", || console_output(&test_dir).contains("resumed"));
    vm.kill().unwrap();
    assert!(matches!(vm.pause(), Err(Error::NotRunning { .. })));
    assert!(matches!(vm.resume(), Err(Error::NotRunning { .. })));
}

/// A handle of the previous VM does not delete files of the running VM.
#[test]
fn kill_of_an_exited_vm_does_not_affect_the_next_vm() {
    let test_dir = TestDir::new();
    let (description, first, _stop) = start_vm(&test_dir, "guest");
    kill_process(to_pid(first.pid()), Signal::KILL).unwrap();
    assert_eq!(first.wait(), Exit::Killed(9));
    assert_eq!(first.shutdown(TEST_TIMEOUT).unwrap(), ShutdownOutcome::AlreadyExited(Exit::Killed(9)));
    assert!(!test_dir.path("vm/hyperkit.pid").exists());
    let second = description.start("guest").unwrap();
    let all = test_dir.state_files();
    first.kill().unwrap();
    assert_eq!(first.shutdown(TEST_TIMEOUT).unwrap(), ShutdownOutcome::AlreadyExited(Exit::Killed(9)));
    assert_eq!(test_dir.state_files(), all);
    assert_eq!(hypervisors_in(&test_dir.path("vm")), [second.pid()]);
}
