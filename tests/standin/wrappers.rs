//! Scripts and programs that run the hypervisor: what a start has spawned is found again, whatever its command line is.

use std::process::{Command, Stdio};

use hyperkit::{Disks, Error, HyperKit};
use serde_json::json;

use crate::common::{KillProcessOnDrop, TestDir, example_path, make_fifo, standin_path, wait_until};
use crate::state_directory::edit_state;

/// The script would start the hypervisor later. The interpreter of its first line is not the one that runs it.
#[test]
fn wrapper_that_is_preparing_is_found_after_its_starter_was_killed() {
    for (interpreter, has_pid) in [("/bin/sh", true), ("/usr/bin/env sh", true), ("/usr/bin/env sh", false)] {
        let test_dir = TestDir::new();
        let fifo = test_dir.path("fifo");
        make_fifo(&fifo);
        let (standin, runs) = (standin_path(), test_dir.path("runs"));
        let script = format!(
            "#!{interpreter}\n: >{}\nread line <{}\nexec {} \"$@\"\n",
            runs.display(),
            fifo.display(),
            standin.display()
        );
        let wrapper = test_dir.write_executable("wrapper", script.as_bytes());
        let description = test_dir.description().hyperkit(&wrapper);
        let _stop = test_dir.stop_on_drop();
        let mut boot = Command::new(example_path("boot"));
        boot.arg("--background").arg("--hyperkit").arg(&wrapper).arg("--state-dir").arg(test_dir.path("vm"));
        boot.arg("--kernel").arg(test_dir.path("vmlinuz")).args(["--cmdline", "guest"]);
        let starter = KillProcessOnDrop::spawn(boot.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()));
        let recorded_pid = || HyperKit::from_state(test_dir.path("vm")).ok()?.recorded_pid();
        wait_until("the script runs", || runs.exists() && recorded_pid().is_some());
        let pid = recorded_pid().unwrap();
        drop(starter);
        if !has_pid {
            // As if it had been killed before it recorded the process.
            edit_state(&test_dir, |state| {
                ["pid", "pid_started", "pid_identity"].iter().for_each(|key| state[*key] = json!(null));
            });
        }
        assert!(description.is_running().unwrap(), "{interpreter}");
        let second = description.start("guest");
        assert!(matches!(second, Err(Error::AlreadyRunning { pid: found, .. }) if found == pid), "{second:?}");
        assert!(matches!(description.remove(Disks::Keep), Err(Error::StillRunning { .. })));
        description.stop().unwrap();
        assert!(!description.is_running().unwrap());
    }
}

/// The loader of shared libraries, as an emulator of another processor would, precedes the hypervisor's path on the command
/// line.
#[cfg(all(target_os = "linux", target_arch = "x86_64", target_env = "gnu"))]
#[test]
fn hypervisor_whose_command_line_begins_with_another_program_is_found() {
    use std::fs;

    use crate::common::{KillOnDrop, TEST_TIMEOUT};

    let test_dir = TestDir::new();
    let loader = "/lib64/ld-linux-x86-64.so.2";
    let script = format!("#!/bin/sh\nexec {loader} {} \"$@\"\n", standin_path().display());
    let description = test_dir.description().hyperkit(test_dir.write_executable("wrapper", script.as_bytes()));
    let _stop = test_dir.stop_on_drop();
    let vm = description.start("guest").unwrap();
    let _kill = KillOnDrop(&vm);
    assert_eq!(
        fs::read(format!("/proc/{}/cmdline", vm.pid())).unwrap().split(|&byte| byte == 0).next(),
        Some(loader.as_bytes())
    );
    assert!(description.is_running().unwrap());
    assert!(matches!(description.start("guest"), Err(Error::AlreadyRunning { .. })));
    assert!(matches!(description.remove(Disks::Keep), Err(Error::StillRunning { .. })));
    assert!(test_dir.path("vm").exists());
    fs::remove_file(test_dir.path("vm/hyperkit.pid")).unwrap();
    description.stop().unwrap();
    assert!(vm.wait_timeout(TEST_TIMEOUT).is_some());
}
