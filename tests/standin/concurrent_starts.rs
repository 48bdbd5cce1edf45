//! Concurrent starts, stops and removals of one VM.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Barrier;
use std::time::Duration;

use hyperkit::{Disks, Error, Exit, HyperKit};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Signal, kill_process};

use crate::common::{TestDir, boot_command, hypervisors_in, start_vm, to_pid, wait_until};

/// Locks a directory as a start does.
fn lock(dir: &Path) -> File {
    let lock = File::open(dir).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    lock
}

/// Waits until another thread has opened the locked file, whose lock it then tries to take.
fn wait_until_lock_is_awaited(lock: &File) {
    let inode = |file: fs::Metadata| (file.dev(), file.ino());
    let locked = inode(lock.metadata().unwrap());
    if Path::new("/proc/self/fd").exists() {
        wait_until("a thread waits for the lock", || {
            let files =
                fs::read_dir("/proc/self/fd").unwrap().filter_map(|file| fs::metadata(file.unwrap().path()).ok());
            files.filter(|file| inode(file.clone()) == locked).count() > 1
        });
    } else {
        std::thread::sleep(Duration::from_millis(300)); // only Linux lists open files
    }
}

#[test]
fn one_of_fifty_concurrent_processes_starts_the_vm() {
    let test_dir = TestDir::new();
    let _stop = test_dir.stop_on_drop();
    let starters: Vec<_> = (0..50).map(|_| boot_command(&test_dir, "guest").spawn().unwrap()).collect();
    let outputs: Vec<_> = starters.into_iter().map(|starter| starter.wait_with_output().unwrap()).collect();
    let pid = HyperKit::from_state(test_dir.path("vm")).unwrap().recorded_pid().unwrap();
    assert_eq!(hypervisors_in(&test_dir.path("vm")), [pid]);
    assert_eq!(outputs.iter().filter(|output| output.status.success()).count(), 1);
    for output in outputs.iter().filter(|output| !output.status.success()) {
        let why = String::from_utf8_lossy(&output.stderr);
        assert!(why.contains(&format!("VM already running as process {pid}: ")), "{why}");
    }
}

/// If the directory is moved while `start` waits for its lock, `start` gets the lock of the moved directory. It has to lock
/// the directory that is in the old place now.
#[test]
fn start_locks_the_directory_that_replaced_a_moved_one() {
    let test_dir = TestDir::new();
    let dir = test_dir.path("vm");
    let _stop = test_dir.stop_on_drop();
    let create_locked = || {
        fs::create_dir(&dir).unwrap();
        lock(&dir)
    };
    let first = create_locked();
    let description = test_dir.description();
    let starting = std::thread::spawn(move || description.start("guest"));
    wait_until_lock_is_awaited(&first);
    fs::rename(&dir, test_dir.path("elsewhere")).unwrap();
    let second = create_locked();
    drop(first);
    wait_until_lock_is_awaited(&second);
    assert!(test_dir.state_files().is_empty(), "the start did not wait for the lock of the new directory");
    drop(second);
    let vm = starting.join().unwrap().unwrap();
    assert_eq!(hypervisors_in(&dir), [vm.pid()]);
}

/// The call waits for the lock until the directory is removed. Then it has nothing to do.
#[test]
fn kill_and_remove_succeed_if_the_directory_is_removed_meanwhile() {
    for remove in [true, false] {
        let test_dir = TestDir::new();
        let (description, vm, _stop) = start_vm(&test_dir, "guest");
        kill_process(to_pid(vm.pid()), Signal::KILL).unwrap();
        assert_eq!(vm.wait(), Exit::Killed(9));
        let lock = lock(&test_dir.path("vm"));
        let second = std::thread::spawn(move || if remove { description.remove(Disks::Delete) } else { vm.kill() });
        wait_until_lock_is_awaited(&lock);
        fs::remove_dir_all(test_dir.path("vm")).unwrap();
        drop(lock);
        second.join().unwrap().unwrap();
    }
}

#[test]
fn one_of_many_concurrent_threads_starts_the_vm() {
    let test_dir = TestDir::new();
    let _stop = test_dir.stop_on_drop();
    let all = Barrier::new(12);
    let started: Vec<_> = std::thread::scope(|scope| {
        let start = || {
            let description = test_dir.description();
            all.wait();
            description.start("guest")
        };
        let threads: Vec<_> = (0..12).map(|_| scope.spawn(start)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let winners: Vec<_> = started.iter().filter_map(|started| started.as_ref().ok()).collect();
    assert_eq!(winners.len(), 1);
    for started in &started {
        assert!(matches!(started, Ok(_) | Err(Error::AlreadyRunning { .. })), "{started:?}");
        if let Err(Error::AlreadyRunning { pid, .. }) = started {
            assert_eq!(*pid, winners[0].pid());
        }
    }
}
