//! `spawn` and `Starting`: a hypervisor that was started and is not ready yet.

use std::fs;
use std::time::{Duration, Instant};

use hyperkit::{Console, Disk, Disks, Error, Exit, HyperKit, StartOrAttach};
use rustix::process::{Signal, kill_process};

use crate::common::{StopOnDrop, TEST_TIMEOUT, TestDir, file_names, hypervisors_in, to_pid, wait_until};
use crate::starter::{self, Starter, report};

/// A kernel command line with which the stand-in runs, but is never ready.
const NEVER_READY: &str = "vmm.no-pid-file";

#[test]
fn spawn_records_the_pid_before_the_hypervisor_is_ready() {
    let test_dir = TestDir::new();
    let _stop = test_dir.stop_on_drop();
    let starting = test_dir.description().spawn(NEVER_READY).unwrap();
    let recorded = HyperKit::from_state(test_dir.path("vm")).unwrap();
    assert_eq!(recorded.recorded_pid(), Some(starting.pid()));
    assert_eq!(recorded.recorded_kernel_cmdline().unwrap(), NEVER_READY);
    assert!(!test_dir.path("vm/hyperkit.pid").exists());
    let vm = recorded.vm().unwrap().expect("the VM is not found by the recorded process ID");
    assert_eq!(vm.pid(), starting.pid());
    assert_eq!(hypervisors_in(&test_dir.path("vm")), [starting.pid()]);
}

#[test]
fn start_that_times_out_kills_the_hypervisor_and_names_the_state_directory() {
    let test_dir = TestDir::new();
    let _stop = test_dir.stop_on_drop();
    let description = test_dir.description();
    for (timeout, words) in [(Duration::from_millis(50), "after 50 ms"), (Duration::ZERO, "after 0 ")] {
        let starting = description.spawn(&format!("{NEVER_READY} vmm.say=slow")).unwrap();
        let pid = starting.pid();
        let log = || fs::read_to_string(test_dir.path("vm/hyperkit.log")).unwrap();
        wait_until("the hypervisor prints something", || log().contains("slow"));
        let error = starting.wait_ready(timeout).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(words), "{text}");
        assert!(text.contains(test_dir.path("vm").to_str().unwrap()), "{text}");
        match error {
            Error::StartTimedOut { timeout: named, state_dir, suspect: None, log_tail } => {
                assert_eq!((named, state_dir), (timeout, Some(test_dir.path("vm"))));
                assert!(log_tail.hypervisor.starts_with("slow"), "{log_tail}");
            }
            other => panic!("{other:?}"),
        }
        assert!(!starter::exists(pid), "the hypervisor was killed and reaped");
        assert!(!description.is_running().unwrap());
        // Another call returns at once, with an error as well.
        let again = starting.wait_ready(TEST_TIMEOUT);
        assert!(matches!(again, Err(Error::HypervisorFailed { exit: Exit::Killed(9), .. })), "{again:?}");
        description.start("guest").unwrap().kill().unwrap();
    }
}

#[test]
fn drop_kills_the_hypervisor_and_the_next_start_succeeds() {
    let test_dir = TestDir::new();
    let _stop = test_dir.stop_on_drop();
    let description = test_dir.description();
    for kernel_cmdline in [NEVER_READY, "guest"] {
        let starting = description.spawn(kernel_cmdline).unwrap();
        let pid = starting.pid();
        drop(starting);
        assert!(!starter::exists(pid), "{kernel_cmdline}");
        assert_eq!(test_dir.state_files().iter().find(|name| *name == "hyperkit.pid" || *name == "tty"), None);
        description.start("guest").unwrap().kill().unwrap();
    }
    drop(description.spawn("guest").unwrap());
    description.remove(Disks::Delete).unwrap();
    assert!(!test_dir.path("vm").exists());
}

#[test]
fn kill_from_another_thread_ends_wait_ready() {
    let test_dir = TestDir::new();
    let _stop = test_dir.stop_on_drop();
    let starting = test_dir.description().spawn(NEVER_READY).unwrap();
    let began = Instant::now();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| starting.wait_ready(Duration::MAX));
        starting.kill().unwrap();
        match waiting.join().unwrap() {
            Err(Error::HypervisorFailed { exit: Exit::Killed(9), state_dir, .. }) => {
                assert_eq!(state_dir, Some(test_dir.path("vm")));
            }
            other => panic!("{other:?}"),
        }
    });
    assert!(began.elapsed() < TEST_TIMEOUT / 2);
    starting.kill().expect("the second kill is an error");
    test_dir.description().start("guest").unwrap().kill().unwrap();
}

