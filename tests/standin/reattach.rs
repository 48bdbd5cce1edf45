//! Finding a running VM and attaching to it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use hyperkit::{Error, Exit, HyperKit, parse_arguments};

use crate::common::{
    KillOnDrop, TEST_TIMEOUT, TestDir, example_path, hypervisors_in, standin_path, start_vm, wait_until,
};

/// As if the starter had died before it could record the PID.
#[test]
fn vm_without_recorded_pid_is_found_by_its_command_line() {
    let test_dir = TestDir::new();
    let (description, vm, _stop) = start_vm(&test_dir, "guest with spaces  and ünïcode");
    let mut unrecorded = description.clone();
    unrecorded.pid = None;
    test_dir.write("vm/hyperkit.json", unrecorded.to_string().as_bytes());
    fs::remove_file(test_dir.path("vm/hyperkit.pid")).unwrap();
    let found = HyperKit::from_state(test_dir.path("vm")).unwrap();
    assert_eq!(found.pid, Some(vm.pid()));
    assert!(matches!(test_dir.description().start("guest"), Err(Error::AlreadyRunning { pid, .. }) if pid == vm.pid()));
    found.stop().unwrap();
    assert_eq!(vm.wait(), Exit::Killed(9));
}

#[test]
fn attached_vm_can_be_waited_for() {
    let test_dir = TestDir::new();
    let take_up = || HyperKit::from_state(test_dir.path("vm")).unwrap().vm().unwrap();
    // In the process that started it.
    let (description, vm, _stop) = start_vm(&test_dir, "guest");
    let attached = take_up().unwrap();
    assert_eq!(attached.pid(), vm.pid());
    description.stop().unwrap();
    assert_eq!(attached.wait().unwrap(), Exit::Killed(9));
    assert!(take_up().is_none());

    // In another process, which cannot know the exit status.
    let mut boot = Command::new(example_path("boot"));
    boot.arg("--hyperkit").arg(standin_path()).arg("--kernel").arg(test_dir.path("vmlinuz")).arg("--background");
    assert!(boot.arg("--state-dir").arg(test_dir.path("vm")).output().unwrap().status.success());
    let attached = take_up().unwrap();
    attached.wait_for_console("Command line", TEST_TIMEOUT).unwrap();
    let tail = attached.log_tail();
    assert!(tail.program.contains("COM1 connected to") && tail.console.contains("Linux version 0"), "{tail}");
    assert_eq!(attached.wait_timeout(Duration::from_millis(1)), None);
    std::thread::scope(|scope| {
        let waiting: Vec<_> = (0..10).map(|_| scope.spawn(|| attached.wait().unwrap())).collect();
        description.stop().unwrap();
        waiting.into_iter().for_each(|thread| assert_eq!(thread.join().unwrap(), Exit::Unknown));
    });
    assert_eq!(attached.try_wait(), Some(Exit::Unknown));
    assert!(take_up().is_none());
}

#[test]
fn missing_or_corrupt_state_is_an_error() {
    let test_dir = TestDir::new();
    let dir = test_dir.path("vm");
    assert!(
        matches!(HyperKit::from_state(&dir), Err(Error::StateNotFound { path }) if path == dir.join("hyperkit.json"))
    );
    fs::create_dir(&dir).unwrap();
    assert!(matches!(HyperKit::from_state(&dir), Err(Error::StateNotFound { .. })));
    test_dir.write("vm/hyperkit.json", b"{");
    assert!(
        matches!(HyperKit::from_state(&dir), Err(Error::DamagedState { path, .. }) if path == dir.join("hyperkit.json"))
    );
    test_dir.description().start("guest").unwrap().kill().unwrap();
    HyperKit::from_state(&dir).unwrap();
}

