//! How the exit of the guest is reported.

use hyperkit::Exit;

use crate::common::guest::{BOOT_TIMEOUT, Guest, QUIET_CMDLINE};

#[test]
fn guest_reboot_exits_with_reset() {
    let mut guest = Guest::new();
    // A kernel without an init panics. With `panic=1` it then reboots.
    let vm = guest.description.start(&format!("{QUIET_CMDLINE} rdinit=/nothing root=/dev/nothing")).unwrap();
    assert_eq!(vm.wait_timeout(BOOT_TIMEOUT), Some(Exit::Reset));
    let log_tail = vm.log_tail();
    assert!(log_tail.console.contains("Kernel panic") || log_tail.console.contains("Rebooting"), "{log_tail}");
    assert_eq!(
        guest.description.run(&format!("{QUIET_CMDLINE} rdinit=/nothing root=/dev/nothing")).unwrap(),
        Exit::Reset
    );
}
