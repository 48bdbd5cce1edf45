//! Processes that name the pid file, or have the arguments of a hypervisor, and are none.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use hyperkit::{Disks, Error, HyperKit};
use serde_json::json;

use crate::common::{
    KillOnDrop, KillProcessOnDrop, TEST_TIMEOUT, TestDir, hypervisors_in, make_fifo, standin_path, start_vm, wait_until,
};
use crate::state_directory::edit_state;

/// The command lines of strangers, by name. `arguments` are those of the hypervisor.
fn strangers(test_dir: &TestDir, arguments: &[String]) -> Vec<(&'static str, Command)> {
    let pid_file = test_dir.path("vm/hyperkit.pid");
    let command = |program: &str| Command::new(program);
    let mut found = Vec::new();
    let mut tail = command("tail");
    tail.arg("-F").arg(&pid_file);
    found.push(("tail -F", tail));
    let mut tail = command("tail");
    tail.arg("-f").arg("/dev/null").arg("-F").arg(&pid_file);
    found.push(("tail -f FILE -F", tail));
    let mut sh = command("sh");
    sh.args(["-c", "read line", "hyperkit"]).args(arguments);
    found.push(("sh -c, with the arguments after it", sh));
    let mut sh = command("sh");
    sh.args(["-c", "read line", "qemu-system-x86_64", "-pidfile"]).arg(&pid_file);
    found.push(("sh -c, with QEMU's option after it", sh));
    // hyperkit takes these options, too.
    let mut tail = command("tail");
    tail.arg("-c").arg("1").arg("-F").arg(&pid_file).args(["-f", "kexec,vmlinuz,initrd.img"]);
    found.push(("tail with options of hyperkit", tail));
    let mut sh = command("sh");
    sh.args(["-c", "read line", "-F"]).arg(&pid_file).args(["-f", "kexec,vmlinuz"]);
    found.push(("sh -c, with options of hyperkit after it", sh));
    let mut sh = command("sh");
    sh.args(["-c", "read line"]).args(arguments);
    found.push(("sh -c, with the arguments and no name after it", sh));
    let mut sh = command("sh");
    sh.arg0("/usr/bin/qemu-system-x86_64").args(["-c", "read line", "-pidfile"]).arg(&pid_file);
    found.push(("sh that shows the name of QEMU", sh));
    // `cat` waits for a FIFO, and takes what follows for other files.
    let fifo = test_dir.path("fifo");
    if !fifo.exists() {
        make_fifo(&fifo);
    }
    for name in ["sudo", "strace", "sh"] {
        let mut cat = command("cat");
        cat.arg0(name).arg(&fifo).args(arguments).env("POSIXLY_CORRECT", "1");
        found.push((name, cat));
    }
    found
}

/// The states in which the directory may be, besides a record of a VM that has exited.
const STATES: [&str; 6] = [
    "nothing",
    "pid file names the stranger",
    "record",
    "record, pid file names the stranger",
    "record names the stranger",
    "record without a pid",
];

#[test]
fn strangers_are_no_hypervisors_in_any_state_of_the_directory() {
    for state in STATES {
        let test_dir = TestDir::new();
        let description = test_dir.description();
        let _stop = test_dir.stop_on_drop();
        let vm = description.start("guest").unwrap();
        let arguments = vm.description().recorded_arguments().to_vec();
        vm.kill().unwrap();
        for (name, mut command) in strangers(&test_dir, &arguments) {
            command.stdin(Stdio::piped()).stdout(Stdio::null());
            command.stderr(Stdio::null());
            let mut stranger = KillProcessOnDrop::spawn(&mut command);
            let pid = stranger.0.id();
            // Before its exec, it is still this program.
            let has_executed = || fs::read(format!("/proc/{pid}/cmdline")).unwrap().ends_with(b"\0");
            wait_until("the stranger runs", || {
                has_executed() && fs::read_link(format!("/proc/{pid}/exe")).unwrap() != std::env::current_exe().unwrap()
            });
            if state.starts_with("record") {
                edit_state(&test_dir, |json| match state {
                    "record names the stranger" => {
                        json["pid"] = json!(pid);
                        json.as_object_mut().unwrap().remove("pid_started");
                    }
                    "record without a pid" => json["pid"] = json!(null),
                    _ => {}
                });
            } else {
                let _ = fs::remove_file(test_dir.path("vm/hyperkit.json"));
            }
            if state.ends_with("pid file names the stranger") {
                test_dir.write("vm/hyperkit.pid", pid.to_string().as_bytes());
            }
            assert!(!description.is_running().unwrap(), "{state}: {name}");
            assert!(HyperKit::list(test_dir.dir()).unwrap().iter().all(|found| matches!(found.vm, Ok(None))));
            description.stop().unwrap();
            description.remove(Disks::Keep).unwrap();
            let vm = description.start("guest").unwrap();
            assert_eq!(description.vm().unwrap().unwrap().pid(), vm.pid(), "{state}: {name}");
            assert!(hypervisors_in(&test_dir.path("vm")).contains(&vm.pid()));
            vm.kill().unwrap();
            assert!(stranger.0.try_wait().unwrap().is_none(), "{state}: {name} was killed");
        }
    }
}

