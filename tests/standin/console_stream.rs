//! `ConsoleStream`: reading and writing the console of a running VM. The stand-in's guest echoes its input.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::symlink;
use std::time::Duration;

use hyperkit::{Console, ConsoleStream, Error, Exit, HyperKit, Serial, Vm};
use rustix::event::{PollFd, PollFlags, poll};

use crate::common::child_process::in_child_process;
use crate::common::{TEST_TIMEOUT, TestDir, start_vm};

/// Reads until the output contains a text, and returns the output.
fn read_until(console: &mut ConsoleStream, text: &str) -> String {
    let mut output = String::new();
    let mut buffer = [0; 256];
    while !output.contains(text) {
        let length = console.read(&mut buffer).unwrap_or_else(|error| panic!("{error} after {output:?}"));
        assert!(length > 0, "the stream ended after {output:?}");
        output.push_str(&String::from_utf8_lossy(&buffer[..length]));
    }
    output
}

/// Opens the console of a guest that has printed something: hyperkit discards earlier input.
fn console(vm: &Vm) -> ConsoleStream {
    vm.wait_for_console("Command line", TEST_TIMEOUT).unwrap();
    let console = vm.console().unwrap();
    console.set_timeout(Some(TEST_TIMEOUT));
    console
}

#[test]
fn console_stream_carries_bytes_both_ways_also_after_reattach() {
    let test_dir = TestDir::new();
    let (_, vm, _stop) = start_vm(&test_dir, "guest");
    let mut first = console(&vm);
    first.write_all(b"hello\r\x03").unwrap();
    first.flush().unwrap();
    // A caller can poll the descriptor, together with others.
    poll(&mut [PollFd::new(&first, PollFlags::IN)], None).unwrap();
    read_until(&mut first, "hello\r\x03"); // ^C arrives as an ordinary byte
    drop(first);
    // The VM keeps running when the console is closed. After reattaching, another console can be opened, whether `tty` is a
    // file or a symlink.
    let tty = test_dir.path("vm/tty");
    let pty = fs::read_to_string(&tty).unwrap();
    fs::remove_file(&tty).unwrap();
    symlink(pty, &tty).unwrap();
    let attached = HyperKit::from_state(test_dir.path("vm")).unwrap().vm().unwrap().unwrap();
    let mut second = console(&attached);
    second.write_all(b"again").unwrap();
    read_until(&mut second, "again");
}

#[test]
fn read_from_silent_guest_times_out() {
    let test_dir = TestDir::new();
    let (_, vm, _stop) = start_vm(&test_dir, "guest");
    let mut console = console(&vm);
    console.write_all(b"once").unwrap();
    read_until(&mut console, "once");
    console.set_timeout(Some(Duration::from_millis(50)));
    assert_eq!(console.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::TimedOut);
    console.set_timeout(Some(Duration::ZERO));
    assert_eq!(console.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::TimedOut);
}

#[test]
fn vm_exit_ends_the_stream_and_a_blocked_read() {
    let test_dir = TestDir::new();
    let (_, vm, _stop) = start_vm(&test_dir, "guest");
    let mut reader = console(&vm);
    reader.set_timeout(None);
    let rest = std::thread::spawn(move || {
        let mut rest = Vec::new();
        reader.read_to_end(&mut rest).map(|_| rest)
    });
    vm.kill().unwrap();
    rest.join().unwrap().unwrap();
    assert!(matches!(vm.console(), Err(Error::NotRunning { .. })));
}

/// If a process without a controlling terminal, such as a service, opens a pty, the pty could become its controlling
/// terminal. Then the exit of the VM would send SIGHUP to the process.
#[cfg(target_os = "linux")]
#[test]
fn console_does_not_become_the_controlling_terminal() {
    let test_dir = TestDir::new();
    let (_, vm, _stop) = start_vm(&test_dir, "guest");
    use std::process::{Command, Stdio};
    let mut attach = Command::new("setsid");
    attach.arg("--wait").arg(crate::common::example_path("ctl")).arg("console").arg(test_dir.path("vm"));
    let mut attach = attach.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    attach.stdin.take().unwrap().write_all(b"x").unwrap();
    attach.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    vm.kill().unwrap();
    let output = attach.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn console_without_pty_is_an_error() {
    in_child_process("console_stream::console_without_pty_is_an_error", || {
        let test_dir = TestDir::new();
        let _stop = test_dir.stop_on_drop();
        let description = test_dir.description().serial(Serial::none().log());
        let vm = description.start("guest").unwrap();
        assert!(matches!(vm.console(), Err(Error::NoConsole { .. })));
        vm.kill().unwrap();
        let mut description = test_dir.description().console(Console::Stdio);
        description.state_dir = None;
        assert_eq!(description.run("guest.exit=0").unwrap(), Exit::PowerOff);
        // The console is the first port with a pty.
        let description = test_dir.description().serial(Serial::none()).serial(Serial::pty());
        let vm = description.start("guest").unwrap();
        vm.console().unwrap().write_all(b"x").unwrap();
    });
}
