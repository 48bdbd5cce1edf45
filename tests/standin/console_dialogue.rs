//! Dialogues on the console: `expect`, `send_line`, and a nonblocking console.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hyperkit::{ConsoleStream, Error, ErrorKind as Kind, Exit, Vm};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use crate::common::{TEST_TIMEOUT, TestDir, start_vm};

/// A timeout that the tests let expire.
const SHORT_TIMEOUT: Duration = Duration::from_millis(50);

/// Opens a console and its other end. The test reads and writes there in place of the guest.
fn console_with_guest(test_dir: &TestDir, vm: &Vm) -> (ConsoleStream, File) {
    let guest = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&guest).and_then(|()| unlockpt(&guest)).unwrap();
    test_dir.write("vm/tty", ptsname(&guest, Vec::new()).unwrap().as_bytes());
    (vm.console().unwrap(), guest.into())
}

/// Writes in place of the guest.
fn write(guest: &mut File, text: &str) {
    guest.write_all(text.as_bytes()).unwrap();
}

/// Reads `length` bytes in place of the guest.
fn read(guest: &mut File, length: usize) -> String {
    let mut bytes = vec![0; length];
    guest.read_exact(&mut bytes).unwrap();
    String::from_utf8(bytes).unwrap()
}

fn assert_timed_out(result: Result<String, Error>, wanted: &str, output: &str) {
    match result {
        Err(error @ Error::ConsoleTextNotFound { .. }) => {
            assert_eq!(error.kind(), Kind::Timeout);
            let Error::ConsoleTextNotFound { text, exit, timeout, log_tail, .. } = error else { unreachable!() };
            assert_eq!((&*text, exit, timeout, &*log_tail.console), (wanted, None, SHORT_TIMEOUT, output));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn expect_continues_where_the_last_read_ended() {
    let test_dir = TestDir::new();
    let (_, vm, _stop) = start_vm(&test_dir, "guest");
    let (console, mut guest) = console_with_guest(&test_dir, &vm);
    write(&mut guest, "Welcome\r\nlogin: ");
    assert_eq!(console.expect("login: ", TEST_TIMEOUT).unwrap(), "Welcome\r\nlogin: ");
    // The first prompt is not found again.
    assert_timed_out(console.expect("login: ", SHORT_TIMEOUT), "login: ", "");
    console.send_line("nobody").unwrap();
    assert_eq!(read(&mut guest, 7), "nobody\r");
    write(&mut guest, "nobody\r\nWrong.\r\nlogin: ");
    assert_eq!(console.expect("login: ", TEST_TIMEOUT).unwrap(), "nobody\r\nWrong.\r\nlogin: ");
    // Two prompts arrive at once. Each call finds one, also with a timeout of 0.
    write(&mut guest, "# # ");
    assert_eq!(console.expect("# ", TEST_TIMEOUT).unwrap(), "# ");
    assert_eq!(console.expect("# ", Duration::ZERO).unwrap(), "# ");
    assert_eq!(console.expect("", Duration::ZERO).unwrap(), "");
}

#[test]
fn expect_reads_nothing_after_the_text() {
    let test_dir = TestDir::new();
    let (_, vm, _stop) = start_vm(&test_dir, "guest");
    let (mut console, mut guest) = console_with_guest(&test_dir, &vm);
    write(&mut guest, "$ and the rest");
    assert_eq!(console.expect("$", TEST_TIMEOUT).unwrap(), "$");
    let mut rest = [0; 64];
    let length = console.read(&mut rest).unwrap();
    assert_eq!(&rest[..length], b" and the rest");
}

#[test]
fn expect_finds_a_text_that_arrives_byte_by_byte() {
    let test_dir = TestDir::new();
    let (_, vm, _stop) = start_vm(&test_dir, "guest");
    let (console, mut guest) = console_with_guest(&test_dir, &vm);
    // The guest sends the beginning of the text more than once. The last letter of the text has two bytes.
    let text = "aab\u{e4}";
    std::thread::scope(|scope| {
        let found = scope.spawn(|| console.expect(text, TEST_TIMEOUT).unwrap());
        for byte in "xaaaab\u{e4}".as_bytes() {
            guest.write_all(&[*byte]).unwrap();
            std::thread::yield_now();
        }
        assert_eq!(found.join().unwrap(), "xaaaab\u{e4}");
    });
}

#[test]
fn expect_ends_and_reports_the_exit_when_the_vm_exits() {
    let test_dir = TestDir::new();
    let (_, vm, _stop) = start_vm(&test_dir, "guest");
    let console = vm.console().unwrap();
    console.expect("Command line", TEST_TIMEOUT).unwrap(); // hyperkit discards earlier input
    console.send_line("last words").unwrap();
    console.expect("last ", TEST_TIMEOUT).unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| console.expect("never", TEST_TIMEOUT));
        vm.kill().unwrap();
        match waiting.join().unwrap() {
            Err(error @ Error::ConsoleTextNotFound { .. }) => {
                assert_eq!(error.kind(), Kind::Guest);
                let text = error.to_string();
                assert!(text.contains("was killed by signal 9") && text.contains("\"never\""), "{text}");
                assert!(text.contains(test_dir.path("vm").to_str().unwrap()), "{text}");
                let Error::ConsoleTextNotFound { exit, timeout, state_dir, .. } = error else { unreachable!() };
                assert_eq!((exit, timeout), (Some(Exit::Killed(9)), TEST_TIMEOUT));
                assert_eq!(state_dir, Some(test_dir.path("vm")));
            }
            other => panic!("{other:?}"),
        }
    });
    let again = console.expect("never", TEST_TIMEOUT);
    assert!(matches!(again, Err(Error::ConsoleTextNotFound { exit: Some(Exit::Killed(9)), .. })), "{again:?}");
}

