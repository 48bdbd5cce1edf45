//! The example `ctl`, which controls VMs by their state directories.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use hyperkit::{Disk, HyperKit};
use serde_json::{Value, json};

use crate::common::guest::Guest;
use crate::common::{TEST_TIMEOUT, TestDir, example_path, file_names, start_vm, write_executable};

fn ctl(words: &[&str], dir: &Path) -> Command {
    let mut ctl = Command::new(example_path("ctl"));
    ctl.args(words).arg(dir).stdin(Stdio::null());
    ctl
}

/// Returns the JSON output, and whether the command succeeded.
fn json(words: &[&str], dir: &Path) -> (Vec<Value>, bool) {
    let output = ctl(&[&["--json"], words].concat(), dir).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    let lines = String::from_utf8(output.stdout).unwrap();
    (lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect(), output.status.success())
}

#[test]
fn commands_report_and_control_a_vm_in_json() {
    let test_dir = TestDir::new();
    let (_, vm, _stop) = start_vm(&test_dir, "guest guest.say=hello");
    let dir = test_dir.path("vm");
    vm.wait_for_console("hello", TEST_TIMEOUT).unwrap();
    let (list, success) = json(&["list"], &test_dir.dir());
    let pid = vm.pid();
    let entry = json!({
        "dir": dir, "state": "running", "running": true, "pid": pid, "engine": "hyperkit", "cpus": 1, "memory": 1024,
        "labels": {},
    });
    assert!(success);
    assert_eq!(list, [entry]);
    let (shown, _) = json(&["show"], &dir);
    assert_eq!(shown[0]["kernel_cmdline"], "guest guest.say=hello");
    assert_eq!(shown[0]["consoles"], json!(vm.description().pty_paths().unwrap()));
    assert_eq!(shown[0]["consoles"].as_array().unwrap().len(), 1);
    assert_eq!(serde_json::from_value::<HyperKit>(shown[0]["description"].clone()).unwrap(), *vm.description());
    let (log, _) = json(&["log"], &dir);
    assert!(log.contains(&json!("hello")), "{log:?}");

    for (command, result) in [("pause", "is paused"), ("resume", "was resumed"), ("shutdown", "powered off")] {
        let (done, success) = json(&[command], &dir);
        assert!(success);
        assert_eq!(done, [json!({ "dir": dir, "done": command, "said": result })]);
    }
    assert!(!vm.description().is_running().unwrap());
    let (done, _) = json(&["start"], &dir);
    let again = HyperKit::from_state(&dir).unwrap();
    assert_eq!(json!(again.recorded_pid().unwrap()), done[0]["pid"]);
    assert_eq!(
        again.recorded_arguments(),
        vm.description().recorded_arguments(),
        "the arguments are those of the last start"
    );
    for (command, succeeds) in [("rm", false), ("stop", true), ("pause", false), ("rm", true)] {
        let (done, success) = json(&[command], &dir);
        assert_eq!(
            (success, done.len(), done[0].get("error").is_none()),
            (succeeds, 1, succeeds),
            "{command}: {done:?}"
        );
    }
    assert!(!dir.exists());
}

#[test]
fn log_follow_prints_everything_and_ends_with_the_vm() {
    let test_dir = TestDir::new();
    let (_, vm, _stop) = start_vm(&test_dir, "guest.say=first");
    let mut follower = ctl(&["log", "-f"], &test_dir.path("vm")).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line == "first"));
    vm.kill().unwrap();
    drop(lines);
    assert!(follower.wait().unwrap().success());
}

