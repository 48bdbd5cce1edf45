//! The examples on a terminal: it is restored however they end, they say how to leave, and they ask before they delete.

use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use hyperkit::{HyperKit, Vm};
use rustix::fs::OFlags;
use rustix::process::{Signal, WaitOptions, kill_process, waitpid};

use crate::common::guest::BOOT_TIMEOUT;
use crate::common::{TEST_TIMEOUT, TestDir, example_path, hypervisors_in, standin_path, start_vm, to_pid, wait_until};
use crate::pty::{Running, Terminal};

const SIGNALS: [Signal; 4] = [Signal::TERM, Signal::HUP, Signal::INT, Signal::QUIT];
const ESCAPE: &str = "\x1d";
const MENU: &str = "(d)etach, (p)ower button, (k)ill";

fn found(test_dir: &TestDir) -> Vm {
    HyperKit::from_state(test_dir.path("vm")).unwrap().vm().unwrap().expect("the VM runs")
}

fn exit_code(program: &mut Running) -> Option<i32> {
    program.0.wait().unwrap().code()
}

/// Waits for the exit of `boot`, which leaves the terminal as it was.
fn assert_restored_at_exit(terminal: &Terminal, boot: &mut Running, status: i32) {
    assert_eq!(exit_code(boot), Some(status));
    assert!(!terminal.is_raw());
}

/// Runs `boot` until it asks how to leave it.
fn boot_that_asks(test_dir: &TestDir) -> (Terminal, Running) {
    let mut terminal = Terminal::new();
    let boot = terminal.boot(test_dir, &[]);
    terminal.type_keys(ESCAPE);
    terminal.expect(MENU);
    (terminal, boot)
}

#[test]
fn input_reaches_the_guest_and_shutdown_restores_the_terminal() {
    for console in ["pty", "stdio"] {
        let test_dir = TestDir::new();
        let _stop = test_dir.stop_on_drop();
        let mut terminal = Terminal::new();
        let flags = terminal.flags();
        let mut boot = terminal.boot(&test_dir, &["--console", console]);
        terminal.type_keys("typed\x03here");
        terminal.expect("typed\x03here");
        kill_process(to_pid(found(&test_dir).pid()), Signal::TERM).unwrap();
        terminal.expect("boot: the VM powered off");
        assert_restored_at_exit(&terminal, &mut boot, 0);
        assert_eq!(terminal.flags(), flags);
    }
}

#[test]
fn killed_vm_restores_the_terminal() {
    for console in ["pty", "stdio"] {
        let test_dir = TestDir::new();
        let _stop = test_dir.stop_on_drop();
        let mut terminal = Terminal::new();
        let flags = terminal.flags();
        let mut boot = terminal.boot(&test_dir, &["--console", console]);
        assert_eq!(terminal.flags().contains(OFlags::NONBLOCK), console == "stdio");
        HyperKit::from_state(test_dir.path("vm")).unwrap().stop().unwrap();
        assert_eq!(exit_code(&mut boot), Some(1));
        terminal.expect("was killed by signal 9");
        assert!(!terminal.is_raw());
        assert_eq!(terminal.flags(), flags);
    }
}

#[test]
fn signal_to_boot_kills_the_vm_and_restores_the_terminal() {
    for signal in SIGNALS {
        for console in [&["--console", "pty"][..], &["--console", "stdio"], &["--no-state"]] {
            let test_dir = TestDir::new();
            let _stop = test_dir.stop_on_drop();
            let mut terminal = Terminal::new();
            let flags = terminal.flags();
            let mut boot = terminal.boot(&test_dir, console);
            kill_process(to_pid(boot.0.id()), signal).unwrap();
            assert_eq!(boot.0.wait().unwrap().signal(), Some(signal.as_raw()));
            assert!(!terminal.is_raw(), "{signal:?} {console:?}");
            assert_eq!(terminal.flags(), flags, "{signal:?} {console:?}");
            let dir = test_dir.path("vm");
            wait_until("the hypervisor has exited", || hypervisors_in(&dir).is_empty());
        }
    }
}

