//! `exec --host-root`: programs of the host in a VM, with their status, input, outputs, files and environment.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;

use hyperkit::HyperKit;
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Signal, kill_process};
use tempfile::TempDir;

use crate::common::guest::processes_in;
use crate::common::{StopOnDrop, TEST_TIMEOUT, example_path, file_names, to_pid, wait_until, write_executable};

/// A directory for the files of a test, and one for the state directories of `exec`.
pub struct HostExec {
    dir: TempDir,
}

impl HostExec {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("state")).unwrap();
        Self { dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join(name)
    }

    pub fn script(&self, name: &str, text: &str) -> PathBuf {
        write_executable(&self.path(name), text.as_bytes());
        self.path(name)
    }

    pub fn command(&self, words: &[&str]) -> Command {
        let mut exec = Command::new(example_path("exec"));
        exec.args(["--host-root", "--hyperkit", "qemu-system-x86_64", "--boot-timeout", "300"]).args(words);
        exec.env("XDG_STATE_HOME", self.path("state")).current_dir(self.dir.path());
        exec.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        exec
    }

    pub fn run(&self, words: &[&str]) -> Output {
        self.run_with_input(words, b"")
    }

    pub fn run_with_input(&self, words: &[&str], input: &[u8]) -> Output {
        let mut exec = self.command(words).stdin(Stdio::piped()).spawn().unwrap();
        let mut stdin = exec.stdin.take().unwrap();
        let input = input.to_vec();
        let writer = thread::spawn(move || drop(stdin.write_all(&input))); // not every program reads it
        let output = exec.wait_with_output().unwrap();
        writer.join().unwrap();
        self.assert_nothing_left();
        output
    }

    pub fn assert_nothing_left(&self) {
        assert_eq!(file_names(&self.path("state")), [] as [&str; 0], "exec leaves no files");
        assert_eq!(processes_in(&self.path("state")), [] as [u32; 0], "exec leaves no processes");
    }

    /// Starts a program, and waits until it has printed a line.
    fn start(&self, words: &[&str]) -> Running {
        let mut exec = Running(self.command(words).spawn().unwrap());
        let mut line = String::new();
        BufReader::new(exec.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "here\n");
        exec
    }

    /// The state directory of the one `exec` that runs, or was killed.
    fn state_dir(&self) -> PathBuf {
        let dir = self.path("state/hyperkit/exec");
        let [name] = &file_names(&dir)[..] else { panic!("{:?}", file_names(&dir)) };
        dir.join(name)
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

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn large_binary_input_and_outputs_arrive_unchanged_and_separate() {
    let host = HostExec::new();
    let input: Vec<u8> = (0..6_000_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let output = host.run_with_input(&["--", "sh", "-c", "tee /dev/stderr; exit 42"], &input);
    assert_eq!(output.status.code(), Some(42));
    assert!(output.stdout == input, "{} bytes on standard output", output.stdout.len());
    assert!(output.stderr == input, "{} bytes on standard error", output.stderr.len());
}

#[test]
fn input_that_the_program_does_not_read_is_no_error() {
    let host = HostExec::new();
    let output = host.run_with_input(&["--", "true"], &vec![b'x'; 3_000_000]);
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()));
}