#[test]
fn list_prints_a_table_and_invalid_usage_is_rejected() {
    let test_dir = TestDir::new();
    let (_, vm, _stop) = start_vm(&test_dir, "guest");
    test_dir.write("damaged.json", b"");
    std::fs::create_dir(test_dir.path("damaged")).unwrap();
    test_dir.write("damaged/hyperkit.json", b"{");
    let output = ctl(&["list"], &test_dir.dir()).output().unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<_> = table.lines().collect();
    assert!(output.status.success() && lines.len() == 3, "{table}");
    assert!(lines[1].starts_with("damaged ") && lines[1].contains("rm removes it"), "{table}");
    let words: Vec<_> = lines[2].split_ascii_whitespace().collect();
    assert_eq!(words, ["vm", &vm.pid().to_string(), "running", "1", "1024", "hyperkit"]);

    assert!(ctl(&["rm"], &test_dir.path("damaged")).output().unwrap().status.success());
    assert!(!test_dir.path("damaged").exists());
    let stopped = Command::new(example_path("ctl"))
        .arg("stop")
        .args([test_dir.path("none"), test_dir.path("vm")])
        .output()
        .unwrap();
    assert!(!stopped.status.success());
    assert!(String::from_utf8(stopped.stderr).unwrap().contains("no saved state: "));
    assert!(vm.wait_timeout(TEST_TIMEOUT).is_some(), "the other VM is killed nevertheless");

    for words in [&["start", "-f", "vm"][..], &["no-such", "vm"], &["console", "--json", "vm"], &["stop"], &[]] {
        let output = Command::new(example_path("ctl")).args(words).current_dir(test_dir.dir()).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{words:?}");
        assert!(String::from_utf8(output.stderr).unwrap().contains("--help shows how"));
    }
}

#[test]
fn list_shows_the_vm_of_the_directory_itself_or_says_where_it_looked() {
    let test_dir = TestDir::new();
    let (_, vm, _stop) = start_vm(&test_dir, "guest");
    let dir = test_dir.path("vm");
    let output = ctl(&["list"], &dir).output().unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    let words: Vec<_> = table.lines().nth(1).unwrap_or_default().split_ascii_whitespace().collect();
    assert_eq!(words[..3], ["vm", &vm.pid().to_string(), "running"], "{table}");
    assert_eq!((table.lines().count(), json(&["list"], &dir).0.len()), (2, 1), "{table}");

    let empty = test_dir.path("empty");
    std::fs::create_dir(&empty).unwrap();
    let mut list = ctl(&["list"], Path::new("../empty"));
    let output = list.current_dir(&empty).output().unwrap();
    assert!(output.status.success() && output.stdout.is_empty(), "{output:?}");
    let message = format!("no VMs in {}; list looks one level deep\n", empty.display());
    assert_eq!(String::from_utf8(output.stderr).unwrap(), message);
    assert_eq!(json(&["list"], &empty), (Vec::new(), true));
}

/// Without a directory, `list` looks in the current one and in that of `exec`. One of them is usually empty.
#[test]
fn list_without_a_directory_says_that_nothing_is_there_only_if_both_are_empty() {
    let test_dir = TestDir::new();
    let [current, state] = ["current", "state"].map(|name| test_dir.path(name));
    let exec_dir = state.join("hyperkit/exec");
    for dir in [&current, &exec_dir] {
        std::fs::create_dir_all(dir).unwrap();
    }
    let list = || {
        let mut list = Command::new(example_path("ctl"));
        let output = list.arg("list").current_dir(&current).env("XDG_STATE_HOME", &state).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap())
    };
    let message = format!("no VMs in {} and {}; list looks one level deep\n", current.display(), exec_dir.display());
    assert_eq!(list(), ["", message.as_str()]);

    let left = exec_dir.join("exec-12345678");
    HyperKit::new().state_dir(&left).kernel("/vmlinuz").define().unwrap();
    let [table, message] = list();
    assert_eq!((table.lines().count(), message.as_str()), (2, ""), "{table}");
    let [title, row] = [0, 1].map(|line| table.lines().nth(line).unwrap());
    assert!(row.starts_with(left.to_str().unwrap()), "{table}");
    assert_eq!(title.find("STATE").unwrap() + 5, row.find(" stopped").unwrap() + 8, "the columns are aligned: {table}");
}

