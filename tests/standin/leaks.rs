//! What a thousand machines leave in the program that had them: nothing. One test, since it looks at its own process.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use hyperkit::Exit;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::common::child_process::in_child_process;
use crate::common::{TestDir, console_output, wait_until};

/// Threads, open files and resident memory (KiB) of this process.
fn usage() -> (usize, usize, usize) {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let value = |key: &str| -> usize {
        let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    };
    (value("Threads:"), fs::read_dir("/proc/self/fd").unwrap().count(), value("VmRSS:"))
}

/// The most memory that this process has had, in KiB.
fn peak() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// How often the thread of this name has waited for something and gone on.
fn switches_of(thread: &str) -> String {
    let tasks = fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
    let named = |path: &PathBuf| fs::read_to_string(path.join("comm")).is_ok_and(|name| name.trim_end() == thread);
    let path = tasks.into_iter().find(named).expect("the thread is there");
    let status = fs::read_to_string(path.join("status")).unwrap();
    status.lines().find(|line| line.starts_with("voluntary_ctxt_switches")).unwrap().to_owned()
}

/// A logger that takes the first line of the flood only when all of it is there.
struct Slow(PathBuf);

impl log::Log for Slow {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        if record.args().to_string().starts_with("xxx") {
            wait_until("the flood is over", || self.0.metadata().is_ok_and(|log| log.len() >> 30 == 1));
        }
    }

    fn flush(&self) {}
}

fn children() -> String {
    let mut children = String::new();
    for task in fs::read_dir("/proc/self/task").unwrap() {
        children += &fs::read_to_string(task.unwrap().path().join("children")).unwrap_or_default();
    }
    children
}

#[test]
fn no_leaks_after_a_thousand_vms_no_idle_wakeups_and_constant_memory() {
    in_child_process(
        "leaks::a_thousand_machines_leave_nothing_an_idle_one_costs_nothing_and_a_gigabyte_of_output_costs_no_memory",
        || {
            let test_dir = TestDir::new();
            let mut description = test_dir.description();
            // Below what it may be raised to: sysinfo would, if it were let.
            let limit = Rlimit { current: Some(256), ..getrlimit(Resource::Nofile) };
            setrlimit(Resource::Nofile, limit).unwrap();
            let threads = usage().0;
            let quiet = || wait_until("the watching threads are gone", || usage().0 == threads);
            let mut cycle = || {
                let vm = description.start("guest").unwrap();
                assert!(description.is_running());
                drop(description.vm().unwrap());
                vm.stop().unwrap();
            };
            (0..50).for_each(|_| cycle()); // what is set up once is set up now
            quiet();
            let (_, open, memory) = usage();
            (0..1000).for_each(|_| cycle());
            quiet();
            let after = usage();
            assert_eq!(after.1, open, "open files");
            assert!(after.2 < memory + 1024, "{memory} KiB before, {} KiB after", after.2);
            assert_eq!(children(), "", "zombies");
            assert_eq!(getrlimit(Resource::Nofile), limit, "the limit of open files is not ours");

            // An idle handle: the thread that watches is not woken once.
            let vm = description.start("guest").unwrap();
            wait_until("the guest is up", || console_output(&test_dir).contains("Command line"));
            let woken = switches_of("hyperkit");
            assert!(vm.wait_timeout(Duration::from_millis(500)).unwrap().is_none());
            assert_eq!(switches_of("hyperkit"), woken);
            vm.stop().unwrap();

            log::set_logger(Box::leak(Box::new(Slow(test_dir.path("vm/hyperkit.log"))))).unwrap();
            log::set_max_level(log::LevelFilter::Info);
            let before = peak();
            assert_eq!(description.run("vmm.flood=1024 guest.exit=0").unwrap(), Exit::PowerOff);
            assert_eq!(test_dir.path("vm/hyperkit.log").metadata().unwrap().len() >> 30, 1);
            assert!(peak() < before + 4096, "{before} KiB before, {} KiB in a gigabyte of output", peak());
        },
    );
}
