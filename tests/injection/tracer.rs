//! Runs a caller under strace, which injects a fault.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};

use crate::Tracee;
use crate::action::{Site, TOOLS};
use crate::calls::{Call, Recording, parse};
use crate::common::guest::setup_file;
use crate::common::{to_pid, wait_until};

/// A caller that takes longer hangs.
pub const HANG: Duration = Duration::from_secs(10);
/// How long a child is kept from its `exec`.
const CHILD_DELAY: Duration = Duration::from_millis(200);

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// SIGKILL at the beginning of the call.
    Kill,
    /// The call does nothing and fails with this error.
    Error(&'static str),
    /// All calls with this name fail with EMFILE from this one on, as if the caller had no free file descriptors.
    NoDescriptors,
}

/// How a caller ended.
#[derive(Debug)]
pub struct Run {
    pub status: Status,
    pub stdout: String,
    pub stderr: String,
    /// The call with the fault.
    pub hit: Option<Call>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Status {
    Success,
    /// The caller has reported an error.
    Failure,
    /// It was killed by the injected signal, or has aborted because it got no memory.
    Died,
    Panicked,
    Hung,
}

pub fn inject(site: &Site, call: &Call, fault: Fault, tracee: Tracee) -> Run {
    let (what, onwards) = match fault {
        Fault::Kill => ("signal=SIGKILL".to_owned(), ""),
        Fault::Error(error) => (format!("error={error}"), ""),
        Fault::NoDescriptors => ("error=EMFILE".to_owned(), "+"),
    };
    let rule = format!("inject={}:{what}:when={}{onwards}", call.name, call.ordinal);
    let (mut run, log) = trace(site, &["-e", &rule], tracee == Tracee::Others, |_| ());
    // Without -f there are no thread IDs in the log.
    let log = if tracee == Tracee::Main { log.lines().map(|line| format!("0 {line}\n")).collect() } else { log };
    let has_died = |run: &Run| run.status == Status::Died;
    run.hit = match fault {
        Fault::Kill if has_died(&run) => parse(&log).into_iter().rfind(|hit| hit.name == call.name),
        Fault::Kill => parse(&log).into_iter().find(|hit| hit.name == call.name && hit.ordinal == call.ordinal),
        Fault::Error(_) | Fault::NoDescriptors => parse(&log).into_iter().find(|call| call.text.contains("(INJECTED)")),
    };
    run
}

pub fn record(site: &Site) -> Recording {
    let (run, log) = trace(site, &[], true, |_| ());
    assert_eq!(run.status, site.action.status_without_fault(), "{}{}", run.stdout, run.stderr);
    let dir = format!("\"{}", site.dir().display());
    let calls = parse(&log);
    // The first call has the command line.
    let start = calls.iter().skip(1).position(|call| call.text.contains(&dir)).unwrap() + 1;
    Recording { run, calls, start }
}

/// Kills the caller when it waits for the `exec` of its child, which is delayed at the call with this name.
pub fn kill_while_child_waits(site: &Site, name: &str) -> Run {
    let rule = format!("inject={name}:delay_enter={}", CHILD_DELAY.as_micros());
    let (run, log) = trace(site, &["-e", &rule], true, |caller| {
        // The vsock daemon is a child, too.
        let count = 1 + usize::from(site.has_vsock());
        wait_until("the caller has its children", || children(caller).len() == count);
        kill_process(to_pid(caller), Signal::KILL).unwrap();
    });
    assert_eq!(run.status, Status::Died, "{}", run.stderr);
    assert!(log.contains("VFORK") || log.contains("vfork("), "{log}");
    run
}

/// Runs the caller with a limit of open file descriptors.
pub fn limit_descriptors(site: &Site, limit: u32) -> Run {
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -n $0 && exec \"$@\"", &limit.to_string()]).args(site.command());
    let (mut shell, read) = spawn(site, &mut shell);
    let caller = shell.id();
    let (status, has_hung) = wait(&mut shell, Some(caller));
    run(status, has_hung, &read)
}