/// The start holds the lock of the state directory. If `stop` waited for that lock in the same thread, it would wait
/// forever.
#[test]
fn stop_during_a_start_does_not_wait_for_the_start() {
    let test_dir = TestDir::new();
    let _stop = test_dir.stop_on_drop();
    let description = test_dir.description();
    for stop in [HyperKit::stop, |description: &HyperKit| description.vm()?.unwrap().kill()] {
        let starting = description.spawn(NEVER_READY).unwrap();
        stop(&description).unwrap();
        assert!(!starter::exists(starting.pid()));
        let ready = starting.wait_ready(TEST_TIMEOUT);
        assert!(matches!(ready, Err(Error::HypervisorFailed { exit: Exit::Killed(9), .. })), "{ready:?}");
    }
    // After the start, `kill` of the `Vm` cleans up as always.
    let starting = description.spawn("guest").unwrap();
    let vm = starting.wait_ready(TEST_TIMEOUT).unwrap();
    vm.kill().unwrap();
    assert!(!test_dir.path("vm/hyperkit.pid").exists());
}

#[test]
fn wait_ready_twice_returns_the_same_vm() {
    let test_dir = TestDir::new();
    let _stop = test_dir.stop_on_drop();
    let starting = test_dir.description().spawn("guest").unwrap();
    let first = starting.wait_ready(TEST_TIMEOUT).unwrap();
    let second = starting.wait_ready(Duration::ZERO).unwrap();
    assert_eq!([first.pid(), second.pid()], [starting.pid(); 2]);
    assert_eq!(first.description(), second.description());
    drop(starting);
    assert_eq!(first.try_wait(), None, "the drop of a `Starting` that is ready has ended the VM");
    first.kill().unwrap();
    assert_eq!(second.wait(), Exit::Killed(9));
}

#[test]
fn kill_of_a_ready_start_kills_the_vm_and_cleans_up() {
    let test_dir = TestDir::new();
    let _stop = test_dir.stop_on_drop();
    let starting = test_dir.description().spawn("guest").unwrap();
    let vm = starting.wait_ready(TEST_TIMEOUT).unwrap();
    starting.kill().unwrap();
    assert_eq!(vm.wait(), Exit::Killed(9));
    assert!(!test_dir.path("vm/hyperkit.pid").exists());
}

#[test]
fn wait_ready_reports_the_exit_of_the_hypervisor_each_time() {
    let test_dir = TestDir::new();
    let starting = test_dir.description().spawn("vmm.die-early=7").unwrap();
    for _ in 0..2 {
        match starting.wait_ready(TEST_TIMEOUT) {
            Err(Error::HypervisorFailed { exit: Exit::Failed(7), state_dir, log_tail }) => {
                assert_eq!((state_dir, &*log_tail.hypervisor), (Some(test_dir.path("vm")), "dying early"));
            }
            other => panic!("{other:?}"),
        }
    }
}

/// Other starts wait until the first start is ready. Then they return `AlreadyRunning`, or attach to the VM.
#[test]
fn other_starts_wait_for_a_start_in_progress() {
    let test_dir = TestDir::new();
    let _stop = test_dir.stop_on_drop();
    let description = test_dir.description();
    let starting = description.spawn("guest").unwrap();
    std::thread::scope(|scope| {
        let second = scope.spawn(|| description.start("guest"));
        let attached = scope.spawn(|| description.start_or_attach("guest"));
        let vm = starting.wait_ready(TEST_TIMEOUT).unwrap();
        let second = second.join().unwrap();
        assert!(matches!(second, Err(Error::AlreadyRunning { pid, .. }) if pid == vm.pid()), "{second:?}");
        let attached = attached.join().unwrap().unwrap();
        assert!(matches!(&attached, StartOrAttach::Attached(other) if other.pid() == vm.pid()), "{attached:?}");
        vm.kill().unwrap();
    });
    // If the first start is dropped, the second one starts the VM.
    let starting = description.spawn(NEVER_READY).unwrap();
    std::thread::scope(|scope| {
        let second = scope.spawn(|| description.start("guest"));
        drop(starting);
        second.join().unwrap().unwrap().kill().unwrap();
    });
}