/// A script runs on the host and in the VM: pipelines, a Python program, and this dynamically linked test program.
#[test]
fn programs_give_the_same_results_as_on_the_host() {
    let host = HostExec::new();
    host.script(
        "program.py",
        "#!/usr/bin/env python3\n\
         import os, sqlite3, ssl, sys, tempfile\n\
         print(sys.argv[1:], os.getcwd(), sys.stdin.read(), sqlite3.connect(':memory:').execute('select 6*7').fetchall())\n\
         print(open(__file__).readline(), file=sys.stderr)\n\
         with tempfile.TemporaryFile() as file: file.write(b'x')\n\
         sys.exit(3)\n",
    );
    let test = std::env::current_exe().unwrap();
    let script = format!(
        "#!/bin/bash\nset -o pipefail\n\
         ./program.py 'a b' '' $'\\n' ; echo status $?\n\
         seq 1000 | sort -r | awk '{{ sum += $1; last = $1 }} END {{ print sum, last }}'\n\
         false | cat; echo status $?\n\
         diff <(echo 1) <(echo 2)\n\
         {} --list --format terse exec_host:: | sort | md5sum\n\
         id -u; id -g; pwd; uname -sm; cat missing; kill -SEGV $$\n",
        test.display()
    );
    let script = host.script("script", &script);
    let mut outside = Command::new(&script);
    outside.current_dir(host.dir.path()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut outside = outside.spawn().unwrap();
    outside.stdin.take().unwrap().write_all(b"from outside").unwrap();
    let outside = outside.wait_with_output().unwrap();
    let inside = host.run_with_input(&["--", "./script"], b"from outside");
    assert_eq!(text(&inside.stdout), text(&outside.stdout));
    assert_eq!(text(&inside.stderr), text(&outside.stderr));
    assert_eq!(outside.status.signal(), Some(11));
    assert_eq!(inside.status.code(), Some(128 + 11));
    assert!(text(&inside.stdout).contains("status 3\n"), "python3 is missing: {}", text(&inside.stderr));
}

#[test]
fn only_shares_are_written_to() {
    let host = HostExec::new();
    for dir in ["shared", "other"] {
        fs::create_dir(host.path(dir)).unwrap();
        fs::write(host.path(dir).join("old"), "old").unwrap();
    }
    let other = host.path("other");
    let script = format!(
        "for dir in shared {}; do echo new >$dir/new && rm $dir/old && cat $dir/new; done; mkdir shared/dir; \
         echo changed >/etc/hyperkit-test; cat /etc/hyperkit-test",
        other.display()
    );
    let output = host.run(&["--share", "shared", "--", "sh", "-c", &script]);
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(0), "new\nnew\nchanged\n"), "{output:?}");
    assert_eq!(file_names(&host.path("shared")), ["dir", "new"]);
    assert_eq!(fs::read_to_string(host.path("shared/new")).unwrap(), "new\n");
    assert_eq!(file_names(&other), ["old"]);
    assert!(!Path::new("/etc/hyperkit-test").exists());
}

#[test]
fn only_listed_variables_without_secrets_are_passed_on() {
    let host = HostExec::new();
    let mut exec = host.command(&["--env", "SECRET_TOKEN", "--env", "ADDED=a=b", "--env", "UNSET", "--", "env", "-0"]);
    exec.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).env("XDG_STATE_HOME", host.path("state"));
    let passed_on = [
        ("HOME", "/h"),
        ("LC_ALL", "C"),
        ("TERM", "dumb"),
        ("RUST_BACKTRACE", "1"),
        ("CARGO_MANIFEST_DIR", "/m"),
        ("CARGO_PKG_AUTHORS", "me"),
        ("NEXTEST", "1"),
        ("GOFLAGS", "-v"),
    ];
    let kept = [
        ("CARGO_REGISTRY_TOKEN", "x"),
        ("CARGO_REGISTRIES_MINE_TOKEN", "x"),
        ("CARGO_HTTP_PROXY", "x"),
        ("CARGO_MAKEFLAGS", "x"),
        ("RUST_API_KEY", "x"),
        ("GOOGLE_APPLICATION_CREDENTIALS", "x"),
        ("AWS_SECRET_ACCESS_KEY", "x"),
        ("GITHUB_TOKEN", "x"),
        ("LD_PRELOAD", ""),
    ];
    let output = exec.envs(passed_on).envs(kept).env("SECRET_TOKEN", "on request").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let stdout = text(&output.stdout);
    let mut inside: Vec<_> = stdout.split_terminator('\0').filter(|line| !line.starts_with("PATH=")).collect();
    inside.sort_unstable();
    let state = format!("XDG_STATE_HOME={}", host.path("state").display());
    let mut expected: Vec<_> = passed_on.iter().map(|(name, value)| format!("{name}={value}")).collect();
    expected.extend(["ADDED=a=b".to_owned(), "SECRET_TOKEN=on request".to_owned(), state]);
    expected.sort_unstable();
    assert_eq!(inside, expected);
}

