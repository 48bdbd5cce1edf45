//! A shell in a real guest, through the console's stream.

mod common;

use std::fs;
use std::io::{Read, Write};
use std::process::{Command, Stdio};

use common::guest::{PATIENCE, machine};
use common::{Ended, eventually, example};
use hyperkit::Console;

#[test]
fn a_command_is_typed_and_answered_and_another_program_comes_after() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().canonicalize().unwrap().join("vm");
    let _end = Ended(state.clone());
    let mut machine = machine().state_dir(&state).console(Console::File);
    let vm = machine.start("console=ttyS0 quiet").unwrap();
    let mut console = vm.console().unwrap();
    console.set_timeout(Some(PATIENCE));
    let mut said = String::new();
    let mut read_until = |what: &str| {
        let mut buffer = [0; 4096];
        while !said.contains(what) {
            let length = console.read(&mut buffer).unwrap_or_else(|error| panic!("{error} after {said:?}"));
            assert!(length > 0, "it ended with {said:?}");
            said.push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
    };
    read_until("is up");
    drop(console);

    // Its input ends, and it stays until the machine does.
    let mut attach = Command::new(example("boot"));
    attach.arg("--attach").arg("--state-dir").arg(&state).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut attach = attach.stderr(Stdio::null()).spawn().unwrap();
    attach.stdin.take().unwrap().write_all(b"echo $((6 * 7)) is it\rpoweroff\r").unwrap();
    let output = attach.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && said.contains("The machine has ended."), "{output:?}");
    let log = || fs::read_to_string(state.join("console-ring")).unwrap();
    eventually("it is in the log", || log().contains("42 is it"));
    assert!(vm.wait_timeout(PATIENCE).unwrap().is_some());
}