#[test]
fn signal_to_an_attached_ctl_restores_the_terminal_and_keeps_the_vm() {
    let test_dir = TestDir::new();
    let (_, vm, _stop) = start_vm(&test_dir, "guest");
    for signal in SIGNALS {
        let terminal = Terminal::new();
        let mut console = terminal.ctl(&test_dir, &["console"]);
        wait_until("it is attached to the console", || terminal.is_raw());
        kill_process(to_pid(console.0.id()), signal).unwrap();
        assert_eq!(console.0.wait().unwrap().signal(), Some(signal.as_raw()));
        assert!(!terminal.is_raw());
        assert_eq!(vm.try_wait(), None);
    }
}

/// A shell uses the terminal while a program is stopped.
#[test]
fn stopped_boot_restores_the_terminal_until_it_continues() {
    let test_dir = TestDir::new();
    let _stop = test_dir.stop_on_drop();
    let mut terminal = Terminal::new();
    let boot = terminal.boot(&test_dir, &[]);
    let pid = to_pid(boot.0.id());
    for _ in 0..2 {
        kill_process(pid, Signal::TSTP).unwrap();
        let (_, status) = waitpid(Some(pid), WaitOptions::UNTRACED).unwrap().unwrap();
        assert!(status.stopped() && !terminal.is_raw(), "{status:?}");
        kill_process(pid, Signal::CONT).unwrap();
        wait_until("the terminal is raw again", || terminal.is_raw());
    }
    terminal.type_keys("continued");
    terminal.expect("continued");
}

/// Without a signal: the terminal may belong to another session.
#[test]
fn vanished_terminal_ends_boot_with_its_vm_and_an_attached_ctl_without() {
    for flags in [&[][..], &["--console", "stdio"]] {
        let test_dir = TestDir::new();
        let _stop = test_dir.stop_on_drop();
        let mut terminal = Terminal::new();
        let mut boot = terminal.boot(&test_dir, flags);
        drop(terminal);
        assert_eq!(exit_code(&mut boot), Some(1), "{flags:?}");
        wait_until("the hypervisor has exited", || hypervisors_in(&test_dir.path("vm")).is_empty());
    }
    let test_dir = TestDir::new();
    let (_, vm, _stop) = start_vm(&test_dir, "guest");
    let terminal = Terminal::new();
    let mut console = terminal.ctl(&test_dir, &["console"]);
    wait_until("it is attached to the console", || terminal.is_raw());
    drop(terminal);
    assert_eq!(exit_code(&mut console), Some(1));
    assert_eq!(vm.try_wait(), None);
}

/// Changing the terminal in the background of a shell stops a program. That must not keep a signal from ending it.
#[cfg(target_os = "linux")]
#[test]
fn signal_ends_a_boot_that_is_stopped_in_the_background_of_a_shell() {
    for console in ["pty", "stdio"] {
        let test_dir = TestDir::new();
        let _stop = test_dir.stop_on_drop();
        let terminal = Terminal::new();
        let mut shell = Command::new("setsid");
        shell.args(["--ctty", "sh", "-mc", "\"$@\" & echo $! > \"$PID_FILE\"; sleep 1000", "sh"]);
        shell.arg(example_path("boot")).arg("--hyperkit").arg(standin_path()).args(["--console", console]);
        shell.arg("--kernel").arg(test_dir.path("vmlinuz")).arg("--state-dir").arg(test_dir.path("vm"));
        let _shell = terminal.lend(shell.env("PID_FILE", test_dir.path("pid")));
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let pid = || read(test_dir.path("pid").to_str().unwrap()).trim().parse::<u32>().unwrap_or(0);
        wait_until("it is stopped", || read(&format!("/proc/{}/stat", pid())).contains(") T "));
        // As the shell's `kill %1`: to the job's process group, in which the watchers of the hypervisor may be stopped, too.
        rustix::process::kill_process_group(to_pid(pid()), Signal::TERM).unwrap();
        rustix::process::kill_process_group(to_pid(pid()), Signal::CONT).unwrap();
        wait_until("the VM has ended", || hypervisors_in(&test_dir.path("vm")).is_empty());
    }
}

#[test]
fn boot_says_how_to_leave_before_the_guest_boots() {
    for (flags, how) in [(&[][..], "Ctrl-] asks how to leave it"), (&["--no-state"], "from elsewhere: kill ")] {
        let test_dir = TestDir::new();
        let _stop = test_dir.stop_on_drop();
        let mut terminal = Terminal::new();
        let _boot = terminal.boot(&test_dir, flags);
        let place = |text| terminal.output.find(text).unwrap_or_else(|| panic!("{text:?}: {}", terminal.output));
        assert!(place(how) < place("Linux version"), "{}", terminal.output);
    }
}