/// `cargo install` puts `exec`, `boot` and `ctl` into one directory, and the checkout may be gone.
#[test]
fn commands_that_an_installed_ctl_prints_run_that_ctl() {
    let test_dir = TestDir::new();
    let dir = test_dir.path("vm");
    HyperKit::new().state_dir(&dir).kernel("/vmlinuz").define().unwrap();
    std::fs::create_dir(test_dir.path("its bin")).unwrap();
    let installed = test_dir.path("its bin/ctl");
    write_executable(&installed, &std::fs::read(example_path("ctl")).unwrap());
    let output = Command::new(&installed).arg("show").arg(&dir).output().unwrap();
    let shown = String::from_utf8(output.stdout).unwrap();
    let log = shown.lines().find_map(|line| line.strip_prefix("log: ")).unwrap();
    assert_eq!(log, format!("'{}' log {}", installed.display(), dir.display()));
    let start = shown.lines().find_map(|line| line.strip_prefix("start: ")).unwrap();
    let started = Command::new("sh").args(["-c", start]).current_dir("/").output().unwrap();
    assert!(String::from_utf8_lossy(&started.stderr).contains("not found: /vmlinuz"), "{started:?}");
}

#[test]
fn show_prints_what_a_person_wants_first_and_the_arguments_last() {
    let test_dir = TestDir::new();
    let (description, vm, _stop) = start_vm(&test_dir, "guest");
    let dir = test_dir.path("vm");
    let show = || String::from_utf8(ctl(&["show"], &dir).output().unwrap().stdout).unwrap();
    let shown = show();
    let lines: Vec<_> = shown.lines().collect();
    assert_eq!(lines[..2], ["state: running".to_owned(), format!("pid: {}", vm.pid())], "{shown}");
    assert!(lines[2].starts_with("console: cargo run ") && lines[2].ends_with(dir.to_str().unwrap()), "{shown}");
    assert!(lines[3].starts_with("pty: /dev/"), "{shown}");
    assert!(lines.contains(&"kernel command line: guest"), "{shown}");
    let last = lines.last().unwrap().strip_prefix("hypervisor command line: ").unwrap_or_else(|| panic!("{shown}"));
    assert!(last.starts_with(description.hyperkit.as_ref().unwrap().to_str().unwrap()), "{shown}");
    assert_eq!(shown.matches("kexec,").count(), 1, "the arguments are printed once: {shown}");
    vm.kill().unwrap();
    let shown = show();
    assert!(shown.starts_with("state: stopped\nstart: cargo run "), "{shown}");
}

#[test]
fn show_names_the_base_of_an_overlay() {
    let test_dir = TestDir::new();
    test_dir.description().disk(Disk::raw("/images/base.img").overlay()).define().unwrap();
    let shown = String::from_utf8(ctl(&["show"], &test_dir.path("vm")).output().unwrap().stdout).unwrap();
    assert!(shown.contains("\ndisk: overlay of /images/base.img, which is deleted with the VM\n"), "{shown}");
}

/// Not on a terminal, `rm` does not ask.
#[test]
fn rm_says_which_disks_it_deletes_and_keeps() {
    let test_dir = TestDir::new();
    let _stop = test_dir.stop_on_drop();
    let description =
        test_dir.description().disk(Disk::in_state_dir(2)).disk(Disk::raw(test_dir.path("own.img")).size_mib(1));
    let dir = test_dir.path("vm");
    let start = || description.start("guest").unwrap().kill().unwrap();
    start();
    let rm = |words| String::from_utf8(ctl(words, &dir).output().unwrap().stdout).unwrap();
    assert_eq!(rm(&["rm", "--keep-disk"]), format!("{}: was removed, except disk.img (2 MiB)\n", dir.display()));
    assert_eq!(test_dir.state_files(), ["disk.img"]);
    std::fs::remove_file(dir.join("disk.img")).unwrap();
    start();
    assert_eq!(rm(&["rm"]), format!("{}: was removed, with disk.img (2 MiB)\n", dir.display()));
    assert!(!dir.exists() && test_dir.path("own.img").exists());
    start();
    let (done, _) = json(&["rm"], &dir);
    assert_eq!(done[0]["disks"], json!(["disk.img"]));
    let other = test_dir.description();
    other.start("guest").unwrap().kill().unwrap();
    assert_eq!(rm(&["rm"]), format!("{}: was removed\n", dir.display()));
}

