//! Machines and starters that are killed at any moment, and many starters at once.

mod common;

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{Files, boot, machines_in, raw, standin, started};
use hyperkit::{Error, Exit, HyperKit};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Signal, kill_process};

#[test]
fn a_hundred_killed_machines_never_keep_the_next_from_starting() {
    let files = Files::new();
    let (mut machine, mut vm, _end) = started(&files, "guest");
    for _ in 0..100 {
        kill_process(raw(vm.pid()), Signal::KILL).unwrap();
        assert_eq!(vm.wait().unwrap(), Exit::Killed(9));
        assert!(files.path("vm/hyperkit.pid").exists() && !machine.is_running());
        vm = machine.start("guest").unwrap();
    }
    assert_eq!(machines_in(&files.path("vm")), [vm.pid()]);
}

/// As after a power cut: the pid file names a process that was never there, and sockets and the tty lead nowhere.
#[test]
fn a_start_after_a_reboot_of_the_host() {
    let files = Files::new();
    let (machine, _vm, _end) = started(&files, "guest");
    machine.stop().unwrap();
    files.write("vm/hyperkit.pid", b"4194300");
    files.write("vm/tty", b"/dev/pts/4000");
    drop(std::os::unix::net::UnixListener::bind(files.path("vm/connect")).unwrap());
    files.write("vm/disk.img", b"precious");
    let again = files.machine().start("guest").unwrap();
    assert_ne!(fs::read(files.path("vm/tty")).unwrap(), b"/dev/pts/4000");
    assert!(!files.path("vm/connect").exists());
    assert_eq!(fs::read(files.path("vm/disk.img")).unwrap(), b"precious");
    again.stop().unwrap();
}

/// Killed at a random moment, a starter leaves nothing running, or a machine that is found.
#[test]
fn two_hundred_killed_starters_leave_nothing_or_a_machine_that_is_found() {
    let files = Files::new();
    let dir = files.path("vm");
    let _end = files.ended();
    let began = Instant::now();
    assert!(boot(&files, "guest").output().unwrap().status.success());
    let whole = began.elapsed();
    HyperKit::from_state(&dir).unwrap().remove(false).unwrap_err();
    let (mut found, mut nothing) = (0, 0);
    let mut random = u64::from(std::process::id());
    println!("seed {random}"); // shown when the test fails
    for round in 0..200 {
        files.machine().state_dir(&dir).stop().unwrap();
        if round % 4 == 0 {
            HyperKit::from_state(&dir).map_or(Ok(()), |machine| machine.remove(false)).unwrap();
        }
        let mut starter = boot(&files, "guest").spawn().unwrap();
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        std::thread::sleep(whole.mul_f64((random >> 33) as f64 / f64::from(u32::MAX / 2) * 1.2));
        starter.kill().unwrap();
        starter.wait().unwrap();

        // A state file is whole or absent.
        let recorded = match HyperKit::from_state(&dir) {
            Ok(machine) => Some(machine),
            Err(Error::NoState { .. }) => None,
            Err(error) => panic!("round {round}: {error}"),
        };
        // A child that has not yet come as far as its `exec` holds the lock, so the state can be asked after a start.
        match files.machine().start("guest") {
            Ok(vm) => {
                nothing += 1;
                assert_eq!(machines_in(&dir), [vm.pid()], "round {round}");
            }
            Err(Error::AlreadyRunning { pid }) => {
                found += 1;
                assert_eq!(machines_in(&dir), [pid], "round {round}");
                assert!(recorded.is_some());
                let taken_up = HyperKit::from_state(&dir).unwrap();
                assert!(taken_up.is_running() && taken_up.pid == Some(pid), "round {round}");
            }
            Err(error) => panic!("round {round}: {error}"),
        }
    }
    assert!(found > 0 && nothing > 0, "killed too early or too late each time: {found} found, {nothing} not");
}

#[test]
fn of_fifty_starting_processes_one_wins() {
    let files = Files::new();
    let _end = files.ended();
    let starters: Vec<_> = (0..50).map(|_| boot(&files, "guest").spawn().unwrap()).collect();
    let ended: Vec<_> = starters.into_iter().map(|starter| starter.wait_with_output().unwrap()).collect();
    let pid = HyperKit::from_state(files.path("vm")).unwrap().pid.unwrap();
    assert_eq!(machines_in(&files.path("vm")), [pid]);
    assert_eq!(ended.iter().filter(|starter| starter.status.success()).count(), 1);
    for starter in ended.iter().filter(|starter| !starter.status.success()) {
        let why = String::from_utf8_lossy(&starter.stderr);
        assert!(why.contains(&format!("the machine is running already, as process {pid}")), "{why}");
    }
}

