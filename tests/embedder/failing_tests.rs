//! Tests with the guide's harness that do not pass, to see what becomes of their VMs. `tests/programs/embedder/harness.rs` runs
//! one at a time.

#[path = "../../examples/howto/harness.rs"]
mod harness;

use harness::{TIMEOUT, TestVm, template};
use hyperkit::{Exit, HyperKit};

/// The stand-in for hyperkit runs these VMs, and has no channel for commands.
fn without_agent() -> HyperKit {
    template().agent(false)
}

#[test]
#[ignore = "fails"]
fn fails() {
    let vm = TestVm::start("fails", without_agent());
    vm.wait_for_console("Linux version", TIMEOUT).unwrap();
    assert_eq!(vm.description().cpus, 2, "the number of vCPUs");
}

#[test]
#[ignore = "fails"]
fn fails_to_start() {
    TestVm::start("fails-to-start", without_agent().cpus(0));
}

#[test]
#[ignore = "fails"]
fn fails_in_the_guest() {
    TestVm::start("fails-in-the-guest", template()).run("ls", &["/no-such-file"]);
}

#[test]
#[ignore = "lasts until the VM is killed"]
fn hangs() {
    let vm = TestVm::start("hangs", without_agent());
    println!("the VM runs");
    assert_eq!(vm.wait(), Exit::Killed(9));
}
