//! Commands that act against the agent, and archives that are not complete.

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

/// The tests may run as root on the host, which may remove everything. In the guest, the agent's program runs without root.
#[test]
fn copy_that_failed_leaves_no_read_only_directory_of_a_user() {
    let agent = Agent::start();
    let head = |kind: u8, mode: u32, name: &str| {
        [&[kind][..], &mode.to_le_bytes(), &(name.len() as u32).to_le_bytes(), name.as_bytes()].concat()
    };
    let file = [head(b'F', 0o400, "file"), vec![0; 4]].concat();
    let inner = [head(b'D', 0, "inner"), file.clone(), b"E".to_vec()].concat();
    let outer = [head(b'D', 0o500, "outer"), file, inner, b"E".to_vec()].concat();
    let archive = [head(b'D', 0o700, ""), outer, b"?\0\0\0\0\0\0\0\0".to_vec()].concat();
    assert_eq!(agent.answer("mkdir -m 1777 /tmp/user"), "");
    let unpack = agent.vm.command("hyperkit-agent").args(["--unpack", "/tmp/user/copy"]).uid(12).gid(34);
    let output = unpack.stdin(archive).output().unwrap();
    assert!(!output.status.success());
    assert!(output.stderr.starts_with(b"invalid archive: an entry"), "{}", output.stderr.escape_ascii());
    assert_eq!(agent.answer("ls -A /tmp/user"), "");
}
