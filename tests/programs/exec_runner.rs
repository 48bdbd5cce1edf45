//! `exec --host-root` as a runner of Cargo's tests: another crate's, and this crate's own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::common::example_path;
use crate::exec_host::HostExec;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// The tests of another crate. Each one is run by its name.
const SUITE: &str = r#"
use std::path::Path;

#[test]
fn passes() {
    // The agent is the first process. The kernel's own name for it is that of its file in the initrd.
    assert_eq!(std::fs::read_to_string("/proc/1/comm").unwrap(), "init\n");
}

#[test]
fn has_its_directories() {
    assert_eq!(std::env::current_dir().unwrap(), Path::new(env!("CARGO_MANIFEST_DIR")));
    assert_eq!(std::env::var("CARGO_MANIFEST_DIR").unwrap(), env!("CARGO_MANIFEST_DIR"));
    assert_eq!(std::fs::read_to_string("data").unwrap(), "data of the crate");
    let program = std::process::Command::new(env!("CARGO_BIN_EXE_suite")).output().unwrap();
    assert_eq!(program.stdout, b"a program of the crate\n");
    std::fs::write(Path::new(env!("CARGO_TARGET_TMPDIR")).join("written"), "").unwrap();
}

#[test]
fn fails() {
    assert_eq!(1, 2);
}

#[test]
fn aborts() {
    std::process::abort();
}

#[test]
fn hangs() {
    std::thread::sleep(std::time::Duration::from_secs(1000));
}
"#;

fn target_dir() -> PathBuf {
    std::env::current_exe().unwrap().ancestors().nth(3).unwrap().join("exec-runner")
}

/// Creates the other crate. It stays, so that the next run of the tests has nothing to build.
fn create_crate() -> PathBuf {
    let dir = target_dir().join("crate");
    fs::create_dir_all(dir.join("src")).unwrap();
    fs::create_dir_all(dir.join("tests")).unwrap();
    for (name, content) in [
        ("Cargo.toml", "[package]\nname = \"suite\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[workspace]\n"),
        ("src/main.rs", "fn main() {\n    println!(\"a program of the crate\");\n}\n"),
        ("tests/suite.rs", SUITE),
        ("data", "data of the crate"),
    ] {
        if fs::read_to_string(dir.join(name)).is_ok_and(|old| old == content) {
            continue; // Cargo would build it again
        }
        fs::write(dir.join(name), content).unwrap();
    }
    dir
}

/// Runs `cargo test` in a directory, with `exec` and these options as the runner.
fn cargo_test(host: &HostExec, dir: &Path, options: &str, words: &[&str]) -> Output {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["test", "--offline", "--quiet"]).args(words).current_dir(dir);
    // Cargo sets these for tests.
    for name in ["CARGO_TARGET_DIR", "CARGO_MANIFEST_DIR"] {
        cargo.env_remove(name);
    }
    let runner = format!("{} --host-root --boot-timeout 300 {options} --", example_path("exec").display());
    cargo.env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER", runner).env("XDG_STATE_HOME", host.path("state"));
    let output = cargo.output().unwrap();
    host.assert_nothing_left();
    output
}

#[test]
fn results_of_another_crates_tests_have_different_statuses() {
    let host = HostExec::new();
    let dir = create_crate();
    let target = target_dir().join("target");
    let run = |options: &str, filters: &[&str]| {
        let words = ["--test", "suite", "--target-dir", target.to_str().unwrap(), "--", "--exact"];
        let output = cargo_test(&host, &dir, options, &[&words, filters].concat());
        let stdout = String::from_utf8(output.stdout).unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        (output.status.code(), stdout, stderr)
    };
    let (status, stdout, stderr) = run("", &["passes", "has_its_directories"]);
    assert_eq!(status, Some(0), "{stdout}{stderr}");
    assert!(stdout.contains("test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 3 filtered out"), "{stdout}");
    assert!(!target.join("tmp/written").exists(), "the host was written to");

    let (status, stdout, stderr) = run("", &["passes", "fails"]);
    assert_eq!(status, Some(101), "{stdout}{stderr}");
    assert!(stdout.contains("left: 1") && stdout.contains("1 passed; 1 failed"), "{stdout}");

    let (status, stdout, stderr) = run("", &["aborts"]);
    assert!(status == Some(134) && stderr.contains("(exit status: 134)"), "{status:?} {stdout}{stderr}");

    let (status, stdout, stderr) = run("--timeout 3", &["hangs"]);
    assert_eq!(status, Some(124), "{stdout}{stderr}");
    assert!(stderr.contains("exec: timed out after 3 s") && stderr.contains("(exit status: 124)"), "{stdout}{stderr}");
}

/// Cargo has built the unit tests already, if all tests run. `FULL=1` runs all of them.
#[test]
fn unit_tests_of_this_crate_pass() {
    let host = HostExec::new();
    let filters: &[&str] = if std::env::var_os("FULL").is_some() { &[] } else { &["vm::command", "sys::"] };
    let output = cargo_test(&host, Path::new(ROOT), "", &[&["--lib", "--"], filters].concat());
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{stdout}{}", String::from_utf8_lossy(&output.stderr));
    let passed = stdout.split("test result: ok. ").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok());
    assert!(passed.is_some_and(|passed: u32| passed >= 10), "{stdout}");
}
