//! Telling the hypervisor from unrelated processes.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use hyperkit::{Console, Disks, HyperKit};
use rustix::process::{Signal, kill_process};
use serde_json::json;

use crate::common::{KillProcessOnDrop, TestDir, hypervisors_in, standin_path, start_vm, to_pid, wait_until};
use crate::state_directory::edit_state;

/// Writes the state file of a VM whose hypervisor is the process `pid`.
fn record(test_dir: &TestDir, description: &HyperKit, pid: u32, arguments: &[String]) {
    test_dir.write("vm/hyperkit.json", description.to_string().as_bytes());
    edit_state(test_dir, |state| {
        state["pid"] = json!(pid);
        state["arguments"] = json!(arguments);
    });
}

/// The hypervisor has exited, but its parent has not reaped it. So its process ID is still in use.
#[test]
fn zombie_is_not_running() {
    let test_dir = TestDir::new();
    fs::create_dir(test_dir.path("vm")).unwrap();
    let description = test_dir.description().console(Console::Pty);
    let arguments = description.arguments("guest").unwrap();
    let zombie = KillProcessOnDrop::spawn(Command::new(standin_path()).args(&arguments));
    record(&test_dir, &description, zombie.0.id(), &arguments);
    wait_until("the process is found", || HyperKit::from_state(test_dir.path("vm")).unwrap().is_running().unwrap());
    kill_process(to_pid(zombie.0.id()), Signal::KILL).unwrap();
    wait_until("the process is a zombie", || !description.is_running().unwrap());
    rustix::process::test_kill_process(to_pid(zombie.0.id())).expect("the zombie was reaped");
    description.stop().unwrap();
    let vm = description.start("guest").unwrap();
    assert_eq!(hypervisors_in(&test_dir.path("vm")), [vm.pid()]);
    vm.kill().unwrap();
}

/// `parse_arguments` rejects such a command line, but hyperkit runs with it.
#[test]
fn hypervisor_with_words_after_its_options_is_found() {
    for words in [&["--"][..], &["--", "operand"], &["-", "-z"], &["operand", "-F", "/elsewhere/hyperkit.pid"]] {
        let test_dir = TestDir::new();
        fs::create_dir(test_dir.path("vm")).unwrap();
        let description = test_dir.description().console(Console::Pty);
        let mut hypervisor = Command::new(standin_path());
        let mut started =
            KillProcessOnDrop::spawn(hypervisor.args(description.arguments("guest").unwrap()).args(words));
        wait_until("the hypervisor runs", || description.vm().unwrap().is_some_and(|vm| vm.pid() == started.0.id()));
        description.stop().unwrap();
        started.0.wait().unwrap();
    }
}

/// An unrelated process has the recorded process ID.
#[test]
fn unrelated_process_with_the_recorded_pid_gets_no_signal() {
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

/// An unrelated process has the recorded process ID, and the pid file on its command line, but not the recorded arguments.
#[test]
fn unrelated_process_that_names_the_pid_file_gets_no_signal() {
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

/// After a reboot, another process with the same command line may have the recorded process ID. Only the start time
/// differs. If there is a pid file, the start time is not compared, since somebody may have set the clock.
#[test]
fn without_a_pid_file_the_start_time_has_to_match() {
    let test_dir = TestDir::new();
    let (_, vm, _stop) = start_vm(&test_dir, "guest");
    let json = fs::read_to_string(test_dir.path("vm/hyperkit.json")).unwrap();
    edit_state(&test_dir, |state| {
        state["pid_started"] = json!(state["pid_started"].as_u64().expect("no start time is recorded") - 1000);
        // What an older version of the crate has recorded.
        assert!(state.as_object_mut().unwrap().remove("pid_identity").is_some());
    });
    let is_running = || HyperKit::from_state(test_dir.path("vm")).unwrap().is_running().unwrap();
    assert!(is_running());
    fs::remove_file(test_dir.path("vm/hyperkit.pid")).unwrap();
    assert!(!is_running());
    test_dir.write("vm/hyperkit.json", json.as_bytes());
    assert!(is_running());
    vm.kill().unwrap();
}

/// On Linux, threads have IDs and command lines like processes.
#[test]
fn thread_of_the_hypervisor_is_not_taken_for_the_hypervisor() {
    let test_dir = TestDir::new();
    let (_, vm, _stop) = start_vm(&test_dir, "guest");
    let threads = format!("/proc/{}/task", vm.pid());
    if Path::new("/proc/self/task").exists() {
        wait_until("the hypervisor has threads", || fs::read_dir(&threads).unwrap().count() > 1);
    }
    edit_state(&test_dir, |state| state["pid"] = json!(null));
    fs::remove_file(test_dir.path("vm/hyperkit.pid")).unwrap();
    // Each scan finds the processes in another order.
    for _ in 0..20 {
        let found = HyperKit::from_state(test_dir.path("vm")).unwrap().vm().unwrap().unwrap();
        assert_eq!(found.pid(), vm.pid());
    }
    vm.kill().unwrap();
}
