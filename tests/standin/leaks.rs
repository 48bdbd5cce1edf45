//! Resource use of the starter: threads, open files, memory, wake-ups and zombies.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use hyperkit::{Console, Exit};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::common::child_process::in_child_process;
use crate::common::{TestDir, console_output, wait_until};

/// Returns the threads, open files and resident memory (KiB) of this process.
fn usage() -> (usize, usize, usize) {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let value = |key: &str| -> usize {
        let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    };
    (value("Threads:"), fs::read_dir("/proc/self/fd").unwrap().count(), value("VmRSS:"))
}

/// Returns the peak resident memory of this process in KiB.
fn peak_memory() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// Returns a line of the status of the thread with this name, if there is such a thread.
fn thread_status(thread: &str, key: &str) -> Option<String> {
    let tasks = fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
    let named = |path: &PathBuf| fs::read_to_string(path.join("comm")).is_ok_and(|name| name.trim_end() == thread);
    let status = fs::read_to_string(tasks.into_iter().find(named)?.join("status")).unwrap();
    status.lines().find(|line| line.starts_with(key)).map(str::to_owned)
}

/// Returns the number of voluntary context switches of the thread with this name.
fn context_switches(thread: &str) -> String {
    thread_status(thread, "voluntary_ctxt_switches").expect("the thread exists")
}

/// A logger that blocks on the first line of a gigabyte of output, until the whole gigabyte is in the log file.
struct SlowLogger(PathBuf);

impl log::Log for SlowLogger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        if record.args().to_string().starts_with("xxx") {
            wait_until("the whole output is in the log file", || {
                self.0.metadata().is_ok_and(|log| log.len() >> 30 == 1)
            });
        }
    }

    fn flush(&self) {}
}

/// Returns the process IDs of the children of this process, zombies included.
fn children() -> String {
    let mut children = String::new();
    for task in fs::read_dir("/proc/self/task").unwrap() {
        children += &fs::read_to_string(task.unwrap().path().join("children")).unwrap_or_default();
    }
    children
}

#[test]
fn thousand_vms_leak_nothing_idle_vm_wakes_no_thread_and_output_needs_no_memory() {
    in_child_process("leaks::thousand_vms_leak_nothing_idle_vm_wakes_no_thread_and_output_needs_no_memory", || {
        let test_dir = TestDir::new();
        let _stop = test_dir.stop_on_drop();
        let description = test_dir.description();
        // The soft limit is below the hard limit, so `sysinfo` could raise it. The test checks that it stays.
        let limit = Rlimit { current: Some(256), ..getrlimit(Resource::Nofile) };
        setrlimit(Resource::Nofile, limit).unwrap();
        let threads = usage().0;
        let wait_for_threads = || wait_until("the threads of the VMs have exited", || usage().0 == threads);
        let cycle = || {
            let vm = description.start("guest").unwrap();
            assert!(description.is_running().unwrap());
            drop(description.vm().unwrap());
            vm.kill().unwrap();
        };
        (0..50).for_each(|_| cycle()); // afterwards, what is allocated only once is there
        wait_for_threads();
        let (_, open, memory) = usage();
        (0..1000).for_each(|_| cycle());
        wait_for_threads();
        let after = usage();
        assert_eq!(after.1, open, "the number of open files");
        assert!(after.2 < memory + 1024, "{memory} KiB before, {} KiB after", after.2);
        assert_eq!(children(), "", "the children that were not reaped");
        assert_eq!(getrlimit(Resource::Nofile), limit, "the limit of open files");

        // The thread of an idle VM is never woken.
        let vm = description.start("guest").unwrap();
        wait_until("the guest is up", || console_output(&test_dir).contains("Command line"));
        // The hypervisor's earlier output wakes the first thread, and that wakes the second.
        wait_until("both threads sleep again", || {
            let is_asleep = |state: String| state.contains("sleeping");
            ["hyperkit-inotif", "hyperkit"].iter().all(|thread| thread_status(thread, "State").is_some_and(is_asleep))
        });
        let switches = context_switches("hyperkit");
        assert!(vm.wait_timeout(Duration::from_millis(500)).is_none());
        assert_eq!(context_switches("hyperkit"), switches);
        vm.kill().unwrap();

        log::set_logger(Box::leak(Box::new(SlowLogger(test_dir.path("vm/hyperkit.log"))))).unwrap();
        log::set_max_level(log::LevelFilter::Info);
        let before = peak_memory();
        assert_eq!(description.console(Console::Pty).run("vmm.flood=1024 guest.exit=0").unwrap(), Exit::PowerOff);
        assert_eq!(test_dir.path("vm/hyperkit.log").metadata().unwrap().len() >> 30, 1);
        assert!(peak_memory() < before + 4096, "{before} KiB before, {} KiB after a gigabyte of output", peak_memory());
    });
}
