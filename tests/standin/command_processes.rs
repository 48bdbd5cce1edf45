//! The processes of the agent and of its commands: what is killed, what lives on, and what is reaped. The stand-in's guest is the
//! host.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use hyperkit::{Error, GuestStatus};
use rustix::process::{Signal, kill_process};

use crate::command::{Guest, is_running};
use crate::common::{KillProcessOnDrop, agent_path, to_pid, wait_until};
use crate::protocol::{Kind, Request, hello, put_frame};

/// The children of a process with their states.
fn children(parent: u32) -> Vec<(u32, char)> {
    let processes =
        fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    let child = |pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let mut words = stat.rsplit(')').next()?.split_ascii_whitespace();
        let state = words.next()?.chars().next()?;
        (words.next()?.parse() == Ok(parent)).then_some((pid, state))
    };
    processes.filter_map(child).collect()
}

/// Reads process IDs from the beginning of an output.
fn read_pids(output: &mut impl Read, count: usize) -> Vec<u32> {
    let mut text = String::new();
    while text.split_ascii_whitespace().count() < count || !text.ends_with(char::is_whitespace) {
        let mut byte = [0];
        output.read_exact(&mut byte).unwrap();
        text.push(byte[0].into());
    }
    text.split_ascii_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

#[test]
fn command_that_kills_its_supervisor_is_killed_with_its_descendants() {
    let guest = Guest::start("");
    let agent = guest.start_agent();
    let _held = guest.command("cat").stdin_piped().spawn().unwrap();
    // A process that a finished command has left is no descendant of the one that is killed.
    let left = guest.shell("setsid sleep 1001 >/dev/null 2>&1 & echo $!").output().unwrap().stdout;
    let left = read_pids(&mut &left[..], 1)[0];
    // The supervisor is killed after it has reported that the program runs.
    let script = "read line; setsid sleep 1002 & sleep 1003 & echo $! $$; kill -9 $PPID; sleep 1004";
    let mut child = guest.shell(script).stdin_piped().spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    let pids = read_pids(child.stdout.as_mut().unwrap(), 2);
    assert_eq!(child.wait().unwrap(), GuestStatus::Killed(9));
    wait_until("they were killed", || !pids.iter().copied().any(is_running));
    assert!(is_running(left));
    let session = agent.sessions()[0];
    let sleeping = |pid: u32| {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        command.starts_with(b"sleep\x001002") || command.starts_with(b"sleep\x001004")
    };
    wait_until("no orphan is left", || !children(session).iter().any(|(pid, _)| sleeping(*pid)));
    wait_until("all of them were reaped", || children(session).iter().all(|(_, state)| *state != 'Z'));
    kill_process(to_pid(left), Signal::KILL).unwrap();
}

#[test]
fn supervisors_are_reaped_also_when_they_were_killed_or_have_waited_for_a_daemon() {
    let guest = Guest::start("");
    let agent = guest.start_agent();
    let _held = guest.command("cat").stdin_piped().spawn().unwrap();
    let session = agent.sessions()[0];
    // The supervisor that waits for the next command.
    let supervisors = || children(session).into_iter().map(|(pid, _)| pid).collect::<Vec<_>>();
    wait_until("a spare supervisor waits", || supervisors().len() == 2);
    let spare = supervisors().into_iter().max().unwrap();
    kill_process(to_pid(spare), Signal::KILL).unwrap();
    wait_until("it was killed", || !is_running(spare));
    assert!(guest.command("true").status().unwrap().success());
    wait_until("they were reaped", || children(session).iter().all(|(pid, state)| *pid != spare && *state != 'Z'));

    let daemon = guest.shell("setsid sleep 1001 >/dev/null 2>&1 & echo $!").output().unwrap().stdout;
    let daemon = read_pids(&mut &daemon[..], 1)[0];
    wait_until("a supervisor waits for the daemon", || supervisors().len() == 3);
    kill_process(to_pid(daemon), Signal::KILL).unwrap();
    wait_until("it was reaped", || supervisors().len() == 2);
}

#[test]
fn command_with_a_short_timeout_does_not_wait_for_another_commands_connection() {
    let guest = Guest::start("");
    thread::scope(|scope| {
        let waiting = scope.spawn(|| guest.command("true").status());
        wait_until("the host listens", || guest.ready_socket().exists());
        let error = guest.vm.command("true").agent_timeout(Duration::from_millis(100)).status().unwrap_err();
        assert!(matches!(error, Error::AgentNotResponding { .. }), "{error:?}");
        assert!(!waiting.is_finished());
        let _agent = guest.start_agent();
        assert!(waiting.join().unwrap().unwrap().success());
    });
}

/// vhost-device-vsock may not tell the guest that the host has closed a connection. The test takes the 30 s after which the agent
/// ends it.
#[test]
fn session_of_a_host_program_that_neither_reads_nor_sends_ends() {
    let (mut host, session) = UnixStream::pair().unwrap();
    let mut agent = Command::new(agent_path());
    agent.arg("--session").stdin(OwnedFd::from(session)).stdout(Stdio::null());
    let mut agent = KillProcessOnDrop::spawn(&mut agent);
    let request = Request { argv: vec![b"yes".to_vec()], ..Request::default() };
    let mut out = hello(&[7; 16]).into();
    put_frame(&mut out, Kind::Exec, 1, &request.encode());
    host.write_all(out.make_contiguous()).unwrap();
    assert!(agent.0.wait().unwrap().success());
}
