//! The life cycle of a VM: start, wait, stop and start again.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use hyperkit::{Disk, Disks, Error, Exit, HyperKit, Network};
use rustix::process::{Signal, getpgid, kill_process, test_kill_process};
use serde_json::Value;

use crate::common::vpnkit::{Handshake, listen_as_vpnkit};
use crate::common::{
    StopOnDrop, TestDir, console_output, example_path, file_names, standin_path, start_vm, to_pid, wait_until,
};

#[test]
fn start_records_the_vm_in_the_state_directory() {
    let test_dir = TestDir::new();
    let description = test_dir.description().disk(Disk::in_state_dir(3));
    let before = description.clone();
    let _stop = test_dir.stop_on_drop();
    let vm = description.start("guest").unwrap();
    assert_eq!(description, before);
    let started = vm.description().clone();

    let json = fs::read_to_string(test_dir.path("vm/hyperkit.json")).unwrap();
    assert_eq!(json, started.to_string());
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["pid"], vm.pid());
    assert_eq!(fs::read_to_string(test_dir.path("vm/hyperkit.pid")).unwrap(), vm.pid().to_string());
    assert_eq!(json["hyperkit"], standin_path().to_str().unwrap());
    let arguments: Vec<String> = serde_json::from_value(json["arguments"].clone()).unwrap();
    assert_eq!(arguments, started.arguments("guest").unwrap());
    assert_eq!(arguments, started.recorded_arguments());
    assert_eq!(started.recorded_pid(), Some(vm.pid()));
    assert_eq!(started.recorded_kernel_cmdline().as_deref(), Some("guest"));
    assert_eq!(json["cmdline"], format!("{} {}", standin_path().display(), arguments.join(" ")));
    assert_eq!(json["disk"], test_dir.path("vm/disk.img").to_str().unwrap());
    assert_eq!(json["state_dir"], test_dir.path("vm").to_str().unwrap());
    assert_eq!(started.disks[0].path, Some(test_dir.path("vm/disk.img")));
    assert_eq!(HyperKit::from_state(test_dir.path("vm")).unwrap(), started);
    assert_eq!(test_dir.path("vm/disk.img").metadata().unwrap().len(), 3 * 1024 * 1024);
    assert!(test_dir.path("vm/hyperkit.log").exists());
    let ran = fs::read(format!("/proc/{}/cmdline", vm.pid()));
    if let Ok(ran) = ran {
        let ran: Vec<_> = ran.split(|&byte| byte == 0).skip(1).filter(|argument| !argument.is_empty()).collect();
        assert_eq!(ran, arguments.iter().map(String::as_bytes).collect::<Vec<_>>());
    }

    let mode = |path: &str| test_dir.path(path).metadata().unwrap().mode() & 0o777;
    assert_eq!(mode("vm"), 0o700);
    for name in ["hyperkit.json", "hyperkit.log", "disk.img"] {
        assert_eq!(mode(&format!("vm/{name}")), 0o600, "{name}");
    }
}

#[test]
fn another_process_stops_and_removes_the_vm() {
    let test_dir = TestDir::new();
    let (description, vm, _stop) = start_vm(&test_dir, "guest");
    let other =
        |command: &str| Command::new(example_path("ctl")).arg(command).arg(test_dir.path("vm")).output().unwrap();
    let refused = other("rm");
    assert!(!refused.status.success());
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(why.contains(&format!("VM still running as process {}: ", vm.pid())), "{why}");

    let stopped = other("stop");
    assert!(stopped.status.success(), "{stopped:?}");
    assert!(!description.is_running().unwrap());
    assert!(!test_dir.path("vm/hyperkit.pid").exists());
    assert_eq!(vm.wait(), Exit::Killed(9));
    assert!(other("rm").status.success());
    assert!(!test_dir.path("vm").exists());
    let nothing = other("stop");
    assert!(!nothing.status.success());
    assert!(
        String::from_utf8_lossy(&nothing.stderr)
            .contains(&format!("no saved state: {} not found", test_dir.path("vm/hyperkit.json").display()))
    );
}

