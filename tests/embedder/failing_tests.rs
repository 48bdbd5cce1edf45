//! Tests with the guide's harness that do not pass, to see what becomes of their VMs. `tests/programs/embedder/harness.rs` runs
//! one at a time.

#[path = "../../examples/howto/harness.rs"]
mod harness;

use std::time::Duration;

use harness::{TestVm, template};
use hyperkit::Exit;

#[test]
#[ignore = "fails"]
fn fails() {
    let vm = TestVm::start("fails", template());
    vm.wait_for_console("Linux version", Duration::from_secs(300)).unwrap();
    assert_eq!(vm.description().cpus, 2, "the number of vCPUs");
}

#[test]
#[ignore = "fails"]
fn fails_to_start() {
    TestVm::start("fails-to-start", template().cpus(0));
}

#[test]
#[ignore = "lasts until the VM is killed"]
fn hangs() {
    let vm = TestVm::start("hangs", template());
    println!("the VM runs");
    assert_eq!(vm.wait(), Exit::Killed(9));
}
