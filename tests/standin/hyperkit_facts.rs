//! Behaviour of hyperkit that a program may not expect, and that the stand-in has, too. The facts were observed by running
//! hyperkit's own code.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use hyperkit::{Console, Error};
use rustix::process::Signal;

use crate::common::{KillProcessOnDrop, TEST_TIMEOUT, TestDir, console_output, standin_path, start_vm, wait_until};

/// Runs the stand-in with these options and a guest that powers off at once.
fn run(test_dir: &TestDir, options: &str) -> ExitStatus {
    let mut hyperkit = Command::new(standin_path());
    hyperkit
        .args(options.split(' '))
        .arg("-f")
        .arg(format!("kexec,{},,guest.exit=0", test_dir.path("vmlinuz").display()));
    hyperkit.current_dir(test_dir.dir()).stdin(Stdio::null()).stdout(File::create(test_dir.path("stdout")).unwrap());
    hyperkit.stderr(Stdio::null()).status().unwrap()
}

#[test]
fn exit_codes_are_those_of_hyperkit() {
    let test_dir = TestDir::new();
    let abort = Err(Signal::ABORT.as_raw());
    let uuid =
        |variant: char| format!("-A -s 31,lpc -l com1,autopty=tty -U 01234567-89ab-cdef-{variant}123-456789abcdef");
    for (options, expected) in [
        ("-A -s 31,lpc -l com1,null", Ok(0)),
        ("-A -s 0,hostbridge", Ok(0)), // ACPI without an LPC bridge
        ("-A -M -s 31,lpc", Ok(0)),
        ("-s 31,lpc -l com1,no-such-tty", Ok(1)),
        ("-s 31,lpc -l com1,log=ring", Ok(1)),
        ("-s 31,lpc -l com3,null", Ok(64)),
        ("-s 31,lpc -l com1,asl", abort),
        ("-s 31,lpc -l com1,asl,log=ring", abort),
        ("-s 31,lpc -l com1,null,asl,log=ring", Ok(0)),
        (&uuid('d'), Ok(0)),
        (&uuid('e'), abort),
        (&uuid('F'), abort),
        (&format!("{} -s 1,virtio-net", uuid('e')), Ok(1)),
    ] {
        let _ = fs::remove_file(test_dir.path("tty"));
        let status = run(&test_dir, options);
        assert_eq!(status.code().ok_or(status.signal().unwrap_or(0)), expected, "{options}");
        // It aborts when all devices exist.
        assert!(expected != abort || !options.contains("autopty") || test_dir.path("tty").exists(), "{options}");
    }
}

/// With a card of vmnet, `-M` prints the address and starts no VM.
#[test]
fn mac_address_is_printed_only_with_a_card() {
    let test_dir = TestDir::new();
    let printed = || fs::read_to_string(test_dir.path("stdout")).unwrap();
    assert!(run(&test_dir, "-M -s 31,lpc -l com1,autopty").success());
    assert!(printed().contains("COM1 connected to") && !printed().contains("MAC: "), "{}", printed());
    assert!(run(&test_dir, "-M -s 1,virtio-net -s 31,lpc -l com1,autopty").success());
    assert_eq!(printed(), "MAC: 02:00:00:00:00:01\n");
}

#[test]
fn stdout_is_buffered_until_a_normal_exit() {
    let test_dir = TestDir::new();
    let log = || fs::read_to_string(test_dir.path("vm/hyperkit.log")).unwrap();
    let (description, vm, _stop) = start_vm(&test_dir, "vmm.print=printed");
    wait_until("the guest is up", || console_output(&test_dir).contains("Command line"));
    assert_eq!(log(), "");
    vm.shutdown(TEST_TIMEOUT).unwrap();
    assert!(log().contains("printed\n"), "{}", log());
    description.start("vmm.print=printed").unwrap().kill().unwrap();
    assert_eq!(log(), "");
}

/// hyperkit's stdout is written after the errors, but is not its last message.
#[test]
fn log_tail_has_errors_instead_of_progress() {
    let test_dir = TestDir::new();
    let tail_of = |guest: &str| match test_dir.description().console(Console::Pty).run(guest) {
        Err(Error::HypervisorFailed { log_tail, .. }) => log_tail.hypervisor,
        other => panic!("{other:?}"),
    };
    assert_eq!(tail_of("vmm.say=the-error guest.exit=1"), "the-error");
    assert!(fs::read_to_string(test_dir.path("vm/hyperkit.log")).unwrap().contains("the-error\nlinkname "));
    assert!(tail_of("guest.exit=1").contains("COM1 connected to"), "there is nothing else");
}

#[test]
fn input_before_the_guest_turns_on_its_serial_port_is_discarded() {
    let test_dir = TestDir::new();
    let (_, vm, _stop) = start_vm(&test_dir, "guest.slow-boot=200");
    let console = vm.console().unwrap();
    console.send_line("too soon").unwrap();
    console.expect("Command line", TEST_TIMEOUT).unwrap();
    console.send_line("late").unwrap();
    let echo = console.expect("late", TEST_TIMEOUT).unwrap();
    assert!(!echo.contains("too soon"), "{echo}");
}

#[test]
fn vsock_connection_waits_for_the_driver_of_the_guest() {
    let test_dir = TestDir::new();
    let _stop = test_dir.stop_on_drop();
    let vm = test_dir.description().vsock(true).vsock_port(9).start("guest.no-vsock").unwrap();
    for port in [1234, 9] {
        let mut stream = vm.vsock_connect(port).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let error = stream.read(&mut [0]).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
    }
}

/// hyperkit reads the request once.
#[test]
fn vsock_request_in_two_parts_is_refused() {
    let test_dir = TestDir::new();
    let _stop = test_dir.stop_on_drop();
    let vm = test_dir.description().vsock(true).start("guest.no-vsock").unwrap();
    let mut stream = UnixStream::connect(test_dir.path("vm/connect")).unwrap();
    stream.write_all(b"00000003.").unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0, "the end of the stream");
    vm.kill().unwrap();
}

/// Both directions of a console on stdio are descriptor 0.
#[test]
fn console_on_stdio_is_descriptor_0() {
    let test_dir = TestDir::new();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let mut hyperkit = Command::new(standin_path());
    hyperkit
        .args(["-s", "31,lpc", "-l", "com1,stdio", "-f"])
        .arg(format!("kexec,{}", test_dir.path("vmlinuz").display()));
    hyperkit.stdin(std::os::fd::OwnedFd::from(theirs)).stdout(File::create(test_dir.path("stdout")).unwrap());
    let _hyperkit = KillProcessOnDrop::spawn(&mut hyperkit);
    drop(hyperkit);
    let mut read_until = |text: &str| {
        let (mut read, mut byte) = (String::new(), [0]);
        while !read.ends_with(text) {
            ours.read_exact(&mut byte).unwrap();
            read.push(byte[0].into());
        }
        ours.write_all(b"echo me\n").unwrap();
    };
    read_until("Command line: auto\r\n");
    read_until("echo me\n");
    assert_eq!(fs::read(test_dir.path("stdout")).unwrap(), b"");
}
