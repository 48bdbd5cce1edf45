//! Finding a running VM and attaching to it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use hyperkit::{ConfigError, Console, Error, Exit, HyperKit, Network, parse_arguments};
use serde_json::json;

use crate::common::{
    KillOnDrop, KillProcessOnDrop, TEST_TIMEOUT, TestDir, example_path, hypervisors_in, standin_path, start_vm,
    wait_until,
};
use crate::state_directory::edit_state;

/// The state directory is as if the starter had been killed before it recorded the process ID.
#[test]
fn vm_without_recorded_pid_is_found_by_its_command_line() {
    let test_dir = TestDir::new();
    let (_, vm, _stop) = start_vm(&test_dir, "guest with spaces  and ünïcode");
    edit_state(&test_dir, |state| state["pid"] = json!(null));
    fs::remove_file(test_dir.path("vm/hyperkit.pid")).unwrap();
    let found = HyperKit::from_state(test_dir.path("vm")).unwrap();
    assert_eq!(found.vm().unwrap().unwrap().pid(), vm.pid());
    assert!(matches!(test_dir.description().start("guest"), Err(Error::AlreadyRunning { pid, .. }) if pid == vm.pid()));
    found.stop().unwrap();
    assert_eq!(vm.wait(), Exit::Killed(9));
}