#[test]
fn wait_ready_returns_at_once_without_a_state_directory() {
    const TEST: &str = "starting::wait_ready_returns_at_once_without_a_state_directory";
    // In a starter, since the console is on the standard input and output of the process.
    if let Some(arguments) = starter::arguments_of(TEST) {
        let mut description = starter::description_in(&arguments[0]).console(Console::Stdio);
        description.state_dir = None;
        let dropped = description.spawn("guest").unwrap();
        let pid = dropped.pid();
        drop(dropped);
        assert!(!starter::exists(pid));
        let vm = description.spawn("guest").unwrap().wait_ready(Duration::ZERO).unwrap();
        assert_eq!(vm.description().vm().unwrap().map(|vm| vm.pid()), Some(vm.pid()));
        vm.kill().unwrap();
        return report(vm.wait());
    }
    let test_dir = TestDir::new();
    let mut starter = Starter::spawn(TEST, &[test_dir.dir().to_str().unwrap()]);
    assert_eq!(starter.report(), Exit::Killed(9).to_string());
    assert!(starter.wait().success());
}

#[test]
fn killed_starter_leaves_a_vm_that_is_found_by_its_recorded_pid() {
    const TEST: &str = "starting::killed_starter_leaves_a_vm_that_is_found_by_its_recorded_pid";
    if let Some(arguments) = starter::arguments_of(TEST) {
        let starting = starter::description_in(&arguments[0]).spawn(NEVER_READY).unwrap();
        report(starting.pid());
        let _ = starting.wait_ready(Duration::MAX);
        return;
    }
    let test_dir = TestDir::new();
    let _stop = test_dir.stop_on_drop();
    let mut starter = Starter::spawn(TEST, &[test_dir.dir().to_str().unwrap()]);
    let pid: u32 = starter.report().parse().unwrap();
    starter.signal(Signal::KILL);
    starter.wait();
    assert!(!test_dir.path("vm/hyperkit.pid").exists());
    let found = HyperKit::from_state(test_dir.path("vm")).unwrap();
    assert_eq!(found.recorded_pid(), Some(pid));
    assert_eq!(found.vm().unwrap().map(|vm| vm.pid()), Some(pid));
    match test_dir.description().start("guest") {
        Err(Error::AlreadyRunning { pid: running, state_dir }) => {
            assert_eq!((running, state_dir), (pid, test_dir.path("vm")));
        }
        other => panic!("{other:?}"),
    }
    found.stop().unwrap();
    wait_until("the hypervisor has exited", || hypervisors_in(&test_dir.path("vm")).is_empty());
    test_dir.description().start("guest").unwrap().kill().unwrap();
}

/// Each starter is killed at another moment between `spawn` and the end of the start.
#[test]
fn starter_killed_at_any_moment_leaves_no_vm_or_one_that_is_found() {
    const TEST: &str = "starting::starter_killed_at_any_moment_leaves_no_vm_or_one_that_is_found";
    if let Some(arguments) = starter::arguments_of(TEST) {
        report("starting");
        let starting = starter::description_in(&arguments[0]).spawn("guest").unwrap();
        starting.wait_ready(TEST_TIMEOUT).unwrap();
        return report("ready");
    }
    let (mut found, mut nothing) = (0, 0);
    let spawn = |test_dir: &TestDir| {
        let mut starter = Starter::spawn(TEST, &[test_dir.dir().to_str().unwrap()]);
        assert_eq!(starter.report(), "starting");
        (Instant::now(), starter)
    };
    let test_dir = TestDir::new();
    let _stop = test_dir.stop_on_drop();
    let (began, mut first) = spawn(&test_dir);
    first.report();
    let whole = began.elapsed();
    for round in 0..40 {
        test_dir.description().stop().unwrap();
        let (_, starter) = spawn(&test_dir);
        std::thread::sleep(whole.mul_f64(f64::from(round) / 40.0));
        drop(starter); // kills the process
        match test_dir.description().start("guest") {
            Ok(vm) => {
                nothing += 1;
                assert_eq!(hypervisors_in(&test_dir.path("vm")), [vm.pid()], "round {round}");
            }
            Err(Error::AlreadyRunning { pid, .. }) => {
                found += 1;
                assert_eq!(hypervisors_in(&test_dir.path("vm")), [pid], "round {round}");
                let vm = HyperKit::from_state(test_dir.path("vm")).unwrap().vm().unwrap().expect("the VM is not found");
                assert_eq!(vm.pid(), pid, "round {round}");
            }
            Err(error) => panic!("round {round}: {error:#}"),
        }
    }
    assert!(found + nothing == 40 && nothing > 0, "{found} VMs found, {nothing} not");
}