/// The directory was deleted while a VM ran, and a second VM would get the same disks and pid file.
#[test]
fn vm_of_a_deleted_directory_is_found_by_its_command_line() {
    for recreate in [false, true] {
        let test_dir = TestDir::new();
        let (description, vm, _stop) = start_vm(&test_dir, "guest");
        let _kill = KillOnDrop(&vm);
        fs::remove_dir_all(test_dir.path("vm")).unwrap();
        if recreate {
            fs::create_dir(test_dir.path("vm")).unwrap();
        }
        assert_eq!(description.vm().unwrap().expect("it runs").pid(), vm.pid());
        let second = description.start("guest");
        assert!(matches!(second, Err(Error::AlreadyRunning { pid, .. }) if pid == vm.pid()), "{second:?}");
        assert_eq!(test_dir.path("vm").exists(), recreate);
        description.stop().unwrap();
        assert!(vm.wait_timeout(TEST_TIMEOUT).is_some());
    }
}

/// A record of a later VM, which has exited, does not hide an earlier one that still runs.
#[test]
fn vm_is_found_although_the_record_is_of_another_that_has_exited() {
    let test_dir = TestDir::new();
    let (description, vm, _stop) = start_vm(&test_dir, "guest");
    let _kill = KillOnDrop(&vm);
    let exited = KillProcessOnDrop::spawn(&mut Command::new("true")).0.id();
    edit_state(&test_dir, |json| {
        json["pid"] = json!(exited);
        json["arguments"] = json!(["-A"]);
    });
    fs::remove_file(test_dir.path("vm/hyperkit.pid")).unwrap();
    assert_eq!(description.vm().unwrap().expect("it runs").pid(), vm.pid());
    assert!(matches!(description.remove(Disks::Keep), Err(Error::StillRunning { .. })));
}

/// A wrapper adds arguments to those of the crate, as users do with QEMU and `-cpu max`.
#[test]
fn hypervisor_behind_a_wrapper_that_changes_arguments_is_found() {
    let test_dir = TestDir::new();
    let script = format!("#!/bin/sh\nexec {} \"$@\" -x\n", standin_path().display());
    let wrapper = test_dir.write_executable("wrapper", script.as_bytes());
    let description = test_dir.description().hyperkit(&wrapper);
    let _stop = test_dir.stop_on_drop();
    let vm = description.start("guest").unwrap();
    let _kill = KillOnDrop(&vm);
    assert!(description.is_running().unwrap());
    assert_eq!(HyperKit::from_state(test_dir.path("vm")).unwrap().vm().unwrap().expect("it runs").pid(), vm.pid());
    assert!(matches!(description.start("guest"), Err(Error::AlreadyRunning { .. })));
    assert!(matches!(description.remove(Disks::Keep), Err(Error::StillRunning { .. })));
    fs::remove_file(test_dir.path("vm/hyperkit.pid")).unwrap();
    description.stop().unwrap();
    assert!(vm.wait_timeout(TEST_TIMEOUT).is_some());
}
