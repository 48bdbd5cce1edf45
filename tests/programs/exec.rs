//! The example `exec`, which runs a program in a VM: its stdout, stderr and exit status.

use std::fs;
use std::io::{BufRead, BufReader, Seek};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use hyperkit::HyperKit;
use rustix::process::{Signal, kill_process};
use tempfile::TempDir;

use crate::common::guest::compile_program;
use crate::common::{StopOnDrop, TEST_TIMEOUT, example_path, file_names, to_pid, wait_until};

struct Exec {
    dir: TempDir,
    program: PathBuf,
}

impl Exec {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { program: compile_program(dir.path()), dir }
    }

    /// Returns the command. It creates its files in the test's directory.
    fn command(&self, program: &Path, arguments: &[&str]) -> Command {
        let temporary = self.dir.path().join("tmp");
        fs::create_dir_all(&temporary).unwrap();
        let mut exec = Command::new(example_path("exec"));
        exec.env("TMPDIR", temporary).args(["--hyperkit", "qemu-system-x86_64", "--memory", "256"]);
        exec.arg(program).args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        exec
    }

    fn run(&self, program: &Path, arguments: &[&str]) -> Output {
        let output = self.command(program, arguments).output().unwrap();
        assert_eq!(file_names(&self.dir.path().join("tmp")), [] as [&str; 0], "it leaves no files");
        output
    }

    /// Starts a script that prints a line and does not end, and waits for the line.
    fn run_script_without_end(&self) -> Running {
        let script = self.dir.path().join("script");
        fs::write(&script, "#!/bin/sh\necho here\nexec sleep 1000\n").unwrap();
        let stdout = self.dir.path().join("stdout");
        let mut command = self.command(&script, &[]);
        let running = Running(command.stdout(fs::File::create(&stdout).unwrap()).spawn().unwrap());
        wait_until("the script runs", || fs::read_to_string(&stdout).unwrap().contains("here"));
        running
    }
}

/// Terminates `exec` on drop, so also when the test fails. `exec` then stops its VM.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        if self.0.try_wait().is_ok_and(|status| status.is_none()) {
            let _ = kill_process(to_pid(self.0.id()), Signal::TERM).map(|()| self.0.wait());
        }
    }
}

