//! One connection to the agent after another: a virtio serial port tells the guest late that the host has closed and opened it.

use std::thread;
use std::time::{Duration, Instant};

use hyperkit::Error;

use crate::command::Agent;
use crate::common::guest::{open_shell, run_in_guest};

/// With two vCPUs, the agent often reads the next HELLO before the kernel has handled that the port was closed.
#[test]
fn commands_in_a_row_reach_the_agent() {
    for cpus in [1, 2] {
        let agent = Agent::start_on_cpus(cpus);
        for number in 0..100 {
            let status = agent.command("true").status();
            assert!(matches!(&status, Ok(status) if status.success()), "command {number}, {cpus} vCPUs: {status:?}");
        }
    }
}

/// QEMU drops messages about the port while their queue is full (32 of them), and a paused guest does not read them.
#[test]
fn commands_reach_the_agent_after_many_attempts_during_a_pause() {
    let agent = Agent::start();
    for attempts in [15, 16, 17, 40] {
        agent.vm.pause().unwrap();
        for _ in 0..attempts {
            let result = agent.vm.command("true").agent_timeout(Duration::from_millis(20)).status();
            assert!(matches!(result, Err(Error::AgentNotResponding { is_paused: true, .. })), "{result:?}");
        }
        agent.vm.resume().unwrap();
        assert!(agent.command("true").status().unwrap().success(), "after {attempts} attempts");
    }
}

/// Kills the agent through the guest's shell. Its supervisors, which started later, then kill the commands.
const KILL_AGENT: &str = "kill -9 $(busybox pidof hyperkit-agent | tr ' ' '\\n' | sort -n | head -n 1)";

/// The guest has closed the port, which QEMU reports on request. Without that, the host would notice a minute later that the agent is
/// silent, and return another error.
#[test]
fn agent_that_was_killed_fails_the_command_that_runs_and_the_next_agent_serves() {
    let agent = Agent::start();
    let mut child = agent.command("sleep").arg("1001").spawn().unwrap();
    let console = open_shell(&agent.vm);
    run_in_guest(&console, KILL_AGENT);
    let killed = Instant::now();
    let error = child.wait().unwrap_err();
    println!("noticed after {:?}", killed.elapsed());
    assert!(matches!(&error, Error::AgentFailed { reason, .. } if reason == "it has exited"), "{error:?}");
    drop(child);
    // No agent answers, so the timeout is that of the command.
    let error = agent.vm.command("true").agent_timeout(Duration::from_millis(300)).status().unwrap_err();
    assert!(matches!(error, Error::AgentNotResponding { is_paused: false, .. }), "{error:?}");
    thread::scope(|scope| {
        let waiting = scope.spawn(|| agent.command("echo").arg("found").output());
        run_in_guest(&console, "(hyperkit-agent </dev/null &)");
        assert_eq!(waiting.join().unwrap().unwrap().stdout, b"found\n");
    });
    assert_eq!(agent.running(&["sleep"]), [""; 0]);
}

/// As after a crash under an init that starts it again at once. The port is open then.
#[test]
fn agent_that_was_killed_and_started_again_fails_the_command_that_runs() {
    let agent = Agent::start();
    // One whose frames are small, and one that may be killed within a frame.
    for command in [agent.command("sleep").arg("1001"), agent.command("yes")] {
        let mut child = command.spawn().unwrap();
        child.stdout = None;
        let console = open_shell(&agent.vm);
        run_in_guest(&console, &format!("{KILL_AGENT}; (hyperkit-agent </dev/null &)"));
        let error = child.wait().unwrap_err();
        assert!(
            matches!(&error, Error::AgentFailed { reason, .. } if reason == "it has exited, and another agent was started"),
            "{error:?}"
        );
        drop((child, console));
        assert!(agent.command("true").status().unwrap().success());
        assert_eq!(agent.running(&["sleep", "yes"]), [""; 0]);
    }
}
