//! Tests that boot a VM each, with `harness.rs`.

mod harness;

use std::time::Duration;

use harness::{TestVm, template};
use hyperkit::{ConsoleStream, Exit, ShutdownOutcome};

const TIMEOUT: Duration = Duration::from_secs(300);

/// Waits until the guest is up and has a shell on its console.
fn shell(vm: &TestVm) -> ConsoleStream {
    vm.wait_for_console("is up", TIMEOUT).unwrap();
    vm.console().unwrap()
}

#[test]
fn guest_sees_its_vcpus() {
    let vm = TestVm::start("vcpus", template().cpus(2));
    let console = shell(&vm);
    console.send_line("echo vcpus=$(grep -c ^processor /proc/cpuinfo)").unwrap();
    console.expect("vcpus=2", TIMEOUT).unwrap();
}

#[test]
fn two_vms_share_no_disk() {
    let vms = ["disk-0", "disk-1"].map(|name| TestVm::start(name, template()));
    for (index, vm) in vms.iter().enumerate() {
        let console = shell(vm);
        // The disk must still contain zeros, as when it was created, although the other VM writes to its own disk.
        console
            .send_line(&format!("echo zeros=$(head -c 8 /dev/vda | tr '\\0' 0); echo disk-of-{index} >/dev/vda"))
            .unwrap();
        console.expect("zeros=00000000", TIMEOUT).unwrap();
    }
}

#[test]
fn guest_powers_off_at_the_power_button() {
    let vm = TestVm::start("power-button", template());
    vm.wait_for_console("is up", TIMEOUT).unwrap();
    assert_eq!(vm.shutdown(TIMEOUT).unwrap(), ShutdownOutcome::Graceful(Exit::PowerOff));
}
