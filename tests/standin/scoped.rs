//! `ScopedVm`: a VM that is killed with its scope and with its starter.
//!
//! Each such hypervisor has two *watchers*: shells that kill it when its starter has ended (`src/runtime/owner.rs`).

use std::fs;

use hyperkit::{Disks, Error, Exit, HyperKit, Result, Vm};
use rustix::process::{Signal, kill_process};

use crate::common::{
    KillOnDrop, StopOnDrop, TEST_TIMEOUT, TestDir, console_output, file_names, hypervisors_in, qcow2_header, to_pid,
    wait_until,
};
use crate::starter::{self, group_members, report, wait_until_group_is_empty};

#[test]
fn drop_kills_the_vm_and_cleans_up() {
    let test_dir = TestDir::new();
    let _stop = test_dir.stop_on_drop();
    let description = test_dir.description();
    for _ in 0..10 {
        let vm = description.start_scoped("guest").unwrap();
        let pid = vm.pid();
        assert!(description.is_running().unwrap() && group_members(pid).contains(&pid));
        drop(vm);
        assert!(!description.is_running().unwrap());
        assert_eq!(test_dir.state_files(), ["console-ring", "hyperkit.json", "hyperkit.log"]);
        wait_until_group_is_empty(pid);
    }
    description.remove(Disks::Delete).unwrap();
    assert!(!test_dir.path("vm").exists());
}

#[test]
fn panic_kills_the_vm() {
    let test_dir = TestDir::new();
    let _stop = test_dir.stop_on_drop();
    let unwound = std::panic::catch_unwind(|| {
        let vm = test_dir.description().start_scoped("guest").unwrap();
        // `resume_unwind` panics without a message.
        std::panic::resume_unwind(Box::new(vm.pid()));
    });
    let pid = *unwound.unwrap_err().downcast::<u32>().unwrap();
    assert!(!test_dir.description().is_running().unwrap());
    wait_until_group_is_empty(pid);
}

#[test]
fn kept_vm_outlives_its_starter_and_has_no_watchers() {
    const TEST: &str = "scoped::kept_vm_outlives_its_starter_and_has_no_watchers";
    if let Some(arguments) = starter::arguments_of(TEST) {
        let vm = starter::description_in(&arguments[0]).start_scoped("guest").unwrap().keep();
        return report(vm.pid());
    }
    let test_dir = TestDir::new();
    let _stop = test_dir.stop_on_drop();
    let mut starter = starter::Starter::spawn(TEST, &[test_dir.dir().to_str().unwrap()]);
    let pid = starter.report().parse().unwrap();
    assert!(starter.wait().success());
    wait_until("the watchers have exited", || group_members(pid) == [pid]);
    let vm = HyperKit::from_state(test_dir.path("vm")).unwrap().vm().unwrap().unwrap();
    assert_eq!(vm.pid(), pid);
    let console = vm.console().unwrap();
    console.expect("Command line", TEST_TIMEOUT).unwrap(); // hyperkit discards earlier input
    console.send_line("still here").unwrap();
    console.expect("still here", TEST_TIMEOUT).unwrap();
    vm.kill().unwrap();
    wait_until_group_is_empty(pid);
}

/// How a starter can end: by a signal, or by itself.
const ENDS: [&str; 8] = ["kill", "term", "int", "hup", "abort", "panic", "exit", "return"];

/// Called in a starter while the VM is in scope: ends the process.
fn end(how: &str) {
    match how {
        "abort" => {
            let limit = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
            rustix::process::setrlimit(rustix::process::Resource::Core, limit).unwrap();
            std::process::abort()
        }
        "panic" => panic!("as requested"),
        "exit" => std::process::exit(0),
        "return" => {}
        // The test sends a signal that ends the process.
        _ => starter::wait_for_test(),
    }
}

/// Sends the signal that ends the starter, if a signal ends it.
fn send_end(starter: &starter::Starter, how: &str) {
    match how {
        "kill" => starter.signal(Signal::KILL),
        "term" => starter.signal(Signal::TERM),
        "int" => starter.signal(Signal::INT),
        "hup" => starter.signal(Signal::HUP),
        _ => {}
    }
}