#[test]
fn escape_key_of_boot_detaches_and_the_vm_outlives_boot() {
    let test_dir = TestDir::new();
    let _stop = test_dir.stop_on_drop();
    let mut terminal = Terminal::new();
    let mut boot = terminal.boot(&test_dir, &[]);
    // What is typed before and after the escape key reaches the guest; the answer to the question does not.
    terminal.type_keys(&format!("before{ESCAPE}"));
    terminal.expect(MENU);
    terminal.type_keys("xafter");
    terminal.expect("after");
    wait_until("the guest has read both", || crate::common::console_output(&test_dir).contains("beforeafter"));
    terminal.type_keys(&format!("{ESCAPE}d"));
    terminal.expect(&format!("The VM runs as process {}", found(&test_dir).pid()));
    assert_restored_at_exit(&terminal, &mut boot, 0);

    let mut console = terminal.ctl(&test_dir, &["console"]);
    wait_until("it is attached to the console", || terminal.is_raw());
    terminal.type_keys("again");
    terminal.expect("again");
    terminal.type_keys(ESCAPE);
    terminal.expect("still runs");
    assert_eq!(exit_code(&mut console), Some(0));
    assert_eq!(found(&test_dir).try_wait(), None);
}

#[test]
fn escape_key_of_boot_presses_the_power_button_or_kills_the_vm() {
    for (key, result, status) in [("p", "powered off", 0), ("k", "was killed by signal 9", 1)] {
        let test_dir = TestDir::new();
        let _stop = test_dir.stop_on_drop();
        let (mut terminal, mut boot) = boot_that_asks(&test_dir);
        terminal.type_keys(key);
        terminal.expect(&format!("boot: the VM {result}"));
        assert_restored_at_exit(&terminal, &mut boot, status);
        assert!(hypervisors_in(&test_dir.path("vm")).is_empty());
    }
}

#[test]
fn exit_of_the_vm_ends_boot_also_while_it_asks() {
    let test_dir = TestDir::new();
    let _stop = test_dir.stop_on_drop();
    let (mut terminal, mut boot) = boot_that_asks(&test_dir);
    found(&test_dir).kill().unwrap();
    terminal.expect("boot: the VM was killed by signal 9");
    assert_restored_at_exit(&terminal, &mut boot, 1);
}

/// The guest may power off before `boot` is attached to its console.
#[test]
fn guest_that_exits_at_once_is_a_success() {
    let test_dir = TestDir::new();
    let _stop = test_dir.stop_on_drop();
    for _ in 0..20 {
        let mut terminal = Terminal::new();
        let mut boot = Command::new(example_path("boot"));
        boot.arg("--hyperkit").arg(standin_path()).arg("--kernel").arg(test_dir.path("vmlinuz"));
        boot.args(["--cmdline", "guest.exit=0", "--state-dir"]).arg(test_dir.path("vm"));
        let mut boot = terminal.lend(&mut boot);
        terminal.expect("boot: the VM powered off");
        assert_restored_at_exit(&terminal, &mut boot, 0);
    }
}

#[test]
fn two_attached_terminals_are_told_of_each_other() {
    let test_dir = TestDir::new();
    let (_, _vm, _stop) = start_vm(&test_dir, "guest");
    let attach = || {
        let terminal = Terminal::new();
        let console = terminal.ctl(&test_dir, &["console"]);
        wait_until("it is attached to the console", || terminal.is_raw());
        (terminal, console)
    };
    let told = "Another terminal is attached";
    let (mut first, first_console) = attach();
    let (mut second, second_console) = attach();
    first.expect(told);
    second.expect(told);
    drop((first_console, second_console));
    // Alone again.
    let (mut third, _console) = attach();
    third.type_keys("alone");
    third.expect("alone");
    assert!(!third.output.contains(told), "{}", third.output);
}

