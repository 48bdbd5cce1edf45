//! TODO

use hyperkit::Exit;

use crate::common::guest::{BOOT_TIMEOUT, QUIET_CMDLINE, new_guest};

#[test]
fn guest_reboot_exits_with_reset() {
    let mut guest = new_guest();
    // A kernel without an init panics, and with panic=1 reboots.
    let vm = guest.description.start(&format!("{QUIET_CMDLINE} rdinit=/nothing root=/dev/nothing")).unwrap();
    assert_eq!(vm.wait_timeout(BOOT_TIMEOUT).unwrap(), Some(Exit::Reset));
    let last_words = vm.last_words();
    assert!(last_words.console.contains("Kernel panic") || last_words.console.contains("Rebooting"), "{last_words}");
    assert_eq!(
        guest.description.run(&format!("{QUIET_CMDLINE} rdinit=/nothing root=/dev/nothing")).unwrap(),
        Exit::Reset
    );
}
