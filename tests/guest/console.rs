//! A shell in a real guest, through the console's stream.

use std::fs;
use std::io::{Read, Write};
use std::process::{Command, Stdio};

use hyperkit::{Console, ConsoleStream};

use crate::common::guest::{BOOT_TIMEOUT, description};
use crate::common::{StopOnDrop, example_path, wait_until};

/// Reads until it has said this, byte by byte so that what comes behind it is there for the next; returns what was said.
fn read_until(mut console: &ConsoleStream, text: &str) -> String {
    let (mut said, mut byte) = (Vec::new(), [0]);
    while !said.ends_with(text.as_bytes()) {
        assert_eq!(console.read(&mut byte).unwrap(), 1, "the machine has ended");
        said.push(byte[0]);
    }
    String::from_utf8_lossy(&said).into_owned()
}

#[test]
fn shell_session_through_console_stream_and_boot_attach() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().canonicalize().unwrap().join("vm");
    let _stop = StopOnDrop(state.clone());
    let mut description = description().state_dir(&state).console(Console::File);
    let vm = description.start("console=ttyS0 quiet").unwrap();
    fs::remove_file(state.join("tty")).unwrap(); // as if the starter had been killed before it knew
    vm.wait_for_console("is up", BOOT_TIMEOUT).unwrap();

    // Whoever writes reads, too, or the guest would have to wait.
    let mut console = vm.console().unwrap();
    console.set_timeout(Some(BOOT_TIMEOUT));
    let count = "i=0; while [ $i -lt 10000 ]; do i=$((i + 1)); echo line $i; done; echo all $((6 * 7))\r";
    console.write_all(count.as_bytes()).unwrap();
    let said = std::thread::scope(|scope| {
        let reads = scope.spawn(|| read_until(&console, "all 42"));
        vm.wait_for_console("all 42", BOOT_TIMEOUT).unwrap();
        reads.join().unwrap()
    });
    assert!(said.contains("line 10000"));
    let log = String::from_utf8(description.console_log().unwrap()).unwrap();
    let lines: Vec<_> = log.lines().filter_map(|line| line.strip_prefix("line ")).collect();
    assert_eq!(lines, (1..=10_000).map(|number| number.to_string()).collect::<Vec<_>>());

    read_until(&console, "# ");
    // A serial port knows no size; the guest asks the terminal, which is us, where its last corner is.
    console.write_all(b"resize\r").unwrap();
    read_until(&console, "\x1b[999;999H\x1b[6n");
    console.write_all(b"\x1b[42;99R").unwrap();
    read_until(&console, "42 rows, 99 columns");
    // Said by the program that sleeps, since ^C means the shell as long as the program is not there.
    console.write_all(b"stty size; sh -c 'echo sleep\"\"ing; exec sleep 100000'\r").unwrap();
    read_until(&console, "42 99");
    read_until(&console, "sleeping");
    console.write_all(b"\x03").unwrap();
    read_until(&console, "^C");
    read_until(&console, "# "); // of what is typed before it prompts again, it may take no notice
    drop(console);

    // Its input ends, and it stays until the machine does.
    let mut attach = Command::new(example_path("boot"));
    attach.arg("--attach").arg("--state-dir").arg(&state).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut attach = attach.stderr(Stdio::null()).spawn().unwrap();
    attach.stdin.take().unwrap().write_all(b"echo $((6 * 7)) is it\rpoweroff\r").unwrap();
    let output = attach.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && said.contains("The machine has ended."), "{output:?}");
    let log = || fs::read_to_string(state.join("console-ring")).unwrap();
    wait_until("it is in the log", || log().contains("42 is it"));
    assert!(vm.wait_timeout(BOOT_TIMEOUT).unwrap().is_some());
}
