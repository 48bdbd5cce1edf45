//! A harness for `#[test]` functions that need a VM. Each test has a VM of its own, so tests can
//! run in parallel.
//!
//! A VM ends with its test, whether that returns or panics, and with the test process, whether
//! that exits or is killed by ^C or SIGKILL. The message of a failed test includes the console's
//! log.

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyperkit::{Console, Disk, Disks, HyperKit, ScopedVm};

/// How long a guest may take to boot, and a program in it to run. An emulated guest on a busy host is slow.
pub const TIMEOUT: Duration = Duration::from_secs(300);

/// Returns the description that the VMs of all tests start from.
pub fn template() -> HyperKit {
    let file = |name| match std::env::var_os(name) {
        Some(path) => PathBuf::from(path),
        None => panic!("set {name}, for instance to a file in target/guest of hyperkit's repository"),
    };
    let mut template = HyperKit::new().kernel(file("VM_KERNEL")).initrd(file("VM_INITRD")).memory_mib(256);
    if let Some(program) = std::env::var_os("VM_HYPERVISOR") {
        template = template.hyperkit(program);
    }
    template.agent(true).disk(Disk::in_state_dir(16)).console(Console::Pty)
}

/// The VM of a test. On drop, the VM is killed and its state directory is deleted.
pub struct TestVm(ScopedVm);

impl TestVm {
    /// Starts a VM in a state directory of this name, which no other test may use.
    pub fn start(name: &str, description: HyperKit) -> Self {
        let description = description.state_dir(Path::new(env!("CARGO_TARGET_TMPDIR")).join("vms").join(name));
        // If an earlier run of the test was killed, its VM has ended, but its state directory is
        // still there.
        let started = description.remove(Disks::Delete).and_then(|()| {
            let console = description.engine()?.kernel_console();
            description.start_scoped(&format!("console={console} quiet panic=1 no_timer_check"))
        });
        match started {
            Ok(vm) => Self(vm),
            Err(error) => {
                let _ = description.remove(Disks::Delete); // the message contains the hypervisor's output
                panic!("cannot start the VM {name}: {error:#}")
            }
        }
    }

    /// Runs a program in the guest, which has to succeed, and returns what it prints. Waits until the guest has booted.
    pub fn run(&self, program: &str, args: &[&str]) -> String {
        let output = self.command(program).args(args).agent_timeout(TIMEOUT).timeout(TIMEOUT).output();
        let output = output.unwrap_or_else(|error| panic!("cannot run {program} in the guest: {error:#}"));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} in the guest {}: {stderr}", output.status);
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Deref for TestVm {
    type Target = ScopedVm;

    fn deref(&self) -> &ScopedVm {
        &self.0
    }
}

impl Drop for TestVm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.console_log().unwrap_or_default();
            eprintln!("console:\n{}\nhypervisor:\n{:#}", String::from_utf8_lossy(&log), self.log_tail().hypervisor);
        }
        if let Err(error) = self.kill().and_then(|()| self.remove(Disks::Delete)) {
            eprintln!("cannot remove the VM: {error:#}");
        }
    }
}
