//! Tests that need a separate process.

use std::process::{Command, Stdio};

/// The environment variable of the child process. It contains the name of the test.
const CHILD_TEST: &str = "HYPERKIT_CHILD_TEST";

/// Runs the body of a test in a child process. There the test can change and measure what belongs to the whole process: the
/// logger, resource limits, threads, standard input and output.
///
/// `test` is the test's path in its binary, as in `cargo test -- --exact PATH`. The child is this binary with only that
/// test. If the path named no test, the child would run nothing and succeed. So the child has to print that one test has
/// passed, and a line at the end of the body.
pub fn in_child_process(test: &str, body: impl FnOnce()) {
    in_child_of(Command::new("env"), test, body);
}

/// Runs the body of a test in a child process that can mount file systems. No other process sees them.
pub fn in_mount_namespace(test: &str, body: impl FnOnce()) {
    let mut unshare = Command::new("unshare");
    unshare.args(["--map-root-user", "--mount"]);
    in_child_of(unshare, test, body);
}

/// Runs the body of a test in a child process that is not root, and has the files of this user.
pub fn as_other_user(test: &str, body: impl FnOnce()) {
    let mut unshare = Command::new("unshare");
    unshare.arg("--user"); // without a mapping of users
    in_child_of(unshare, test, body);
}

fn in_child_of(mut child: Command, test: &str, body: impl FnOnce()) {
    let end = format!("end of {test}");
    if std::env::var_os(CHILD_TEST).is_some_and(|name| name == test) {
        body();
        println!("{end}");
        return;
    }
    child.arg(std::env::current_exe().unwrap());
    child.args(["--exact", test, "--nocapture"]).env(CHILD_TEST, test).stdin(Stdio::null());
    let output = child.output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let ran = stdout.contains(&end) && stdout.contains("test result: ok. 1 passed; 0 failed");
    assert!(output.status.success() && ran, "{test} failed in its child process:\n{stdout}\n{stderr}");
}