#[test]
fn attached_vm_can_be_waited_for() {
    let test_dir = TestDir::new();
    let attach = || HyperKit::from_state(test_dir.path("vm")).unwrap().vm().unwrap();
    // The process that started the VM attaches to it.
    let (description, vm, _stop) = start_vm(&test_dir, "guest");
    let attached = attach().unwrap();
    assert_eq!(attached.pid(), vm.pid());
    description.stop().unwrap();
    assert_eq!(attached.wait(), Exit::Killed(9));
    assert!(attach().is_none());

    // Another process started the VM, so this one cannot learn the exit status.
    let mut boot = Command::new(example_path("boot"));
    boot.arg("--hyperkit").arg(standin_path()).arg("--kernel").arg(test_dir.path("vmlinuz")).arg("--background");
    assert!(boot.arg("--state-dir").arg(test_dir.path("vm")).output().unwrap().status.success());
    let attached = attach().unwrap();
    attached.wait_for_console("Command line", TEST_TIMEOUT).unwrap();
    let tail = attached.log_tail();
    assert!(tail.hypervisor.is_empty() && tail.console.contains("Linux version 0"), "{tail}"); // stdout is buffered
    assert_eq!(attached.wait_timeout(Duration::from_millis(1)), None);
    std::thread::scope(|scope| {
        let waiting: Vec<_> = (0..10).map(|_| scope.spawn(|| attached.wait())).collect();
        description.stop().unwrap();
        waiting.into_iter().for_each(|thread| assert_eq!(thread.join().unwrap(), Exit::Unknown));
    });
    assert_eq!(attached.try_wait(), Some(Exit::Unknown));
    assert!(attach().is_none());
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
    let run = |program: &str, args: &[&str], dir: &Path| {
        let output = Command::new(example_path(program)).args(args).current_dir(dir).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    let hyperkit = standin_path();
    let start =
        ["--background", "--hyperkit", hyperkit.to_str().unwrap(), "--state-dir", "./vm", "--kernel", "vmlinuz"];
    run(
        "boot",
        &[&start[..], &["--initrd", "initrd.img", "--disk", "d.img", "--disk-size", "1", "--cmdline", "guest"]]
            .concat(),
        &test_dir.dir(),
    );
    let _stop = test_dir.stop_on_drop();
    let description = HyperKit::from_state(test_dir.path("vm")).unwrap();
    assert!(description.is_running().unwrap());
    assert_eq!(description.kernel, Some(test_dir.path("vmlinuz")));
    assert!(test_dir.path("d.img").exists());
    run("ctl", &["stop", test_dir.path("vm").to_str().unwrap()], Path::new("/"));
    assert!(!description.is_running().unwrap());
    description.start("guest").unwrap();
}

/// The Go package passes a relative state directory to hyperkit, and this process has another working directory.
#[test]
fn vm_that_go_started_with_a_relative_state_directory_is_found() {
    let test_dir = TestDir::new();
    fs::create_dir(test_dir.path("vm")).unwrap();
    symlink("vm", test_dir.path("link")).unwrap();
    let description = test_dir.description().state_dir("link").console(Console::Pty);
    let relative = description.arguments("guest").unwrap();
    let program = KillProcessOnDrop::spawn(Command::new(standin_path()).args(&relative).current_dir(test_dir.dir()));
    test_dir.write("vm/hyperkit.json", description.to_string().as_bytes());
    edit_state(&test_dir, |state| {
        state["pid"] = json!(program.0.id());
        state["arguments"] = json!(relative);
    });
    wait_until("the pid file is written", || {
        fs::read(test_dir.path("vm/hyperkit.pid")).is_ok_and(|pid| !pid.is_empty())
    });
    let second = test_dir.description().start("guest");
    let found = HyperKit::from_state(test_dir.path("vm")).unwrap().is_running().unwrap();
    assert!(found);
    assert!(matches!(second, Err(Error::AlreadyRunning { pid, .. }) if pid == program.0.id()), "{second:?}");
}

#[test]
fn list_returns_all_vms_if_one_is_corrupt() {
    let test_dir = TestDir::new();
    let (_, vm, _stop) = start_vm(&test_dir, "guest");
    let idle = test_dir.description().state_dir(test_dir.path("idle"));
    idle.start("guest").unwrap().kill().unwrap();
    fs::create_dir_all(test_dir.path("none/below")).unwrap();
    fs::create_dir(test_dir.path("damaged")).unwrap();
    test_dir.write("damaged/hyperkit.json", b"{");
    let list = HyperKit::list(test_dir.dir()).unwrap();
    let [damaged, idle, running] = &list[..] else { panic!("{list:?}") };
    assert_eq!(
        [&damaged.dir, &idle.dir, &running.dir],
        ["damaged", "idle", "vm"].map(|name| test_dir.path(name)).each_ref()
    );
    match &damaged.description {
        Err(Error::DamagedState { path, .. }) => assert_eq!(*path, test_dir.path("damaged/hyperkit.json")),
        other => panic!("{other:?}"),
    }
    let idle_description = idle.description.as_ref().unwrap();
    assert_eq!(idle_description.state_dir, Some(test_dir.path("idle")));
    assert!(!idle_description.is_running().unwrap());
    assert!(matches!((&damaged.vm, &idle.vm), (Ok(None), Ok(None))));
    let running_description = running.description.as_ref().unwrap();
    assert!(running_description.is_running().unwrap());
    assert_eq!(running_description.recorded_pid(), Some(vm.pid()));
    assert_eq!(running.vm.as_ref().unwrap().as_ref().unwrap().pid(), vm.pid());
    assert!(HyperKit::list(test_dir.path("nowhere")).unwrap().is_empty());
    match HyperKit::list(test_dir.path("vmlinuz")) {
        Err(Error::Io { path, .. }) => assert_eq!(path, test_dir.path("vmlinuz")),
        other => panic!("{other:?}"),
    }
}

#[test]
fn list_returns_a_running_vm_without_a_readable_state_file() {
    let test_dir = TestDir::new();
    let (_, vm, _stop) = start_vm(&test_dir, "guest");
    let _kill = KillOnDrop(&vm); // `StopOnDrop` finds no VM without the state file
    let listed = || {
        let [found] = HyperKit::list(test_dir.dir()).unwrap().try_into().unwrap();
        assert_eq!(found.dir, test_dir.path("vm"));
        (found.description.unwrap_err(), found.vm.unwrap().map(|vm| vm.pid()))
    };
    test_dir.write("vm/hyperkit.json", b"{");
    assert!(matches!(listed(), (Error::DamagedState { .. }, Some(pid)) if pid == vm.pid()));
    fs::remove_file(test_dir.path("vm/hyperkit.json")).unwrap();
    assert!(matches!(listed(), (Error::StateNotFound { .. }, Some(pid)) if pid == vm.pid()));
    vm.kill().unwrap();
    assert!(HyperKit::list(test_dir.dir()).unwrap().is_empty(), "a directory with nothing but logs is listed");
}

#[test]
fn vm_without_state_directory_is_found_by_its_description() {
    let test_dir = TestDir::new();
    let mut description = test_dir.description().no_serials();
    description.state_dir = None;
    let vm = description.start("guest").unwrap();
    let _stop = KillOnDrop(&vm);
    let started = vm.description();
    assert_eq!(started.vm().unwrap().unwrap().pid(), vm.pid());
    // Only the description of the started VM records its process. With any other description, the crate cannot tell whether
    // it runs.
    let unknown = description.is_running().unwrap_err();
    assert_eq!(unknown.violations(), [ConfigError::StateDirRequired { field: "vm" }]);
    // Without a state directory, two VMs share nothing. So each start starts another VM.
    let second = started.start("guest").unwrap();
    let _stop_second = KillOnDrop(&second);
    assert_ne!(second.pid(), vm.pid());
    assert_eq!(vm.try_wait(), None);
    assert_eq!(second.description().vm().unwrap().unwrap().pid(), second.pid());
    // A process with the recorded process ID, but with another start time or command line, is not the VM.
    let with = |key: &str, value: u64| {
        let mut changed = serde_json::to_value(started).unwrap();
        changed[key] = json!(value);
        serde_json::from_value::<HyperKit>(changed).unwrap()
    };
    let start_time = serde_json::to_value(started).unwrap()["pid_started"].as_u64().unwrap();
    assert!(with("pid_started", start_time).is_running().unwrap());
    assert!(!with("pid_started", start_time - 1000).is_running().unwrap());
    assert!(!with("pid", std::process::id().into()).is_running().unwrap());
    vm.kill().unwrap();
    assert!(!started.is_running().unwrap());
}

#[test]
fn vm_started_by_hand_is_found_by_its_arguments_and_stopped() {
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
    assert!(!description.is_running().unwrap(), "the VM runs before it is started");
    let mut by_hand = Command::new(&command_line[0]);
    by_hand.args(&command_line[1..]).stdin(Stdio::null()).stdout(Stdio::null());
    let by_hand = KillProcessOnDrop::spawn(&mut by_hand);
    wait_until("the VM is found", || description.is_running().unwrap());
    let vm = description.vm().unwrap().unwrap();
    assert_eq!(vm.pid(), by_hand.0.id());
    wait_until("the pty is known", || description.pty_paths().is_ok_and(|ttys| ttys.len() == 1));
    vm.kill().unwrap();
    assert_eq!(vm.wait_timeout(TEST_TIMEOUT), Some(Exit::Unknown));
    drop(by_hand);
    assert!(!description.is_running().unwrap());
    assert_eq!(hypervisors_in(&test_dir.path("vm")), [0; 0]);
    assert_eq!(test_dir.state_files(), ["console-ring"], "the pid file and the tty file are still there");
}

/// linuxkit and Docker Desktop recorded the paths relative to their working directory.
#[test]
fn relative_paths_in_a_state_file_are_relative_to_its_writer() {
    let test_dir = TestDir::new();
    let state = |dir: &str, disk: &str| {
        let state = json!({ "state_dir": dir, "kernel": "vmlinuz", "initrd": "initrd.img", "disks": [{ "path": disk, "size": 2 }] });
        fs::create_dir_all(test_dir.path("lk/min-state")).unwrap();
        test_dir.write("lk/min-state/hyperkit.json", state.to_string().as_bytes());
        HyperKit::from_state(test_dir.path("lk/min-state")).unwrap().hyperkit(standin_path())
    };
    let description = state("lk/min-state", "lk/min-disk.img");
    assert_eq!(description.kernel, Some(test_dir.path("vmlinuz")));
    assert_eq!(description.disks[0].path, Some(test_dir.path("lk/min-disk.img")));
    let disk_of = |dir: &str, disk: &str| state(dir, disk).disks[0].path.clone();
    assert_eq!(disk_of("./lk/min-state/", "d.img"), Some(test_dir.path("d.img")));
    assert_eq!(disk_of("lk/../lk/./min-state", "d.img"), Some(test_dir.path("d.img")));
    assert_eq!(disk_of("..//lk/min-state", "../lk/d.img"), Some(test_dir.path("lk/d.img")));
    assert_eq!(disk_of("../../lk/x/../min-state", "../.././d.img"), Some(test_dir.path("d.img")));
    assert_eq!(disk_of(".", "d.img"), Some(test_dir.path("lk/min-state/d.img")));
    assert_eq!(disk_of(".", "../d.img"), Some(test_dir.path("lk/min-state/../d.img")));

    // Nothing tells to which directory these are relative.
    for dir in ["other/min-state", "/lk/min-state", "", "../lk/min-state"] {
        let description =
            state(dir, "lk/min-disk.img").kernel(test_dir.path("vmlinuz")).initrd(test_dir.path("initrd.img"));
        let error = description.start("guest").unwrap_err();
        let expected = ConfigError::NotFound { field: "disks", path: "lk/min-disk.img".into() };
        assert_eq!(error.violations(), [expected], "{dir}");
        assert!(!Path::new("lk").exists());
    }
}

/// Programs and sockets, too.
#[test]
fn relative_programs_and_sockets_in_a_state_file_are_relative_to_its_writer() {
    let test_dir = TestDir::new();
    fs::create_dir_all(test_dir.path("lk/min-state")).unwrap();
    let load = |program: &str| {
        let state = json!({ "state_dir": "lk/min-state", "hyperkit": program, "vpnkit_sock": "lk/vpnkit" });
        test_dir.write("lk/min-state/hyperkit.json", state.to_string().as_bytes());
        HyperKit::from_state(test_dir.path("lk/min-state")).unwrap()
    };
    assert_eq!(load("lk/hyperkit").hyperkit, Some(test_dir.path("lk/hyperkit")));
    assert_eq!(load("lk/hyperkit").network, Network::VpnKit(test_dir.path("lk/vpnkit")));
    assert_eq!(load("hyperkit").hyperkit, Some("hyperkit".into()), "it is searched on PATH");
}

/// Every command line of Docker Desktop has `-F vms/0/hyperkit.pid`.
#[test]
fn vm_of_a_command_line_with_relative_paths_is_found_and_stopped() {
    for (state_dir, work_dir) in [("vms/0", ""), (".", "vms/0"), ("..", "vms/0/x"), ("./x/..", "vms/0")] {
        let test_dir = TestDir::new();
        fs::create_dir_all(test_dir.path("vms/0/x")).unwrap();
        let description = test_dir.description().state_dir(state_dir).console(Console::Pty);
        let mut arguments = description.arguments("guest").unwrap();
        // Other programs do not clean paths.
        if state_dir != "." {
            let words = arguments.iter_mut().filter(|word| word.ends_with("hyperkit.pid"));
            words.for_each(|word| *word = format!("{state_dir}/hyperkit.pid"));
        }
        let mut hyperkit = Command::new(standin_path());
        hyperkit.args(&arguments).current_dir(test_dir.path(work_dir)).stdout(Stdio::null()).stderr(Stdio::null());
        let mut program = KillProcessOnDrop::spawn(&mut hyperkit);
        wait_until("the pid file is written", || {
            fs::read(test_dir.path("vms/0/hyperkit.pid")).is_ok_and(|pid| !pid.is_empty())
        });
        let (parsed, _) = parse_arguments(&arguments).unwrap();
        assert_eq!(parsed.state_dir.as_deref(), Some(Path::new(state_dir)));
        let vm = parsed.vm().unwrap().expect("it runs");
        assert_eq!((vm.pid(), vm.state_dir()), (program.0.id(), Some(&*test_dir.path("vms/0"))));
        assert!(parsed.is_running().unwrap());
        let second = parsed.clone().hyperkit(standin_path()).start("guest");
        assert!(matches!(second, Err(Error::AlreadyRunning { pid, .. }) if pid == vm.pid()), "{second:?}");
        parsed.stop().unwrap();
        program.0.wait().unwrap();
        assert!(parsed.vm().unwrap().is_none() && !Path::new("vms").exists());
    }
}
