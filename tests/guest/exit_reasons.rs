//! How the exit of the guest is reported.

use std::sync::mpsc::channel;
use std::thread;

use hyperkit::{Console, Exit};

use crate::common::guest::{BOOT_TIMEOUT, Guest, QUIET_CMDLINE, REPORT_CMDLINE, description_in};
use crate::owner::Owner;

#[test]
fn guest_reboot_is_reported_as_reset() {
    let guest = Guest::new();
    // A kernel that finds no init panics. With `panic=1` it then reboots.
    let cmdline = format!("{QUIET_CMDLINE} rdinit=/nothing root=/dev/nothing");
    let vm = guest.description.start(&cmdline).unwrap();
    assert_eq!(vm.wait_timeout(BOOT_TIMEOUT), Some(Exit::Reset));
    let log_tail = vm.log_tail();
    assert!(log_tail.console.contains("Kernel panic") || log_tail.console.contains("Rebooting"), "{log_tail}");
    let in_foreground = guest.description.clone().console(Console::Pty);
    assert_eq!(in_foreground.run(&cmdline).unwrap(), Exit::Reset);
}

/// One thread waits for two VMs: one of this process, whose guest powers off, and one that another process has started.
#[test]
fn exited_futures_complete_at_the_exit_of_their_vm() {
    let owner = Owner::start("exit_reasons::exited_futures_complete_at_the_exit_of_their_vm", |state_dir| {
        description_in(state_dir).start(QUIET_CMDLINE).unwrap()
    });
    let (guest, adopted) = (Guest::new(), owner.vm());
    let vm = guest.description.start(REPORT_CMDLINE).unwrap();
    let (send, exits) = channel();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let adopted_exited = tokio::spawn(adopted.exited());
            let first = vm.exited().await;
            let is_pending = !adopted_exited.is_finished();
            adopted.kill().unwrap();
            send.send((first, is_pending, adopted_exited.await.unwrap(), vm.exited().await)).unwrap();
        });
    });
    let expected = (Exit::PowerOff, true, Exit::Unknown, Exit::PowerOff);
    assert_eq!(exits.recv_timeout(BOOT_TIMEOUT), Ok(expected));
}
