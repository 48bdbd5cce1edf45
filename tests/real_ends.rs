//! How a real guest in a real QEMU ends: by the power button, by a reset, by the plug; and what happens in between.
//!
//! The guest is the one that `examples/setup.sh` makes; without it, or without QEMU, these tests fail.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use common::{Ended, Stopped, eventually, example, guest, raw};
use hyperkit::{Console, Error, Exit, HyperKit, Shutdown};
use rustix::process::{Signal, kill_process};

/// Far longer than a boot takes under emulation on a busy machine.
const PATIENCE: Duration = Duration::from_secs(300);
const QUIET: &str = "console=ttyS0 panic=1 quiet";

struct Guest {
    machine: HyperKit,
    state: PathBuf,
    _end: Ended,
    _dir: tempfile::TempDir,
}

fn new_guest() -> Guest {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().canonicalize().unwrap().join("vm");
    let machine = HyperKit::new().hyperkit("qemu-system-x86_64").state_dir(&state).console(Console::File);
    let machine = machine.kernel(guest::file("vmlinuz")).initrd(guest::file("initrd.img")).memory(256);
    Guest { machine, _end: Ended(state.clone()), state, _dir: dir }
}

#[test]
fn the_power_button_is_pressed_until_the_guest_listens() {
    let mut guest = new_guest();
    let vm = guest.machine.start(QUIET).unwrap();
    // The kernel is not even unpacked: the first presses are lost.
    assert_eq!(vm.shutdown(PATIENCE).unwrap(), Shutdown::PowerButton(Exit::PowerOff));
    assert!(!guest.machine.is_running() && !guest.state.join("hyperkit.pid").exists());
}

#[test]
fn the_power_button_from_another_program() {
    let mut guest = new_guest();
    let vm = guest.machine.start(QUIET).unwrap();
    vm.wait_for_console("is up", PATIENCE).unwrap(); // whose grace is shorter than a boot can be
    let mut boot = Command::new(example("boot"));
    assert!(boot.arg("--shutdown").arg("--state-dir").arg(&guest.state).status().unwrap().success());
    assert_eq!(vm.try_wait().unwrap().or_else(|| vm.wait_timeout(PATIENCE).unwrap()), Some(Exit::PowerOff));
    assert!(!guest.state.join("hyperkit.pid").exists());
}

#[test]
fn a_guest_that_reboots_ends_with_a_reset() {
    let mut guest = new_guest();
    // A kernel without an init panics, and with panic=1 reboots.
    let vm = guest.machine.start(&format!("{QUIET} rdinit=/nothing root=/dev/nothing")).unwrap();
    assert_eq!(vm.wait_timeout(PATIENCE).unwrap(), Some(Exit::Reset));
    let last_words = vm.last_words();
    assert!(last_words.console.contains("Kernel panic") || last_words.console.contains("Rebooting"), "{last_words}");
    assert_eq!(guest.machine.run(&format!("{QUIET} rdinit=/nothing root=/dev/nothing")).unwrap(), Exit::Reset);
}

#[test]
fn a_killed_machine_starts_again_and_the_plug_is_told_from_the_button() {
    let mut guest = new_guest();
    for _ in 0..5 {
        let vm = guest.machine.start(QUIET).unwrap();
        kill_process(raw(vm.pid()), Signal::KILL).unwrap();
        assert_eq!(vm.wait().unwrap(), Exit::Killed(9));
        assert!(guest.state.join("hyperkit.pid").exists() && !guest.machine.is_running());
    }
    let vm = guest.machine.start(QUIET).unwrap();
    kill_process(raw(vm.pid()), Signal::TERM).unwrap(); // a power cut for QEMU, which then exits as if all were well
    assert_eq!(vm.wait().unwrap(), Exit::Killed(15));
    let vm = guest.machine.start(QUIET).unwrap();
    assert_eq!(vm.shutdown(Duration::ZERO).unwrap(), Shutdown::Plug(Exit::Killed(9)));
}

/// What QEMU says of itself.
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
fn a_paused_machine_is_running_and_is_shut_down_all_the_same() {
    let mut guest = new_guest();
    let vm = guest.machine.start(QUIET).unwrap();
    let other = |flag: &str| {
        let mut boot = Command::new(example("boot"));
        assert!(boot.arg(flag).arg("--state-dir").arg(&guest.state).status().unwrap().success());
    };
    for (flag, expected) in [("--pause", "paused"), ("--resume", "running"), ("--pause", "paused")] {
        other(flag);
        eventually(expected, || status(guest.state.join("qmp.sock")) == expected);
        assert!(guest.machine.is_running());
    }
    assert_eq!(vm.shutdown(PATIENCE).unwrap(), Shutdown::PowerButton(Exit::PowerOff));
}

#[test]
fn without_a_state_directory_it_can_only_be_unplugged() {
    let mut machine = new_guest().machine.no_serials();
    machine.state_dir = None;
    let vm = machine.start(QUIET).unwrap();
    let _stop = Stopped(&vm);
    let needs_one = |result: hyperkit::Result<()>, call: &str| match result {
        Err(Error::StateDirRequired { field }) => assert_eq!(field, call),
        other => panic!("{call}: {other:?}"),
    };
    needs_one(vm.pause(), "pause");
    needs_one(vm.resume(), "resume");
    needs_one(vm.port_forwards().map(drop), "port_forwards");
    needs_one(vm.console().map(drop), "console");
    assert_eq!(vm.shutdown(Duration::from_millis(1)).unwrap(), Shutdown::Plug(Exit::Killed(9)));
}

/// A QEMU that hangs takes no more connections than fit into its queue: the next one must not wait for ever.
#[test]
fn a_qemu_that_hangs_is_unplugged_after_the_grace() {
    let mut guest = new_guest();
    let vm = guest.machine.start(QUIET).unwrap();
    kill_process(raw(vm.pid()), Signal::STOP).unwrap();
    let connect = || UnixStream::connect(guest.state.join("qmp.sock")).ok();
    let _queue = [connect(), connect()];
    let (send, ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || send.send(vm.shutdown(Duration::from_secs(1)).unwrap()));
    assert_eq!(ended.recv_timeout(PATIENCE), Ok(Shutdown::Plug(Exit::Killed(9))));
}

/// Whenever its starter is killed, there is a machine that is found, or none and the next one starts.
#[test]
fn a_killed_starter_leaves_a_machine_that_is_found_or_none() {
    let mut guest = new_guest();
    for delay in [2, 5, 10, 20, 40, 60, 80, 120] {
        let mut boot = Command::new(example("boot"));
        boot.args(["--background", "--hyperkit", "qemu-system-x86_64"]).arg("--state-dir").arg(&guest.state);
        boot.arg("--kernel").arg(common::guest::file("vmlinuz")).arg("--initrd").arg(common::guest::file("initrd.img"));
        let mut starter = boot.spawn().unwrap();
        std::thread::sleep(Duration::from_millis(delay));
        starter.kill().unwrap();
        starter.wait().unwrap();
        match guest.machine.start(QUIET) {
            Ok(vm) => vm.stop().unwrap(),
            Err(Error::AlreadyRunning { pid }) => {
                let found = HyperKit::from_state(&guest.state).unwrap();
                assert!(found.is_running() && found.pid == Some(pid));
                found.stop().unwrap();
            }
            Err(error) => panic!("killed after {delay} ms: {error}"),
        }
    }
}
