//! Shutdown by power button, forced shutdown, pause and resume.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use hyperkit::{ConfigError, Exit, HyperKit, ShutdownOutcome, Vm, VmStatus};
use rustix::process::{Signal, kill_process};

use crate::common::guest::{BOOT_TIMEOUT, Guest, QUIET_CMDLINE, description_in};
use crate::common::{KillOnDrop, example_path, to_pid, wait_until};
use crate::owner::Owner;

#[test]
fn shutdown_presses_the_power_button_until_the_guest_reacts() {
    let guest = Guest::new();
    let vm = guest.description.start(QUIET_CMDLINE).unwrap();
    // The guest is not ready for the first presses: its kernel is not even unpacked.
    assert_eq!(vm.shutdown(BOOT_TIMEOUT).unwrap(), ShutdownOutcome::Graceful(Exit::PowerOff));
    assert!(!guest.description.is_running().unwrap() && !guest.state_dir.join("hyperkit.pid").exists());
}

#[test]
fn another_process_presses_the_power_button() {
    let guest = Guest::new();
    let vm = guest.description.start(QUIET_CMDLINE).unwrap();
    vm.wait_for_console("is up", BOOT_TIMEOUT).unwrap(); // the timeout of `ctl` is shorter than a slow boot
    let mut ctl = Command::new(example_path("ctl"));
    assert!(ctl.arg("shutdown").arg(&guest.state_dir).status().unwrap().success());
    assert_eq!(vm.try_wait().or_else(|| vm.wait_timeout(BOOT_TIMEOUT)), Some(Exit::PowerOff));
    assert!(!guest.state_dir.join("hyperkit.pid").exists());
}

/// Kills the hypervisor while a shutdown waits for the guest, and returns the outcome of the shutdown.
fn kill_during_shutdown(vm: &Vm) -> ShutdownOutcome {
    vm.pause().unwrap();
    thread::scope(|scope| {
        let shutdown = scope.spawn(|| vm.shutdown(BOOT_TIMEOUT).unwrap());
        // `shutdown` resumes the VM. The guest is still booting, so it does not react to the power button yet.
        wait_until("the VM is resumed", || vm.status().unwrap() == VmStatus::Running);
        kill_process(to_pid(vm.pid()), Signal::KILL).unwrap();
        shutdown.join().unwrap()
    })
}

/// Only the owner learns the exit status. But this process can tell whether the guest powered off or the VM was killed.
#[test]
fn shutdown_of_a_vm_of_another_process_tells_graceful_from_forced() {
    for owner_lives in [true, false] {
        let start = || {
            let mut owner =
                Owner::start("shutdown::shutdown_of_a_vm_of_another_process_tells_graceful_from_forced", |state_dir| {
                    description_in(state_dir).start(QUIET_CMDLINE).unwrap()
                });
            if !owner_lives {
                owner.kill();
            }
            (owner.vm(), owner)
        };
        let (vm, owner) = start();
        assert_eq!(vm.shutdown(BOOT_TIMEOUT).unwrap(), ShutdownOutcome::Graceful(Exit::Unknown));
        assert!(!owner.state_dir.join("hyperkit.pid").exists());
        assert_eq!(vm.shutdown(BOOT_TIMEOUT).unwrap(), ShutdownOutcome::AlreadyExited(Exit::Unknown));

        let (vm, owner) = start();
        assert_eq!(kill_during_shutdown(&vm), ShutdownOutcome::Forced(Exit::Unknown));
        assert!(!owner.state_dir.join("hyperkit.pid").exists());

        let (vm, _owner) = start();
        assert_eq!(vm.shutdown(Duration::ZERO).unwrap(), ShutdownOutcome::Forced(Exit::Unknown));
    }
}

/// This process started the VM, so it learns the exit status, also through a handle from `from_state`.
#[test]
fn shutdown_through_a_new_handle_reports_the_exit_status() {
    let guest = Guest::new();
    let start = || {
        drop(guest.description.start(QUIET_CMDLINE).unwrap());
        HyperKit::from_state(&guest.state_dir).unwrap().vm().unwrap().expect("the VM is running")
    };
    assert_eq!(start().shutdown(BOOT_TIMEOUT).unwrap(), ShutdownOutcome::Graceful(Exit::PowerOff));
    assert_eq!(kill_during_shutdown(&start()), ShutdownOutcome::Forced(Exit::Killed(9)));
}

/// Returns the VM status that QEMU reports.
fn qmp_status(socket: PathBuf) -> String {
    let mut stream = BufReader::new(UnixStream::connect(socket).unwrap());
    stream.get_mut().write_all(b"{\"execute\":\"qmp_capabilities\"}\n{\"execute\":\"query-status\"}\n").unwrap();
    let mut line = String::new();
    while !line.contains("\"status\"") {
        line.clear();
        assert!(stream.read_line(&mut line).unwrap() > 0);
    }
    let answer: serde_json::Value = serde_json::from_str(&line).unwrap();
    answer["return"]["status"].as_str().unwrap().to_owned()
}