#[test]
fn stdout_stderr_and_status_are_those_of_the_program() {
    let exec = Exec::new();
    let output = exec.run(&exec.program, &["a", "b c", "", "it's", "--help", "$HOME\n*"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert_eq!(stdout, "process 1\n[./program]\n[a]\n[b c]\n[]\n[it's]\n[--help]\n[$HOME\n*]\n");
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "an error\n");

    let output = exec.run(&exec.program, &["exit", "42"]);
    assert_eq!((output.status.code(), &output.stderr[..]), (Some(42), &b"half a line"[..]));

    let output = exec.run(&exec.program, &["bytes"]);
    assert_eq!(output.status.code(), Some(0));
    let bytes: Vec<u8> = (0..256_000_u32).map(|i| ((i / 1000 + i) & 0xff) as u8).collect();
    assert!(output.stdout == bytes, "{} bytes arrived", output.stdout.len());
}

#[test]
fn crash_and_exec_failure_are_reported() {
    let exec = Exec::new();
    let output = exec.run(&exec.program, &["fault"]);
    assert_eq!(output.status.code(), Some(128 + 11), "{output:?}");

    // Signals do not kill process 1, not even its own, so its abort ends differently.
    let output = exec.run(Path::new("--child"), &[exec.program.to_str().unwrap(), "abort"]);
    assert_eq!(output.status.code(), Some(128 + 6), "{output:?}");
    let dynamic = exec.run(&std::env::current_exe().unwrap(), &[]);
    assert_eq!(dynamic.status.code(), Some(125));
    assert!(String::from_utf8_lossy(&dynamic.stderr).contains("link it statically"), "{dynamic:?}");
    let text = String::from_utf8_lossy(&dynamic.stderr);
    assert!(text.contains("it needs shared libraries: set --host-root, or "), "{text}");
    for name in ["/nowhere/program", "ls"] {
        let missing = exec.run(Path::new(name), &[]);
        assert_eq!(missing.status.code(), Some(125));
        let text = String::from_utf8_lossy(&missing.stderr);
        assert_eq!(
            text,
            format!("exec: program not found: {name}; set its path, or --host-root for the programs of this host\n")
        );
    }
    let directory = exec.run(Path::new("/nowhere/.."), &[]);
    assert_eq!(String::from_utf8_lossy(&directory.stderr), "exec: not the path of a program: \"/nowhere/..\"\n");
}

#[test]
fn signal_stops_the_vm() {
    let exec = Exec::new();
    for signal in [Signal::TERM, Signal::QUIT] {
        let mut running = exec.run_script_without_end();
        kill_process(to_pid(running.0.id()), signal).unwrap();
        assert_eq!(running.0.wait().unwrap().code(), Some(128 + signal.as_raw()));
        assert_eq!(file_names(&exec.dir.path().join("tmp")), [] as [&str; 0]);
    }
}

/// Neither the hypervisor nor the program in the guest notices that nobody reads the output.
#[test]
fn closing_stdout_stops_the_vm() {
    let exec = Exec::new();
    let script = exec.dir.path().join("script");
    fs::write(&script, "#!/bin/sh\nexec yes\n").unwrap();
    let mut running = Running(exec.command(&script, &[]).spawn().unwrap());
    let mut line = String::new();
    BufReader::new(running.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "y\n");
    assert_eq!(running.0.wait().unwrap().code(), Some(128 + 13));
    assert_eq!(file_names(&exec.dir.path().join("tmp")), [] as [&str; 0]);
}

/// SIGKILL cannot be handled, so the temporary directory stays.
#[test]
fn sigkill_kills_the_vm() {
    let exec = Exec::new();
    let mut running = exec.run_script_without_end();
    let temporary = exec.dir.path().join("tmp");
    let [name] = &file_names(&temporary)[..] else { panic!("exec creates one temporary directory") };
    let state_dir = temporary.join(name).join("vm");
    let _stop = StopOnDrop(state_dir.clone());
    let description = HyperKit::from_state(&state_dir).unwrap();
    let vm = description.vm().unwrap().expect("the VM runs");
    kill_process(to_pid(running.0.id()), Signal::KILL).unwrap();
    assert_eq!(running.0.wait().unwrap().signal(), Some(9));
    assert!(vm.wait_timeout(TEST_TIMEOUT).is_some(), "the VM outlives exec");
    assert!(!description.is_running().unwrap());
}

#[test]
fn stdin_is_not_read() {
    let exec = Exec::new();
    let input = exec.dir.path().join("input");
    fs::write(&input, "for the next\n").unwrap();
    let mut input = fs::File::open(&input).unwrap();
    let output = exec.command(&exec.program, &["exit", "0"]).stdin(input.try_clone().unwrap()).output().unwrap();
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(0), &b""[..]));
    assert_eq!(input.stream_position().unwrap(), 0);
}

#[test]
fn closing_stderr_stops_the_vm() {
    let exec = Exec::new();
    let script = exec.dir.path().join("script");
    fs::write(&script, "#!/bin/sh\necho first >&2\nwhile sleep 0.1; do echo more >&2; done\n").unwrap();
    let mut running = Running(exec.command(&script, &[]).spawn().unwrap());
    let mut errors = BufReader::new(running.0.stderr.take().unwrap());
    let mut line = String::new();
    errors.read_line(&mut line).unwrap();
    assert_eq!(line, "first\n");
    drop(errors);
    assert_eq!(running.0.wait().unwrap().code(), Some(125));
    assert_eq!(file_names(&exec.dir.path().join("tmp")), [] as [&str; 0]);
}
