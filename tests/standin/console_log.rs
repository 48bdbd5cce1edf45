//! The console log: hyperkit's ring buffer before, at and after it wraps around.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use hyperkit::{ConsoleStream, Error, Exit, HyperKit, Serial, Vm};

use crate::common::{KillOnDrop, StopOnDrop, TEST_TIMEOUT, TestDir, console_output, start_vm, wait_until};

const RING: usize = 65536;
const LINE: usize = 31;

/// A VM whose guest echoes its input. So the test determines what is in the ring buffer.
struct Echo {
    _stop: StopOnDrop, // dropped before the directory
    test_dir: TestDir,
    description: HyperKit,
    vm: Vm,
    console: ConsoleStream,
}

impl Echo {
    fn new() -> Self {
        let test_dir = TestDir::new();
        let (description, vm, end) = start_vm(&test_dir, "guest");
        let console = vm.console().unwrap();
        console.set_timeout(Some(TEST_TIMEOUT));
        wait_until("the guest is up", || console_output(&test_dir).ends_with("guest\r\n"));
        Self { _stop: end, test_dir, description, vm, console }
    }

    /// Makes the guest print a text, and returns when the ring contains it.
    fn say(&mut self, text: &str) {
        let mut echo = vec![0; text.len().min(1024)];
        for part in text.as_bytes().chunks(1024) {
            self.console.write_all(part).unwrap();
            self.console.read_exact(&mut echo[..part.len()]).unwrap();
        }
        // The stand-in writes the output to the console first, and then to the ring, where it may continue at the beginning.
        let end = &text.as_bytes()[text.len().saturating_sub(LINE)..];
        let ring = || fs::read(self.test_dir.path("vm/console-ring")).unwrap().repeat(2);
        wait_until("the text is in the ring", || ring().windows(end.len()).any(|window| window == end));
    }

    fn log(&self) -> String {
        String::from_utf8(self.description.console_log().unwrap()).unwrap()
    }
}

/// Returns a line with a Linux timestamp. The ring's length is not a multiple of the line's length, so the lines are at
/// other positions each time the ring wraps around.
fn line(number: usize) -> String {
    let line = format!("[{number:5}.000000] line{number:>11}\n");
    assert_eq!(line.len(), LINE);
    line
}

fn lines(numbers: std::ops::Range<usize>) -> String {
    numbers.map(line).collect()
}

#[test]
fn log_is_complete_and_in_order_before_and_after_the_ring_wraps_around() {
    let mut echo = Echo::new();
    let begin = echo.log();
    assert!(begin.starts_with("Linux version 0") && begin.len() < 512, "{begin:?}");
    let fits = (RING - 512) / LINE;
    let fill = " ".repeat(RING - fits * LINE - begin.len() - 1) + "\n";
    echo.say(&fill);
    echo.say(&lines(0..fits - 1));
    assert_eq!(echo.log(), begin.clone() + &fill + &lines(0..fits - 1), "the ring is not full");
    echo.say(&line(fits - 1));
    assert_eq!(echo.log(), begin + &fill + &lines(0..fits), "the ring is full to the last byte");
    assert_eq!(echo.log().len(), RING);
    let mut last = fits;
    for more in [1, 16, 2000, 3000] {
        // Write more lines, which wrap around.
        echo.say(&lines(last..last + more));
        last += more;
        let log = echo.log();
        assert_eq!(log.len(), RING);
        let all = lines(0..last);
        let kept = &all[all.len().saturating_sub(RING - 1024)..];
        // While the ring still contains text without timestamps, the crate cannot tell how old that text is.
        match last - fits {
            ..=16 => assert!(log.contains(kept), "after {last} lines"),
            _ => assert!(log.ends_with(kept), "after {last} lines"),
        }
    }
    echo.vm.kill().unwrap();
    // After the exit, the log and the log tail end with the same line.
    assert!(echo.log().ends_with(&line(last - 1)));
    assert!(echo.vm.log_tail().console.ends_with(line(last - 1).trim_end()));
    assert_eq!(HyperKit::from_state(echo.test_dir.path("vm")).unwrap().console_log().unwrap(), echo.log().as_bytes());
}

#[test]
fn console_lines_returns_each_line_once_until_the_vm_exits() {
    const LINES: usize = 6000; // the ring wraps around three times
    let mut echo = Echo::new();
    let followed = std::thread::scope(|scope| {
        let vm = &echo.vm;
        let (sender, followed) = std::sync::mpsc::channel();
        let follower = scope.spawn(move || {
            let lines = vm.console_lines().unwrap().map(Result::unwrap);
            lines.inspect(|line| drop(sender.send(line.clone()))).collect::<Vec<_>>()
        });
        let stopped = KillOnDrop(vm);
        for begin in (0..LINES).step_by(500) {
            let text = lines(begin..begin + 500);
            for part in text.as_bytes().chunks(1024) {
                echo.console.write_all(part).unwrap();
                echo.console.read_exact(&mut vec![0; part.len()]).unwrap();
            }
            // Continue when the follower has read these lines, so that the ring loses none.
            let last = line(begin + 499);
            let next = || followed.recv_timeout(TEST_TIMEOUT).unwrap();
            while next() != last.trim_end() {}
        }
        echo.console.write_all(b"no end").unwrap();
        vm.wait_for_console("no end", TEST_TIMEOUT).unwrap();
        drop(stopped);
        follower.join().unwrap()
    });
    let expected: Vec<_> =
        (0..LINES).map(|number| line(number).trim_end().to_owned()).chain(["no end".to_owned()]).collect();
    let first = followed.iter().position(|line| *line == expected[0]).unwrap();
    assert_eq!(followed[first..], expected);
    assert!(followed[..first].iter().any(|line| line.starts_with("Linux version 0")), "{:?}", &followed[..first]);
}