#[test]
fn guide_lists_the_variables_that_are_passed_on() {
    let guide = include_str!("../../src/guide/tests_in_a_vm.md");
    let source = include_str!("../../examples/exec/environment.rs");
    let lists: Vec<_> = source.split("const ").skip(1).map(|it| it.split('"').nth(1).unwrap()).collect();
    let words: Vec<_> = lists.iter().flat_map(|list| list.split_whitespace()).collect();
    assert!(lists.len() == 4 && words.len() > 60, "{words:?}");
    for word in words {
        assert!([format!("`{word}`"), format!("`{word}*`")].iter().any(|text| guide.contains(text)), "{word}");
    }
}

#[test]
fn program_that_cannot_be_executed_is_125_and_says_why() {
    let host = HostExec::new();
    fs::write(host.path("text"), "no program").unwrap();
    host.script("script", "#!/no/such/interpreter\n");
    for (words, message) in [
        (&["--", "no-such-program"][..], "program not found in the guest: \"no-such-program\""),
        (&["--", "./text"], "program not executable in the guest: \"./text\""),
        (&["--", "./script"], "interpreter or dynamic loader not found in the guest for the program: \"./script\""),
    ] {
        let output = host.run(words);
        assert_eq!(output.status.code(), Some(125), "{output:?}");
        assert!(text(&output.stderr).starts_with(&format!("exec: {message}")), "{output:?}");
        assert_eq!(text(&output.stderr).lines().count(), 1, "{output:?}");
    }
    // Without a boot.
    let missing = host.run(&["--share", "no-such-dir", "--", "true"]);
    assert_eq!((missing.status.code(), missing.stdout.len()), (Some(125), 0));
    assert!(text(&missing.stderr).starts_with("exec: --share no-such-dir: "), "{missing:?}");
    let file = host.run(&["--share", "text", "--", "true"]);
    assert_eq!((file.status.code(), text(&file.stderr).as_str()), (Some(125), "exec: --share text: not a directory\n"));
    let root = host.run(&["--share", "/", "--", "true"]);
    assert!(text(&root.stderr).starts_with("exec: --share /: "), "{root:?}");
}

#[test]
fn timeout_is_124_and_kills_descendants() {
    let host = HostExec::new();
    let output = host.run(&["--timeout", "2", "--", "sh", "-c", "echo before; setsid sleep 1000 & sleep 1000"]);
    assert_eq!(output.status.code(), Some(124), "{output:?}");
    assert_eq!(
        (text(&output.stdout).as_str(), text(&output.stderr).as_str()),
        ("before\n", "exec: timed out after 2 s\n")
    );
}

#[test]
fn ending_signals_end_the_vm() {
    let host = HostExec::new();
    for signal in [Signal::INT, Signal::HUP, Signal::TERM] {
        let mut running = host.start(&["--", "sh", "-c", "echo here; exec sleep 1000"]);
        kill_process(to_pid(running.0.id()), signal).unwrap();
        assert_eq!(running.0.wait().unwrap().code(), Some(128 + signal.as_raw()));
        host.assert_nothing_left();
    }
}

