//! How the exit of the hypervisor is reported.

use std::time::Duration;

use hyperkit::{Console, Error, Exit, HyperKit};
use rustix::process::{Signal, kill_process};

use crate::common::{
    TEST_TIMEOUT, TestDir, console_output, hypervisors_in, standin_path, start_vm, to_pid, wait_until,
};

#[test]
fn run_returns_the_exit_reason() {
    for (code, exit) in
        [(0, Exit::PowerOff), (2, Exit::Reset), (3, Exit::TripleFault), (1, Exit::Failed(1)), (100, Exit::Failed(100))]
    {
        let test_dir = TestDir::new();
        match test_dir.description().console(Console::Pty).run(&format!("vmm.say=working guest.exit={code}")) {
            Ok(actual) => assert!(actual == exit && code != 1 && code != 100),
            Err(Error::HypervisorFailed { exit: actual, log_tail, .. }) => {
                assert!(actual == exit && (code == 1 || code == 100));
                assert!(log_tail.hypervisor.contains("working"), "{log_tail}");
            }
            Err(error) => panic!("{error}"),
        }
        assert!(!test_dir.path("vm/hyperkit.pid").exists());
        assert!(console_output(&test_dir).contains(&format!("guest.exit={code}")));
    }
}

#[test]
fn signal_is_reported_as_power_off_or_killed() {
    // If the guest has turned on ACPI, SIGTERM presses the power button. Otherwise it kills hyperkit, as all other signals
    // do. The test uses SIGALRM for the others: shells do not ignore it in background processes, and Rust's std has no
    // handler for it.
    for (guest, signal, exit) in [
        ("guest", Signal::TERM, Exit::PowerOff),
        ("guest.no-acpi", Signal::TERM, Exit::Killed(15)),
        ("guest", Signal::ALARM, Exit::Killed(14)),
        ("guest", Signal::KILL, Exit::Killed(9)),
    ] {
        let test_dir = TestDir::new();
        let (_, vm, _stop) = start_vm(&test_dir, guest);
        wait_until("the guest is up", || console_output(&test_dir).contains("Command line"));
        kill_process(to_pid(vm.pid()), signal).unwrap();
        assert_eq!(vm.wait_timeout(TEST_TIMEOUT), Some(exit));
        assert_eq!(test_dir.path("vm/hyperkit.pid").exists(), exit != Exit::PowerOff);
    }
}

#[test]
fn hypervisor_that_dies_at_start_is_an_error_with_its_output() {
    let test_dir = TestDir::new();
    let description = test_dir.description();
    let before = description.clone();
    match description.start("vmm.die-early=7") {
        Err(Error::HypervisorFailed { exit: Exit::Failed(7), log_tail, .. }) => {
            assert_eq!(log_tail.hypervisor, "dying early")
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(description, before);
    assert!(!test_dir.path("vm/hyperkit.pid").exists());
    assert!(!HyperKit::from_state(test_dir.path("vm")).unwrap().is_running().unwrap());
    description.start("guest").unwrap().kill().unwrap();
}

#[test]
fn hypervisor_that_dies_before_while_or_after_it_writes_its_pid_file_is_an_error() {
    for (guest, exit) in
        [("vmm.die-early=7", Exit::Failed(7)), ("vmm.half-pid-file", Exit::Killed(6)), ("vmm.die=8", Exit::Failed(8))]
    {
        let test_dir = TestDir::new();
        match test_dir.description().start(guest) {
            Err(Error::HypervisorFailed { exit: how, .. }) => assert_eq!(how, exit, "{guest}"),
            other => panic!("{guest}: {other:?}"),
        }
        assert_eq!(hypervisors_in(&test_dir.path("vm")), [] as [u32; 0]);
        test_dir.description().start("guest").unwrap().kill().unwrap();
    }
}

#[test]
fn hypervisor_that_closes_its_output_can_be_waited_for_and_killed() {
    let test_dir = TestDir::new();
    let (_, vm, _stop) = start_vm(&test_dir, "vmm.no-stdout");
    assert_eq!(vm.wait_timeout(Duration::from_millis(50)), None);
    vm.kill().unwrap();
    assert_eq!(vm.wait(), Exit::Killed(9));
}

/// The hypervisor is a script. It exits with a reset at the first two starts, and runs the stand-in at the third.
#[test]
fn run_restarting_on_reset_starts_the_vm_again() {
    let test_dir = TestDir::new();
    // The two watchers are forks of a shell with the same arguments, until each executes another program. As long as the arguments occur
    // elsewhere, the VM seems to run. A hypervisor takes longer to exit than these do.
    let script = test_dir.write_executable(
        "hyperkit",
        format!(
            "#!/bin/sh\ncd {dir}\n[ -e second ] && exec {standin} \"$@\"\n[ -e first ] && : > second\n: > first\n\
             for last; do :; done\nwhile [ $# -gt 0 ]; do [ \"$1\" = -F ] && pid_file=$2; shift; done\nprintf %s $$ > \"$pid_file\"\n\
             others() {{ cat /proc/[0-9]*/cmdline >all 2>/dev/null; tr '\\0' '\\n' <all >lines\n\
             grep -cxF \"$pid_file\" lines >count; read -r count <count; [ \"$count\" != 1 ]; }}\n\
             while [ -d /proc/self ] && others; do :; done\n\
             exit 2\n",
            dir = test_dir.dir().display(),
            standin = standin_path().display(),
        )
        .as_bytes(),
    );

    let description = test_dir.description().hyperkit(script).console(Console::Pty);
    assert_eq!(description.run_restarting_on_reset("guest.exit=0").unwrap(), Exit::PowerOff);
    assert!(test_dir.path("first").exists() && test_dir.path("second").exists());
    assert!(console_output(&test_dir).contains("guest.exit=0"));
}

#[test]
fn failure_contains_log_tails_of_hypervisor_and_console() {
    let test_dir = TestDir::new();
    let description = test_dir.description().console(Console::Pty);
    match description.run("vmm.say=from-the-hypervisor guest.say=from-the-guest guest.exit=1") {
        Err(Error::HypervisorFailed { exit: Exit::Failed(1), log_tail, .. }) => {
            assert!(log_tail.hypervisor.contains("from-the-hypervisor"), "{log_tail}");
            assert!(log_tail.console.ends_with("\nfrom-the-guest"), "{log_tail}");
            assert!(log_tail.to_string().contains("console: "), "{log_tail}");
        }
        other => panic!("{other:?}"),
    }
    let (_, vm, _stop) = start_vm(&test_dir, "guest.say=still-there");
    wait_until("the guest has printed its line", || console_output(&test_dir).contains("still-there"));
    vm.kill().unwrap();
    assert!(vm.log_tail().console.ends_with("still-there"), "the log tail is lost after the exit");
}

/// A hypervisor creates its console log before its guest can exit.
#[test]
fn program_that_exits_and_is_no_hypervisor_did_not_power_off() {
    let test_dir = TestDir::new();
    let program = test_dir.write_executable("true", b"#!/bin/sh\nexit 0\n");
    let description = test_dir.description().hyperkit(program).console(Console::Pty);
    let ran = description.run("guest");
    assert!(matches!(ran, Err(Error::HypervisorFailed { exit: Exit::PowerOff, .. })), "{ran:?}");
}
