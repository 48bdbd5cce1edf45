//! A machine from start to removal, against the stand-in for hyperkit.

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{Files, LONG, eventually, example, names, raw, said, standin, started};
use hyperkit::{Disk, Error, Exit, HyperKit, VpnKit};
use rustix::process::{Signal, getpgid, kill_process, test_kill_process};
use serde_json::Value;

#[test]
fn start_returns_with_everything_recorded() {
    let files = Files::new();
    let mut machine = files.machine().disk(Disk::in_state_dir(3));
    let _end = files.ended();
    let vm = machine.start("guest").unwrap();

    let json: Value = serde_json::from_slice(&fs::read(files.path("vm/hyperkit.json")).unwrap()).unwrap();
    assert_eq!(json["pid"], vm.pid());
    assert_eq!(fs::read_to_string(files.path("vm/hyperkit.pid")).unwrap(), vm.pid().to_string());
    assert_eq!(json["hyperkit"], standin().to_str().unwrap());
    let arguments: Vec<String> = serde_json::from_value(json["arguments"].clone()).unwrap();
    assert_eq!(arguments, machine.arguments("guest").unwrap());
    assert_eq!(json["cmdline"], format!("{} {}", standin().display(), arguments.join(" ")));
    assert_eq!(json["disk"], files.path("vm/disk.img").to_str().unwrap());
    assert_eq!(json["state_dir"], files.path("vm").to_str().unwrap());
    assert_eq!(HyperKit::from_state(files.path("vm")).unwrap(), machine);
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
    let (machine, vm, _end) = started(&files, "guest");
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
    assert!(!machine.is_running());
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
    let (mut machine, vm, _end) = started(&files, "guest");
    kill_process(raw(vm.pid()), Signal::KILL).unwrap();
    assert_eq!(vm.wait().unwrap(), Exit::Killed(9));
    assert!(files.path("vm/hyperkit.pid").exists(), "the stand-in is to leave it");
    assert!(!machine.is_running());
    let again = machine.start("guest").unwrap();
    assert_ne!(again.pid(), vm.pid());
}

