//! A machine from start to removal, against the stand-in for hyperkit.

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Files, example, names, standin};
use hyperkit::{Disk, Error, Exit, HyperKit, Vm};
use rustix::process::{Pid, Signal, getpgid, kill_process, test_kill_process};
use serde_json::Value;

const LONG: Duration = Duration::from_secs(60);

fn raw(pid: u32) -> Pid {
    Pid::from_raw(pid.try_into().unwrap()).unwrap()
}

/// Waits until something is so; a test that waits in vain fails.
fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !is_so() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Ends the machine also when the test fails.
struct Ended(HyperKit);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.stop();
    }
}

fn started(files: &Files, guest: &str) -> (Ended, Vm) {
    let mut machine = files.machine();
    let vm = machine.start(guest).unwrap();
    (Ended(machine), vm)
}

fn said(files: &Files) -> String {
    String::from_utf8_lossy(&fs::read(files.path("vm/console-ring")).unwrap_or_default())
        .trim_end_matches('\0')
        .to_owned()
}

#[test]
fn start_returns_with_everything_recorded() {
    let files = Files::new();
    let mut machine = files.machine().disk(Disk::in_state_dir(3));
    let vm = machine.start("guest").unwrap();
    let machine = Ended(machine);

    let json: Value = serde_json::from_slice(&fs::read(files.path("vm/hyperkit.json")).unwrap()).unwrap();
    assert_eq!(json["pid"], vm.pid());
    assert_eq!(fs::read_to_string(files.path("vm/hyperkit.pid")).unwrap(), vm.pid().to_string());
    assert_eq!(json["hyperkit"], standin().to_str().unwrap());
    let arguments: Vec<String> = serde_json::from_value(json["arguments"].clone()).unwrap();
    assert_eq!(arguments, machine.0.arguments("guest").unwrap());
    assert_eq!(json["cmdline"], format!("{} {}", standin().display(), arguments.join(" ")));
    assert_eq!(json["disk"], files.path("vm/disk.img").to_str().unwrap());
    assert_eq!(json["state_dir"], files.path("vm").to_str().unwrap());
    assert_eq!(HyperKit::from_state(files.path("vm")).unwrap(), machine.0);
    assert_eq!(files.path("vm/disk.img").metadata().unwrap().len(), 3 * 1024 * 1024);
    assert!(fs::read_to_string(files.path("vm/hyperkit.log")).unwrap().contains("COM1 connected to"));
    let ran = fs::read(format!("/proc/{}/cmdline", vm.pid()));
    if let Ok(ran) = ran {
        let ran: Vec<_> = ran.split(|&byte| byte == 0).skip(1).filter(|argument| !argument.is_empty()).collect();
        assert_eq!(ran, arguments.iter().map(String::as_bytes).collect::<Vec<_>>());
    }

    let mode = |path: &str| files.path(path).metadata().unwrap().mode() & 0o777;
    assert_eq!(mode("vm"), 0o700);
    for ours in ["hyperkit.json", "hyperkit.log", "disk.img"] {
        assert_eq!(mode(&format!("vm/{ours}")), 0o600, "{ours}");
    }
}

#[test]
fn another_process_finds_stops_and_removes_it() {
    let files = Files::new();
    let (machine, vm) = started(&files, "guest");
    let other = |action: &str| {
        let dir = files.path("vm");
        Command::new(example("boot")).args([action, "--state-dir", dir.to_str().unwrap()]).output().unwrap()
    };
    let refused = other("--remove");
    assert!(!refused.status.success());
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(why.contains(&format!("running, as process {}", vm.pid())), "{why}");

    let stopped = other("--stop");
    assert!(stopped.status.success(), "{stopped:?}");
    assert!(!machine.0.is_running());
    assert!(!files.path("vm/hyperkit.pid").exists());
    assert_eq!(vm.wait().unwrap(), Exit::Killed(9));
    assert!(other("--remove").status.success());
    assert!(!files.path("vm").exists());
    let nothing = other("--stop");
    assert!(!nothing.status.success());
    assert!(String::from_utf8_lossy(&nothing.stderr).contains("no machine is remembered here"));
}

