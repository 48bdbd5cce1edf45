//! Shell sessions over `ConsoleStream`.

use std::fs;
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use hyperkit::{Console, ConsoleStream, Error, ErrorKind, Exit, Serial};

use crate::common::guest::{BOOT_TIMEOUT, Guest, PROMPT, QUIET_CMDLINE, description, open_shell, run_in_guest};
use crate::common::platform::PLATFORM;
use crate::common::{StopOnDrop, example_path, wait_until};

/// Reads until a text has arrived, and returns what was read. Reads byte by byte, so that the next call gets the bytes
/// after the text.
fn read_until(mut console: &ConsoleStream, text: &str) -> String {
    let (mut output, mut byte) = (Vec::new(), [0]);
    while !output.ends_with(text.as_bytes()) {
        assert_eq!(console.read(&mut byte).unwrap(), 1, "the VM has exited");
        output.push(byte[0]);
    }
    String::from_utf8_lossy(&output).into_owned()
}

/// Returns whether QEMU's log may show a line like this. If the pty is full, QEMU writes a byte again later, and logs it
/// both times (`qemu_chr_write_buffer` in QEMU's `chardev/char.c`).
fn is_logged_as(line: &str, logged: &str) -> bool {
    let (mut rest, mut last) = (line.chars().peekable(), None);
    let is_expected = |byte| match rest.next_if_eq(&byte) {
        Some(_) => {
            last = Some(byte);
            true
        }
        None => last == Some(byte),
    };
    logged.chars().all(is_expected) && rest.next().is_none()
}

#[test]
fn shell_session_through_console_stream_and_ctl_console() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().canonicalize().unwrap().join("vm");
    let _stop = StopOnDrop(state.clone());
    let description = description().state_dir(&state).console(Console::Pty);
    let vm = description.start(QUIET_CMDLINE).unwrap();
    fs::remove_file(state.join("tty")).unwrap(); // a starter that is killed early leaves no tty file
    vm.wait_for_console(PROMPT, BOOT_TIMEOUT).unwrap(); // the shell drops input that arrives before its prompt

    // While one thread writes, another one reads. Otherwise the guest would block on its output.
    let mut console = vm.console().unwrap();
    console.set_timeout(Some(BOOT_TIMEOUT));
    let count = "i=0; while [ $i -lt 10000 ]; do i=$((i + 1)); echo line $i; done; echo all $((6 * 7))\r";
    console.write_all(count.as_bytes()).unwrap();
    let output = std::thread::scope(|scope| {
        let reads = scope.spawn(|| read_until(&console, "all 42"));
        vm.wait_for_console("all 42", BOOT_TIMEOUT).unwrap();
        reads.join().unwrap()
    });
    let expected: Vec<_> = (1..=10_000).map(|number| format!("line {number}")).collect();
    assert_eq!(output.lines().filter(|line| line.starts_with("line ")).collect::<Vec<_>>(), expected);
    let log = String::from_utf8(description.console_log().unwrap()).unwrap();
    let logged: Vec<_> = log.lines().filter(|line| line.starts_with('l')).collect();
    assert_eq!(logged.len(), expected.len());
    for (logged, line) in logged.into_iter().zip(&expected) {
        assert!(is_logged_as(line, logged.trim_end()), "{logged:?} instead of {line:?}");
    }

    read_until(&console, "# ");
    // A serial port has no size. `resize` moves the cursor far down and right, and asks the terminal, which is this test,
    // for the position of the cursor.
    console.write_all(b"resize\r").unwrap();
    read_until(&console, "\x1b[999;999H\x1b[6n");
    console.write_all(b"\x1b[42;99R").unwrap();
    read_until(&console, "42 rows, 99 columns");
    // The program that sleeps prints `sleeping` itself. Before it runs, ^C would go to the shell.
    console.write_all(b"stty size; sh -c 'echo sleep\"\"ing; exec sleep 100000'\r").unwrap();
    read_until(&console, "42 99");
    read_until(&console, "sleeping");
    console.write_all(b"\x03").unwrap();
    read_until(&console, "^C");
    read_until(&console, "# "); // the shell may drop input that arrives before its prompt
    drop(console);

    // `ctl console` continues after the end of its input until the VM exits.
    let mut attach = Command::new(example_path("ctl"));
    attach.arg("console").arg(&state).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut attach = attach.stderr(Stdio::null()).spawn().unwrap();
    attach.stdin.take().unwrap().write_all(b"echo $((6 * 7)) is it\rpoweroff\r").unwrap();
    let output = attach.wait_with_output().unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && stdout.ends_with(": exited\n"), "{output:?}");
    let log = || fs::read_to_string(state.join("console-ring")).unwrap();
    wait_until("the answer is in the log", || log().contains("42 is it"));
    assert!(vm.wait_timeout(BOOT_TIMEOUT).is_some());
}

#[test]
fn second_serial_port_carries_both_directions() {
    let guest = Guest::new();
    let description = guest.description.clone().no_serials();
    let vm = description.serial(Serial::pty().log()).serial(Serial::pty()).start(QUIET_CMDLINE).unwrap();
    let console = open_shell(&vm);
    let ptys = vm.description().pty_paths().unwrap();
    let mut second = fs::File::options().read(true).write(true).open(&ptys[1]).unwrap();
    let port = PLATFORM.serial_ports[1];
    run_in_guest(&console, &format!("stty raw -echo </dev/{port}; exec 3<>/dev/{port}; echo from the guest >&3"));
    let mut received = [0; 15];
    second.read_exact(&mut received).unwrap();
    assert_eq!(&received, b"from the guest\n");
    second.write_all(b"from the host\n").unwrap();
    assert_eq!(run_in_guest(&console, "head -n 1 <&3"), "from the host\n");
}

#[test]
fn dialogue_with_the_shell_finds_each_prompt_once() {
    let guest = Guest::new();
    let vm = guest.description.start(QUIET_CMDLINE).unwrap();
    let console = open_shell(&vm);
    let expect = |text| console.expect(text, BOOT_TIMEOUT).unwrap();
    console.send_line("echo first $((6 * 7))").unwrap();
    assert!(expect("first 42").contains("echo first $((6 * 7))\r\n"));
    let prompt = expect(PROMPT);
    assert!(prompt.starts_with("\r\n") && prompt.lines().count() == 2, "{prompt:?}");
    console.send_line("echo second $((7 * 8))").unwrap();
    let output = expect("second 56");
    assert!(output.contains("echo second $((7 * 8))\r\n") && output.lines().count() == 2, "{output:?}");
    assert_eq!(expect(PROMPT), prompt);
    // The shell answers an empty line with another prompt.
    console.send_line("").unwrap();
    let output = expect(PROMPT);
    assert!(output.ends_with(&prompt) && output.lines().count() == 2, "{output:?}");

    match console.expect("no such text", Duration::from_millis(100)) {
        Err(error @ Error::ConsoleTextNotFound { exit: None, .. }) => assert_eq!(error.kind(), ErrorKind::Timeout),
        other => panic!("{other:?}"),
    }
    console.send_line("poweroff").unwrap();
    match console.expect("no such text", BOOT_TIMEOUT) {
        Err(Error::ConsoleTextNotFound { exit: Some(Exit::PowerOff), text, state_dir, log_tail, .. }) => {
            assert_eq!((text.as_str(), state_dir), ("no such text", Some(guest.state_dir.clone())));
            assert!(log_tail.console.contains("poweroff"), "{log_tail}");
        }
        other => panic!("{other:?}"),
    }
}