#[test]
fn stop_waits_until_process_and_pid_file_are_gone() {
    let test_dir = TestDir::new();
    let description = test_dir.description();
    for _ in 0..3 {
        let vm = description.start("guest").unwrap();
        assert!(description.is_running().unwrap());
        description.stop().unwrap();
        assert!(test_kill_process(to_pid(vm.pid())).is_err(), "the process still exists, maybe as a zombie");
        assert!(!test_dir.path("vm/hyperkit.pid").exists());
        assert!(!description.is_running().unwrap());
        assert_eq!(vm.wait(), Exit::Killed(9));
        vm.kill().unwrap(); // a second kill is no error
        description.stop().unwrap();
    }
}

#[test]
fn second_start_is_an_error_and_changes_nothing() {
    let test_dir = TestDir::new();
    let (description, vm, _stop) = start_vm(&test_dir, "guest");
    let recorded = fs::read(test_dir.path("vm/hyperkit.json")).unwrap();
    let other = test_dir.description().cpus(2).disk(Disk::in_state_dir(1));
    for second in [description, vm.description().clone(), HyperKit::from_state(test_dir.path("vm")).unwrap(), other] {
        let before = second.clone();
        assert!(matches!(second.start("other"), Err(Error::AlreadyRunning { pid, .. }) if pid == vm.pid()));
        assert!(matches!(second.run("other"), Err(Error::AlreadyRunning { pid, .. }) if pid == vm.pid()));
        assert_eq!(second, before);
    }
    assert!(vm.try_wait().is_none());
    assert_eq!(fs::read(test_dir.path("vm/hyperkit.json")).unwrap(), recorded);
    assert!(!test_dir.path("vm/disk.img").exists());
    // A symlink to the state directory refers to the same VM.
    symlink(test_dir.path("vm"), test_dir.path("alias")).unwrap();
    let second = test_dir.description().state_dir(test_dir.path("alias")).start("other");
    assert!(matches!(second, Err(Error::AlreadyRunning { pid, .. }) if pid == vm.pid()));
    assert!(HyperKit::from_state(test_dir.path("alias")).unwrap().is_running().unwrap());
}

#[test]
fn vm_is_found_after_its_state_directory_symlink_is_deleted() {
    let test_dir = TestDir::new();
    let _stop = test_dir.stop_on_drop();
    fs::create_dir(test_dir.path("vm")).unwrap();
    symlink(test_dir.path("vm"), test_dir.path("alias")).unwrap();
    let vm = test_dir.description().state_dir(test_dir.path("alias")).start("guest").unwrap();
    fs::remove_file(test_dir.path("alias")).unwrap();
    let found = HyperKit::from_state(test_dir.path("vm")).unwrap();
    assert_eq!(found.recorded_pid(), Some(vm.pid()));
    assert_eq!(found.vm().unwrap().unwrap().pid(), vm.pid());
    let second = test_dir.description().start("guest");
    assert!(matches!(second, Err(Error::AlreadyRunning { pid, .. }) if pid == vm.pid()), "{second:?}");
    vm.kill().unwrap();
}

/// So another process can attach from another working directory.
#[test]
fn start_makes_paths_absolute() {
    let test_dir = TestDir::new();
    let _stop = test_dir.stop_on_drop();
    listen_as_vpnkit(&test_dir.path("vpnkit"), Handshake::All);
    let up = std::env::current_dir().unwrap().components().skip(1).map(|_| "..").collect::<PathBuf>();
    let relative = |name: &str| up.join(test_dir.path(name).strip_prefix("/").unwrap());
    let description = test_dir.description().kernel(relative("vmlinuz")).network(Network::VpnKit(relative("vpnkit")));
    let vm = description.start("guest").unwrap();
    let found = HyperKit::from_state(test_dir.path("vm")).unwrap();
    for started in [vm.description(), &found] {
        assert!(started.kernel.as_ref().unwrap().is_absolute());
        assert!(matches!(&started.network, Network::VpnKit(path) if path.is_absolute()));
    }
}