#[test]
fn a_second_start_is_told_of_the_first_and_changes_nothing() {
    let files = Files::new();
    let (machine, vm, _end) = started(&files, "guest");
    let recorded = fs::read(files.path("vm/hyperkit.json")).unwrap();
    for mut second in [files.machine(), machine.clone(), files.machine().cpus(2).disk(Disk::in_state_dir(1))] {
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
fn a_machine_is_found_when_the_link_that_led_its_starter_there_is_gone() {
    let files = Files::new();
    let _end = files.ended();
    fs::create_dir(files.path("vm")).unwrap();
    symlink(files.path("vm"), files.path("alias")).unwrap();
    let vm = files.machine().state_dir(files.path("alias")).start("guest").unwrap();
    fs::remove_file(files.path("alias")).unwrap();
    assert_eq!(HyperKit::from_state(files.path("vm")).unwrap().pid, Some(vm.pid()));
    let second = files.machine().start("guest");
    assert!(matches!(second, Err(Error::AlreadyRunning { pid }) if pid == vm.pid()), "{second:?}");
    vm.stop().unwrap();
}

/// Whoever takes it up may be somewhere else.
#[test]
fn a_started_machine_has_absolute_paths() {
    let files = Files::new();
    let _end = files.ended();
    let _vpnkit = UnixListener::bind(files.path("vpnkit")).unwrap();
    let up = std::env::current_dir().unwrap().components().skip(1).map(|_| "..").collect::<PathBuf>();
    let relative = |name: &str| up.join(files.path(name).strip_prefix("/").unwrap());
    let mut machine = files.machine().kernel(relative("vmlinuz")).vpnkit(VpnKit::Socket(relative("vpnkit")));
    machine.start("guest").unwrap();
    assert!(machine.kernel.unwrap().is_absolute());
    assert!(matches!(machine.vpnkit, VpnKit::Socket(path) if path.is_absolute()));
}

#[test]
fn run_tells_how_the_guest_ended() {
    for (code, exit) in
        [(0, Exit::PowerOff), (2, Exit::Reset), (3, Exit::TripleFault), (1, Exit::Failed(1)), (100, Exit::Failed(100))]
    {
        let files = Files::new();
        match files.machine().run(&format!("vmm.say=working guest.exit={code}")) {
            Ok(ended) => assert!(ended == exit && code != 1 && code != 100),
            Err(Error::ProgramFailed { exit: ended, last_words }) => {
                assert!(ended == exit && (code == 1 || code == 100));
                assert!(last_words.program.contains("working"), "{last_words}");
            }
            Err(error) => panic!("{error}"),
        }
        assert!(!files.path("vm/hyperkit.pid").exists());
        assert!(said(&files).contains(&format!("guest.exit={code}")));
    }
}

#[test]
fn signals_end_it_as_they_do() {
    // SIGTERM is the power button, once the guest listens; before that it kills, as others do: here one that
    // neither a script ignores for what it starts in the background, nor Rust's std has a handler for in the stand-in.
    for (guest, signal, exit) in [
        ("guest", Signal::TERM, Exit::PowerOff),
        ("guest.no-acpi", Signal::TERM, Exit::Killed(15)),
        ("guest", Signal::ALARM, Exit::Killed(14)),
        ("guest", Signal::KILL, Exit::Killed(9)),
    ] {
        let files = Files::new();
        let (_, vm, _end) = started(&files, guest);
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
        Err(Error::ProgramFailed { exit: Exit::Failed(7), last_words }) => {
            assert_eq!(last_words.program, "dying early")
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(machine, before);
    assert!(!files.path("vm/hyperkit.pid").exists());
    assert!(!HyperKit::from_state(files.path("vm")).unwrap().is_running());
    machine.start("guest").unwrap().stop().unwrap();
}

#[test]
fn the_disks_in_a_state_directory_go_with_it_where_it_is_moved_or_copied() {
    let files = Files::new();
    let _ends = ["vm", "moved", "copy"].map(|name| common::Ended(files.path(name)));
    let elsewhere = Disk::raw(files.path("elsewhere.img")).size(1);
    let mut machine = files.machine().disk(Disk::in_state_dir(1)).disk(elsewhere.clone());
    machine.start("guest").unwrap().stop().unwrap();
    fs::write(files.path("vm/disk.img"), vec![7; 1024 * 1024]).unwrap();
    fs::rename(files.path("vm"), files.path("moved")).unwrap();

    let mut moved = HyperKit::from_state(files.path("moved")).unwrap();
    assert_eq!(moved.disks[0].path, Some(files.path("moved/disk.img")));
    assert_eq!(moved.disks[1].path, elsewhere.path);
    moved.start("guest").unwrap().stop().unwrap();
    assert!(!files.path("vm").exists(), "nothing is made anew in the old place");
    fs::create_dir(files.path("copy")).unwrap();
    for name in ["hyperkit.json", "disk.img"] {
        fs::copy(files.path("moved").join(name), files.path("copy").join(name)).unwrap();
    }
    let copy = HyperKit::from_state(files.path("copy")).unwrap();
    assert_eq!(copy.disks[0].path, Some(files.path("copy/disk.img")));
    copy.remove(false).unwrap();
    assert_eq!(fs::read(files.path("moved/disk.img")).unwrap(), vec![7; 1024 * 1024]);
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

/// Of those that were made only the names are remembered.
#[test]
fn remove_deletes_no_namesake_of_a_disk_that_was_made_elsewhere() {
    let files = Files::new();
    fs::create_dir(files.path("vm")).unwrap();
    let own = files.write("vm/d.img", b"precious");
    let mut machine = files.machine().disk(Disk::raw(files.path("d.img")).size(1));
    machine.start("guest").unwrap().stop().unwrap();
    machine.remove(false).unwrap();
    assert_eq!(fs::read(own).unwrap(), b"precious");
}

#[test]
fn a_disk_that_was_made_is_remembered_by_whatever_way_and_by_whomever_it_is_used_next() {
    let files = Files::new();
    fs::create_dir(files.path("vm")).unwrap();
    symlink(files.path("vm"), files.path("alias")).unwrap();
    for _ in 0..2 {
        let mut machine = files.machine().disk(Disk::raw(files.path("alias/d.img")).size(1));
        machine.start("guest").unwrap().stop().unwrap();
    }
    files.machine().remove(false).unwrap();
    assert!(!files.path("vm").exists());
}

#[test]
fn remove_without_a_state_file_touches_nothing() {
    let files = Files::new();
    fs::create_dir(files.path("vm")).unwrap();
    for own in ["tty", "console-ring", "hyperkit.log", "disk.img"] {
        files.write(&format!("vm/{own}"), b"mine");
    }
    files.machine().remove(false).unwrap();
    assert_eq!(files.state_files(), ["console-ring", "disk.img", "hyperkit.log", "tty"]);
}

#[test]
fn remove_takes_what_a_crash_has_left_of_the_making_of_a_disk() {
    let files = Files::new();
    let mut machine = files.machine().disk(Disk::in_state_dir(1));
    machine.start("guest").unwrap().stop().unwrap();
    files.write("vm/.disk.img.new", b"");
    machine.remove(false).unwrap();
    assert!(!files.path("vm").exists());
}

#[test]
fn remove_says_when_it_cannot_tell_what_is_there() {
    let files = Files::new();
    let below_a_file = files.path("initrd.img/vm");
    match files.machine().state_dir(&below_a_file).remove(false) {
        Err(Error::Io { path, .. }) => assert_eq!(path, below_a_file),
        other => panic!("{other:?}"),
    }
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

#[test]
fn waiting_works_from_many_threads_and_after_the_end() {
    let files = Files::new();
    let (_, vm, _end) = started(&files, "guest");
    assert_eq!(vm.try_wait().unwrap(), None);
    assert_eq!(vm.wait_timeout(Duration::from_millis(1)).unwrap(), None);
    eventually("the guest is up", || said(&files).contains("Command line"));
    std::thread::scope(|scope| {
        let waiting: Vec<_> = (0..10).map(|_| scope.spawn(|| vm.wait().unwrap())).collect();
        kill_process(raw(vm.pid()), Signal::TERM).unwrap();
        waiting.into_iter().for_each(|thread| assert_eq!(thread.join().unwrap(), Exit::PowerOff));
    });
    assert_eq!(vm.try_wait().unwrap(), Some(Exit::PowerOff));
    assert_eq!(vm.wait_timeout(Duration::MAX).unwrap(), Some(Exit::PowerOff));
}

#[test]
fn a_dropped_handle_leaves_it_running_and_it_is_reaped_all_the_same() {
    let files = Files::new();
    let (machine, vm, _end) = started(&files, "guest");
    let pid = raw(vm.pid());
    drop(vm);
    assert!(machine.is_running());
    kill_process(pid, Signal::KILL).unwrap();
    // A zombie could still be sent a signal.
    eventually("it is reaped", || test_kill_process(pid).is_err());
}

#[test]
fn it_has_a_process_group_of_its_own() {
    let files = Files::new();
    let (_, vm, _end) = started(&files, "guest");
    assert_eq!(getpgid(Some(raw(vm.pid()))).unwrap(), raw(vm.pid()));
}

#[test]
fn without_a_state_directory_nothing_is_kept() {
    let files = Files::new();
    // In a process of its own: the console is its standard output.
    let mut boot = Command::new(example("boot"));
    boot.arg("--hyperkit").arg(standin()).arg("--kernel").arg(files.path("vmlinuz"));
    let output =
        boot.args(["--no-state", "--cmdline", "guest.say=hello guest.exit=0"]).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("\nhello\r\n"), "{output:?}");
    assert_eq!(names(&files.dir()), ["initrd.img", "vmlinuz"]);
}