#[test]
fn spawn_with_lets_the_caller_change_the_command() {
    let test_dir = TestDir::new();
    let _stop = test_dir.stop_on_drop();
    let mut arguments = Vec::new();
    let starting = test_dir.description().spawn_with("guest", |command| {
        command.env("HYPERKIT_TEST_VARIABLE", "a value").current_dir(test_dir.dir());
        arguments = command.get_args().map(|argument| argument.to_str().unwrap().to_owned()).collect();
    });
    let vm = starting.unwrap().wait_ready(TEST_TIMEOUT).unwrap();
    assert_eq!(arguments, vm.description().recorded_arguments());
    if cfg!(target_os = "linux") {
        let proc = |name: &str| format!("/proc/{}/{name}", vm.pid());
        let environment = fs::read(proc("environ")).unwrap();
        let mut variables = environment.split(|&byte| byte == 0);
        assert!(variables.any(|variable| variable == b"HYPERKIT_TEST_VARIABLE=a value"));
        assert_eq!(fs::read_link(proc("cwd")).unwrap(), test_dir.dir());
    }
    assert!(std::env::var_os("HYPERKIT_TEST_VARIABLE").is_none());
    vm.kill().unwrap();
}

/// The closure that changes the command panics.
#[test]
fn panic_in_spawn_with_leaves_no_vm_and_no_lock() {
    let test_dir = TestDir::new();
    let _stop = StopOnDrop(test_dir.path("vm"));
    let description = test_dir.description();
    let unwound = std::panic::catch_unwind(|| {
        description.spawn_with("guest", |_| std::panic::resume_unwind(Box::new("as requested"))).map(drop)
    });
    assert!(unwound.is_err());
    assert!(!description.is_running().unwrap());
    let vm = description.start("guest").unwrap();
    kill_process(to_pid(vm.pid()), Signal::KILL).unwrap();
    assert_eq!(vm.wait(), Exit::Killed(9));
}

/// The interpreter of the program's first line is missing, so it cannot be started.
#[test]
fn start_that_fails_before_the_hypervisor_runs_cleans_up() {
    let test_dir = TestDir::new();
    let program = test_dir.write_executable("hyperkit", b"#!/nonexistent/interpreter\n");
    let fails = |description: &HyperKit| {
        let error = description.start("guest").unwrap_err();
        assert!(matches!(error, Error::Io { action: "start", .. }), "{error:?}");
    };
    let description = test_dir.description().state_dir(test_dir.path("new/vm")).hyperkit(&program);
    let description = description.disk(Disk::in_state_dir(1)).disk(Disk::new(test_dir.path("data.img")).size_mib(1));
    fails(&description);
    assert_eq!(file_names(&test_dir.dir()), ["hyperkit", "initrd.img", "vmlinuz"]);

    // A directory that the start has not created, and one in which another file is.
    fs::create_dir_all(test_dir.path("new/vm")).unwrap();
    test_dir.write("new/vm/notes", b"mine");
    fails(&description);
    assert_eq!(file_names(&test_dir.path("new/vm")), ["notes"]);
    assert!(HyperKit::list(test_dir.path("new")).unwrap().is_empty());

    // A VM that was defined, and one that has run.
    let defined = test_dir.description().disk(Disk::in_state_dir(1));
    defined.define().unwrap();
    let before = fs::read(test_dir.path("vm/hyperkit.json")).unwrap();
    fails(&defined.clone().hyperkit(&program).cpus(2));
    assert_eq!(fs::read(test_dir.path("vm/hyperkit.json")).unwrap(), before);
    assert_eq!(test_dir.state_files().iter().filter(|name| *name != "hyperkit.log").count(), 1);
    defined.start("guest").unwrap().kill().unwrap();
    let before = fs::read(test_dir.path("vm/hyperkit.json")).unwrap();
    test_dir.write("vm/disk.img", &[7; 1024 * 1024]);
    fails(&defined.clone().hyperkit(&program).cpus(2).disk(Disk::in_state_dir(1)));
    assert_eq!(fs::read(test_dir.path("vm/hyperkit.json")).unwrap(), before);
    assert_eq!(fs::read(test_dir.path("vm/disk.img")).unwrap(), [7; 1024 * 1024]);
    let images = test_dir.state_files().into_iter().filter(|name| name.contains("img")).collect::<Vec<_>>();
    assert_eq!(images, ["disk.img"]);
    defined.remove(Disks::Delete).unwrap();
    assert!(!test_dir.path("vm").exists());
}