#[test]
fn relative_paths_are_valid_in_any_working_directory() {
    let test_dir = TestDir::new();
    let boot = |args: &[&str], dir: &Path| {
        let output = Command::new(example_path("boot")).args(args).current_dir(dir).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    let hyperkit = standin_path();
    let start =
        ["--background", "--hyperkit", hyperkit.to_str().unwrap(), "--state-dir", "./vm", "--kernel", "vmlinuz"];
    boot(
        &[&start[..], &["--initrd", "initrd.img", "--disk", "d.img", "--disk-size", "1", "--cmdline", "guest"]]
            .concat(),
        &test_dir.dir(),
    );
    let _stop = test_dir.stop_on_drop();
    let description = HyperKit::from_state(test_dir.path("vm")).unwrap();
    assert!(description.is_running().unwrap());
    assert_eq!(description.kernel, Some(test_dir.path("vmlinuz")));
    assert!(test_dir.path("d.img").exists());
    boot(&["--stop", "--state-dir", test_dir.path("vm").to_str().unwrap()], Path::new("/"));
    assert!(!description.is_running().unwrap());
    description.start("guest").unwrap();
}

/// The Go package passes a relative state directory on to hyperkit, and the attaching process may have another working directory.
#[test]
fn vm_started_by_go_with_relative_symlink_path_is_found() {
    let test_dir = TestDir::new();
    fs::create_dir(test_dir.path("vm")).unwrap();
    symlink("vm", test_dir.path("link")).unwrap();
    let relative = test_dir.description().state_dir("link").arguments("guest").unwrap();
    let mut program = Command::new(standin_path()).args(&relative).current_dir(test_dir.dir()).spawn().unwrap();
    let description = test_dir.description().state_dir("link");
    description.pid = Some(program.id());
    description.arguments = relative;
    test_dir.write("vm/hyperkit.json", description.to_string().as_bytes());
    wait_until("the pid file is written", || {
        fs::read(test_dir.path("vm/hyperkit.pid")).is_ok_and(|pid| !pid.is_empty())
    });
    let second = test_dir.description().start("guest");
    let found = HyperKit::from_state(test_dir.path("vm")).unwrap().is_running().unwrap();
    program.kill().unwrap();
    program.wait().unwrap();
    assert!(found);
    assert!(matches!(second, Err(Error::AlreadyRunning { pid, .. }) if pid == program.id()), "{second:?}");
}

#[test]
fn list_returns_every_vm_also_next_to_a_corrupt_one() {
    let test_dir = TestDir::new();
    let (_, vm, _stop) = start_vm(&test_dir, "guest");
    let mut idle = test_dir.description().state_dir(test_dir.path("idle"));
    idle.start("guest").unwrap().kill().unwrap();
    fs::create_dir_all(test_dir.path("none/below")).unwrap();
    fs::create_dir(test_dir.path("damaged")).unwrap();
    test_dir.write("damaged/hyperkit.json", b"{");
    let list = HyperKit::list(test_dir.dir()).unwrap();
    match &list[..] {
        [Err(Error::DamagedState { path, .. }), Ok(idle), Ok(runs)] => {
            assert_eq!(*path, test_dir.path("damaged/hyperkit.json"));
            assert_eq!(idle.state_dir, Some(test_dir.path("idle")));
            assert!(!idle.is_running().unwrap() && runs.is_running().unwrap());
            assert_eq!(runs.pid, Some(vm.pid()));
        }
        other => panic!("{other:?}"),
    }
    assert!(HyperKit::list(test_dir.path("nowhere")).unwrap().is_empty());
    match HyperKit::list(test_dir.path("vmlinuz")) {
        Err(Error::Io { path, .. }) => assert_eq!(path, test_dir.path("vmlinuz")),
        other => panic!("{other:?}"),
    }
}

#[test]
fn vm_without_state_directory_is_found_by_its_description() {
    let test_dir = TestDir::new();
    let description = test_dir.description().no_serials();
    description.state_dir = None;
    let vm = description.start("guest").unwrap();
    let _stop = KillOnDrop(&vm);
    assert_eq!(description.vm().unwrap().unwrap().pid(), vm.pid());
    assert!(matches!(description.start("guest"), Err(Error::AlreadyRunning { pid, .. }) if pid == vm.pid()));
    // The PID may be reused by a process with another start time or another command line.
    let mut later = serde_json::to_value(&description).unwrap();
    later["pid_started"] = (later["pid_started"].as_u64().unwrap() - 1000).into();
    assert!(!serde_json::from_value::<HyperKit>(later).unwrap().is_running().unwrap());
    let mut other_process = description.clone();
    other_process.pid = Some(std::process::id());
    assert!(!other_process.is_running().unwrap());
    vm.kill().unwrap();
    assert!(!description.is_running().unwrap());
}

/// Kills a process that is not recorded anywhere when the test has passed or failed.
struct KillProcessOnDrop(Child);

impl Drop for KillProcessOnDrop {
    fn drop(&mut self) {
        let _ = self.0.kill().and_then(|()| self.0.wait());
    }
}

#[test]
fn vm_started_manually_can_be_attached_and_stopped() {
    let test_dir = TestDir::new();
    std::fs::create_dir(test_dir.path("vm")).unwrap();
    let path = |name: &str| test_dir.path(name).display().to_string();
    let command_line = [
        standin_path().display().to_string(),
        "-f".to_owned(),
        format!("kexec,{},{},guest", path("vmlinuz"), path("initrd.img")),
        format!("-lcom1,log={0}/console-ring,autopty={0}/tty", path("vm")),
        "-s5,virtio-rnd".to_owned(),
        "-uHAF".to_owned(),
        path("vm/../vm/hyperkit.pid"),
        "-s".to_owned(),
        "31,lpc".to_owned(),
        "-m512M".to_owned(),
        "-s0,hostbridge".to_owned(),
    ];
    let (description, _) = parse_arguments(&command_line).unwrap();
    assert!(!description.is_running().unwrap(), "the VM is not started yet");
    let mut by_hand = Command::new(&command_line[0]);
    by_hand.args(&command_line[1..]).stdin(Stdio::null()).stdout(Stdio::null());
    let by_hand = KillProcessOnDrop(by_hand.spawn().unwrap());
    wait_until("the VM is found", || description.is_running().unwrap());
    let vm = description.vm().unwrap().unwrap();
    assert_eq!(vm.pid(), by_hand.0.id());
    wait_until("its pty is known", || description.pty_paths().is_ok_and(|ttys| ttys.len() == 1));
    vm.kill().unwrap();
    assert_eq!(vm.wait_timeout(TEST_TIMEOUT), Some(Exit::Unknown));
    drop(by_hand);
    assert!(!description.is_running().unwrap());
    assert_eq!(hypervisors_in(&test_dir.path("vm")), [0; 0]);
    assert_eq!(test_dir.state_files(), ["console-ring"], "pid file and tty are deleted");
}
