//! Which process is the machine, and which only looks like it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use hyperkit::{Error, Exit, HyperKit, parse_arguments};

use crate::common::{Files, LONG, Stopped, eventually, example, machines_in, standin, started};

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
    eventually("the pid file", || fs::read(files.path("vm/hyperkit.pid")).is_ok_and(|pid| !pid.is_empty()));
    let second = files.machine().start("guest");
    let found = HyperKit::from_state(files.path("vm")).unwrap().is_running();
    program.kill().unwrap();
    program.wait().unwrap();
    assert!(found);
    assert!(matches!(second, Err(Error::AlreadyRunning { pid }) if pid == program.id()), "{second:?}");
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

/// A machine that nobody remembers ends with the test, passed or failed.
struct ByHand(Child);

impl Drop for ByHand {
    fn drop(&mut self) {
        let _ = self.0.kill().and_then(|()| self.0.wait());
    }
}

#[test]
fn a_machine_started_by_hand_is_taken_up_and_stopped() {
    let files = Files::new();
    std::fs::create_dir(files.path("vm")).unwrap();
    let path = |name: &str| files.path(name).display().to_string();
    let command_line = [
        standin().display().to_string(),
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
    let (machine, _) = parse_arguments(&command_line).unwrap();
    assert!(!machine.is_running(), "it is not started yet");
    let mut by_hand = Command::new(&command_line[0]);
    by_hand.args(&command_line[1..]).stdin(Stdio::null()).stdout(Stdio::null());
    let by_hand = ByHand(by_hand.spawn().unwrap());
    eventually("it is taken up", || machine.is_running());
    let vm = machine.vm().unwrap().unwrap();
    assert_eq!(vm.pid(), by_hand.0.id());
    eventually("its pty is named", || machine.ttys().is_ok_and(|ttys| ttys.len() == 1));
    vm.stop().unwrap();
    assert_eq!(vm.wait_timeout(LONG).unwrap(), Some(Exit::Unknown));
    drop(by_hand);
    assert!(!machine.is_running());
    assert_eq!(machines_in(&files.path("vm")), [0; 0]);
    assert_eq!(files.state_files(), ["console-ring"], "what led to the machine is gone");
}
