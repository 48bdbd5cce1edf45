//! What a thousand machines leave in the program that had them: nothing. One test, since it looks at its own process.
#![cfg(target_os = "linux")]

mod common;

use std::fs;

use common::{Files, eventually};
use hyperkit::Exit;
use rustix::process::{Resource, getrlimit};

/// Threads, open files and resident memory (KiB) of this process.
fn usage() -> (usize, usize, usize) {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let value = |key: &str| -> usize {
        let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    };
    (value("Threads:"), fs::read_dir("/proc/self/fd").unwrap().count(), value("VmRSS:"))
}

fn children() -> String {
    let mut children = String::new();
    for task in fs::read_dir("/proc/self/task").unwrap() {
        children += &fs::read_to_string(task.unwrap().path().join("children")).unwrap_or_default();
    }
    children
}

#[test]
fn a_thousand_machines_leave_nothing_and_a_gigabyte_of_output_costs_no_memory() {
    let files = Files::new();
    let mut machine = files.machine();
    let limit = getrlimit(Resource::Nofile);
    let threads = usage().0;
    let quiet = || eventually("the watching threads are gone", || usage().0 == threads);
    let mut cycle = || {
        let vm = machine.start("guest").unwrap();
        assert!(machine.is_running());
        drop(machine.vm().unwrap());
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

    assert_eq!(machine.run("vmm.flood=1024 guest.exit=0").unwrap(), Exit::PowerOff);
    assert_eq!(files.path("vm/hyperkit.log").metadata().unwrap().len() >> 30, 1);
    assert!(usage().2 < memory + 4096, "{memory} KiB before, {} KiB after a gigabyte of output", usage().2);
}
