//! `Vm::command` on hyperkit: the agent is reached by vsock. The stand-in's guest is the host, on which the agent runs.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use hyperkit::{ConfigError, Error, ErrorKind, Exit, GuestCommand, GuestStatus, HyperKit, Vm};
use rustix::process::{Signal, kill_process};

use crate::common::vsock_agent::{VsockAgent, notify_host};
use crate::common::{KillProcessOnDrop, StopOnDrop, TEST_TIMEOUT, TestDir, agent_path, file_names, to_pid, wait_until};

/// A VM with the directory of the sockets on which its guest listens.
pub struct Guest {
    pub vm: Vm,
    _stop: StopOnDrop,
    test_dir: TestDir,
}

impl Guest {
    pub fn start(words: &str) -> Self {
        let test_dir = TestDir::new();
        fs::create_dir(test_dir.path("guest")).unwrap();
        let stop = test_dir.stop_on_drop();
        let cmdline = format!("guest.listens={} {words}", test_dir.path("guest").display());
        let vm = test_dir.description().vsock(true).agent(true).start(&cmdline).unwrap();
        Self { vm, _stop: stop, test_dir }
    }

    pub fn start_agent(&self) -> VsockAgent {
        VsockAgent::start(&self.test_dir.path("guest"), agent_path())
    }

    pub fn command(&self, program: &str) -> GuestCommand {
        self.vm.command(program).agent_timeout(TEST_TIMEOUT)
    }

    pub fn shell(&self, script: &str) -> GuestCommand {
        self.command("sh").args(["-c", script])
    }

    pub fn ready_socket(&self) -> PathBuf {
        self.test_dir.path("vm/00000002.000003fb")
    }

    /// The VM as another program finds it.
    fn found(&self) -> Vm {
        HyperKit::from_state(self.test_dir.path("vm")).unwrap().vm().unwrap().unwrap()
    }
}

/// Whether a process runs.
pub fn is_running(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.trim_start().starts_with(['Z', 'X']))
}

#[test]
fn agent_on_hyperkit_requires_vsock() {
    let test_dir = TestDir::new();
    let error = test_dir.description().agent(true).start("guest").unwrap_err();
    assert_eq!(error.violations(), [ConfigError::MissingPrerequisite { field: "agent", requires: "vsock" }]);
    assert!(!test_dir.path("vm").exists());
}

#[test]
fn output_status_and_errors_are_those_of_the_program() {
    let guest = Guest::start("");
    let _agent = guest.start_agent();
    let output = guest.shell("cat; echo err >&2; exit 3").stdin("in").output().unwrap();
    assert_eq!(
        (output.status, &output.stdout[..], &output.stderr[..]),
        (GuestStatus::Exited(3), &b"in"[..], &b"err\n"[..])
    );
    assert_eq!(guest.shell("kill -9 $$").status().unwrap(), GuestStatus::Killed(9));
    assert!(matches!(guest.command("no-such-program").output(), Err(Error::CommandNotStarted { .. })));
    let error = guest.shell("sleep 1001").timeout(Duration::from_millis(300)).output().unwrap_err();
    assert!(matches!(error, Error::CommandTimedOut { .. }), "{error:?}");
    fs::write(guest.test_dir.path("file"), "content").unwrap();
    guest.vm.copy_in(guest.test_dir.path("file"), guest.test_dir.path("in")).unwrap();
    guest.vm.copy_out(guest.test_dir.path("in"), guest.test_dir.path("out")).unwrap();
    assert_eq!(fs::read(guest.test_dir.path("out")).unwrap(), b"content");
    assert!(!guest.ready_socket().exists());
}

