//! Which process is the machine, and which only looks like it.

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::Barrier;
use std::time::Duration;

use common::{Files, LONG, Stopped, example, standin, started};
use hyperkit::{Error, Exit, HyperKit};

const UUID: &str = "1f0e6d3c-5f2b-4b6e-8f11-2a7d9f1c0b55";

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

/// As if the starter had died before it could write down what it had started.
#[test]
fn a_machine_that_only_its_command_line_tells_of_is_found() {
    let files = Files::new();
    let (machine, vm, _end) = started(&files, "guest with spaces  and ünïcode");
    let mut forgotten = machine.clone();
    forgotten.pid = None;
    files.write("vm/hyperkit.json", forgotten.to_string().as_bytes());
    fs::remove_file(files.path("vm/hyperkit.pid")).unwrap();
    let found = HyperKit::from_state(files.path("vm")).unwrap();
    assert_eq!(found.pid, Some(vm.pid()));
    assert!(matches!(files.machine().start("guest"), Err(Error::AlreadyRunning { pid }) if pid == vm.pid()));
    found.stop().unwrap();
    assert_eq!(vm.wait().unwrap(), Exit::Killed(9));
}

#[test]
fn a_machine_taken_up_can_be_waited_for() {
    let files = Files::new();
    let take_up = || HyperKit::from_state(files.path("vm")).unwrap().vm().unwrap();
    // By the program that started it.
    let (machine, vm, _end) = started(&files, "guest");
    let taken_up = take_up().unwrap();
    assert_eq!(taken_up.pid(), vm.pid());
    machine.stop().unwrap();
    assert_eq!(taken_up.wait().unwrap(), Exit::Killed(9));
    assert!(take_up().is_none());

    // By another, which cannot know how it ended.
    let mut boot = Command::new(example("boot"));
    boot.arg("--hyperkit").arg(standin()).arg("--kernel").arg(files.path("vmlinuz")).arg("--background");
    assert!(boot.arg("--state-dir").arg(files.path("vm")).output().unwrap().status.success());
    let taken_up = take_up().unwrap();
    taken_up.wait_for_console("Command line", LONG).unwrap();
    let words = taken_up.last_words();
    assert!(words.program.contains("COM1 connected to") && words.console.contains("Linux version 0"), "{words}");
    assert_eq!(taken_up.wait_timeout(Duration::from_millis(1)).unwrap(), None);
    std::thread::scope(|scope| {
        let waiting: Vec<_> = (0..10).map(|_| scope.spawn(|| taken_up.wait().unwrap())).collect();
        machine.stop().unwrap();
        waiting.into_iter().for_each(|thread| assert_eq!(thread.join().unwrap(), Exit::Unknown));
    });
    assert_eq!(taken_up.try_wait().unwrap(), Some(Exit::Unknown));
    assert!(take_up().is_none());
}

#[test]
fn what_is_no_state_is_an_error() {
    let files = Files::new();
    let dir = files.path("vm");
    assert!(matches!(HyperKit::from_state(&dir), Err(Error::NoState { path }) if path == dir.join("hyperkit.json")));
    fs::create_dir(&dir).unwrap();
    assert!(matches!(HyperKit::from_state(&dir), Err(Error::NoState { .. })));
    files.write("vm/hyperkit.json", b"{");
    assert!(
        matches!(HyperKit::from_state(&dir), Err(Error::DamagedState { path, .. }) if path == dir.join("hyperkit.json"))
    );
    files.machine().start("guest").unwrap().stop().unwrap();
    HyperKit::from_state(&dir).unwrap();
}

