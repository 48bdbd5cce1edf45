//! Telling the hypervisor from unrelated processes.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use hyperkit::{Console, Disks, HyperKit};
use rustix::process::{Signal, kill_process};
use serde_json::json;

use crate::common::{KillProcessOnDrop, TestDir, hypervisors_in, standin_path, start_vm, to_pid, wait_until};
use crate::state_directory::edit_state;

/// Writes the state file of a VM that was started as this process.
fn record(test_dir: &TestDir, description: &HyperKit, pid: u32, arguments: &[String]) {
    test_dir.write("vm/hyperkit.json", description.to_string().as_bytes());
    edit_state(test_dir, |state| {
        state["pid"] = json!(pid);
        state["arguments"] = json!(arguments);
    });
}

/// The parent has not reaped the process, so the PID is still in use.
#[test]
fn zombie_is_not_running() {
    let test_dir = TestDir::new();
    fs::create_dir(test_dir.path("vm")).unwrap();
    let description = test_dir.description().console(Console::Pty);
    let arguments = description.arguments("guest").unwrap();
    let zombie = KillProcessOnDrop::spawn(Command::new(standin_path()).args(&arguments));
    record(&test_dir, &description, zombie.0.id(), &arguments);
    wait_until("it is running", || HyperKit::from_state(test_dir.path("vm")).unwrap().is_running().unwrap());
    kill_process(to_pid(zombie.0.id()), Signal::KILL).unwrap();
    wait_until("it is a zombie", || !description.is_running().unwrap());
    rustix::process::test_kill_process(to_pid(zombie.0.id())).expect("the zombie still exists");
    description.stop().unwrap();
    let vm = description.start("guest").unwrap();
    assert_eq!(hypervisors_in(&test_dir.path("vm")), [vm.pid()]);
    vm.kill().unwrap();
}

/// The PID was reused by an unrelated process.
#[test]
fn unrelated_process_with_the_recorded_pid_is_left_alone() {
    let test_dir = TestDir::new();
    let mut other_process = KillProcessOnDrop::spawn(Command::new("sleep").arg("1000"));
    fs::create_dir(test_dir.path("vm")).unwrap();
    record(&test_dir, &test_dir.description(), other_process.0.id(), &[]);
    test_dir.write("vm/hyperkit.pid", other_process.0.id().to_string().as_bytes());
    let description = HyperKit::from_state(test_dir.path("vm")).unwrap();
    assert!(!description.is_running().unwrap());
    description.stop().unwrap();
    description.start("guest").unwrap().kill().unwrap();
    description.remove(Disks::Delete).unwrap();
    assert!(other_process.0.try_wait().unwrap().is_none(), "the unrelated process was killed");
}

/// The process has the pid file on its command line, but was not started with the recorded arguments.
#[test]
fn unrelated_process_that_names_the_pid_file_is_left_alone() {
    let test_dir = TestDir::new();
    fs::create_dir(test_dir.path("vm")).unwrap();
    let pid_file = test_dir.path("vm/hyperkit.pid");
    let mut sh = Command::new("sh");
    let mut other_process =
        KillProcessOnDrop::spawn(sh.args(["-c", "read line", "sh", "-F"]).arg(&pid_file).stdin(Stdio::piped()));
    let description = test_dir.description();
    record(&test_dir, &description, other_process.0.id(), &description.arguments("guest").unwrap());
    test_dir.write("vm/hyperkit.pid", other_process.0.id().to_string().as_bytes());
    let found = HyperKit::from_state(test_dir.path("vm")).unwrap();
    let was_running = found.is_running().unwrap();
    found.stop().unwrap();
    let alive = other_process.0.try_wait().unwrap().is_none();
    assert!(!was_running && alive);
}

/// After a reboot, for example, another process that was started in the same way may have the PID. The pid file is more reliable
/// than the start time, since the clock may have been set.
#[test]
fn start_time_identifies_the_process_without_a_pid_file() {
    let test_dir = TestDir::new();
    let (_, vm, _stop) = start_vm(&test_dir, "guest");
    let json = fs::read_to_string(test_dir.path("vm/hyperkit.json")).unwrap();
    edit_state(&test_dir, |state| {
        state["pid_started"] = json!(state["pid_started"].as_u64().expect("the start time is recorded") - 1000);
    });
    let is_running = || HyperKit::from_state(test_dir.path("vm")).unwrap().is_running().unwrap();
    assert!(is_running());
    fs::remove_file(test_dir.path("vm/hyperkit.pid")).unwrap();
    assert!(!is_running());
    test_dir.write("vm/hyperkit.json", json.as_bytes());
    assert!(is_running());
    vm.kill().unwrap();
}

/// On Linux, threads have PIDs and command lines as well.
#[test]
fn thread_id_of_the_hypervisor_is_not_its_pid() {
    let test_dir = TestDir::new();
    let (_, vm, _stop) = start_vm(&test_dir, "guest");
    let threads = format!("/proc/{}/task", vm.pid());
    if Path::new("/proc/self/task").exists() {
        wait_until("the hypervisor has threads", || fs::read_dir(&threads).unwrap().count() > 1);
    }
    edit_state(&test_dir, |state| state["pid"] = json!(null));
    fs::remove_file(test_dir.path("vm/hyperkit.pid")).unwrap();
    // Each scan has another order.
    for _ in 0..20 {
        let found = HyperKit::from_state(test_dir.path("vm")).unwrap().vm().unwrap().unwrap();
        assert_eq!(found.pid(), vm.pid());
    }
    vm.kill().unwrap();
}
