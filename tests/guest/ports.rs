//! Ports of 127.0.0.1 that are forwarded to the guest, and the port for a debugger.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use hyperkit::{Console, Error, HyperKit, Network, PortForward, Protocol};

use crate::common::guest::{QUIET_CMDLINE, description};
use crate::common::{StopOnDrop, wait_until};

/// Sends a request to a port and returns the answer, or nothing if there is no answer yet.
fn answer(port: u16, request: &[u8], length: usize) -> Vec<u8> {
    let mut answer = vec![0; length];
    let mut talk = || -> std::io::Result<()> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        // QEMU accepts a connection even if the guest does not listen yet, so an answer may never come.
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(request)?;
        stream.read_exact(&mut answer)
    };
    if talk().is_ok() { answer } else { Vec::new() }
}

#[test]
fn free_host_port_is_forwarded_and_reported() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().canonicalize().unwrap().join("vm");
    let _stop = StopOnDrop(state.clone());
    // There are two network cards. The ports are forwarded to the first one.
    let mut description = description().state_dir(&state).console(Console::Pty).network(Network::Nat).vmnet(true);
    description.port_forwards = vec![PortForward::tcp(0, 7), PortForward::udp(0, 53), PortForward::tcp(0, 8)];
    let vm = description.start(&format!("{QUIET_CMDLINE} hyperkit.echo=7")).unwrap();
    let mut forwards = vm.port_forwards().unwrap();
    forwards.sort_by_key(|forward| (forward.protocol == Protocol::Udp, forward.guest));
    let wanted: Vec<_> = forwards.iter().map(|forward| (forward.protocol, forward.guest)).collect();
    assert_eq!(wanted, [(Protocol::Tcp, 7), (Protocol::Tcp, 8), (Protocol::Udp, 53)]);
    assert!(forwards.iter().all(|forward| forward.host != 0));
    assert_eq!(vm.host_port(7).unwrap(), Some(forwards[0].host));
    assert_eq!(vm.host_port(8).unwrap(), Some(forwards[1].host));
    assert_eq!(vm.host_port(53).unwrap(), None, "port 53 is forwarded for UDP only");
    assert_eq!(vm.host_port(9).unwrap(), None);
    wait_until("the guest echoes", || answer(forwards[0].host, b"echo\n", 5) == b"echo\n");

    // A handle from `from_state` reports the same ports, and another VM cannot use them.
    let attached = HyperKit::from_state(&state).unwrap().vm().unwrap().unwrap();
    assert_eq!(attached.port_forwards().unwrap().len(), 3);
    assert_eq!(attached.host_port(8).unwrap(), Some(forwards[1].host));
    let mut other = crate::common::guest::description().state_dir(state.with_file_name("other")).console(Console::Pty);
    let _stop_other = StopOnDrop(state.with_file_name("other"));
    other = other.network(Network::Nat).port_forward(PortForward::tcp(forwards[0].host, 7));
    match other.start(QUIET_CMDLINE) {
        Err(Error::PortInUse { field: "port_forwards", port, .. }) => assert_eq!(port, forwards[0].host),
        other => panic!("{other:?}"),
    }
    other.port_forwards.clear();
    match other.gdb_port(forwards[1].host).start(QUIET_CMDLINE) {
        Err(Error::PortInUse { field: "gdb_port", port, .. }) => assert_eq!(port, forwards[1].host),
        other => panic!("{other:?}"),
    }
    vm.kill().unwrap();
    assert!(matches!(vm.port_forwards(), Err(Error::NotRunning { .. })));
    assert!(matches!(vm.host_port(7), Err(Error::NotRunning { .. })));
}

#[test]
fn debugger_connects_to_the_gdb_port() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().canonicalize().unwrap().join("vm");
    let _stop = StopOnDrop(state.clone());
    // `gdb_port` has to be a certain port. Another process may take the free port before QEMU does, so this may need
    // several rounds.
    let (port, vm) = loop {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let description = description().state_dir(&state).console(Console::Pty).gdb_port(port);
        match description.core_dumps(true).argv0("a name").start(QUIET_CMDLINE) {
            Err(Error::PortInUse { .. }) => {}
            started => break (port, started.unwrap()),
        }
    };
    // In gdb's remote protocol, `?` asks why the target has halted. The answer begins with `T`: a signal.
    let why = String::from_utf8(answer(port, b"$?#3f", 4)).unwrap();
    assert!(why.trim_start_matches('+').starts_with("$T"), "{why}");
    #[cfg(target_os = "linux")]
    assert!(std::fs::read(format!("/proc/{}/cmdline", vm.pid())).unwrap().starts_with(b"a name\0"));
    assert!(HyperKit::from_state(&state).unwrap().is_running().unwrap(), "the VM is not found because of `argv0`");
    vm.kill().unwrap();
}
