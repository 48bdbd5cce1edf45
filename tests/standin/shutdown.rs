//! Power button and plug, pause and resume, resets, last words; and two programs that end one machine.

use std::process::Command;
use std::time::Duration;

use hyperkit::{Error, Exit, HyperKit, Shutdown};
use rustix::process::{Signal, kill_process};

use crate::common::{Files, LONG, boot, eventually, example, machines_in, raw, said, started};

#[test]
fn the_power_button_ends_a_guest_that_listens() {
    let files = Files::new();
    let (machine, vm, _end) = started(&files, "guest");
    eventually("the guest is up", || said(&files).contains("Command line"));
    assert_eq!(vm.shutdown(LONG).unwrap(), Shutdown::PowerButton(Exit::PowerOff));
    assert!(!machine.is_running() && !files.path("vm/hyperkit.pid").exists());
    assert_eq!(vm.shutdown(LONG).unwrap(), Shutdown::Ended(Exit::PowerOff));
}

/// hyperkit dies of the button when the guest is not that far, and leaves its pid file.
#[test]
fn the_power_button_kills_a_guest_without_acpi() {
    let files = Files::new();
    let (_, vm, _end) = started(&files, "guest.no-acpi");
    eventually("the guest is up", || said(&files).contains("Command line"));
    assert_eq!(vm.shutdown(LONG).unwrap(), Shutdown::PowerButton(Exit::Killed(15)));
    assert!(!files.path("vm/hyperkit.pid").exists());
}

#[test]
fn the_plug_ends_a_guest_that_ignores_the_power_button() {
    let files = Files::new();
    let (_, vm, _end) = started(&files, "guest.deaf");
    eventually("the guest is up", || said(&files).contains("Command line"));
    assert_eq!(vm.shutdown(Duration::from_millis(700)).unwrap(), Shutdown::Plug(Exit::Killed(9)));
    assert!(said(&files).matches("power button, ignored").count() >= 2, "pressed again: {}", said(&files));
    assert!(!files.path("vm/hyperkit.pid").exists());
}

#[test]
fn a_machine_that_another_program_started_is_shut_down() {
    let files = Files::new();
    let _end = files.ended();
    assert!(boot(&files, "guest").output().unwrap().status.success());
    eventually("the guest is up", || said(&files).contains("Command line"));
    let vm = HyperKit::from_state(files.path("vm")).unwrap().vm().unwrap().unwrap();
    assert_eq!(vm.shutdown(LONG).unwrap(), Shutdown::PowerButton(Exit::Unknown));
    assert!(said(&files).contains("power button"));
    assert_eq!(machines_in(&files.path("vm")), [] as [u32; 0]);
    assert!(!files.path("vm/hyperkit.pid").exists());
}

#[test]
fn stop_and_shutdown_at_once_from_two_processes() {
    for _ in 0..10 {
        let files = Files::new();
        let (machine, vm, _end) = started(&files, "guest.deaf");
        let end = |how: &str| {
            let mut boot = Command::new(example("boot"));
            boot.arg(how).arg("--state-dir").arg(files.path("vm")).spawn().unwrap()
        };
        let ending = [end("--shutdown"), end("--stop"), end("--stop")];
        for mut program in ending {
            assert!(program.wait().unwrap().success());
        }
        assert!(!machine.is_running());
        assert!(vm.wait_timeout(LONG).unwrap().is_some(), "our own child");
        assert!(!files.path("vm/hyperkit.pid").exists());
    }
}

#[test]
fn a_paused_machine_runs_and_can_be_resumed_from_elsewhere() {
    let files = Files::new();
    let (machine, vm, _end) = started(&files, "guest");
    eventually("the guest is up", || said(&files).contains("Command line"));
    vm.pause().unwrap();
    eventually("it is paused", || said(&files).contains("paused"));
    assert!(machine.is_running());
    let taken_up = HyperKit::from_state(files.path("vm")).unwrap().vm().unwrap().unwrap();
    taken_up.resume().unwrap();
    eventually("it is resumed", || said(&files).contains("resumed"));
    vm.stop().unwrap();
    assert!(matches!(vm.pause(), Err(Error::NotRunning)));
    assert!(matches!(vm.resume(), Err(Error::NotRunning)));
}

/// Whoever still has the machine before it clears nothing away of the one that runs.
#[test]
fn ending_a_machine_that_has_ended_leaves_the_next_one_alone() {
    let files = Files::new();
    let (mut machine, first, _end) = started(&files, "guest");
    kill_process(raw(first.pid()), Signal::KILL).unwrap();
    assert_eq!(first.wait().unwrap(), Exit::Killed(9));
    assert_eq!(first.shutdown(LONG).unwrap(), Shutdown::Ended(Exit::Killed(9)));
    assert!(!files.path("vm/hyperkit.pid").exists());
    let second = machine.start("guest").unwrap();
    let all = files.state_files();
    first.stop().unwrap();
    assert_eq!(first.shutdown(LONG).unwrap(), Shutdown::Ended(Exit::Killed(9)));
    assert_eq!(files.state_files(), all);
    assert_eq!(machines_in(&files.path("vm")), [second.pid()]);
}
