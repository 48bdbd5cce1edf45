//! Starters: child processes of a test that start VMs. The test can kill them.
//!
//! A starter is the test binary again, with the same test. The test calls [`arguments_of`] first, to see whether it runs in
//! a starter.

use std::io::{BufRead, BufReader, Lines, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};

use hyperkit::HyperKit;
use rustix::process::{Signal, kill_process, test_kill_process};

use crate::common::{standin_path, to_pid, wait_until};

/// The environment variable of a starter. It contains the name of the test and the arguments, a line each.
const STARTER: &str = "HYPERKIT_STARTER";
/// What a starter reports begins with this text, since the test harness prints to stdout, too.
const REPORT: &str = "starter reports ";

/// A child process of a test, in a process group of its own. It is killed on drop.
pub struct Starter {
    child: Child,
    output: Lines<BufReader<ChildStdout>>,
}

impl Starter {
    /// Runs a test in a child process, where [`arguments_of`] returns the arguments.
    ///
    /// `test` is the test's path in its binary, as in `cargo test -- --exact PATH`.
    pub fn spawn(test: &str, arguments: &[&str]) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        Self::spawn_with(&mut command, test, arguments)
    }

    /// As [`spawn`](Self::spawn), with a command that runs this binary.
    pub fn spawn_with(command: &mut Command, test: &str, arguments: &[&str]) -> Self {
        let mut child = with_test(command, test, arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, output }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn stdin(&mut self) -> &mut ChildStdin {
        self.child.stdin.as_mut().unwrap()
    }

    /// Waits for the next text that the starter passes to [`report()`], and returns it.
    pub fn report(&mut self) -> String {
        let mut output = Vec::new();
        for line in self.output.by_ref().map(Result::unwrap) {
            // The harness prints the name of the test without a newline.
            if let Some((_, report)) = line.split_once(REPORT) {
                return report.to_owned();
            }
            output.push(line);
        }
        panic!("the starter ended and reported nothing: {output:?}");
    }

    /// Waits until the starter prints a line that contains a text.
    pub fn wait_for_line(&mut self, text: &str) {
        let mut lines = self.output.by_ref().map(Result::unwrap);
        assert!(lines.any(|line| line.contains(text)), "the starter ended and did not print {text:?}");
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(to_pid(self.pid()), signal).unwrap();
    }

    /// Lets a starter continue that waits in [`wait_for_test`].
    pub fn resume(&mut self) {
        self.stdin().write_all(b"\n").unwrap();
    }

    pub fn wait(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }
}

impl Drop for Starter {
    fn drop(&mut self) {
        let _ = self.child.kill().and_then(|()| self.child.wait());
    }
}

/// Lets a command that runs this binary run a test in a starter, with the caller's choice of standard streams.
pub fn with_test<'a>(command: &'a mut Command, test: &str, arguments: &[&str]) -> &'a mut Command {
    let arguments: Vec<_> = [test].iter().chain(arguments).copied().collect();
    command.args(["--exact", test, "--nocapture"]).env(STARTER, arguments.join("\n")).process_group(0)
}

/// Returns the arguments if this process is a starter of the test, and `None` if it is the test itself.
pub fn arguments_of(test: &str) -> Option<Vec<String>> {
    let words: Vec<_> = std::env::var(STARTER).ok()?.lines().map(str::to_owned).collect();
    (words[0] == test).then(|| words[1..].to_vec())
}

/// Called in a starter: reports a line to the test.
pub fn report(text: impl std::fmt::Display) {
    println!("{REPORT}{text}");
}

/// Called in a starter: waits until the test calls [`Starter::resume`] or ends.
pub fn wait_for_test() {
    let _ = std::io::stdin().read(&mut [0]);
}

/// Called in a starter: returns the description of a VM in the directory of the test's [`TestDir`](crate::common::TestDir).
pub fn description_in(dir: impl AsRef<Path>) -> HyperKit {
    let file = |name| dir.as_ref().join(name);
    HyperKit::new().hyperkit(standin_path()).state_dir(file("vm")).kernel(file("vmlinuz")).initrd(file("initrd.img"))
}

/// Starts a VM in another process, which then exits. Returns the process ID of the hypervisor.
///
/// The test has to begin with `if let Some(arguments) = starter::arguments_of(test) { return starter::start(&arguments) }`.
pub fn start_elsewhere(test: &str, dir: &Path, kernel_cmdline: &str) -> u32 {
    let mut starter = Starter::spawn(test, &[dir.to_str().unwrap(), kernel_cmdline]);
    let pid = starter.report().parse().unwrap();
    assert!(starter.wait().success());
    pid
}

/// Called in the starter of [`start_elsewhere`]: starts the VM and reports its process ID.
pub fn start(arguments: &[String]) {
    let [dir, kernel_cmdline] = arguments else { panic!("{arguments:?}") };
    report(description_in(dir).start(kernel_cmdline).unwrap().pid());
}

/// Returns the processes of a process group, without zombies.
pub fn group_members(group: u32) -> Vec<u32> {
    processes(|process| group_of(process.pid().as_u32()) == Some(group))
}

/// Returns the process group. `rustix` does not expect the group 0 of the kernel's own processes, so this reads `/proc`.
#[cfg(target_os = "linux")]
fn group_of(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(2)?.parse().ok()
}

#[cfg(not(target_os = "linux"))]
fn group_of(pid: u32) -> Option<u32> {
    let group = rustix::process::getpgid(Some(to_pid(pid))).ok()?;
    u32::try_from(group.as_raw_nonzero().get()).ok()
}

/// Returns the processes with a text on their command line, without zombies.
pub fn processes_with(text: &str) -> Vec<u32> {
    processes(|process| process.cmd().iter().any(|word| word.to_string_lossy().contains(text)))
}

fn processes(is_wanted: impl Fn(&sysinfo::Process) -> bool) -> Vec<u32> {
    let mut system = sysinfo::System::new();
    let details = sysinfo::ProcessRefreshKind::nothing().without_tasks().with_cmd(sysinfo::UpdateKind::Always);
    system.refresh_processes_specifics(sysinfo::ProcessesToUpdate::All, true, details);
    let alive = system.processes().values().filter(|process| process.status() != sysinfo::ProcessStatus::Zombie);
    alive.filter(|process| is_wanted(process)).map(|process| process.pid().as_u32()).collect()
}

/// Waits until a process group has no members.
pub fn wait_until_group_is_empty(group: u32) {
    wait_until("the processes of the VM have exited", || group_members(group).is_empty());
}

/// Returns whether a process exists, also as a zombie.
pub fn exists(pid: u32) -> bool {
    test_kill_process(to_pid(pid)).is_ok()
}
