//! ShutdownOutcome by power button, forced shutdown, pause and resume.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use hyperkit::{Error, Exit, ShutdownOutcome};
use rustix::process::{Signal, kill_process};

use crate::common::guest::{BOOT_TIMEOUT, Guest, QUIET_CMDLINE};
use crate::common::{KillOnDrop, example_path, to_pid, wait_until};

#[test]
fn shutdown_presses_power_button_until_guest_reacts() {
    let mut guest = Guest::new();
    let vm = guest.description.start(QUIET_CMDLINE).unwrap();
    // The kernel is not yet unpacked, so the first presses are lost.
    assert_eq!(vm.shutdown(BOOT_TIMEOUT).unwrap(), ShutdownOutcome::Graceful(Exit::PowerOff));
    assert!(!guest.description.is_running().unwrap() && !guest.state_dir.join("hyperkit.pid").exists());
}

#[test]
fn another_process_presses_the_power_button() {
    let mut guest = Guest::new();
    let vm = guest.description.start(QUIET_CMDLINE).unwrap();
    vm.wait_for_console("is up", BOOT_TIMEOUT).unwrap(); // the timeout of `boot` is shorter than a slow boot
    let mut boot = Command::new(example_path("boot"));
    assert!(boot.arg("--shutdown").arg("--state-dir").arg(&guest.state_dir).status().unwrap().success());
    assert_eq!(vm.try_wait().or_else(|| vm.wait_timeout(BOOT_TIMEOUT)), Some(Exit::PowerOff));
    assert!(!guest.state_dir.join("hyperkit.pid").exists());
}

/// Returns the VM status that QEMU reports.
fn status(socket: PathBuf) -> String {
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
    let mut guest = Guest::new();
    let vm = guest.description.start(QUIET_CMDLINE).unwrap();
    let other = |flag: &str| {
        let mut boot = Command::new(example_path("boot"));
        assert!(boot.arg(flag).arg("--state-dir").arg(&guest.state_dir).status().unwrap().success());
    };
    for (flag, expected) in [("--pause", "paused"), ("--resume", "running"), ("--pause", "paused")] {
        other(flag);
        wait_until(expected, || status(guest.state_dir.join("qmp.sock")) == expected);
        assert!(guest.description.is_running().unwrap());
    }
    assert_eq!(vm.shutdown(BOOT_TIMEOUT).unwrap(), ShutdownOutcome::Graceful(Exit::PowerOff));
}

#[test]
fn vm_without_state_directory_can_only_be_killed() {
    let description = Guest::new().description.no_serials();
    description.state_dir = None;
    let vm = description.start(QUIET_CMDLINE).unwrap();
    let _stop = KillOnDrop(&vm);
    let requires_state_dir = |result: hyperkit::Result<()>, call: &str| match result {
        Err(ConfigError::StateDirRequired { field }) => assert_eq!(field, call),
        other => panic!("{call}: {other:?}"),
    };
    requires_state_dir(vm.pause(), "pause");
    requires_state_dir(vm.resume(), "resume");
    requires_state_dir(vm.port_forwards().map(drop), "port_forwards");
    requires_state_dir(vm.console().map(drop), "console");
    assert_eq!(vm.shutdown(Duration::from_millis(1)).unwrap(), ShutdownOutcome::Forced(Exit::Killed(9)));
}

/// A hung QEMU accepts no connections. When its queue is full, the next connection must not block forever.
#[test]
fn hung_qemu_is_killed_after_the_timeout() {
    let mut guest = Guest::new();
    let vm = guest.description.start(QUIET_CMDLINE).unwrap();
    kill_process(to_pid(vm.pid()), Signal::STOP).unwrap();
    let connect = || UnixStream::connect(guest.state_dir.join("qmp.sock")).ok();
    let _queue = [connect(), connect()];
    let (send, outcome) = std::sync::mpsc::channel();
    std::thread::spawn(move || send.send(vm.shutdown(Duration::from_secs(1)).unwrap()));
    assert_eq!(outcome.recv_timeout(BOOT_TIMEOUT), Ok(ShutdownOutcome::Forced(Exit::Killed(9))));
}