/// Its parent has not reaped it: the pid is still taken, by nobody.
#[test]
fn a_zombie_is_not_running() {
    let files = Files::new();
    fs::create_dir(files.path("vm")).unwrap();
    let mut machine = files.machine();
    machine.arguments = machine.arguments("guest").unwrap();
    let mut zombie = Command::new(standin()).args(&machine.arguments).spawn().unwrap();
    machine.pid = Some(zombie.id());
    files.write("vm/hyperkit.json", machine.to_string().as_bytes());
    common::eventually("it runs", || HyperKit::from_state(files.path("vm")).is_ok_and(|machine| machine.is_running()));
    kill_process(raw(zombie.id()), Signal::KILL).unwrap();
    common::eventually("it is a zombie", || !machine.is_running());
    rustix::process::test_kill_process(raw(zombie.id())).expect("still there");
    machine.stop().unwrap();
    let vm = machine.start("guest").unwrap();
    assert_eq!(machines_in(&files.path("vm")), [vm.pid()]);
    vm.stop().unwrap();
    zombie.wait().unwrap();
}

#[test]
fn programs_that_die_around_their_pid_file() {
    for (guest, exit) in
        [("vmm.die-early=7", Exit::Failed(7)), ("vmm.half-pid-file", Exit::Killed(6)), ("vmm.die=8", Exit::Failed(8))]
    {
        let files = Files::new();
        match files.machine().start(guest) {
            Err(Error::ProgramFailed { exit: how, .. }) => assert_eq!(how, exit, "{guest}"),
            other => panic!("{guest}: {other:?}"),
        }
        assert_eq!(machines_in(&files.path("vm")), [] as [u32; 0]);
        files.machine().start("guest").unwrap().stop().unwrap();
    }
}

#[test]
fn a_program_that_closes_its_output_is_kept_hold_of() {
    let files = Files::new();
    let (_, vm, _end) = started(&files, "vmm.no-stdout");
    assert_eq!(vm.wait_timeout(Duration::from_millis(50)).unwrap(), None);
    vm.stop().unwrap();
    assert_eq!(vm.wait().unwrap(), Exit::Killed(9));
}

/// Whoever waits for the lock may get that of a directory that is somewhere else by then.
#[test]
fn a_start_locks_the_directory_that_is_there() {
    let files = Files::new();
    let dir = files.path("vm");
    let _end = files.ended();
    let locked = || {
        fs::create_dir(&dir).unwrap();
        let lock = fs::File::open(&dir).unwrap();
        flock(&lock, FlockOperation::LockExclusive).unwrap();
        lock
    };
    let first = locked();
    let mut machine = files.machine();
    let starting = std::thread::spawn(move || machine.start("guest"));
    std::thread::sleep(Duration::from_millis(300)); // it waits by now; if not, nothing is shown and nothing fails
    fs::rename(&dir, files.path("elsewhere")).unwrap();
    let second = locked();
    drop(first);
    std::thread::sleep(Duration::from_millis(300));
    assert!(files.state_files().is_empty(), "it goes on without the lock");
    drop(second);
    let vm = starting.join().unwrap().unwrap();
    assert_eq!(machines_in(&dir), [vm.pid()]);
}

/// Whoever waits for the lock beside a removal finds nothing left to do.
#[test]
fn ending_and_removing_beside_a_removal_is_no_error() {
    for remove in [true, false] {
        let files = Files::new();
        let (machine, vm, _end) = started(&files, "guest");
        kill_process(raw(vm.pid()), Signal::KILL).unwrap();
        vm.wait().unwrap();
        let lock = fs::File::open(files.path("vm")).unwrap();
        flock(&lock, FlockOperation::LockExclusive).unwrap();
        let second = std::thread::spawn(move || if remove { machine.remove(false) } else { vm.stop() });
        std::thread::sleep(Duration::from_millis(200)); // as above
        fs::remove_dir_all(files.path("vm")).unwrap();
        drop(lock);
        second.join().unwrap().unwrap();
    }
}

#[test]
fn nothing_of_a_killed_machine_passes_for_the_next_ones() {
    let files = Files::new();
    let _end = files.ended();
    let mut machine = files.machine().vsock(true).vsock_port(2374);
    let vm = machine.start("guest.say=long-ago").unwrap();
    common::eventually("the guest has spoken", || common::said(&files).contains("long-ago"));
    kill_process(raw(vm.pid()), Signal::KILL).unwrap();
    vm.wait().unwrap();
    // A program that dies before it has made any of it anew.
    match machine.start("vmm.die-early=7") {
        Err(Error::ProgramFailed { last_words, .. }) => assert_eq!(last_words.console, ""),
        other => panic!("{other:?}"),
    }
    assert_eq!(files.state_files(), ["hyperkit.json", "hyperkit.log"]);

    // And what is stopped leaves only what it said.
    let vm = machine.start("guest").unwrap();
    files.write("vm/hyperkit.new", b"unfinished");
    vm.stop().unwrap();
    assert_eq!(files.state_files(), ["console-ring", "hyperkit.json", "hyperkit.log"]);
}