#[test]
fn transfer_of_100_mb_is_intact_and_64_commands_run_at_once() {
    let guest = Guest::start("");
    let agent = guest.start_agent();
    let bytes: Vec<u8> =
        (0..25_000_000_u32).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let output = guest.command("cat").stdin(&bytes[..]).output().unwrap();
    assert!(output.status.success() && output.stdout == bytes, "the bytes have changed");

    let children: Vec<_> = (0..64)
        .map(|number| guest.shell(&format!("cat; echo {number}; exit 7")).stdin_piped().spawn().unwrap())
        .collect();
    for (number, child) in children.into_iter().enumerate().rev() {
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status, output.stdout), (GuestStatus::Exited(7), format!("{number}\n").into_bytes()));
    }
    wait_until("the sessions have ended", || !agent.sessions().into_iter().any(is_running));
}

/// The guest's kernel refuses the first connection. Then the agent starts, and notifies the host.
#[test]
fn command_waits_until_the_agent_notifies_the_host() {
    let guest = Guest::start("");
    thread::scope(|scope| {
        let waiting = scope.spawn(|| guest.command("echo").arg("found").output());
        wait_until("the host listens", || notify_host(&guest.test_dir.path("vm")));
        // A notification without an agent is no answer.
        assert!(!waiting.is_finished());
        let _agent = guest.start_agent();
        let begun = Instant::now();
        wait_until("the host is notified", || notify_host(&guest.test_dir.path("vm")) || waiting.is_finished());
        assert_eq!(waiting.join().unwrap().unwrap().stdout, b"found\n");
        println!("answered {:?} after the notification", begun.elapsed());
    });
    assert!(!guest.ready_socket().exists());
}

#[test]
fn connection_that_waits_for_the_driver_is_served() {
    let guest = Guest::start("guest.slow-boot=500");
    let _agent = guest.start_agent();
    assert_eq!(guest.command("echo").arg("found").output().unwrap().stdout, b"found\n");
}

#[test]
fn agent_that_never_answers_is_an_error_after_the_timeout() {
    for words in ["", "guest.no-vsock"] {
        let guest = Guest::start(words);
        let command = guest.vm.command("true").agent_timeout(Duration::from_millis(300));
        let error = command.output().unwrap_err();
        assert!(matches!(error, Error::AgentNotResponding { .. }), "{error:?}");
        assert_eq!(error.kind(), ErrorKind::Timeout);
        assert!(!guest.ready_socket().exists());
    }
}

/// One of them listens at the ready socket. The others are notified when it stops.
#[test]
fn several_programs_wait_for_the_agent_and_use_it_at_the_same_time() {
    let guest = Guest::start("");
    // A stale socket.
    drop(std::os::unix::net::UnixListener::bind(guest.ready_socket()).unwrap());
    let programs: Vec<Vm> = (0..8).map(|_| guest.found()).collect();
    thread::scope(|scope| {
        let waiting: Vec<_> = programs
            .iter()
            .map(|vm| scope.spawn(|| vm.command("cat").stdin_piped().agent_timeout(TEST_TIMEOUT).spawn().unwrap()))
            .collect();
        wait_until("one of them listens", || notify_host(&guest.test_dir.path("vm")));
        let _agent = guest.start_agent();
        wait_until("the host is notified", || {
            notify_host(&guest.test_dir.path("vm")) || waiting.iter().all(thread::ScopedJoinHandle::is_finished)
        });
        let mut children: Vec<_> = waiting.into_iter().map(|waiting| waiting.join().unwrap()).collect();
        for child in &mut children {
            child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
            child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        }
    });
    assert!(!guest.ready_socket().exists());
}

/// The environment variable with the state directory for the test below, in its child process.
const CHILD: &str = "HYPERKIT_COMMAND_CHILD";

