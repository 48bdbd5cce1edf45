//! A shell session over the console stream.

use std::fs;
use std::io::{Read, Write};
use std::process::{Command, Stdio};

use hyperkit::{Console, ConsoleStream};

use crate::common::guest::{BOOT_TIMEOUT, description};
use crate::common::{StopOnDrop, example_path, wait_until};

/// Reads up to the end of a text and returns what was read. Reads byte by byte, so that the bytes after the text are left for the
/// next call.
fn read_until(mut console: &ConsoleStream, text: &str) -> String {
    let (mut output, mut byte) = (Vec::new(), [0]);
    while !output.ends_with(text.as_bytes()) {
        assert_eq!(console.read(&mut byte).unwrap(), 1, "the VM has exited");
        output.push(byte[0]);
    }
    String::from_utf8_lossy(&output).into_owned()
}

#[test]
fn shell_session_through_console_stream_and_boot_attach() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().canonicalize().unwrap().join("vm");
    let _stop = StopOnDrop(state.clone());
    let description = description().state_dir(&state).console(Console::Pty);
    let vm = description.start("console=ttyS0 quiet").unwrap();
    fs::remove_file(state.join("tty")).unwrap(); // as if the starter had been killed before it knew the pty
    vm.wait_for_console("is up", BOOT_TIMEOUT).unwrap();

    // The writer has to read as well, or the guest would block on its output.
    let mut console = vm.console().unwrap();
    console.set_timeout(Some(BOOT_TIMEOUT));
    let count = "i=0; while [ $i -lt 10000 ]; do i=$((i + 1)); echo line $i; done; echo all $((6 * 7))\r";
    console.write_all(count.as_bytes()).unwrap();
    let output = std::thread::scope(|scope| {
        let reads = scope.spawn(|| read_until(&console, "all 42"));
        vm.wait_for_console("all 42", BOOT_TIMEOUT).unwrap();
        reads.join().unwrap()
    });
    assert!(output.contains("line 10000"));
    let log = String::from_utf8(description.console_log().unwrap()).unwrap();
    let lines: Vec<_> = log.lines().filter_map(|line| line.strip_prefix("line ")).collect();
    assert_eq!(lines, (1..=10_000).map(|number| number.to_string()).collect::<Vec<_>>());

    read_until(&console, "# ");
    // A serial port has no size. The guest asks the terminal, here this test, for the position of the last corner.
    console.write_all(b"resize\r").unwrap();
    read_until(&console, "\x1b[999;999H\x1b[6n");
    console.write_all(b"\x1b[42;99R").unwrap();
    read_until(&console, "42 rows, 99 columns");
    // The sleeping program prints this itself: before it runs, ^C would go to the shell.
    console.write_all(b"stty size; sh -c 'echo sleep\"\"ing; exec sleep 100000'\r").unwrap();
    read_until(&console, "42 99");
    read_until(&console, "sleeping");
    console.write_all(b"\x03").unwrap();
    read_until(&console, "^C");
    read_until(&console, "# "); // the shell may drop what is typed before its next prompt
    drop(console);

    // `boot --attach` continues after the end of its input until the VM exits.
    let mut attach = Command::new(example_path("boot"));
    attach.arg("--attach").arg("--state-dir").arg(&state).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut attach = attach.stderr(Stdio::null()).spawn().unwrap();
    attach.stdin.take().unwrap().write_all(b"echo $((6 * 7)) is it\rpoweroff\r").unwrap();
    let output = attach.wait_with_output().unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && stdout.contains("The machine has ended."), "{output:?}");
    let log = || fs::read_to_string(state.join("console-ring")).unwrap();
    wait_until("the answer is in the log", || log().contains("42 is it"));
    assert!(vm.wait_timeout(BOOT_TIMEOUT).is_some());
}
