//! TODO

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use hyperkit::HyperKit;
use rustix::process::{Signal, kill_process};

use crate::common::{Files, eventually, machines_in, raw, standin, started};

/// Its parent has not reaped it: the pid is still taken, by nobody.
#[test]
fn a_zombie_is_not_running() {
    let files = Files::new();
    fs::create_dir(files.path("vm")).unwrap();
    let mut machine = files.machine();
    machine.arguments = machine.arguments("guest").unwrap();
    let mut zombie = Command::new(standin()).args(&machine.arguments).spawn().unwrap();
    machine.pid = Some(zombie.id());
    files.write("vm/hyperkit.json", machine.to_string().as_bytes());
    eventually("it runs", || HyperKit::from_state(files.path("vm")).is_ok_and(|machine| machine.is_running()));
    kill_process(raw(zombie.id()), Signal::KILL).unwrap();
    eventually("it is a zombie", || !machine.is_running());
    rustix::process::test_kill_process(raw(zombie.id())).expect("still there");
    machine.stop().unwrap();
    let vm = machine.start("guest").unwrap();
    assert_eq!(machines_in(&files.path("vm")), [vm.pid()]);
    vm.stop().unwrap();
    zombie.wait().unwrap();
}

/// A stranger that has the recorded pid now.
#[test]
fn a_stranger_is_not_the_machine_and_is_left_alone() {
    let files = Files::new();
    let mut stranger = Command::new("sleep").arg("1000").spawn().unwrap();
    fs::create_dir(files.path("vm")).unwrap();
    let mut machine = files.machine();
    machine.pid = Some(stranger.id());
    files.write("vm/hyperkit.json", machine.to_string().as_bytes());
    files.write("vm/hyperkit.pid", stranger.id().to_string().as_bytes());
    let mut machine = HyperKit::from_state(files.path("vm")).unwrap();
    assert!(!machine.is_running());
    machine.stop().unwrap();
    machine.start("guest").unwrap().stop().unwrap();
    machine.remove(false).unwrap();
    assert!(stranger.try_wait().unwrap().is_none(), "the stranger was killed");
    stranger.kill().unwrap();
    stranger.wait().unwrap();
}

/// It even has our pid file on its command line, but was not started with what was recorded.
#[test]
fn a_stranger_that_names_the_pid_file_is_not_the_machine() {
    let files = Files::new();
    fs::create_dir(files.path("vm")).unwrap();
    let pid_file = files.path("vm/hyperkit.pid");
    let mut stranger =
        Command::new("sh").args(["-c", "sleep 1000; :", "sh", "-F"]).arg(&pid_file).process_group(0).spawn().unwrap();
    let mut machine = files.machine();
    machine.pid = Some(stranger.id());
    machine.arguments = machine.arguments("guest").unwrap();
    files.write("vm/hyperkit.json", machine.to_string().as_bytes());
    files.write("vm/hyperkit.pid", stranger.id().to_string().as_bytes());
    let found = HyperKit::from_state(files.path("vm")).unwrap();
    let was_running = found.is_running();
    found.stop().unwrap();
    let alive = stranger.try_wait().unwrap().is_none();
    rustix::process::kill_process_group(raw(stranger.id()), rustix::process::Signal::KILL).unwrap();
    stranger.wait().unwrap();
    assert!(!was_running && alive);
}

/// The pid may have come to mean another process that was started in the same way, say after a reboot. The pid file
/// says more than the clock, which may have been set.
#[test]
fn without_a_pid_file_the_time_of_its_start_decides() {
    let files = Files::new();
    let (_, vm, _end) = started(&files, "guest");
    let json = fs::read_to_string(files.path("vm/hyperkit.json")).unwrap();
    let mut state: serde_json::Value = serde_json::from_str(&json).unwrap();
    state["pid_started"] = (state["pid_started"].as_u64().expect("it is recorded") - 1000).into();
    files.write("vm/hyperkit.json", state.to_string().as_bytes());
    let is_running = || HyperKit::from_state(files.path("vm")).unwrap().is_running();
    assert!(is_running());
    fs::remove_file(files.path("vm/hyperkit.pid")).unwrap();
    assert!(!is_running());
    files.write("vm/hyperkit.json", json.as_bytes());
    assert!(is_running());
    vm.stop().unwrap();
}

/// On Linux its threads have pids too, and its command line.
#[test]
fn a_thread_of_the_machine_is_not_the_machine() {
    let files = Files::new();
    let (machine, vm, _end) = started(&files, "guest");
    let threads = format!("/proc/{}/task", vm.pid());
    if Path::new("/proc/self/task").exists() {
        eventually("it has threads", || fs::read_dir(&threads).unwrap().count() > 1);
    }
    let mut forgotten = machine.clone();
    forgotten.pid = None;
    files.write("vm/hyperkit.json", forgotten.to_string().as_bytes());
    fs::remove_file(files.path("vm/hyperkit.pid")).unwrap();
    // Each look has an order of its own.
    for _ in 0..20 {
        assert_eq!(HyperKit::from_state(files.path("vm")).unwrap().pid, Some(vm.pid()));
    }
    vm.stop().unwrap();
}