#[test]
fn stop_returns_when_process_and_pid_file_are_gone_and_start_works_again() {
    let files = Files::new();
    let mut machine = files.machine();
    for _ in 0..3 {
        let vm = machine.start("guest").unwrap();
        assert!(machine.is_running());
        machine.stop().unwrap();
        assert!(test_kill_process(raw(vm.pid())).is_err(), "a zombie at best");
        assert!(!files.path("vm/hyperkit.pid").exists());
        assert!(!machine.is_running());
        assert_eq!(vm.wait().unwrap(), Exit::Killed(9));
        vm.stop().unwrap(); // once more is no error
        machine.stop().unwrap();
    }
}

#[test]
fn it_starts_over_a_pid_file_that_a_killed_machine_left() {
    let files = Files::new();
    let (mut machine, vm) = started(&files, "guest");
    kill_process(raw(vm.pid()), Signal::KILL).unwrap();
    assert_eq!(vm.wait().unwrap(), Exit::Killed(9));
    assert!(files.path("vm/hyperkit.pid").exists(), "the stand-in is to leave it");
    assert!(!machine.0.is_running());
    let again = machine.0.start("guest").unwrap();
    assert_ne!(again.pid(), vm.pid());
}

#[test]
fn a_second_start_is_told_of_the_first_and_changes_nothing() {
    let files = Files::new();
    let (machine, vm) = started(&files, "guest");
    let recorded = fs::read(files.path("vm/hyperkit.json")).unwrap();
    for mut second in [files.machine(), machine.0.clone(), files.machine().cpus(2).disk(Disk::in_state_dir(1))] {
        let before = second.clone();
        assert!(matches!(second.start("other"), Err(Error::AlreadyRunning { pid }) if pid == vm.pid()));
        assert!(matches!(second.run("other"), Err(Error::AlreadyRunning { pid }) if pid == vm.pid()));
        assert_eq!(second, before);
    }
    assert!(vm.try_wait().unwrap().is_none());
    assert_eq!(fs::read(files.path("vm/hyperkit.json")).unwrap(), recorded);
    assert!(!files.path("vm/disk.img").exists());
    // The directory has one machine under each of its names.
    symlink(files.path("vm"), files.path("alias")).unwrap();
    let second = files.machine().state_dir(files.path("alias")).start("other");
    assert!(matches!(second, Err(Error::AlreadyRunning { pid }) if pid == vm.pid()));
    assert!(HyperKit::from_state(files.path("alias")).unwrap().is_running());
}

#[test]
fn run_tells_how_the_guest_ended() {
    for (code, exit) in
        [(0, Exit::PowerOff), (2, Exit::Reset), (3, Exit::TripleFault), (1, Exit::Failed(1)), (100, Exit::Failed(100))]
    {
        let files = Files::new();
        match files.machine().run(&format!("guest.exit={code}")) {
            Ok(ended) => assert_eq!(ended, exit),
            // One that ends so soon has not started; a guest's own end is none the less its end.
            Err(Error::StartFailed { exit: ended, .. }) => {
                assert!(ended == exit && code != 0 && code != 2 && code != 3)
            }
            Err(error) => panic!("{error}"),
        }
        assert!(!files.path("vm/hyperkit.pid").exists());
        assert!(said(&files).contains(&format!("Command line: earlyprintk=serial guest.exit={code}")));
    }
}

#[test]
fn signals_end_it_as_they_do() {
    // SIGTERM is the power button, once the guest listens; before that it kills, as others do.
    for (guest, signal, exit) in [
        ("guest", Signal::TERM, Exit::PowerOff),
        ("guest.no-acpi", Signal::TERM, Exit::Killed(15)),
        ("guest", Signal::INT, Exit::Killed(2)),
        ("guest", Signal::KILL, Exit::Killed(9)),
    ] {
        let files = Files::new();
        let (_machine, vm) = started(&files, guest);
        eventually("the guest is up", || said(&files).contains("Command line"));
        kill_process(raw(vm.pid()), signal).unwrap();
        assert_eq!(vm.wait_timeout(LONG).unwrap(), Some(exit));
        assert_eq!(files.path("vm/hyperkit.pid").exists(), exit != Exit::PowerOff);
    }
}

