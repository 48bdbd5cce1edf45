//! One connection to the agent after another: a virtio serial port tells the guest late that the host has closed and opened it.

use std::time::Duration;

use hyperkit::Error;

use crate::command::Agent;

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
