//! A pseudo-terminal on which tests run programs.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::process::{Child, Command};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};

use crate::common::{TEST_TIMEOUT, TestDir, example_path, standin_path};

/// A pseudo-terminal: the side of the user, and the side that a program uses.
pub struct Terminal {
    user: File,
    program: File,
    /// All that the programs have printed.
    pub output: String,
    /// How many bytes at the end of the output no `expect` has consumed.
    unread: usize,
}

/// A program on a terminal. Killed on drop, so also when the test fails.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill().and_then(|()| self.0.wait());
    }
}

impl Terminal {
    pub fn new() -> Self {
        let user = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        // Otherwise the programs on the terminal would keep it when it is dropped.
        fcntl_setfd(&user, FdFlags::CLOEXEC).unwrap();
        grantpt(&user).unwrap();
        unlockpt(&user).unwrap();
        let name = ptsname(&user, Vec::new()).unwrap();
        let program = OpenOptions::new().read(true).write(true).open(name.to_str().unwrap()).unwrap();
        Self { user: user.into(), program, output: String::new(), unread: 0 }
    }

    /// Runs `boot` on this terminal until the guest of the stand-in is ready.
    pub fn boot(&mut self, test_dir: &TestDir, flags: &[&str]) -> Running {
        let mut boot = Command::new(example_path("boot"));
        boot.arg("--hyperkit").arg(standin_path()).arg("--kernel").arg(test_dir.path("vmlinuz"));
        boot.args(["--cmdline", "guest.say=ready"]).args(flags);
        if !flags.contains(&"--no-state") {
            boot.arg("--state-dir").arg(test_dir.path("vm"));
        }
        let boot = self.lend(&mut boot);
        self.expect("ready\r\n");
        assert!(self.is_raw());
        boot
    }

    /// Starts a command of `ctl` on this terminal.
    pub fn ctl(&self, test_dir: &TestDir, words: &[&str]) -> Running {
        self.lend(Command::new(example_path("ctl")).args(words).arg(test_dir.path("vm")))
    }

    /// Starts a program on this terminal.
    pub fn lend(&self, program: &mut Command) -> Running {
        let stdio = || self.program.try_clone().unwrap();
        Running(program.stdin(stdio()).stdout(stdio()).stderr(stdio()).spawn().unwrap())
    }

    pub fn type_keys(&mut self, keys: &str) {
        self.user.write_all(keys.as_bytes()).unwrap();
    }

    /// Reads until the new output contains a text. The output after it counts as new at the next call.
    pub fn expect(&mut self, text: &str) {
        self.expect_within(text, TEST_TIMEOUT.as_secs());
    }

    pub fn expect_within(&mut self, text: &str, seconds: u64) {
        let mut buffer = [0; 1024];
        let deadline = Timespec { tv_sec: seconds.try_into().unwrap(), tv_nsec: 0 };
        let begin = self.output.len() - self.unread;
        while !self.output[begin..].contains(text) {
            let ready = poll(&mut [PollFd::new(&self.user, PollFlags::IN)], Some(&deadline)).unwrap();
            assert!(ready > 0, "{text:?} is not in the output: {:?}", self.output);
            let length = self.user.read(&mut buffer).unwrap();
            self.output.push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
        let end = begin + self.output[begin..].find(text).unwrap() + text.len();
        self.unread = self.output.len() - end;
    }

    pub fn is_raw(&self) -> bool {
        !tcgetattr(&self.program).unwrap().local_modes.contains(LocalModes::ICANON | LocalModes::ISIG)
    }

    pub fn flags(&self) -> OFlags {
        fcntl_getfl(&self.program).unwrap()
    }
}
