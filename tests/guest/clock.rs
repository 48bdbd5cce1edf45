//! The guest's clock.

use std::thread::sleep;
use std::time::{Duration, SystemTime};

use crate::common::guest::{Guest, QUIET_CMDLINE, open_shell, run_in_guest};

fn seconds() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

/// The guide says so about `pause`.
#[test]
fn clock_is_behind_after_a_pause_until_it_is_read_from_the_rtc() {
    const PAUSE: u64 = 10;
    let guest = Guest::new();
    let vm = guest.description.start(QUIET_CMDLINE).unwrap();
    let console = open_shell(&vm);
    // Reading the guest's clock takes time, so it is known from below and from above.
    let behind = |before: &str| {
        let start = seconds();
        let clock: u64 = run_in_guest(&console, &format!("{before} date +%s")).trim().parse().unwrap();
        start.saturating_sub(clock)..=seconds().saturating_sub(clock)
    };
    let first = behind("");
    vm.pause().unwrap();
    sleep(Duration::from_secs(PAUSE));
    vm.resume().unwrap();
    let paused = behind("");
    assert!(*paused.end() + 1 >= first.start() + PAUSE, "{first:?} behind, then {paused:?}");
    let set = behind("hwclock -s -u &&");
    assert!(*set.start() <= 2, "{set:?} behind after it was set");
}