#[test]
fn paused_vm_is_running_and_shuts_down() {
    let guest = Guest::new();
    let vm = guest.description.start(QUIET_CMDLINE).unwrap();
    let found = HyperKit::from_state(&guest.state_dir).unwrap().vm().unwrap().expect("the VM is running");
    let other = |command: &str| {
        let mut ctl = Command::new(example_path("ctl"));
        assert!(ctl.arg(command).arg(&guest.state_dir).status().unwrap().success());
    };
    for (command, expected, status) in [
        ("pause", "paused", VmStatus::Paused),
        ("resume", "running", VmStatus::Running),
        ("pause", "paused", VmStatus::Paused),
    ] {
        other(command);
        wait_until(expected, || qmp_status(guest.state_dir.join("qmp.sock")) == expected);
        assert_eq!([vm.status().unwrap(), found.status().unwrap()], [status; 2]);
        assert!(guest.description.is_running().unwrap());
    }
    assert_eq!(vm.shutdown(BOOT_TIMEOUT).unwrap(), ShutdownOutcome::Graceful(Exit::PowerOff));
    assert_eq!([vm.status().unwrap(), found.status().unwrap()], [VmStatus::Exited(Exit::PowerOff); 2]);
}

#[test]
fn pause_and_resume_are_reported_by_every_handle() {
    let owner = Owner::start("shutdown::pause_and_resume_are_reported_by_every_handle", |state_dir| {
        description_in(state_dir).start(QUIET_CMDLINE).unwrap()
    });
    let (first, second) = (owner.vm(), owner.vm());
    let statuses = || [first.status().unwrap(), second.status().unwrap()];
    assert_eq!(statuses(), [VmStatus::Running; 2]);
    first.pause().unwrap();
    assert_eq!(statuses(), [VmStatus::Paused; 2]);
    second.resume().unwrap();
    assert_eq!(statuses(), [VmStatus::Running; 2]);
    first.kill().unwrap();
    assert_eq!(statuses(), [VmStatus::Exited(Exit::Unknown); 2]);
}

#[test]
fn vm_without_state_directory_can_only_be_killed() {
    let mut description = Guest::new().description.no_serials();
    description.state_dir = None;
    let vm = description.start(QUIET_CMDLINE).unwrap();
    let _stop = KillOnDrop(&vm);
    let requires_state_dir = |result: hyperkit::Result<()>, call: &'static str| {
        let error = result.expect_err(call);
        assert_eq!(error.violations(), [ConfigError::StateDirRequired { field: call }], "{error:?}");
    };
    requires_state_dir(vm.pause(), "pause");
    requires_state_dir(vm.resume(), "resume");
    requires_state_dir(vm.port_forwards().map(drop), "port_forwards");
    requires_state_dir(vm.console().map(drop), "console");
    assert_eq!(vm.shutdown(Duration::from_millis(1)).unwrap(), ShutdownOutcome::Forced(Exit::Killed(9)));
}

/// A QEMU that hangs accepts no connections to its control socket. If the queue of that socket is full, `connect` blocks,
/// and `shutdown` must not wait for it.
#[test]
fn hung_qemu_is_killed_after_the_timeout() {
    let guest = Guest::new();
    let vm = guest.description.start(QUIET_CMDLINE).unwrap();
    kill_process(to_pid(vm.pid()), Signal::STOP).unwrap();
    let connect = || UnixStream::connect(guest.state_dir.join("qmp.sock")).ok();
    let _queue = [connect(), connect()];
    let (send, outcome) = std::sync::mpsc::channel();
    std::thread::spawn(move || send.send(vm.shutdown(Duration::from_secs(1)).unwrap()));
    assert_eq!(outcome.recv_timeout(BOOT_TIMEOUT), Ok(ShutdownOutcome::Forced(Exit::Killed(9))));
}

/// QEMU serves one client at a time on each socket. The starter uses the socket for events. Without a starter, `shutdown` uses it.
#[test]
fn shutdown_presses_the_power_button_while_another_client_holds_the_control_socket() {
    const TEST: &str = "shutdown::shutdown_presses_the_power_button_while_another_client_holds_the_control_socket";
    let hold_control_socket = |state_dir: &Path| {
        let mut client = BufReader::new(UnixStream::connect(state_dir.join("qmp.sock")).unwrap());
        client.read_line(&mut String::new()).unwrap(); // QEMU's greeting: it serves this client
        client
    };
    let mut owner = Owner::start(TEST, |state_dir| description_in(state_dir).start(QUIET_CMDLINE).unwrap());
    owner.kill();
    let client = hold_control_socket(&owner.state_dir);
    assert_eq!(owner.vm().shutdown(BOOT_TIMEOUT).unwrap(), ShutdownOutcome::Graceful(Exit::Unknown));
    drop(client);

    let guest = Guest::new();
    let vm = guest.description.start(QUIET_CMDLINE).unwrap();
    vm.pause().unwrap();
    let _client = hold_control_socket(&guest.state_dir);
    assert_eq!(vm.shutdown(BOOT_TIMEOUT).unwrap(), ShutdownOutcome::Graceful(Exit::PowerOff));
}

/// QEMU removes its pid file at the old path, so the file stays in the new directory.
#[test]
fn shutdown_of_a_vm_of_another_process_in_a_moved_directory_is_not_reported_as_forced() {
    const TEST: &str = "shutdown::shutdown_of_a_vm_of_another_process_in_a_moved_directory_is_not_reported_as_forced";
    let owner = Owner::start(TEST, |state_dir| description_in(state_dir).start(QUIET_CMDLINE).unwrap());
    let moved = owner.state_dir.with_file_name("moved");
    std::fs::rename(&owner.state_dir, &moved).unwrap();
    let find = || HyperKit::from_state(&moved).unwrap().vm().unwrap().expect("it runs");
    assert_eq!(find().shutdown(BOOT_TIMEOUT).unwrap(), ShutdownOutcome::Unknown);
    assert!(!moved.join("hyperkit.pid").exists());
}