#[test]
fn disks_follow_a_moved_or_copied_state_directory() {
    let test_dir = TestDir::new();
    let _stops = ["vm", "moved", "copy"].map(|name| StopOnDrop(test_dir.path(name)));
    let elsewhere = Disk::raw(test_dir.path("elsewhere.img")).size_mib(1);
    let description = test_dir.description().disk(Disk::in_state_dir(1)).disk(elsewhere.clone());
    description.start("guest").unwrap().kill().unwrap();
    fs::write(test_dir.path("vm/disk.img"), vec![7; 1024 * 1024]).unwrap();
    fs::rename(test_dir.path("vm"), test_dir.path("moved")).unwrap();

    let moved = HyperKit::from_state(test_dir.path("moved")).unwrap();
    assert_eq!(moved.disks[0].path, Some(test_dir.path("moved/disk.img")));
    assert_eq!(moved.disks[1].path, elsewhere.path);
    let vm = moved.start("guest").unwrap();
    vm.kill().unwrap();
    assert_eq!(vm.description().disks[0].path, Some(test_dir.path("moved/disk.img")));
    assert_eq!(vm.description().disks[1].path, elsewhere.path);
    assert!(!test_dir.path("vm").exists(), "something was created in the old place");
    fs::create_dir(test_dir.path("copy")).unwrap();
    for name in ["hyperkit.json", "disk.img"] {
        fs::copy(test_dir.path("moved").join(name), test_dir.path("copy").join(name)).unwrap();
    }
    let copy = HyperKit::from_state(test_dir.path("copy")).unwrap();
    assert_eq!(copy.disks[0].path, Some(test_dir.path("copy/disk.img")));
    assert_eq!(copy.disks[1].path, elsewhere.path);
    copy.remove(Disks::Delete).unwrap();
    assert!(!test_dir.path("copy").exists());
    assert_eq!(fs::read(test_dir.path("moved/disk.img")).unwrap(), vec![7; 1024 * 1024]);
}

#[test]
fn hypervisor_that_cannot_be_executed_is_an_error() {
    let test_dir = TestDir::new();
    let program = test_dir.write_executable("hyperkit", b"not a program");
    match test_dir.description().hyperkit(&program).start("guest") {
        Err(Error::Io { action: "start", path, .. }) => assert_eq!(path, program),
        other => panic!("{other:?}"),
    }
    assert!(!test_dir.path("vm").exists());
    test_dir.description().start("guest").unwrap().kill().unwrap();
}

#[test]
fn wait_works_from_many_threads_and_after_exit() {
    let test_dir = TestDir::new();
    let (_, vm, _stop) = start_vm(&test_dir, "guest");
    assert_eq!(vm.try_wait(), None);
    assert_eq!(vm.wait_timeout(Duration::from_millis(1)), None);
    wait_until("the guest is up", || console_output(&test_dir).contains("Command line"));
    std::thread::scope(|scope| {
        let waiting: Vec<_> = (0..10).map(|_| scope.spawn(|| vm.wait())).collect();
        kill_process(to_pid(vm.pid()), Signal::TERM).unwrap();
        waiting.into_iter().for_each(|thread| assert_eq!(thread.join().unwrap(), Exit::PowerOff));
    });
    assert_eq!(vm.try_wait(), Some(Exit::PowerOff));
    assert_eq!(vm.wait_timeout(Duration::MAX), Some(Exit::PowerOff));
}

#[test]
fn dropped_handle_leaves_the_vm_running_and_it_is_reaped() {
    let test_dir = TestDir::new();
    let (description, vm, _stop) = start_vm(&test_dir, "guest");
    let pid = to_pid(vm.pid());
    drop(vm);
    assert!(description.is_running().unwrap());
    kill_process(pid, Signal::KILL).unwrap();
    // A signal to a zombie succeeds, so this waits until the process is reaped.
    wait_until("the hypervisor is reaped", || test_kill_process(pid).is_err());
}

#[test]
fn hypervisor_has_its_own_process_group() {
    let test_dir = TestDir::new();
    let (_, vm, _stop) = start_vm(&test_dir, "guest");
    assert_eq!(getpgid(Some(to_pid(vm.pid()))).unwrap(), to_pid(vm.pid()));
}

#[test]
fn run_without_state_directory_leaves_no_files() {
    let test_dir = TestDir::new();
    // In another process, since the console is the stdout of the process.
    let mut boot = Command::new(example_path("boot"));
    boot.arg("--hyperkit").arg(standin_path()).arg("--kernel").arg(test_dir.path("vmlinuz"));
    let output =
        boot.args(["--no-state", "--cmdline", "guest.say=hello guest.exit=0"]).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("\nhello\r\n"), "{output:?}");
    assert_eq!(file_names(&test_dir.dir()), ["initrd.img", "vmlinuz"]);
}