/// The hypervisor has closed the console, but has not exited.
#[test]
fn expect_times_out_on_a_closed_console() {
    let test_dir = TestDir::new();
    let (_, vm, _stop) = start_vm(&test_dir, "guest");
    let (mut console, mut guest) = console_with_guest(&test_dir, &vm);
    write(&mut guest, "bye");
    assert_eq!(console.expect("bye", TEST_TIMEOUT).unwrap(), "bye");
    drop(guest);
    assert_timed_out(console.expect("never", SHORT_TIMEOUT), "never", "");
    assert_eq!(console.read(&mut [0; 8]).unwrap(), 0);
    assert_eq!(vm.try_wait(), None);
}

#[test]
fn expect_times_out_while_the_guest_writes_without_pause() {
    let test_dir = TestDir::new();
    let (_, vm, _stop) = start_vm(&test_dir, "guest");
    let (console, mut guest) = console_with_guest(&test_dir, &vm);
    rustix::io::ioctl_fionbio(&guest, true).unwrap();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // The guest writes several KiB at once, and `expect` reads single bytes. So the guest is faster.
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                let _ = guest.write(&[b'y'; 4096]);
            }
        });
        let began = Instant::now();
        let result = console.expect("never", SHORT_TIMEOUT);
        is_over.store(true, Ordering::Relaxed);
        assert!(began.elapsed() < TEST_TIMEOUT / 2, "{:?}", began.elapsed());
        assert!(matches!(result, Err(Error::ConsoleTextNotFound { exit: None, .. })), "{result:?}");
    });
}