/// The kernel's messages do not bury the guest's own lines, and nothing is lost at the end.
#[test]
fn boot_of_the_guest_is_quiet_and_shows_all_output() {
    let test_dir = TestDir::new();
    let _stop = test_dir.stop_on_drop();
    let mut terminal = Terminal::new();
    let mut boot = Command::new(example_path("boot"));
    boot.args(["--hyperkit", "qemu-system-x86_64", "--memory", "256", "--state-dir"]).arg(test_dir.path("vm"));
    let mut boot = terminal.lend(&mut boot);
    terminal.expect_within("is up. 'poweroff' ends it.", BOOT_TIMEOUT.as_secs());
    let lines = terminal.output.lines().count();
    assert!(lines < 20, "{lines} lines: {}", terminal.output);
    terminal.expect_within("# ", BOOT_TIMEOUT.as_secs());

    // Each of two terminals shows all output.
    let mut other = Terminal::new();
    let mut console = other.ctl(&test_dir, &["console"]);
    wait_until("it is attached to the console", || other.is_raw());
    terminal.type_keys("echo $((6 * 7)) is it\r");
    terminal.expect_within("42 is it", BOOT_TIMEOUT.as_secs());
    other.expect_within("42 is it", BOOT_TIMEOUT.as_secs());

    terminal.type_keys("poweroff\r");
    terminal.expect_within("Power down", BOOT_TIMEOUT.as_secs());
    terminal.expect("boot: the VM powered off");
    other.expect("Power down");
    other.expect(": exited");
    assert_eq!((exit_code(&mut boot), exit_code(&mut console)), (Some(0), Some(0)));
}

#[test]
fn exec_says_that_it_boots() {
    let mut terminal = Terminal::new();
    let mut exec = Command::new(example_path("exec"));
    exec.args(["--hyperkit", "qemu-system-x86_64", "--memory", "256"]);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/exec/hello.sh");
    let mut exec = terminal.lend(exec.arg(script).args(["a", "b"]));
    terminal.expect("exec: booting a VM");
    terminal.expect_within("hello from Linux ", BOOT_TIMEOUT.as_secs());
    terminal.expect("arguments: a b\r");
    assert_eq!(exit_code(&mut exec), Some(0));
}

#[test]
fn rm_asks_before_it_deletes_a_disk() {
    let test_dir = TestDir::new();
    let _stop = test_dir.stop_on_drop();
    let description = test_dir.description().disk(hyperkit::Disk::in_state_dir(2));
    description.start("guest").unwrap().kill().unwrap();
    let mut terminal = Terminal::new();
    let question = "delete the VM with disk.img (2 MiB)?";
    for answer in ["\n", "n\n"] {
        let mut rm = terminal.ctl(&test_dir, &["rm"]);
        terminal.expect(question);
        terminal.type_keys(answer);
        terminal.expect("nothing was removed");
        assert_eq!(exit_code(&mut rm), Some(1));
        assert!(test_dir.path("vm/disk.img").exists() && test_dir.path("vm/hyperkit.json").exists());
    }
    let mut rm = terminal.ctl(&test_dir, &["rm"]);
    terminal.expect(question);
    terminal.type_keys("y\n");
    terminal.expect("was removed, with disk.img (2 MiB)");
    assert_eq!(exit_code(&mut rm), Some(0));
    assert!(!test_dir.path("vm").exists());

    description.start("guest").unwrap().kill().unwrap();
    let mut rm = terminal.ctl(&test_dir, &["rm", "--yes"]);
    terminal.expect("was removed, with disk.img (2 MiB)");
    assert_eq!(exit_code(&mut rm), Some(0));
    assert_eq!(terminal.output.matches(question).count(), 3);
}

#[test]
fn shutdown_says_that_it_waits() {
    let test_dir = TestDir::new();
    let (_, vm, _stop) = start_vm(&test_dir, "guest.deaf guest.say=ready");
    vm.wait_for_console("ready", TEST_TIMEOUT).unwrap();
    let mut terminal = Terminal::new();
    let mut shutdown = terminal.ctl(&test_dir, &["shutdown", "--grace", "3"]);
    terminal.expect("waiting for the guest to power off; killing it in 2 s");
    terminal.expect("did not power off and was killed");
    assert_eq!(exit_code(&mut shutdown), Some(0));
}

/// Otherwise the terminal would answer the control sequence, and the next program would read the answer as input.
#[test]
fn log_escapes_terminal_control_sequences() {
    let test_dir = TestDir::new();
    let (_, vm, _stop) = start_vm(&test_dir, "guest.say=\x1b[6nhere");
    vm.wait_for_console("here", TEST_TIMEOUT).unwrap();
    let mut terminal = Terminal::new();
    let mut log = terminal.ctl(&test_dir, &["log"]);
    terminal.expect("\\u{1b}[6nhere\r\n");
    assert_eq!(exit_code(&mut log), Some(0));
}