#[test]
fn a_program_that_dies_at_its_start_is_an_error_with_its_last_words() {
    let files = Files::new();
    let mut machine = files.machine();
    let before = machine.clone();
    match machine.start("vmm.die-early=7") {
        Err(Error::StartFailed { exit: Exit::Failed(7), last_words }) => assert_eq!(last_words, "dying early"),
        other => panic!("{other:?}"),
    }
    assert_eq!(machine, before);
    assert!(!files.path("vm/hyperkit.pid").exists());
    assert!(!HyperKit::from_state(files.path("vm")).unwrap().is_running());
    machine.start("guest").unwrap().stop().unwrap();

    // A disk that another machine has locked.
    let image = files.path("shared.img");
    let (_first, _vm) = {
        let mut machine = files.machine().disk(Disk::raw(&image).size(1));
        let vm = machine.start("guest").unwrap();
        (Ended(machine), vm)
    };
    match files.machine().state_dir(files.path("vm2")).disk(Disk::raw(&image)).start("guest") {
        Err(Error::StartFailed { exit: Exit::Failed(1), last_words }) => {
            assert_eq!(last_words, format!("Could not lock backing file: {}", image.display()));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_program_that_cannot_be_executed_leaves_no_machine() {
    let files = Files::new();
    let program = files.write("hyperkit", b"not a program");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    match files.machine().hyperkit(&program).start("guest") {
        Err(Error::Io { action: "start", path, .. }) => assert_eq!(path, program),
        other => panic!("{other:?}"),
    }
    assert!(!HyperKit::from_state(files.path("vm")).unwrap().is_running());
    files.machine().start("guest").unwrap().stop().unwrap();
}

#[test]
fn remove_deletes_what_was_made_and_nothing_else() {
    let files = Files::new();
    fs::create_dir(files.path("vm")).unwrap();
    let own = files.write("vm/own.img", &[0; 4096]);
    let outside = files.path("outside.img");
    let mut machine = files
        .machine()
        .disk(Disk::in_state_dir(1))
        .disk(Disk::raw(&own))
        .disk(Disk::raw(files.path("vm/made.img")).size(1))
        .disk(Disk::raw(&outside).size(1))
        .vsock(true)
        .vsock_port(2374);
    machine.start("guest").unwrap();
    assert!(matches!(machine.remove(false), Err(Error::StillRunning { pid }) if Some(pid) == machine.pid));
    let all = [
        "00000003.00000946",
        "connect",
        "console-ring",
        "disk.img",
        "guest.00000946",
        "hyperkit.json",
        "hyperkit.log",
        "hyperkit.pid",
        "made.img",
        "own.img",
        "tty",
    ];
    assert_eq!(files.state_files(), all);
    machine.stop().unwrap();
    files.write("vm/notes.txt", b"mine");

    machine.remove(true).unwrap();
    assert_eq!(files.state_files(), ["disk.img", "made.img", "notes.txt", "own.img"]);
    // A start over what was left does not make it the crate's own.
    machine.start("guest").unwrap().stop().unwrap();
    HyperKit::from_state(files.path("vm")).unwrap().remove(false).unwrap();
    assert_eq!(files.state_files(), ["notes.txt", "own.img"]);
    assert_eq!(fs::read(&own).unwrap(), [0; 4096]);
    assert!(outside.exists());
}

#[test]
fn remove_takes_the_directory_if_that_leaves_it_empty() {
    let files = Files::new();
    let mut machine = files.machine().disk(Disk::in_state_dir(1));
    machine.start("guest").unwrap().stop().unwrap();
    machine.remove(false).unwrap();
    assert_eq!(names(&files.dir()), ["initrd.img", "vmlinuz"]);
    machine.remove(false).unwrap(); // there is nothing left to do
}

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
    let (machine, vm) = started(&files, "guest with spaces  and ünïcode");
    let mut forgotten = machine.0.clone();
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
fn waiting_works_from_many_threads_and_after_the_end() {
    let files = Files::new();
    let (_machine, vm) = started(&files, "guest");
    assert_eq!(vm.try_wait().unwrap(), None);
    assert_eq!(vm.wait_timeout(Duration::from_millis(1)).unwrap(), None);
    std::thread::scope(|scope| {
        let waiting: Vec<_> = (0..10).map(|_| scope.spawn(|| vm.wait().unwrap())).collect();
        kill_process(raw(vm.pid()), Signal::TERM).unwrap();
        waiting.into_iter().for_each(|thread| assert_eq!(thread.join().unwrap(), Exit::PowerOff));
    });
    assert_eq!(vm.try_wait().unwrap(), Some(Exit::PowerOff));
    assert_eq!(vm.wait_timeout(Duration::MAX).unwrap(), Some(Exit::PowerOff));
}

#[test]
fn a_machine_taken_up_can_be_waited_for() {
    let files = Files::new();
    let take_up = || HyperKit::from_state(files.path("vm")).unwrap().vm().unwrap();
    // By the program that started it.
    let (machine, vm) = started(&files, "guest");
    let taken_up = take_up().unwrap();
    assert_eq!(taken_up.pid(), vm.pid());
    machine.0.stop().unwrap();
    assert_eq!(taken_up.wait().unwrap(), Exit::Killed(9));
    assert!(take_up().is_none());

    // By another, which cannot know how it ended.
    let mut boot = Command::new(example("boot"));
    boot.arg("--hyperkit").arg(standin()).arg("--kernel").arg(files.path("vmlinuz")).arg("--background");
    assert!(boot.arg("--state-dir").arg(files.path("vm")).output().unwrap().status.success());
    let taken_up = take_up().unwrap();
    assert_eq!(taken_up.wait_timeout(Duration::from_millis(1)).unwrap(), None);
    machine.0.stop().unwrap();
    assert_eq!(taken_up.wait().unwrap(), Exit::Unknown);
    assert!(take_up().is_none());
}

#[test]
fn a_dropped_handle_leaves_it_running_and_it_is_reaped_all_the_same() {
    let files = Files::new();
    let (machine, vm) = started(&files, "guest");
    let pid = raw(vm.pid());
    drop(vm);
    assert!(machine.0.is_running());
    kill_process(pid, Signal::KILL).unwrap();
    // A zombie could still be sent a signal.
    eventually("it is reaped", || test_kill_process(pid).is_err());
}

#[test]
fn it_has_a_process_group_of_its_own() {
    let files = Files::new();
    let (_machine, vm) = started(&files, "guest");
    assert_eq!(getpgid(Some(raw(vm.pid()))).unwrap(), raw(vm.pid()));
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
    let mut machine = Ended(HyperKit::from_state(files.path("vm")).unwrap());
    assert!(machine.0.is_running());
    assert_eq!(machine.0.kernel, Some(files.path("vmlinuz")));
    assert!(files.path("d.img").exists());
    boot(&["--stop", "--state-dir", files.path("vm").to_str().unwrap()], Path::new("/"));
    assert!(!machine.0.is_running());
    machine.0.start("guest").unwrap();
}

#[test]
fn without_a_state_directory_nothing_is_kept() {
    let files = Files::new();
    // In a process of its own: the console is its standard output.
    let mut boot = Command::new(example("boot"));
    boot.arg("--hyperkit").arg(standin()).arg("--kernel").arg(files.path("vmlinuz"));
    let output = boot.args(["--cmdline", "guest.say=hello guest.exit=0"]).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("\nhello\r\n"), "{output:?}");
    assert_eq!(names(&files.dir()), ["initrd.img", "vmlinuz"]);
}

/// VPNKit's socket is looked for in the home directory: the newer name first.
#[test]
fn vpnkit_auto() {
    let files = Files::new();
    let data = files.path("Library/Containers/com.docker.docker/Data");
    fs::create_dir_all(&data).unwrap();
    let run = || {
        let mut boot = Command::new(example("boot"));
        boot.env("HOME", files.dir()).arg("--hyperkit").arg(standin()).arg("--kernel").arg(files.path("vmlinuz"));
        boot.arg("--state-dir").arg(files.path("vm")).args(["--vpnkit", "auto", "--cmdline", "guest.exit=0"]);
        let output = boot.stdin(Stdio::null()).output().unwrap();
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    };
    let (ran, why) = run();
    assert!(!ran && why.contains("vpnkit.eth.sock, ") && why.contains("Data/s50"), "{why}");
    let mut listeners = Vec::new();
    for name in ["s50", "vpnkit.eth.sock"] {
        listeners.push(std::os::unix::net::UnixListener::bind(data.join(name)).unwrap());
        let (ran, why) = run();
        assert!(ran, "{why}");
        let json: Value = serde_json::from_slice(&fs::read(files.path("vm/hyperkit.json")).unwrap()).unwrap();
        assert_eq!(json["vpnkit_sock"].as_str().map(PathBuf::from), Some(data.join(name)));
    }
}
