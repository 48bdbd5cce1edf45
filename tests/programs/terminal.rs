//! The caller's terminal, in use as the console or attached to it, is restored afterwards.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl};
use rustix::process::{Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};

use crate::common::{TEST_TIMEOUT, TestDir, example_path, standin_path, start_vm, to_pid, wait_until};

/// A pseudo-terminal: the side of the user, and the side that a program uses.
struct Terminal {
    user: File,
    program: File,
    output: String,
}

impl Terminal {
    fn new() -> Self {
        let user = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&user).unwrap();
        unlockpt(&user).unwrap();
        let name = ptsname(&user, Vec::new()).unwrap();
        let program = OpenOptions::new().read(true).write(true).open(name.to_str().unwrap()).unwrap();
        Self { user: user.into(), program, output: String::new() }
    }

    /// Runs `boot` on this terminal until the guest is ready.
    fn boot(&mut self, test_dir: &TestDir) -> Child {
        let mut boot = Command::new(example_path("boot"));
        boot.arg("--hyperkit").arg(standin_path()).arg("--kernel").arg(test_dir.path("vmlinuz"));
        boot.arg("--state-dir").arg(test_dir.path("vm")).args(["--cmdline", "guest.say=ready"]);
        let boot = self.lend(&mut boot);
        self.expect("ready");
        assert!(self.is_raw());
        boot
    }

    /// Starts a program on this terminal.
    fn lend(&self, program: &mut Command) -> Child {
        let stdio = || self.program.try_clone().unwrap();
        program.stdin(stdio()).stdout(stdio()).stderr(stdio()).spawn().unwrap()
    }

    /// Reads until the output contains a text.
    fn expect(&mut self, text: &str) {
        let mut buffer = [0; 1024];
        let deadline = Timespec { tv_sec: 60, tv_nsec: 0 };
        while !self.output.contains(text) {
            let ready = poll(&mut [PollFd::new(&self.user, PollFlags::IN)], Some(&deadline)).unwrap();
            assert!(ready > 0, "{text:?} is not in the output: {:?}", self.output);
            let length = self.user.read(&mut buffer).unwrap();
            self.output.push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
    }

    fn is_raw(&self) -> bool {
        !tcgetattr(&self.program).unwrap().local_modes.contains(LocalModes::ICANON | LocalModes::ISIG)
    }

    fn flags(&self) -> OFlags {
        fcntl_getfl(&self.program).unwrap()
    }
}

#[test]
fn input_reaches_the_guest_and_shutdown_restores_the_terminal() {
    let test_dir = TestDir::new();
    let _stop = test_dir.stop_on_drop();
    let mut terminal = Terminal::new();
    let flags = terminal.flags();
    let mut boot = terminal.boot(&test_dir);
    terminal.user.write_all(b"typed\x03here").unwrap();
    terminal.expect("typed\x03here");
    let description = hyperkit::HyperKit::from_state(test_dir.path("vm")).unwrap();
    kill_process(to_pid(description.recorded_pid().unwrap()), Signal::TERM).unwrap();
    assert!(boot.wait().unwrap().success());
    assert!(!terminal.is_raw());
    assert_eq!(terminal.flags(), flags);
}

#[test]
fn killed_vm_restores_the_terminal() {
    let test_dir = TestDir::new();
    let _stop = test_dir.stop_on_drop();
    let mut terminal = Terminal::new();
    let flags = terminal.flags();
    let mut boot = terminal.boot(&test_dir);
    assert!(terminal.flags().contains(OFlags::NONBLOCK));
    hyperkit::HyperKit::from_state(test_dir.path("vm")).unwrap().stop().unwrap();
    assert!(!boot.wait().unwrap().success());
    terminal.expect("was killed by signal 9");
    assert!(!terminal.is_raw());
    assert_eq!(terminal.flags(), flags);
}

#[test]
fn killed_attach_restores_the_terminal_and_keeps_the_vm() {
    let test_dir = TestDir::new();
    let (_, vm, _stop) = start_vm(&test_dir, "guest");
    let terminal = Terminal::new();
    let mut attach =
        terminal.lend(Command::new(example_path("boot")).arg("--attach").arg("--state-dir").arg(test_dir.path("vm")));
    wait_until("it is attached to the console", || terminal.is_raw());
    kill_process(to_pid(attach.id()), Signal::TERM).unwrap();
    assert_eq!(attach.wait().unwrap().signal(), Some(15));
    assert!(!terminal.is_raw());
    assert_eq!(vm.try_wait(), None);
}

/// Otherwise the terminal would answer the control sequence, and the next program would read the answer as input.
#[test]
fn log_escapes_terminal_control_sequences() {
    let test_dir = TestDir::new();
    let (_, vm, _stop) = start_vm(&test_dir, "guest.say=\x1b[6nhere");
    vm.wait_for_console("here", TEST_TIMEOUT).unwrap();
    let mut terminal = Terminal::new();
    let mut log = terminal.lend(Command::new(example_path("ctl")).arg("log").arg(test_dir.path("vm")));
    terminal.expect("\\u{1b}[6nhere\r\n");
    assert!(log.wait().unwrap().success());
}
