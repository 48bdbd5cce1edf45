//! `ScopedVm` and `run`: the hypervisor's output, the console on stdio, and temporary files.

use std::fs;
use std::io::Write;
use std::path::Path;

use hyperkit::{Console, Error, Exit, ShutdownOutcome};
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};

use crate::common::child_process::in_child_process;
use crate::common::{TEST_TIMEOUT, TestDir, file_names, hypervisors_in, wait_until};
use crate::log_lines::log_lines;
use crate::starter::{self, Starter, report, wait_until_group_is_empty};

#[test]
fn output_reaches_the_log_file_and_the_logger() {
    in_child_process("scoped_output::output_reaches_the_log_file_and_the_logger", || {
        let lines = log_lines(log::Level::Info);
        let test_dir = TestDir::new();
        let _stop = test_dir.stop_on_drop();
        let dir = test_dir.path("vm").display().to_string();
        let next = || lines.recv_timeout(TEST_TIMEOUT).expect("a line was not logged");

        let vm = test_dir.description().start_scoped("vmm.say=one|two").unwrap();
        assert_eq!([next(), next()], [format!("{dir}: one"), format!("{dir}: two")]);
        vm.wait_for_console("Command line", TEST_TIMEOUT).unwrap();
        assert_eq!(vm.shutdown(TEST_TIMEOUT).unwrap(), ShutdownOutcome::Graceful(Exit::PowerOff));
        // hyperkit's stdout is buffered until the exit.
        let log = fs::read_to_string(test_dir.path("vm/hyperkit.log")).unwrap();
        assert!(log.starts_with("one\ntwo\nlinkname ") && log.contains("\nCOM1 connected to "), "{log}");
        assert!(next().starts_with(&format!("{dir}: linkname ")));
        assert!(next().starts_with(&format!("{dir}: COM1 connected to ")));

        // The hypervisor's stderr is logged before the hypervisor is ready, and with the console on stdio, too.
        for description in [test_dir.description(), test_dir.description().console(Console::Stdio)] {
            match description.start_scoped("vmm.die-early=5") {
                Err(Error::HypervisorFailed { exit: Exit::Failed(5), log_tail, .. }) => {
                    assert_eq!(log_tail.hypervisor, "dying early")
                }
                other => panic!("{other:?}"),
            }
            assert_eq!(next(), format!("{dir}: dying early"));
        }
        // The same holds without a state directory.
        let mut description = test_dir.description().console(Console::Stdio);
        description.state_dir = None;
        match description.run("vmm.die-early=6") {
            Err(Error::HypervisorFailed { exit: Exit::Failed(6), state_dir: None, log_tail }) => {
                assert_eq!(log_tail.hypervisor, "dying early")
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(next(), "dying early");
        assert!(lines.try_recv().is_err(), "more lines were logged");
    });
}

#[test]
fn console_on_stdio_passes_input_and_output() {
    const TEST: &str = "scoped_output::console_on_stdio_passes_input_and_output";
    if let Some(arguments) = starter::arguments_of(TEST) {
        let mut description = starter::description_in(&arguments[0]);
        match &*arguments[1] {
            "run" => return report(description.run("guest").unwrap()),
            "run without state directory" => description.state_dir = None,
            _ => {
                let vm = description.console(Console::Stdio).start_scoped("guest").unwrap();
                fs::write(Path::new(&arguments[0]).join("ready"), "").unwrap();
                return report(vm.wait());
            }
        }
        return report(description.run("guest").unwrap());
    }
    for mode in ["run", "run without state directory", "start_scoped"] {
        let test_dir = TestDir::new();
        let _stop = test_dir.stop_on_drop();
        let mut starter = Starter::spawn(TEST, &[test_dir.dir().to_str().unwrap(), mode]);
        starter.stdin().write_all(b"hello from the terminal\n").unwrap();
        starter.wait_for_line("Command line");
        starter.wait_for_line("hello from the terminal");
        // A guest that powers off earlier would be a failed start.
        wait_until("the VM is ready", || mode != "start_scoped" || test_dir.path("ready").exists());
        // Without a state directory there is no pid file, so the test finds the hypervisor by the kernel on its command
        // line. The shells that will watch the owner have the same command line until their `exec`.
        let processes = || starter::processes_with(test_dir.path("vmlinuz").to_str().unwrap());
        wait_until("only the hypervisor has its command line", || processes().len() == 1);
        let pid = processes()[0];
        rustix::process::kill_process(crate::common::to_pid(pid), Signal::TERM).unwrap();
        assert_eq!(starter.report(), "powered off", "{mode}");
        assert!(starter.wait().success());
        wait_until_group_is_empty(starter.pid());
        wait_until_group_is_empty(pid);
    }
}

#[test]
fn no_temporary_file_is_left_without_a_state_directory() {
    const TEST: &str = "scoped_output::no_temporary_file_is_left_without_a_state_directory";
    if let Some(arguments) = starter::arguments_of(TEST) {
        let mut description = starter::description_in(&arguments[0]).console(Console::Stdio);
        description.state_dir = None;
        let dir = std::env::temp_dir();
        // Another program with the same process ID has left files with the first names that the crate would use.
        for count in 0..3 {
            fs::write(dir.join(format!("hyperkit-{}-{count}.log", std::process::id())), "another's").unwrap();
        }
        let left = || file_names(&dir).len() - 3;
        assert_eq!(description.run("guest.exit=0").unwrap(), Exit::PowerOff);
        assert_eq!(left(), 0, "after a run");
        // The VM is killed before or after the shell has removed the temporary log.
        for _ in 0..30 {
            drop(description.start_scoped("guest").unwrap());
            assert_eq!(left(), 0, "after a kill");
        }
        // With each limit, the start fails at another place, because no descriptor is free.
        let before = getrlimit(Resource::Nofile);
        let used = fs::read_dir("/dev/fd").unwrap().count() as u64; // the threads of earlier VMs may still close some
        let mut failed = 0;
        for limit in 4..used + 30 {
            setrlimit(Resource::Nofile, Rlimit { current: Some(limit), ..before }).unwrap();
            let started = description.start_scoped("guest");
            setrlimit(Resource::Nofile, before).unwrap();
            failed += usize::from(started.is_err());
            drop(started);
            assert_eq!(left(), 0, "with {limit} descriptors");
        }
        assert!(failed > 3, "{failed} starts failed");
        // The starter is killed while the VM runs.
        let vm = description.start_scoped("guest").unwrap();
        wait_until("the temporary log is removed", || left() == 0);
        report(vm.pid());
        return starter::wait_for_test();
    }
    let test_dir = TestDir::new();
    let temporary = test_dir.path("temporary");
    fs::create_dir(&temporary).unwrap();
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    let mut starter = Starter::spawn_with(command.env("TMPDIR", &temporary), TEST, &[test_dir.dir().to_str().unwrap()]);
    let pid = starter.report().parse().unwrap();
    starter.signal(Signal::KILL);
    starter.wait();
    wait_until_group_is_empty(pid);
    assert_eq!(file_names(&temporary).len(), 3);
    assert!(file_names(&temporary).iter().all(|name| fs::read(temporary.join(name)).unwrap() == b"another's"));
    assert_eq!(hypervisors_in(&test_dir.path("vm")), [0; 0]);
}

/// The same holds for `start`, `start_scoped` and `run`.
#[test]
fn hypervisor_with_a_missing_interpreter_is_an_error() {
    let test_dir = TestDir::new();
    let _stop = test_dir.stop_on_drop();
    let program = test_dir.write_executable("hyperkit", b"#!/no/such/interpreter\n");
    let description = test_dir.description().hyperkit(program);
    let mut errors = vec![description.start("guest").unwrap_err()];
    errors.push(description.start_scoped("guest").map(drop).unwrap_err());
    errors.push(description.run("guest").map(drop).unwrap_err());
    for error in errors {
        match &error {
            Error::Io { action: "start", .. } => {}
            Error::HypervisorFailed { exit: Exit::Failed(126 | 127), log_tail, .. } => {
                assert!(log_tail.hypervisor.contains("hyperkit"), "{error:#}");
            }
            _ => panic!("{error:#}"),
        }
    }
    assert!(!description.is_running().unwrap());
}
