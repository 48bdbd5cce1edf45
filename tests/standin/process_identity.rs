//! TODO

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use hyperkit::HyperKit;
use rustix::process::{Signal, kill_process};

use crate::common::{TestDir, hypervisors_in, standin_path, start_vm, to_pid, wait_until};

/// Its parent has not reaped it: the pid is still taken, by nobody.
#[test]
fn zombie_is_not_running() {
    let test_dir = TestDir::new();
    fs::create_dir(test_dir.path("vm")).unwrap();
    let mut description = test_dir.description();
    description.arguments = description.arguments("guest").unwrap();
    let mut zombie = Command::new(standin_path()).args(&description.arguments).spawn().unwrap();
    description.pid = Some(zombie.id());
    test_dir.write("vm/hyperkit.json", description.to_string().as_bytes());
    wait_until("it runs", || {
        HyperKit::from_state(test_dir.path("vm")).is_ok_and(|description| description.is_running())
    });
    kill_process(to_pid(zombie.id()), Signal::KILL).unwrap();
    wait_until("it is a zombie", || !description.is_running());
    rustix::process::test_kill_process(to_pid(zombie.id())).expect("still there");
    description.stop().unwrap();
    let vm = description.start("guest").unwrap();
    assert_eq!(hypervisors_in(&test_dir.path("vm")), [vm.pid()]);
    vm.stop().unwrap();
    zombie.wait().unwrap();
}

/// A stranger that has the recorded pid now.
#[test]
fn unrelated_process_with_the_recorded_pid_is_left_alone() {
    let test_dir = TestDir::new();
    let mut other_process = Command::new("sleep").arg("1000").spawn().unwrap();
    fs::create_dir(test_dir.path("vm")).unwrap();
    let mut description = test_dir.description();
    description.pid = Some(other_process.id());
    test_dir.write("vm/hyperkit.json", description.to_string().as_bytes());
    test_dir.write("vm/hyperkit.pid", other_process.id().to_string().as_bytes());
    let mut description = HyperKit::from_state(test_dir.path("vm")).unwrap();
    assert!(!description.is_running());
    description.stop().unwrap();
    description.start("guest").unwrap().stop().unwrap();
    description.remove(false).unwrap();
    assert!(other_process.try_wait().unwrap().is_none(), "the stranger was killed");
    other_process.kill().unwrap();
    other_process.wait().unwrap();
}

/// It even has our pid file on its command line, but was not started with what was recorded.
#[test]
fn unrelated_process_that_names_the_pid_file_is_left_alone() {
    let test_dir = TestDir::new();
    fs::create_dir(test_dir.path("vm")).unwrap();
    let pid_file = test_dir.path("vm/hyperkit.pid");
    let mut other_process =
        Command::new("sh").args(["-c", "sleep 1000; :", "sh", "-F"]).arg(&pid_file).process_group(0).spawn().unwrap();
    let mut description = test_dir.description();
    description.pid = Some(other_process.id());
    description.arguments = description.arguments("guest").unwrap();
    test_dir.write("vm/hyperkit.json", description.to_string().as_bytes());
    test_dir.write("vm/hyperkit.pid", other_process.id().to_string().as_bytes());
    let found = HyperKit::from_state(test_dir.path("vm")).unwrap();
    let was_running = found.is_running();
    found.stop().unwrap();
    let alive = other_process.try_wait().unwrap().is_none();
    rustix::process::kill_process_group(to_pid(other_process.id()), rustix::process::Signal::KILL).unwrap();
    other_process.wait().unwrap();
    assert!(!was_running && alive);
}

/// The pid may have come to mean another process that was started in the same way, say after a reboot. The pid file
/// says more than the clock, which may have been set.
#[test]
fn start_time_identifies_the_process_without_a_pid_file() {
    let test_dir = TestDir::new();
    let (_, vm, _stop) = start_vm(&test_dir, "guest");
    let json = fs::read_to_string(test_dir.path("vm/hyperkit.json")).unwrap();
    let mut state: serde_json::Value = serde_json::from_str(&json).unwrap();
    state["pid_started"] = (state["pid_started"].as_u64().expect("it is recorded") - 1000).into();
    test_dir.write("vm/hyperkit.json", state.to_string().as_bytes());
    let is_running = || HyperKit::from_state(test_dir.path("vm")).unwrap().is_running();
    assert!(is_running());
    fs::remove_file(test_dir.path("vm/hyperkit.pid")).unwrap();
    assert!(!is_running());
    test_dir.write("vm/hyperkit.json", json.as_bytes());
    assert!(is_running());
    vm.stop().unwrap();
}

/// On Linux its threads have pids too, and its command line.
#[test]
fn thread_id_of_the_hypervisor_is_not_its_pid() {
    let test_dir = TestDir::new();
    let (description, vm, _stop) = start_vm(&test_dir, "guest");
    let threads = format!("/proc/{}/task", vm.pid());
    if Path::new("/proc/self/task").exists() {
        wait_until("it has threads", || fs::read_dir(&threads).unwrap().count() > 1);
    }
    let mut unrecorded = description.clone();
    unrecorded.pid = None;
    test_dir.write("vm/hyperkit.json", unrecorded.to_string().as_bytes());
    fs::remove_file(test_dir.path("vm/hyperkit.pid")).unwrap();
    // Each look has an order of its own.
    for _ in 0..20 {
        assert_eq!(HyperKit::from_state(test_dir.path("vm")).unwrap().pid, Some(vm.pid()));
    }
    vm.stop().unwrap();
}
