//! `ConsoleLines`: lines of the console's log, with timeouts, from several threads, until the VM exits or
//! `ConsoleLinesCloser` ends them.

use std::io::Write;
use std::iter::FusedIterator;
use std::time::{Duration, Instant};

use hyperkit::{ConsoleLines, ConsoleLinesCloser, Exit, NextLine, Vm};

use crate::common::{KillOnDrop, TEST_TIMEOUT, TestDir, start_vm};

/// Returns the lines of a VM that follow the line `ready`, the last one that the guest prints by itself.
fn lines_after_ready(vm: &Vm) -> ConsoleLines {
    let mut lines = vm.console_lines().unwrap();
    while next(&mut lines) != "ready" {}
    lines
}

fn next(lines: &mut ConsoleLines) -> String {
    match lines.next_timeout(TEST_TIMEOUT).unwrap() {
        NextLine::Line(line) => line,
        other => panic!("{other:?}"),
    }
}

/// Sends a text to the guest, which prints it again.
fn print(vm: &Vm, text: &str) {
    vm.console().unwrap().write_all(text.as_bytes()).unwrap();
}

#[test]
fn next_timeout_returns_a_line_or_times_out() {
    let test_dir = TestDir::new();
    let (_, vm, _stop) = start_vm(&test_dir, "guest.say=ready");
    let mut lines = lines_after_ready(&vm);
    for timeout in [Duration::ZERO, Duration::from_millis(20)] {
        let began = Instant::now();
        assert_eq!(lines.next_timeout(timeout).unwrap(), NextLine::TimedOut);
        assert!(began.elapsed() >= timeout);
    }
    // A line without a newline is not returned yet, and is not lost.
    print(&vm, "begin");
    vm.wait_for_console("begin", TEST_TIMEOUT).unwrap();
    assert_eq!(lines.next_timeout(Duration::from_millis(20)).unwrap(), NextLine::TimedOut);
    print(&vm, "ning\r\nsecond\n\nthi");
    assert_eq!([next(&mut lines), next(&mut lines), next(&mut lines)], ["beginning", "second", ""]);
    vm.wait_for_console("thi", TEST_TIMEOUT).unwrap();
    vm.kill().unwrap();
    assert_eq!(next(&mut lines), "thi", "the last line is returned without a newline");
    for _ in 0..2 {
        assert_eq!(lines.next_timeout(Duration::MAX).unwrap(), NextLine::Ended);
    }
}

#[test]
fn lines_end_when_the_vm_exits_and_stay_ended() {
    let test_dir = TestDir::new();
    let (_, vm, _stop) = start_vm(&test_dir, "guest.say=ready");
    let mut lines = lines_after_ready(&vm);
    let following = std::thread::spawn(move || {
        let rest: Vec<_> = lines.by_ref().map(Result::unwrap).collect();
        (rest, lines.next().is_none(), lines)
    });
    print(&vm, "one\ntwo\n");
    vm.wait_for_console("two", TEST_TIMEOUT).unwrap();
    vm.kill().unwrap();
    let (rest, is_fused, mut lines) = following.join().unwrap();
    assert_eq!((rest, is_fused), (vec!["one".to_owned(), "two".to_owned()], true));
    assert_eq!(lines.next_timeout(Duration::ZERO).unwrap(), NextLine::Ended);
}

#[test]
fn closer_ends_the_wait_for_a_line() {
    let test_dir = TestDir::new();
    let (_, vm, _stop) = start_vm(&test_dir, "guest.say=ready");
    let mut lines = lines_after_ready(&vm);
    let (closer, second) = (lines.closer(), lines.closer());
    std::thread::scope(|scope| {
        let _kill = KillOnDrop(&vm);
        let began = Instant::now();
        let waiting = scope.spawn(move || (lines.next().is_none(), lines));
        closer.close();
        let (has_ended, mut lines) = waiting.join().unwrap();
        assert!(has_ended && began.elapsed() < TEST_TIMEOUT / 2);
        assert_eq!(vm.try_wait(), None, "the closer has ended the VM");
        // The lines stay closed when the guest prints more.
        print(&vm, "more\n");
        vm.wait_for_console("more", TEST_TIMEOUT).unwrap();
        second.close();
        assert!(lines.next().is_none());
        assert_eq!(lines.next_timeout(TEST_TIMEOUT).unwrap(), NextLine::Ended);
        // Another reader is not affected.
        assert_eq!(next(&mut lines_after_ready(&vm)), "more");
    });
}

#[test]
fn lines_outlive_the_handle_of_the_vm() {
    fn check<T: Send + 'static>(_: &T) {}
    fn check_fused<T: FusedIterator + Send + 'static>(_: &T) {}
    let test_dir = TestDir::new();
    let (description, vm, _stop) = start_vm(&test_dir, "guest.say=ready");
    let mut lines = lines_after_ready(&vm);
    let closer: ConsoleLinesCloser = lines.closer();
    check_fused(&lines);
    check(&closer);
    drop(vm);
    print(&description.vm().unwrap().unwrap(), "later\n");
    assert_eq!(next(&mut lines), "later");
    let vm = description.vm().unwrap().unwrap();
    vm.kill().unwrap();
    assert_eq!(vm.wait(), Exit::Killed(9));
    assert!(std::thread::spawn(move || lines.next().is_none()).join().unwrap());
}

/// The guest prints without pause, and no newline.
#[test]
fn next_timeout_and_closer_work_while_the_guest_prints_without_newlines() {
    let test_dir = TestDir::new();
    let (_, vm, _stop) = start_vm(&test_dir, "guest.say=ready");
    let mut lines = lines_after_ready(&vm);
    let closer = lines.closer();
    std::thread::scope(|scope| {
        let _kill = KillOnDrop(&vm); // ends the writer
        let console = vm.console().unwrap();
        let drain = console.try_clone().unwrap();
        scope.spawn(move || while (&console).write_all(&[b'x'; 512]).is_ok() {});
        scope.spawn(move || {
            let mut buffer = [0; 4096];
            while std::io::Read::read(&mut &drain, &mut buffer).is_ok_and(|length| length > 0) {}
        });
        let began = Instant::now();
        match lines.next_timeout(Duration::from_millis(50)).unwrap() {
            NextLine::TimedOut => {}
            NextLine::Line(line) => assert!(line.bytes().all(|byte| byte == b'x')),
            other => panic!("{other:?}"),
        }
        closer.close();
        while lines.next_timeout(TEST_TIMEOUT).unwrap() != NextLine::Ended {}
        assert!(began.elapsed() < TEST_TIMEOUT / 2);
    });
}
