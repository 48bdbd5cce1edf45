//! A handle of a VM whose state directory belongs to another VM by now.

use std::fs;

use hyperkit::{Disks, Error, Exit, ShutdownOutcome};

use crate::common::{KillOnDrop, TEST_TIMEOUT, TestDir, console_output, hypervisors_in, start_vm, wait_until};

fn assert_replaced<T: std::fmt::Debug>(result: hyperkit::Result<T>, expected: u32) {
    match result {
        Err(Error::Replaced { successor, .. }) => assert_eq!(successor, expected),
        other => panic!("{other:?}"),
    }
}

#[test]
fn handle_of_the_previous_vm_does_not_use_the_files_of_its_successor() {
    let test_dir = TestDir::new();
    let (description, first, _stop) = start_vm(&test_dir, "guest.first");
    wait_until("the guest is up", || console_output(&test_dir).contains("guest.first"));
    first.kill().unwrap();
    assert!(String::from_utf8(first.console_log().unwrap()).unwrap().contains("guest.first"));

    let second = description.start("guest.second").unwrap();
    wait_until("the guest is up", || console_output(&test_dir).contains("guest.second"));
    let all = test_dir.state_files();
    assert_replaced(first.console_log(), second.pid());
    assert_replaced(first.console_lines().map(drop), second.pid());
    assert_replaced(first.wait_for_console("guest", TEST_TIMEOUT), second.pid());
    assert_replaced(first.console().map(drop), second.pid());
    assert_eq!(first.log_tail().console, "");
    second.kill().unwrap();
    assert_replaced(first.remove(Disks::Delete), second.pid());
    assert_eq!(
        test_dir.state_files(),
        all.into_iter().filter(|name| !name.starts_with("tty") && !name.ends_with(".pid")).collect::<Vec<_>>()
    );
}

#[test]
fn vm_whose_directory_was_moved_away_leaves_the_vm_at_its_path_alone() {
    let test_dir = TestDir::new();
    let (description, first, _stop) = start_vm(&test_dir, "guest.deaf");
    let _kill = KillOnDrop(&first);
    fs::rename(test_dir.path("vm"), test_dir.path("moved")).unwrap();
    fs::create_dir(test_dir.path("vm")).unwrap();
    // Its hypervisor names the same pid file.
    first.kill().unwrap();
    let second = description.start("guest").unwrap();
    assert_eq!(first.shutdown(TEST_TIMEOUT).unwrap(), ShutdownOutcome::AlreadyExited(Exit::Killed(9)));
    assert_eq!(hypervisors_in(&test_dir.path("vm")), [second.pid()]);
}