/// A VM whose state file is damaged or missing can be ended, and then removed.
#[test]
fn running_vm_with_a_damaged_state_file_is_listed_and_killed() {
    let test_dir = TestDir::new();
    let (_, vm, _stop) = start_vm(&test_dir, "guest");
    let (dir, json_file) = (test_dir.path("vm"), test_dir.path("vm/hyperkit.json"));
    test_dir.write("vm/hyperkit.json", b"{");
    let (list, success) = json(&["list"], &test_dir.dir());
    let error = format!("damaged state file; the VM runs as process {}", vm.pid());
    assert!(success);
    assert_eq!(list, [json!({ "dir": dir, "running": true, "pid": vm.pid(), "error": error })]);
    let (refused, success) = json(&["rm"], &dir);
    assert!(!success && refused[0]["error"].as_str().unwrap().contains("still running"), "{refused:?}");

    std::fs::remove_file(json_file).unwrap();
    let (list, _) = json(&["list"], &test_dir.dir());
    assert_eq!(list[0]["error"], format!("no state file; the VM runs as process {}", vm.pid()));
    test_dir.write("vm/hyperkit.json", b"{");
    let (killed, success) = json(&["stop"], &dir);
    assert!(success && killed[0]["said"] == "was killed", "{killed:?}");
    assert!(vm.wait_timeout(TEST_TIMEOUT).is_some());
    assert!(json(&["rm"], &dir).1);
    assert_eq!(file_names(&dir), [] as [&str; 0]);
}

/// QEMU reports whether a VM is paused; hyperkit does not.
#[test]
fn list_and_show_tell_whether_a_qemu_vm_is_paused() {
    let guest = Guest::new();
    let vm = guest.description.start("console=ttyS0").unwrap();
    let (root, dir) = (guest.state_dir.parent().unwrap(), &guest.state_dir);
    let state = || {
        let output = ctl(&["list"], root).output().unwrap();
        let table = String::from_utf8(output.stdout).unwrap();
        let words: Vec<_> = table.lines().nth(1).unwrap().split_ascii_whitespace().map(str::to_owned).collect();
        assert_eq!((&words[0][..], &words[1]), ("vm", &vm.pid().to_string()), "{table}");
        let shown = String::from_utf8(ctl(&["show"], dir).output().unwrap().stdout).unwrap();
        assert_eq!(shown.lines().next(), Some(&*format!("state: {}", words[2])), "{shown}");
        words[2].clone()
    };
    for (command, expected) in [("pause", "paused"), ("resume", "running")] {
        assert!(json(&[command], dir).1);
        assert_eq!(state(), expected);
    }
    vm.kill().unwrap();
    let (list, _) = json(&["list"], root);
    let entry = &list[0];
    assert_eq!([&entry["state"], &entry["running"], &entry["memory"]], [&json!("stopped"), &json!(false), &json!(256)]);
}

/// The library deletes only what it can have created.
#[test]
fn rm_names_no_files_outside_of_the_directory() {
    let test_dir = TestDir::new();
    std::fs::create_dir(test_dir.path("vm")).unwrap();
    let (outside, beside) = (test_dir.path("vmlinuz"), "../initrd.img");
    test_dir.write("vm/hyperkit.json", format!("{{\"made_disks\": [{outside:?}, {beside:?}]}}").as_bytes());
    let rm = Command::new(example_path("ctl")).args(["rm", "vm"]).current_dir(test_dir.dir()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&rm.stdout), "vm: was removed\n", "{rm:?}");
    assert!(outside.exists() && test_dir.path("initrd.img").exists() && !test_dir.path("vm").exists());
}