#[test]
fn scoped_vm_is_killed_however_its_starter_ends() {
    const TEST: &str = "scoped::scoped_vm_is_killed_however_its_starter_ends";
    if let Some(arguments) = starter::arguments_of(TEST) {
        let vm = starter::description_in(&arguments[0]).start_scoped("guest").unwrap();
        report(vm.pid());
        return end(&arguments[1]);
    }
    for how in ENDS {
        let test_dir = TestDir::new();
        let _stop = test_dir.stop_on_drop();
        let mut starter = starter::Starter::spawn(TEST, &[test_dir.dir().to_str().unwrap(), how]);
        let pid = starter.report().parse().unwrap();
        send_end(&starter, how);
        assert_eq!(starter.wait().success(), ["exit", "return"].contains(&how), "{how}");
        wait_until_group_is_empty(pid);
        let description = HyperKit::from_state(test_dir.path("vm")).unwrap();
        assert!(!description.is_running().unwrap(), "{how}");
        description.start_scoped("guest").unwrap().kill().unwrap();
    }
}

#[test]
fn foreground_vm_is_killed_however_its_starter_ends() {
    const TEST: &str = "scoped::foreground_vm_is_killed_however_its_starter_ends";
    if let Some(arguments) = starter::arguments_of(TEST) {
        let description = starter::description_in(&arguments[0]).console(hyperkit::Console::Pty);
        let running = description.clone();
        std::thread::spawn(move || running.run("guest"));
        let pid = || description.vm().unwrap().map(|vm| vm.pid());
        wait_until("the VM runs", || pid().is_some());
        report(pid().unwrap());
        return end(&arguments[1]);
    }
    for how in ENDS {
        let test_dir = TestDir::new();
        let _stop = test_dir.stop_on_drop();
        let mut starter = starter::Starter::spawn(TEST, &[test_dir.dir().to_str().unwrap(), how]);
        let pid: u32 = starter.report().parse().unwrap();
        if how == "kill" {
            assert!(group_members(starter.pid()).contains(&pid), "the VM does not get ^C of the starter's terminal");
        }
        send_end(&starter, how);
        starter.wait();
        wait_until_group_is_empty(starter.pid());
        assert_eq!(hypervisors_in(&test_dir.path("vm")), [0; 0], "{how}");
    }
}

/// Each starter is killed at another moment of the start.
#[test]
fn starter_killed_during_a_scoped_start_leaves_no_vm() {
    const TEST: &str = "scoped::starter_killed_during_a_scoped_start_leaves_no_vm";
    if let Some(arguments) = starter::arguments_of(TEST) {
        report("starting");
        let vm = starter::description_in(&arguments[0]).start_scoped("guest").unwrap();
        report(vm.pid());
        return starter::wait_for_test();
    }
    let test_dir = TestDir::new();
    let _stop = test_dir.stop_on_drop();
    let spawn = || {
        let mut starter = starter::Starter::spawn(TEST, &[test_dir.dir().to_str().unwrap()]);
        assert_eq!(starter.report(), "starting");
        starter
    };
    let began = std::time::Instant::now();
    let mut first = spawn();
    first.report();
    let whole = began.elapsed();
    drop(first);
    for round in 0..40 {
        let starter = spawn();
        std::thread::sleep(whole.mul_f64(f64::from(round) / 40.0));
        drop(starter); // kills the process
        wait_until("no hypervisor runs", || hypervisors_in(&test_dir.path("vm")).is_empty());
    }
    // A start succeeds, whatever the killed start has left in the directory.
    test_dir.description().start("guest").unwrap().kill().unwrap();
}