/// Runs the action's caller under strace. `meanwhile` gets its process ID.
fn trace(site: &Site, options: &[&str], follow: bool, meanwhile: impl FnOnce(u32)) -> (Run, String) {
    let log = site.scratch().join("log");
    let mut strace = Command::new("strace");
    strace.arg("-qq").arg("-s100").arg("-o").arg(&log).args(options);
    if follow {
        // Threads and children, but no other programs.
        strace.args(["-f", "-b", "execve"]);
    }
    let (mut strace, read) = spawn(site, strace.args(site.command()));
    let caller = caller(&mut strace, &site.command()[0]);
    if let Some(caller) = caller {
        meanwhile(caller);
    }
    let (status, has_hung) = wait(&mut strace, caller);
    assert!(!read("stderr").starts_with("strace: "), "{}", read("stderr"));
    (run(status, has_hung, &read), String::from_utf8_lossy(&fs::read(log).unwrap()).into_owned())
}

/// Starts a command, and returns a function that reads its output.
fn spawn(site: &Site, command: &mut Command) -> (Child, impl Fn(&str) -> String) {
    let scratch = site.scratch();
    let create = |name: &str| Stdio::from(File::create(scratch.join(name)).unwrap());
    if site.has_vsock() {
        let tools = setup_file(TOOLS, "vhost-device-vsock").parent().unwrap().to_owned();
        let path = std::env::var_os("PATH").unwrap_or_default();
        let dirs = [tools].into_iter().chain(std::env::split_paths(&path));
        command.env("PATH", std::env::join_paths(dirs).unwrap());
    }
    command.stdin(Stdio::null()).stdout(create("stdout")).stderr(create("stderr"));
    let child = command.spawn().expect("strace is missing: run examples/setup.sh --tests");
    (child, move |name: &str| String::from_utf8_lossy(&fs::read(scratch.join(name)).unwrap()).into_owned())
}

fn run(status: ExitStatus, has_hung: bool, read: &impl Fn(&str) -> String) -> Run {
    let (stdout, stderr) = (read("stdout"), read("stderr"));
    let status = match status.code() {
        _ if has_hung => Status::Hung,
        _ if has_panicked(&stderr) => Status::Panicked,
        Some(0) => Status::Success,
        Some(1) => Status::Failure,
        None if status.signal() == Some(Signal::KILL.as_raw()) => Status::Died,
        _ if stderr.contains("memory allocation of") => Status::Died,
        _ => panic!("{status}: {stderr}"),
    };
    Run { status, stdout, stderr, hit: None }
}

/// Whether the caller has panicked, unless the standard library did because it could not start a thread.
fn has_panicked(stderr: &str) -> bool {
    stderr.contains("panicked at") && !stderr.contains("alternative stack")
}

fn children(pid: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    children.split_ascii_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

/// The traced process; `None` if it has exited already. strace has other children for a moment.
fn caller(strace: &mut Child, program: &OsStr) -> Option<u32> {
    let mut found = None;
    wait_until("strace has started the caller", || {
        let is_caller =
            |pid: &u32| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == Path::new(program));
        found = children(strace.id()).into_iter().find(is_caller);
        found.is_some() || strace.try_wait().unwrap().is_some()
    });
    found
}

/// Waits for strace, which exits as its caller does. Kills a caller that hangs.
fn wait(strace: &mut Child, caller: Option<u32>) -> (ExitStatus, bool) {
    let (began, mut has_hung) = (Instant::now(), false);
    loop {
        if let Some(status) = strace.try_wait().unwrap() {
            return (status, has_hung);
        }
        if let Some(caller) = caller.filter(|_| !has_hung && began.elapsed() > HANG) {
            has_hung = true;
            let _ = kill_process(to_pid(caller), Signal::KILL);
        }
        sleep(Duration::from_millis(1));
    }
}
