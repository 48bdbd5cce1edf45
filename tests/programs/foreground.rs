//! The example `boot` in the foreground: the VM ends with it, however it ends.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, mpsc};
use std::thread;

use hyperkit::{Disks, HyperKit, Vm};
use rustix::process::{Signal, kill_process};
use signal_hook::consts::{SIGHUP, SIGINT};

use crate::common::child_process::in_child_process;
use crate::common::guest::guest_file;
use crate::common::{
    StopOnDrop, TEST_TIMEOUT, TestDir, example_path, hypervisors_in, standin_path, to_pid, wait_until,
};

/// A directory for the state directories of VMs that run one after the other, and what runs them.
struct Runner {
    /// Dropped first: it finds the VM by the state directory.
    _stop: StopOnDrop,
    test_dir: TestDir,
    hypervisor: PathBuf,
    kernel: PathBuf,
}

/// `boot` in the foreground. Killed on drop, so also when the test fails.
struct Boot {
    child: Child,
    stdout: Option<BufReader<ChildStdout>>,
}

impl Runner {
    fn new(hypervisor: impl Into<PathBuf>, kernel: Option<PathBuf>) -> Self {
        let test_dir = TestDir::new();
        let kernel = kernel.unwrap_or_else(|| test_dir.path("vmlinuz"));
        Self { _stop: test_dir.stop_on_drop(), test_dir, hypervisor: hypervisor.into(), kernel }
    }

    fn boot(&self) -> Boot {
        let mut boot = Command::new(example_path("boot"));
        boot.arg("--hyperkit").arg(&self.hypervisor).arg("--kernel").arg(&self.kernel);
        boot.arg("--state-dir").arg(self.state_dir()).args(["--cmdline", "console=ttyS0 guest.say=ready"]);
        boot.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(File::create(self.test_dir.path("stderr")).unwrap());
        let mut child = boot.spawn().unwrap();
        Boot { stdout: child.stdout.take().map(BufReader::new), child }
    }

    fn state_dir(&self) -> PathBuf {
        self.test_dir.path("vm")
    }

    fn vm(&self) -> Option<Vm> {
        HyperKit::from_state(self.state_dir()).ok()?.vm().unwrap()
    }

    /// Sends a signal to `boot` alone, and waits until all processes of the VM have exited.
    fn end_with(&self, mut boot: Boot, signal: Signal) {
        kill_process(to_pid(boot.child.id()), signal).unwrap();
        assert_eq!(boot.child.wait().unwrap().signal(), Some(signal.as_raw()));
        // The hypervisor has inherited standard output, from its fork on.
        let (send, ended) = mpsc::channel();
        let mut stdout = boot.stdout.take().unwrap();
        thread::spawn(move || send.send(stdout.read_to_end(&mut Vec::new())));
        ended.recv_timeout(TEST_TIMEOUT).expect("the hypervisor has outlived boot").unwrap();
        // The processes that watch `boot` have the same arguments.
        wait_until("all processes of the VM have exited", || hypervisors_in(&self.state_dir()).is_empty());
        assert!(self.vm().is_none());
    }
}

impl Drop for Boot {
    fn drop(&mut self) {
        let _ = self.child.kill().and_then(|()| self.child.wait());
    }
}

/// Runs a test for each signal, in a process whose children do not ignore SIGHUP and SIGINT, as they would under `nohup` or in
/// the background of a script: a signal with a handler has its default effect again in a new program.
fn for_each_signal(test: &str, body: impl Fn(Signal)) {
    in_child_process(&format!("foreground::{test}"), || {
        for signal in [SIGHUP, SIGINT] {
            signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false))).unwrap();
        }
        [Signal::TERM, Signal::KILL, Signal::HUP, Signal::INT].into_iter().for_each(body);
    });
}

#[test]
fn signal_to_boot_kills_the_hypervisor() {
    for_each_signal("signal_to_boot_kills_the_hypervisor", |signal| {
        let runner = Runner::new(standin_path(), None);
        // The second start finds nothing in its way.
        for _ in 0..2 {
            let mut boot = runner.boot();
            let mut lines = boot.stdout.as_mut().unwrap().lines().map(Result::unwrap);
            assert!(lines.any(|line| line == "ready"));
            let vm = runner.vm().expect("the VM runs");
            runner.end_with(boot, signal);
            assert!(vm.wait_timeout(TEST_TIMEOUT).is_some());
        }
    });
}

#[test]
fn signal_to_boot_kills_qemu() {
    for_each_signal("signal_to_boot_kills_qemu", |signal| {
        let runner = Runner::new("qemu-system-x86_64", Some(guest_file("vmlinuz")));
        let boot = runner.boot();
        wait_until("the VM runs", || runner.vm().is_some());
        let vm = runner.vm().expect("the VM runs");
        runner.end_with(boot, signal);
        assert!(vm.wait_timeout(TEST_TIMEOUT).is_some());
    });
}

/// The state file is written before the hypervisor is started, and its arguments are visible before it is ready.
#[test]
fn signal_to_starting_boot_leaves_no_hypervisor() {
    for_each_signal("signal_to_starting_boot_leaves_no_hypervisor", |signal| {
        let runner = Runner::new(standin_path(), None);
        for round in 0..10 {
            let boot = runner.boot();
            wait_until("boot starts the hypervisor", || match round % 2 {
                0 => runner.state_dir().join("hyperkit.json").exists(),
                _ => !hypervisors_in(&runner.state_dir()).is_empty(),
            });
            runner.end_with(boot, signal);
            let description = HyperKit::from_state(runner.state_dir()).unwrap();
            description.remove(Disks::Delete).unwrap();
            assert!(!runner.state_dir().exists());
        }
    });
}

/// A hypervisor does not notice that nobody reads its output.
#[test]
fn closing_stdout_of_boot_kills_the_vm() {
    let runner = Runner::new(standin_path(), None);
    let mut boot = runner.boot();
    let mut lines = boot.stdout.take().unwrap().lines().map(Result::unwrap);
    assert!(lines.any(|line| line == "ready"));
    drop(lines);
    assert_eq!(boot.child.wait().unwrap().code(), Some(1));
    wait_until("all processes of the VM have exited", || hypervisors_in(&runner.state_dir()).is_empty());
    let error = std::fs::read_to_string(runner.test_dir.path("stderr")).unwrap();
    assert!(error.contains("boot: nobody reads the output any more"), "{error}");
}