#[test]
fn scoped_vm_is_killed_with_its_starter_after_a_watcher_was_killed() {
    const TEST: &str = "scoped::scoped_vm_is_killed_with_its_starter_after_a_watcher_was_killed";
    if let Some(arguments) = starter::arguments_of(TEST) {
        let vm = starter::description_in(&arguments[0]).start_scoped("guest").unwrap();
        report(vm.pid());
        return starter::wait_for_test();
    }
    for (index, keeps) in [(0, false), (1, false), (0, true)] {
        let test_dir = TestDir::new();
        let _stop = test_dir.stop_on_drop();
        let mut starter = starter::Starter::spawn(TEST, &[test_dir.dir().to_str().unwrap()]);
        let pid: u32 = starter.report().parse().unwrap();
        let watchers = || group_members(pid).into_iter().filter(|&member| member != pid).collect::<Vec<_>>();
        wait_until("there are two watchers", || watchers().len() == 2);
        let mut both = watchers();
        both.sort_unstable();
        kill_process(to_pid(both[index]), Signal::KILL).unwrap();
        wait_until("one watcher is left", || watchers() == [both[1 - index]]);
        // A watcher begins with the hypervisor's arguments.
        wait_until("only the hypervisor has its arguments", || hypervisors_in(&test_dir.path("vm")) == [pid]);
        if keeps {
            starter.resume(); // the starter returns, which drops the VM
            assert!(starter.wait().success());
        } else {
            starter.signal(Signal::KILL);
        }
        wait_until_group_is_empty(pid);
    }
}

/// Returns how a VM exited, whether during its start or later.
fn exit_of(started: Result<impl std::ops::Deref<Target = Vm>>) -> Exit {
    match started {
        Ok(vm) => vm.wait(),
        Err(Error::HypervisorFailed { exit, .. }) => exit,
        Err(error) => panic!("{error:#}"),
    }
}

#[test]
fn scoped_and_foreground_vms_report_the_same_exits_as_background_vms() {
    let test_dir = TestDir::new();
    let _stop = test_dir.stop_on_drop();
    let description = test_dir.description().console(hyperkit::Console::Pty);
    for (kernel_cmdline, exit) in [
        ("guest.exit=0", Exit::PowerOff),
        ("guest.exit=2", Exit::Reset),
        ("guest.exit=3", Exit::TripleFault),
        ("guest.exit=1", Exit::Failed(1)),
        ("guest.exit=126", Exit::Failed(126)),
        ("vmm.die=2", Exit::Reset),
        ("vmm.die-early=5", Exit::Failed(5)),
        ("vmm.half-pid-file", Exit::Killed(6)),
    ] {
        assert_eq!(
            exit_of(description.start(kernel_cmdline).map(Box::new)),
            exit,
            "{kernel_cmdline} in the background"
        );
        assert_eq!(exit_of(description.start_scoped(kernel_cmdline)), exit, "{kernel_cmdline} in a scope");
        let ran = match description.run(kernel_cmdline) {
            Err(Error::HypervisorFailed { exit, .. }) => exit,
            ran => ran.unwrap(),
        };
        assert_eq!(ran, exit, "{kernel_cmdline} in the foreground");
    }
    for signal in [Signal::KILL, Signal::TERM, Signal::HUP, Signal::USR1] {
        // Without ACPI, SIGTERM kills the stand-in. SIGUSR1 pauses the VM.
        let vm = description.start_scoped("guest.no-acpi").unwrap();
        wait_until("the guest is up", || console_output(&test_dir).contains("Command line"));
        kill_process(to_pid(vm.pid()), signal).unwrap();
        if signal == Signal::USR1 {
            wait_until("the guest is paused", || console_output(&test_dir).contains("paused"));
            assert_eq!(vm.try_wait(), None);
        } else {
            assert_eq!(vm.wait(), Exit::Killed(signal.as_raw()));
        }
    }
}