#[test]
fn relative_paths_hold_wherever_it_is_taken_up() {
    let files = Files::new();
    let boot = |args: &[&str], dir: &Path| {
        let output = Command::new(example("boot")).args(args).current_dir(dir).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    let hyperkit = standin();
    let start =
        ["--background", "--hyperkit", hyperkit.to_str().unwrap(), "--state-dir", "./vm", "--kernel", "vmlinuz"];
    boot(
        &[&start[..], &["--initrd", "initrd.img", "--disk", "d.img", "--disk-size", "1", "--cmdline", "guest"]]
            .concat(),
        &files.dir(),
    );
    let _end = files.ended();
    let mut machine = HyperKit::from_state(files.path("vm")).unwrap();
    assert!(machine.is_running());
    assert_eq!(machine.kernel, Some(files.path("vmlinuz")));
    assert!(files.path("d.img").exists());
    boot(&["--stop", "--state-dir", files.path("vm").to_str().unwrap()], Path::new("/"));
    assert!(!machine.is_running());
    machine.start("guest").unwrap();
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
    rustix::process::kill_process_group(common::raw(stranger.id()), rustix::process::Signal::KILL).unwrap();
    stranger.wait().unwrap();
    assert!(!was_running && alive);
}

/// The Go package passes on a relative state directory, and whoever takes the machine up may be elsewhere.
#[test]
fn a_machine_that_go_started_with_a_relative_path_through_a_link_is_found() {
    let files = Files::new();
    fs::create_dir(files.path("vm")).unwrap();
    symlink("vm", files.path("link")).unwrap();
    let relative = files.machine().state_dir("link").arguments("guest").unwrap();
    let mut program = Command::new(standin()).args(&relative).current_dir(files.dir()).spawn().unwrap();
    let mut machine = files.machine().state_dir("link");
    machine.pid = Some(program.id());
    machine.arguments = relative;
    files.write("vm/hyperkit.json", machine.to_string().as_bytes());
    common::eventually("the pid file", || fs::read(files.path("vm/hyperkit.pid")).is_ok_and(|pid| !pid.is_empty()));
    let second = files.machine().start("guest");
    let found = HyperKit::from_state(files.path("vm")).unwrap().is_running();
    program.kill().unwrap();
    program.wait().unwrap();
    assert!(found);
    assert!(matches!(second, Err(Error::AlreadyRunning { pid }) if pid == program.id()), "{second:?}");
}

#[test]
fn of_many_starters_at_once_one_wins() {
    let files = Files::new();
    let _end = files.ended();
    let all = Barrier::new(12);
    let started: Vec<_> = std::thread::scope(|scope| {
        let start = || {
            let mut machine = files.machine();
            all.wait();
            machine.start("guest")
        };
        let threads: Vec<_> = (0..12).map(|_| scope.spawn(start)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let winners: Vec<_> = started.iter().filter_map(|started| started.as_ref().ok()).collect();
    assert_eq!(winners.len(), 1);
    for started in &started {
        assert!(matches!(started, Ok(_) | Err(Error::AlreadyRunning { .. })), "{started:?}");
        if let Err(Error::AlreadyRunning { pid }) = started {
            assert_eq!(*pid, winners[0].pid());
        }
    }
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
        common::eventually("it has threads", || fs::read_dir(&threads).unwrap().count() > 1);
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

#[test]
fn all_machines_in_a_directory_are_listed_and_one_that_is_damaged_hides_no_other() {
    let files = Files::new();
    let (_, vm, _end) = started(&files, "guest");
    let mut idle = files.machine().state_dir(files.path("idle"));
    idle.start("guest").unwrap().stop().unwrap();
    fs::create_dir_all(files.path("none/below")).unwrap();
    fs::create_dir(files.path("damaged")).unwrap();
    files.write("damaged/hyperkit.json", b"{");
    let list = HyperKit::list(files.dir()).unwrap();
    match &list[..] {
        [Err(Error::DamagedState { path, .. }), Ok(idle), Ok(runs)] => {
            assert_eq!(*path, files.path("damaged/hyperkit.json"));
            assert_eq!(idle.state_dir, Some(files.path("idle")));
            assert!(!idle.is_running() && runs.is_running());
            assert_eq!(runs.pid, Some(vm.pid()));
        }
        other => panic!("{other:?}"),
    }
    assert!(HyperKit::list(files.path("nowhere")).unwrap().is_empty());
    match HyperKit::list(files.path("vmlinuz")) {
        Err(Error::Io { path, .. }) => assert_eq!(path, files.path("vmlinuz")),
        other => panic!("{other:?}"),
    }
}

/// hyperkit alone knows which address vmnet will give the guest, and is asked before the machine is there.
#[test]
fn the_mac_address_of_vmnet_is_recorded() {
    let files = Files::new();
    let _end = files.ended();
    let mut machine = files.machine().vmnet(true).uuid(UUID);
    let vm = machine.start("guest").unwrap();
    let state: serde_json::Value = serde_json::from_slice(&fs::read(files.path("vm/hyperkit.json")).unwrap()).unwrap();
    assert_eq!(state["vmnet_mac"], "02:00:00:00:00:01");
    assert_eq!(vm.addresses().unwrap(), [], "no lease was given here");
    vm.stop().unwrap();

    let machine = files.machine().vpnkit_preferred_ipv4("192.168.65.9").vpnkit_key(UUID);
    let socket = files.path("vpnkit.sock");
    let _vpnkit = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let vm = machine.vpnkit(hyperkit::VpnKit::Socket(socket)).start("guest").unwrap();
    assert_eq!(vm.addresses().unwrap(), [(hyperkit::Card::VpnKit, "192.168.65.9".parse().unwrap())]);
}

#[test]
fn without_a_state_directory_it_is_found_by_who_has_its_description() {
    let files = Files::new();
    let mut machine = files.machine().no_serials();
    machine.state_dir = None;
    let vm = machine.start("guest").unwrap();
    let _stop = Stopped(&vm);
    assert_eq!(machine.vm().unwrap().unwrap().pid(), vm.pid());
    assert!(matches!(machine.start("guest"), Err(Error::AlreadyRunning { pid }) if pid == vm.pid()));
    // Its pid may come to mean another, which has begun at another time or is something else.
    let mut later = serde_json::to_value(&machine).unwrap();
    later["pid_started"] = (later["pid_started"].as_u64().unwrap() - 1000).into();
    assert!(!serde_json::from_value::<HyperKit>(later).unwrap().is_running());
    let mut stranger = machine.clone();
    stranger.pid = Some(std::process::id());
    assert!(!stranger.is_running());
    vm.stop().unwrap();
    assert!(!machine.is_running());
}