/// Without timestamps, the crate knows where the newest text in the ring ends only after the next write.
#[test]
fn console_lines_of_a_full_ring_without_timestamps_returns_each_line_once() {
    let mut echo = Echo::new();
    let plain =
        |numbers: std::ops::Range<usize>| numbers.map(|n| format!("line{n:>25}\n")).collect::<Vec<_>>().concat();
    echo.say(&plain(0..3000));
    let followed = std::thread::scope(|scope| {
        let vm = &echo.vm;
        let (sender, lines) = std::sync::mpsc::channel();
        scope.spawn(move || vm.console_lines().unwrap().for_each(|line| drop(sender.send(line.unwrap()))));
        let stopped = KillOnDrop(vm);
        lines.recv_timeout(TEST_TIMEOUT).unwrap(); // the follower has read the ring
        let text = plain(3000..3100);
        for part in text.as_bytes().chunks(1024) {
            echo.console.write_all(part).unwrap();
            echo.console.read_exact(&mut vec![0; part.len()]).unwrap();
        }
        vm.wait_for_console("3099", TEST_TIMEOUT).unwrap();
        drop(stopped);
        let number = |line: String| line.strip_prefix("line")?.trim().parse::<usize>().ok();
        lines.iter().filter_map(number).collect::<Vec<_>>()
    });
    // The beginning of the first new line may be joined with older text.
    assert!(followed.ends_with(&(3001..3100).collect::<Vec<_>>()), "{followed:?}");
    let mut each = followed.clone();
    each.sort_unstable();
    each.dedup();
    assert_eq!(each.len(), followed.len());
}

#[test]
fn wait_for_console_finds_earlier_and_later_text_without_newline() {
    let mut echo = Echo::new();
    let line = echo.vm.wait_for_console("version 0", TEST_TIMEOUT).unwrap();
    assert!(line.starts_with("Linux version 0"), "{line}");
    std::thread::scope(|scope| {
        let vm = &echo.vm;
        let waits = scope.spawn(|| vm.wait_for_console("login: ", TEST_TIMEOUT).unwrap());
        for part in ["\nlog", "in: "] {
            echo.console.write_all(part.as_bytes()).unwrap();
        }
        assert_eq!(waits.join().unwrap(), "login: ");
    });
    match echo.vm.wait_for_console("never", Duration::from_millis(20)) {
        Err(Error::ConsoleTextNotFound { text, exit: None, log_tail, .. }) => {
            assert!(text == "never" && log_tail.console.ends_with("login:"));
        }
        other => panic!("{other:?}"),
    }
    echo.vm.kill().unwrap();
    match echo.vm.wait_for_console("never", TEST_TIMEOUT) {
        Err(Error::ConsoleTextNotFound { exit: Some(Exit::Killed(9)), .. }) => {}
        other => panic!("`wait_for_console` does not end with the VM: {other:?}"),
    }
}

/// The caller's description may differ from the one with which the VM was started.
#[test]
fn log_and_pty_are_found_by_the_recorded_description() {
    let test_dir = TestDir::new();
    let _stop = test_dir.stop_on_drop();
    let vm = test_dir.description().serial(Serial::pty()).serial(Serial::none().log()).start("guest").unwrap();
    assert!(test_dir.path("vm/console-ring2").exists() && !test_dir.path("vm/console-ring").exists());
    let other = test_dir.description();
    assert_eq!(other.console_log().unwrap(), vm.console_log().unwrap());
    let pty = fs::read_to_string(test_dir.path("vm/tty1")).unwrap();
    assert_eq!(other.pty_paths().unwrap(), [Path::new(&pty)]);
}

#[test]
fn console_log_of_a_vm_without_log_is_an_error() {
    let test_dir = TestDir::new();
    let description = test_dir.description().serial(Serial::pty());
    assert!(matches!(description.console_log(), Err(Error::NoConsoleLog { .. })));
    assert!(
        matches!(test_dir.description().console_log(), Err(Error::Io { .. })),
        "a VM that was never started has a log"
    );
    fs::create_dir(test_dir.path("vm")).unwrap();
    fs::write(test_dir.path("vm/console-ring2"), b"of com2").unwrap();
    let description = test_dir.description().serial(Serial::pty()).serial(Serial::none().log());
    assert_eq!(description.console_log().unwrap(), b"of com2");
}

/// Opening a FIFO without a writer would block.
#[test]
fn console_log_that_is_no_file_is_an_error() {
    let test_dir = TestDir::new();
    let (description, vm, _stop) = start_vm(&test_dir, "guest");
    vm.kill().unwrap();
    fs::remove_file(test_dir.path("vm/console-ring")).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(test_dir.path("vm/console-ring")).status().unwrap().success());
    assert!(matches!(description.console_log(), Err(Error::Io { action: "open", .. })));
    assert_eq!(vm.log_tail().console, "");
}