#[test]
fn killed_program_leaves_no_command_and_does_not_block_the_next() {
    const TEST: &str = "command::killed_program_leaves_no_command_and_does_not_block_the_next";
    if let Some(state_dir) = std::env::var_os(CHILD) {
        let vm = HyperKit::from_state(PathBuf::from(state_dir)).unwrap().vm().unwrap().unwrap();
        let mut child = vm.command("sh").args(["-c", "setsid sleep 1001 & echo $$ $!; exec yes >&2"]).spawn().unwrap();
        let mut pids = Vec::new();
        while !pids.ends_with(b"\n") {
            let mut byte = [0];
            child.stdout.as_mut().unwrap().read_exact(&mut byte).unwrap();
            pids.extend(byte);
        }
        print!("{}", String::from_utf8(pids).unwrap());
        println!("ready");
        let _ = child.wait();
        return;
    }
    let start = |guest: &Guest| {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", TEST, "--nocapture"]).env(CHILD, guest.test_dir.path("vm")).stdout(Stdio::piped());
        KillProcessOnDrop::spawn(&mut child)
    };
    let guest = Guest::start("");
    // Killed while it listens at the ready socket.
    let waiting = start(&guest);
    wait_until("it listens", || notify_host(&guest.test_dir.path("vm")));
    drop(waiting);
    let agent = guest.start_agent();
    assert!(guest.command("true").status().unwrap().success());
    // Killed while its command runs and writes.
    let mut child = start(&guest);
    let mut output = String::new();
    let mut stdout = child.0.stdout.take().unwrap();
    while !output.ends_with("ready\n") {
        let mut byte = [0];
        stdout.read_exact(&mut byte).unwrap();
        output.push(byte[0].into());
    }
    drop(child);
    let pids = output.lines().rev().nth(1).unwrap().split(' ').filter_map(|pid| pid.rsplit(' ').next()?.parse().ok());
    let pids: Vec<u32> = pids.collect();
    assert_eq!(pids.len(), 2, "{output}");
    wait_until("the commands were killed", || !pids.iter().copied().any(is_running));
    wait_until("the sessions have ended", || !agent.sessions().into_iter().any(is_running));
}

#[test]
fn killed_agent_fails_its_commands_and_the_next_command_finds_a_new_one() {
    let guest = Guest::start("");
    let agent = guest.start_agent();
    let mut child = guest.shell("echo $$; exec sleep 1001").spawn().unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    kill_process(to_pid(agent.sessions()[0]), Signal::KILL).unwrap();
    let error = child.wait().unwrap_err();
    assert!(matches!(&error, Error::AgentFailed { .. }), "{error:?}");
    let pid = child.id();
    wait_until("the command was killed", || !is_running(pid));
    assert!(guest.command("true").status().unwrap().success());
}

#[test]
fn killed_vm_fails_the_commands_with_its_exit() {
    let guest = Guest::start("");
    let _agent = guest.start_agent();
    let mut child = guest.shell("exec sleep 1001").spawn().unwrap();
    guest.vm.kill().unwrap();
    let error = child.wait().unwrap_err();
    assert!(matches!(&error, Error::VmExited { exit: Exit::Killed(9), .. }), "{error:?}");
    let pid = child.id();
    wait_until("the command was killed", || !is_running(pid));
    let left = file_names(&guest.test_dir.path("vm"));
    assert!(!left.iter().any(|name| name == "connect" || name.starts_with('0')), "{left:?}");

    // It is killed while a command waits for the agent.
    let guest = Guest::start("");
    thread::scope(|scope| {
        let waiting = scope.spawn(|| guest.command("true").output());
        wait_until("the host listens", || guest.ready_socket().exists());
        guest.vm.kill().unwrap();
        let error = waiting.join().unwrap().unwrap_err();
        assert!(matches!(&error, Error::VmExited { .. }), "{error:?}");
    });
    drop(UnixStream::connect(guest.ready_socket()).unwrap_err());
}

/// A hypervisor that exits refuses connections, and a command then waits up to 5 s for the exit.
#[test]
fn error_that_cannot_mean_the_exit_of_the_vm_is_returned_at_once() {
    let guest = Guest::start("");
    let socket = guest.test_dir.path("vm/connect");
    fs::remove_file(&socket).unwrap();
    std::os::unix::fs::symlink("connect", &socket).unwrap(); // ELOOP
    let begun = Instant::now();
    let error = guest.command("true").status().unwrap_err();
    assert!(matches!(&error, Error::Io { action: "connect to", .. }), "{error:?}");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}
