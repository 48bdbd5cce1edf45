//! `examples/howto/harness.rs`: what is left of a test's VM, however the test ends, and what the message of a failed test
//! shows.

use std::io::{BufRead, BufReader, Lines};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use hyperkit::HyperKit;
use rustix::process::{Signal, kill_process};

use super::{program, tmp_dir};
use crate::common::{StopOnDrop, TestDir, guest, hypervisors_in, standin_path, to_pid, wait_until};

/// The test program with the tests that do not pass, and a guest of the stand-in.
fn failing_tests(test_dir: &TestDir) -> Command {
    let mut tests = Command::new(program("failing_tests"));
    tests.env("VM_HYPERVISOR", standin_path());
    tests.env("VM_KERNEL", test_dir.path("vmlinuz")).env("VM_INITRD", test_dir.path("initrd.img"));
    tests.stdin(Stdio::null());
    tests
}

/// Lets a test program boot the guest in QEMU.
fn with_guest(tests: &mut Command) -> &mut Command {
    tests.env("VM_HYPERVISOR", "qemu-system-x86_64").stdin(Stdio::null());
    tests.env("VM_KERNEL", guest::guest_file("vmlinuz")).env("VM_INITRD", guest::guest_file("initrd.img"))
}

fn run_ignored(test: &str) -> (Output, String) {
    run_with(failing_tests(&TestDir::new()), test)
}

fn run_with(mut tests: Command, test: &str) -> (Output, String) {
    let output = tests.args(["--ignored", "--exact", test]).output().unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(stdout.contains("running 1 test"), "{stdout}");
    (output, stdout)
}

fn state_dir(name: &str) -> PathBuf {
    tmp_dir().join("vms").join(name)
}

#[test]
fn tests_pass_in_parallel_and_leave_nothing() {
    let output = with_guest(&mut Command::new(program("vm_tests"))).arg("--test-threads=3").output().unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && stdout.contains("4 passed"), "{output:?}");
    for name in ["vcpus", "disk-0", "disk-1", "copy", "power-button"] {
        assert!(!state_dir(name).exists(), "{name}");
    }
}

#[test]
fn failed_test_shows_the_console_and_leaves_nothing() {
    let (output, stdout) = run_ignored("fails");
    assert!(!output.status.success());
    // The panic and the console are in the output of this test, not of the whole program.
    let (_, message) = stdout.split_once("---- fails stdout ----").expect("the test has failed");
    for text in ["the number of vCPUs", "Linux version 0 (stand-in)"] {
        assert!(message.contains(text), "{stdout}");
    }
    assert!(!state_dir("fails").exists());
    assert_eq!(hypervisors_in(&state_dir("fails")), [0_u32; 0]);
}

#[test]
fn failed_program_in_the_guest_shows_its_error_and_the_console() {
    let mut tests = Command::new(program("failing_tests"));
    with_guest(&mut tests);
    let (output, stdout) = run_with(tests, "fails_in_the_guest");
    assert!(!output.status.success());
    let (_, message) = stdout.split_once("---- fails_in_the_guest stdout ----").expect("the test has failed");
    for text in [
        "ls in the guest exited with code 1: ls: /no-such-file: No such file or directory",
        "console:\n",
        "hypervisor:\n",
    ] {
        assert!(message.contains(text), "no {text:?} in {stdout}");
    }
    assert!(!state_dir("fails-in-the-guest").exists());
    assert_eq!(hypervisors_in(&state_dir("fails-in-the-guest")), [0_u32; 0]);
}

#[test]
fn failed_start_is_in_the_message() {
    let (output, stdout) = run_ignored("fails_to_start");
    assert!(!output.status.success());
    assert!(stdout.contains("cannot start the VM fails-to-start: `cpus` must be 1 to 64: 0"), "{stdout}");
    assert!(!state_dir("fails-to-start").exists());
}

/// A running test program. Killed on drop.
struct Running {
    process: Child,
    stdout: Lines<BufReader<ChildStdout>>,
}

impl Running {
    /// Starts the test that hangs, and waits until it runs its VM.
    fn start(test_dir: &TestDir) -> Self {
        let mut tests = failing_tests(test_dir);
        tests.args(["--ignored", "--exact", "hangs", "--nocapture"]).stdout(Stdio::piped());
        let mut process = tests.spawn().unwrap();
        let stdout = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut running = Self { process, stdout };
        let mut lines = running.stdout.by_ref().map(Result::unwrap);
        assert!(lines.any(|line| line.contains("the VM runs")), "the test has ended");
        running
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn vm_ends_with_the_test_process_however_that_ends() {
    let (dir, test_dir) = (state_dir("hangs"), TestDir::new());
    let _stop = StopOnDrop(dir.clone());
    // SIGINT is what ^C sends.
    for signal in [Signal::INT, Signal::TERM, Signal::HUP, Signal::KILL] {
        let mut tests = Running::start(&test_dir);
        assert!(!hypervisors_in(&dir).is_empty());
        kill_process(to_pid(tests.process.id()), signal).unwrap();
        assert!(!tests.process.wait().unwrap().success());
        wait_until("the VM has ended with its owner", || hypervisors_in(&dir).is_empty());
    }
    // The killed test could not delete the state directory. The next run uses it again, and deletes it.
    assert!(dir.exists());
    let mut tests = Running::start(&test_dir);
    HyperKit::from_state(&dir).unwrap().stop().unwrap();
    assert!(tests.process.wait().unwrap().success(), "the test waits for the VM to be killed");
    assert!(!dir.exists());
}
