//! Commands that act against the agent.

use std::time::Duration;

use hyperkit::Error;

use crate::command::Agent;

/// A command runs with the rights of the agent, so it can stop its supervisor.
#[test]
fn command_that_stops_its_supervisor_is_killed_with_its_descendants() {
    let agent = Agent::start();
    let script = "setsid sleep 1003 & kill -STOP $PPID; sleep 1004";
    let result = agent.shell(script).timeout(Duration::from_secs(1)).status();
    assert!(matches!(result, Err(Error::CommandTimedOut { .. })), "{result:?}");
    assert_eq!(agent.running(&["sleep"]), [""; 0]);
}