#[test]
fn other_children_of_a_killed_starter_do_not_keep_the_vm_running() {
    const TEST: &str = "scoped::other_children_of_a_killed_starter_do_not_keep_the_vm_running";
    if let Some(arguments) = starter::arguments_of(TEST) {
        let description = starter::description_in(&arguments[0]);
        let sleep = || std::process::Command::new("sleep").arg("1000").spawn().unwrap().id();
        let before = sleep();
        let vm = description.start_scoped("guest").unwrap();
        report(vm.pid());
        report(before);
        report(sleep());
        // The next hypervisor must not inherit the lock of the first VM's state directory.
        let other = description.clone().state_dir(description.state_dir.unwrap().join("other")).start("guest").unwrap();
        report(other.pid());
        return starter::wait_for_test();
    }
    let test_dir = TestDir::new();
    let (_stop, _stop_other) = (test_dir.stop_on_drop(), StopOnDrop(test_dir.path("vm/other")));
    let mut starter = starter::Starter::spawn(TEST, &[test_dir.dir().to_str().unwrap()]);
    let pid: u32 = starter.report().parse().unwrap();
    let others: Vec<u32> = (0..3).map(|_| starter.report().parse().unwrap()).collect();
    starter.signal(Signal::KILL);
    starter.wait();
    wait_until_group_is_empty(pid);
    let alive: Vec<_> = others.iter().filter(|&&other| starter::exists(other)).copied().collect();
    let _ = others[..2].iter().map(|&sleep| kill_process(to_pid(sleep), Signal::KILL)).collect::<Vec<_>>();
    assert_eq!(alive, others, "another child was killed");
    assert_eq!(hypervisors_in(&test_dir.path("vm/other")), [others[2]]);
}

/// Without a record, the hypervisor is found by its arguments, and so is the user of a qcow2 image. So no watcher may have
/// the hypervisor's arguments.
#[test]
fn watchers_are_not_taken_for_the_hypervisor() {
    let test_dir = TestDir::new();
    let _stop = test_dir.stop_on_drop();
    let image = test_dir.write("disk.qcow2", &qcow2_header());
    let disk = hyperkit::Disk::qcow2(image, hyperkit::QcowOptions::default());
    let description = test_dir.description().disk(disk);
    let json = test_dir.path("vm/hyperkit.json");
    for _ in 0..20 {
        let vm = description.start_scoped("guest").unwrap();
        let watchers = || group_members(vm.pid()).len() - 1;
        wait_until("the watchers run", || watchers() == 2);
        kill_process(to_pid(vm.pid()), Signal::STOP).unwrap();
        // A watcher begins with the hypervisor's arguments and replaces them a moment later.
        wait_until("only the hypervisor has its arguments", || hypervisors_in(&test_dir.path("vm")) == [vm.pid()]);
        fs::rename(&json, test_dir.path("aside")).unwrap();
        fs::remove_file(test_dir.path("vm/hyperkit.pid")).unwrap();
        let found = description.vm().unwrap().expect("the hypervisor is not found without a record");
        assert_eq!(found.pid(), vm.pid());
        fs::rename(test_dir.path("aside"), &json).unwrap();
    }
}

/// A shell cannot set `argv[0]` of the program that it becomes. So such a VM has no watchers.
#[test]
fn vm_with_argv0_is_killed_with_its_scope_but_not_with_its_starter() {
    const TEST: &str = "scoped::vm_with_argv0_is_killed_with_its_scope_but_not_with_its_starter";
    if let Some(arguments) = starter::arguments_of(TEST) {
        let vm = starter::description_in(&arguments[0]).argv0("com.example.vm").start_scoped("guest").unwrap();
        report(vm.pid());
        return starter::wait_for_test();
    }
    let test_dir = TestDir::new();
    let _stop = test_dir.stop_on_drop();
    let mut starter = starter::Starter::spawn(TEST, &[test_dir.dir().to_str().unwrap()]);
    let pid: u32 = starter.report().parse().unwrap();
    assert_eq!(group_members(pid), [pid]);
    if cfg!(target_os = "linux") {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
        assert!(command.starts_with(b"com.example.vm\0"));
    }
    starter.resume();
    assert!(starter.wait().success());
    assert!(!starter::exists(pid));

    let mut starter = starter::Starter::spawn(TEST, &[test_dir.dir().to_str().unwrap()]);
    let pid: u32 = starter.report().parse().unwrap();
    starter.signal(Signal::KILL);
    starter.wait();
    let vm = HyperKit::from_state(test_dir.path("vm")).unwrap().vm().unwrap().expect("the VM runs");
    let _kill = KillOnDrop(&vm);
    assert_eq!((vm.pid(), file_names(&test_dir.path("vm")).contains(&"hyperkit.pid".to_owned())), (pid, true));
}
