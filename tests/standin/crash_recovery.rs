//! Killed hypervisors, killed starters and host reboots.

use std::fs;
use std::time::Instant;

use hyperkit::{Disks, Error, Exit, HyperKit};
use rustix::process::{Signal, kill_process};

use crate::common::{TestDir, boot_command, console_output, hypervisors_in, start_vm, to_pid, wait_until};

#[test]
fn start_succeeds_with_a_stale_pid_file() {
    let test_dir = TestDir::new();
    let (description, vm, _stop) = start_vm(&test_dir, "guest");
    kill_process(to_pid(vm.pid()), Signal::KILL).unwrap();
    assert_eq!(vm.wait(), Exit::Killed(9));
    assert!(test_dir.path("vm/hyperkit.pid").exists(), "the killed stand-in has deleted its pid file");
    assert!(!description.is_running().unwrap());
    let again = description.start("guest").unwrap();
    assert_ne!(again.pid(), vm.pid());
}

#[test]
fn start_succeeds_after_each_of_a_hundred_kills() {
    let test_dir = TestDir::new();
    let (description, mut vm, _stop) = start_vm(&test_dir, "guest");
    for _ in 0..100 {
        kill_process(to_pid(vm.pid()), Signal::KILL).unwrap();
        assert_eq!(vm.wait(), Exit::Killed(9));
        assert!(test_dir.path("vm/hyperkit.pid").exists() && !description.is_running().unwrap());
        vm = description.start("guest").unwrap();
    }
    assert_eq!(hypervisors_in(&test_dir.path("vm")), [vm.pid()]);
}

/// The state directory is as after a power failure: the pid file names a process that does not exist, and the socket and
/// the tty file are stale.
#[test]
fn start_succeeds_after_a_host_reboot() {
    let test_dir = TestDir::new();
    let (description, _vm, _stop) = start_vm(&test_dir, "guest");
    description.stop().unwrap();
    test_dir.write("vm/hyperkit.pid", b"4194300");
    test_dir.write("vm/tty", b"/dev/pts/4000");
    drop(std::os::unix::net::UnixListener::bind(test_dir.path("vm/connect")).unwrap());
    test_dir.write("vm/disk.img", b"precious");
    let again = test_dir.description().start("guest").unwrap();
    assert_ne!(fs::read(test_dir.path("vm/tty")).unwrap(), b"/dev/pts/4000");
    assert!(!test_dir.path("vm/connect").exists());
    assert_eq!(fs::read(test_dir.path("vm/disk.img")).unwrap(), b"precious");
    again.kill().unwrap();
}

/// Each starter is killed at a random moment of the start. Afterwards no VM runs, or the VM is found.
#[test]
fn killed_starter_leaves_no_vm_or_one_that_is_found() {
    let test_dir = TestDir::new();
    let dir = test_dir.path("vm");
    let _stop = test_dir.stop_on_drop();
    let began = Instant::now();
    assert!(boot_command(&test_dir, "guest").output().unwrap().status.success());
    let whole = began.elapsed();
    HyperKit::from_state(&dir).unwrap().remove(Disks::Delete).unwrap_err();
    let (mut found, mut nothing) = (0, 0);
    let mut random = u64::from(std::process::id());
    println!("seed {random}"); // printed if the test fails
    for round in 0..200 {
        test_dir.description().state_dir(&dir).stop().unwrap();
        if round % 4 == 0 {
            HyperKit::from_state(&dir).map_or(Ok(()), |description| description.remove(Disks::Delete)).unwrap();
        }
        let mut starter = boot_command(&test_dir, "guest").spawn().unwrap();
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        std::thread::sleep(whole.mul_f64((random >> 33) as f64 / f64::from(u32::MAX / 2) * 1.2));
        starter.kill().unwrap();
        starter.wait().unwrap();

        // The state file is complete or missing, never truncated.
        let recorded = match HyperKit::from_state(&dir) {
            Ok(description) => Some(description),
            Err(Error::StateNotFound { .. }) => None,
            Err(error) => panic!("round {round}: {error}"),
        };
        // A child of the starter holds the lock until its `exec`. `start` waits for the lock, so its result is final.
        match test_dir.description().start("guest") {
            Ok(vm) => {
                nothing += 1;
                assert_eq!(hypervisors_in(&dir), [vm.pid()], "round {round}");
            }
            Err(Error::AlreadyRunning { pid, .. }) => {
                found += 1;
                assert_eq!(hypervisors_in(&dir), [pid], "round {round}");
                assert!(recorded.is_some());
                let attached = HyperKit::from_state(&dir).unwrap();
                assert_eq!(attached.vm().unwrap().map(|vm| vm.pid()), Some(pid), "round {round}");
            }
            Err(error) => panic!("round {round}: {error}"),
        }
    }
    assert!(
        found > 0 && nothing > 0,
        "all starters were killed too early or too late: {found} left a VM, {nothing} did not"
    );
}

#[test]
fn start_removes_stale_files_of_a_killed_vm() {
    let test_dir = TestDir::new();
    let _stop = test_dir.stop_on_drop();
    let description = test_dir.description().vsock(true).vsock_port(2374);
    let vm = description.start("guest.say=long-ago").unwrap();
    wait_until("the guest has printed its line", || console_output(&test_dir).contains("long-ago"));
    kill_process(to_pid(vm.pid()), Signal::KILL).unwrap();
    assert_eq!(vm.wait(), Exit::Killed(9));
    // The second hypervisor dies before it creates any of these files again.
    match description.start("vmm.die-early=7") {
        Err(Error::HypervisorFailed { log_tail, .. }) => assert_eq!(log_tail.console, ""),
        other => panic!("{other:?}"),
    }
    assert_eq!(test_dir.state_files(), ["hyperkit.json", "hyperkit.log"]);

    // `kill` leaves only the logs and the record.
    let vm = description.start("guest").unwrap();
    test_dir.write("vm/hyperkit.new", b"unfinished");
    vm.kill().unwrap();
    assert_eq!(test_dir.state_files(), ["console-ring", "hyperkit.json", "hyperkit.log"]);
}