/// `nohup` and background jobs of scripts ignore signals.
#[test]
fn ignored_signal_stays_ignored() {
    let host = HostExec::new();
    let exec = host.command(&["--", "sh", "-c", "echo here; cat"]);
    let mut shell = Command::new("sh");
    shell.args(["-c", "trap '' HUP; exec \"$0\" \"$@\""]).arg(exec.get_program()).args(exec.get_args());
    shell.env("XDG_STATE_HOME", host.path("state")).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut running = Running(shell.spawn().unwrap());
    let mut stdout = BufReader::new(running.0.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert_eq!(stdout.next().as_deref(), Some("here"));
    kill_process(to_pid(running.0.id()), Signal::HUP).unwrap();
    running.0.stdin.take().unwrap().write_all(b"after\n").unwrap();
    assert_eq!(stdout.next().as_deref(), Some("after"));
    assert_eq!(running.0.wait().unwrap().code(), Some(0));
}

#[test]
fn closed_and_full_outputs_end_the_vm() {
    let host = HostExec::new();
    for stream in ["1", "2"] {
        let mut exec = host.command(&["--", "sh", "-c", &format!("echo here; exec yes >&{stream}")]);
        if stream == "2" {
            exec.stderr(Stdio::piped()).stdout(Stdio::piped());
        }
        let mut running = Running(exec.spawn().unwrap());
        let mut line = String::new();
        BufReader::new(running.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "here\n");
        drop(running.0.stderr.take());
        assert_eq!(running.0.wait().unwrap().code(), Some(128 + 13));
        host.assert_nothing_left();
    }
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = host.command(&["--", "yes"]).stdout(full).spawn().unwrap().wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output.stderr).starts_with("exec: cannot write to standard output: No space left"), "{output:?}");
    host.assert_nothing_left();
}

/// SIGKILL cannot be handled, so the state directory stays. `ctl` finds and deletes it.
#[test]
fn ctl_finds_and_removes_what_sigkill_leaves() {
    let host = HostExec::new();
    let mut running = host.start(&["--", "sh", "-c", "echo here; exec sleep 1000"]);
    let dir = host.state_dir();
    let _stop = StopOnDrop(dir.clone());
    let vm = HyperKit::from_state(&dir).unwrap().vm().unwrap().expect("the VM runs");
    kill_process(to_pid(running.0.id()), Signal::KILL).unwrap();
    assert_eq!(running.0.wait().unwrap().signal(), Some(9));
    assert!(vm.wait_timeout(TEST_TIMEOUT).is_some(), "the VM outlives exec");

    let ctl = |words: &[&str]| {
        let mut ctl = Command::new(example_path("ctl"));
        ctl.args(words).env("XDG_STATE_HOME", host.path("state")).current_dir(host.dir.path()).output().unwrap()
    };
    let list = text(&ctl(&["list"]).stdout);
    let line = list.lines().find(|line| line.starts_with(dir.to_str().unwrap())).expect(&list);
    assert!(line.contains(" stopped ") && line.ends_with("  exec: sh -c 'echo here; exec sleep 1000'"), "{line}");
    let removed = ctl(&["rm", dir.to_str().unwrap()]);
    assert!(removed.status.success(), "{removed:?}");
    assert_eq!(file_names(dir.parent().unwrap()), [] as [&str; 0]);
    wait_until("the hypervisor's companions have exited", || processes_in(&dir).is_empty());
}

#[test]
fn vm_that_exits_while_the_program_runs_is_125() {
    let host = HostExec::new();
    // A program such as `sleep` could not be read any more: Linux 6.12 shuts the devices down first, and the shell would report that.
    let script = "echo before; read line; echo o >/proc/sysrq-trigger; while :; do :; done";
    let mut exec = host.command(&["--", "sh", "-c", script]).stdin(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(exec.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "before\n");
    exec.stdin.take().unwrap().write_all(b"\n").unwrap();
    let output = exec.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    assert!(text(&output.stderr).starts_with("exec: the VM powered off while the program ran; "), "{output:?}");
    host.assert_nothing_left();
}

/// SIGKILL may come before a run has written anything.
#[test]
fn empty_directory_of_a_killed_run_is_deleted_by_the_next_and_others_stay() {
    let host = HostExec::new();
    let parent = host.path("state/hyperkit/exec");
    for name in ["exec-killed", "exec-locked", "exec-used", "other"] {
        fs::create_dir_all(parent.join(name)).unwrap();
    }
    fs::write(parent.join("exec-used/file"), "content").unwrap();
    // As a start locks it that has not written anything yet.
    let locked = fs::File::open(parent.join("exec-locked")).unwrap();
    flock(&locked, FlockOperation::LockExclusive).unwrap();
    let output = host.command(&["--share", "/no/such", "--", "true"]).output().unwrap();
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    assert_eq!(file_names(&parent), ["exec-locked", "exec-used", "other"]);
}
