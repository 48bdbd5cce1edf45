//! Tests that boot a VM each, with `harness.rs`.

mod harness;

use harness::{TIMEOUT, TestVm, template};
use hyperkit::{Exit, GuestStatus, ShutdownOutcome};

#[test]
fn guest_sees_its_vcpus() {
    let vm = TestVm::start("vcpus", template().cpus(2));
    assert_eq!(vm.run("grep", &["-c", "^processor", "/proc/cpuinfo"]), "2\n");
}

#[test]
fn two_vms_share_no_disk() {
    let vms = ["disk-0", "disk-1"].map(|name| TestVm::start(name, template()));
    for vm in &vms {
        // The disk contains zeros, as when it was created, although the other VM writes to its own.
        let zeros = vm.run("sh", &["-c", "head -c 8 /dev/vda | tr '\\0' 0; echo not zero >/dev/vda"]);
        assert_eq!(zeros, "00000000");
    }
}

#[test]
fn copied_file_is_there_and_a_failure_is_reported() {
    let vm = TestVm::start("copy", template());
    vm.run("true", &[]); // waits until the guest has booted
    vm.copy_in(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"), "/tmp/Cargo.toml").unwrap();
    let script = "grep -c '^name = ' Cargo.toml; echo $0 failed >&2; exit 3";
    let output = vm.command("sh").args(["-c", script, "it"]).current_dir("/tmp").timeout(TIMEOUT).output().unwrap();
    assert_eq!((output.status, &*output.stderr), (GuestStatus::Exited(3), &b"it failed\n"[..]));
    assert_ne!(output.stdout, b"0\n");
}

#[test]
fn guest_powers_off_at_the_power_button() {
    let vm = TestVm::start("power-button", template());
    vm.run("true", &[]);
    assert_eq!(vm.shutdown(TIMEOUT).unwrap(), ShutdownOutcome::Graceful(Exit::PowerOff));
}