#[test]
fn nonblocking_read_and_write_return_would_block() {
    let test_dir = TestDir::new();
    let (_, vm, _stop) = start_vm(&test_dir, "guest");
    let (mut console, mut guest) = console_with_guest(&test_dir, &vm);
    console.set_nonblocking(true);
    console.set_timeout(Some(TEST_TIMEOUT)); // has no effect on a nonblocking console
    assert_eq!(console.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::WouldBlock);
    write(&mut guest, "x");
    assert_eq!(console.expect("x", TEST_TIMEOUT).unwrap(), "x", "`expect` waits on a nonblocking console, too");
    let mut written = 0;
    let error = loop {
        match console.write(&[b'z'; 1000]) {
            Ok(length) => written += length,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    // `send_line` sends the whole line.
    std::thread::scope(|scope| {
        let sent = scope.spawn(|| console.send_line(&"l".repeat(5000)));
        assert_eq!(read(&mut guest, written), "z".repeat(written));
        assert_eq!(read(&mut guest, 5001), "l".repeat(5000) + "\r");
        sent.join().unwrap().unwrap();
    });
    // The console blocks again.
    console.set_nonblocking(false);
    console.set_timeout(Some(SHORT_TIMEOUT));
    assert_eq!(console.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::TimedOut);
}

#[test]
fn send_line_times_out_if_the_guest_does_not_read() {
    let test_dir = TestDir::new();
    let (_, vm, _stop) = start_vm(&test_dir, "guest");
    let (console, _guest) = console_with_guest(&test_dir, &vm);
    console.set_timeout(Some(SHORT_TIMEOUT));
    let error = (0..1000).find_map(|_| console.send_line(&"x".repeat(1000)).err()).expect("the pty is never full");
    match error {
        Error::Io { action: "write to", source, .. } => assert_eq!(source.kind(), ErrorKind::TimedOut),
        other => panic!("{other:?}"),
    }
}

#[test]
fn clones_read_and_write_the_same_console() {
    let test_dir = TestDir::new();
    let (_, vm, _stop) = start_vm(&test_dir, "guest");
    let (console, mut guest) = console_with_guest(&test_dir, &vm);
    console.set_timeout(Some(SHORT_TIMEOUT));
    let mut clone = console.try_clone().unwrap();
    assert_eq!(
        clone.read(&mut [0; 8]).unwrap_err().kind(),
        ErrorKind::TimedOut,
        "the clone begins with the same timeout"
    );
    console.set_nonblocking(true);
    assert_eq!(
        clone.read(&mut [0; 8]).unwrap_err().kind(),
        ErrorKind::TimedOut,
        "a later change does not affect the clone"
    );
    write(&mut guest, "one two");
    assert_eq!(console.expect("one", TEST_TIMEOUT).unwrap(), "one");
    assert_eq!(clone.expect("two", TEST_TIMEOUT).unwrap(), " two");
    drop(console);
    // One thread writes and another one reads, each by a shared reference.
    let (reader, mut writer) = (&clone, &clone);
    std::thread::scope(|scope| {
        let answer = scope.spawn(|| reader.expect("echo", TEST_TIMEOUT));
        writer.write_all(b"echo").unwrap();
        let input = read(&mut guest, 4);
        write(&mut guest, &input);
        assert_eq!(answer.join().unwrap().unwrap(), "echo");
    });
}

#[test]
fn stream_converts_into_its_descriptor() {
    let test_dir = TestDir::new();
    let (_, vm, _stop) = start_vm(&test_dir, "guest");
    let (console, mut guest) = console_with_guest(&test_dir, &vm);
    let descriptor: OwnedFd = console.into();
    let error = rustix::io::read(&descriptor, &mut [0; 8]).unwrap_err();
    assert_eq!(error, rustix::io::Errno::AGAIN, "the descriptor does not block");
    write(&mut guest, "still open");
    let mut file = File::from(descriptor);
    let mut bytes = [0; 10];
    // What was written to a terminal can arrive a moment later.
    rustix::event::poll(&mut [rustix::event::PollFd::new(&file, rustix::event::PollFlags::IN)], None).unwrap();
    file.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"still open");
    assert!(rustix::io::fcntl_getfd(file.as_fd()).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
}

/// The test echoes more than a pty can buffer. (The stand-in's guest would drop output that is not read in time.)
#[allow(deprecated, reason = "the successor of `AsyncFd::new` is unsafe")]
#[test]
fn tokio_polls_a_nonblocking_console() {
    use tokio::io::unix::AsyncFd;
    use tokio::io::{Interest, Ready};

    let test_dir = TestDir::new();
    let (_, vm, _stop) = start_vm(&test_dir, "guest");
    let (console, guest) = console_with_guest(&test_dir, &vm);
    let line = "hello".repeat(4000);
    let length = line.len();
    let guest = std::thread::spawn(move || {
        let (mut input, mut output) = (guest.try_clone().unwrap().take(length as u64), &guest);
        std::io::copy(&mut input, &mut output).unwrap();
        guest // closing this end would lose what is not read yet
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
    runtime.block_on(async {
        console.set_nonblocking(true);
        let console = AsyncFd::new(console).unwrap();
        let (mut output, mut sent) = (Vec::new(), 0);
        let mut buffer = [0; 1024];
        while output.len() < length {
            // Reading does not wait for writing, nor writing for reading.
            let wanted = if sent < length { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
            let mut guard = console.ready(wanted).await.unwrap();
            if guard.ready().is_readable() {
                match console.get_ref().read(&mut buffer) {
                    Err(error) if error.kind() == ErrorKind::WouldBlock => guard.clear_ready_matching(Ready::READABLE),
                    read => {
                        let read = read.unwrap();
                        assert!(read > 0, "the stream ended after {} bytes", output.len());
                        output.extend_from_slice(&buffer[..read]);
                    }
                }
            }
            if sent < length && guard.ready().is_writable() {
                match console.get_ref().write(&line.as_bytes()[sent..]) {
                    Err(error) if error.kind() == ErrorKind::WouldBlock => guard.clear_ready_matching(Ready::WRITABLE),
                    written => sent += written.unwrap(),
                }
            }
        }
        assert!(output == line.as_bytes());
        drop(guest.join().unwrap());
        let end = loop {
            let mut ready = console.readable().await.unwrap();
            if let Ok(read) = ready.try_io(|console| console.get_ref().read(&mut buffer)) {
                break read.unwrap();
            }
        };
        assert_eq!(end, 0);
    });
    vm.kill().unwrap();
}
