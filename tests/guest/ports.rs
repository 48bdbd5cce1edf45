//! TCP ports of 127.0.0.1 that lead into a real machine: to a program of the guest, and to a debugger's stub.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use hyperkit::{Console, Error, HyperKit, PortForward, Protocol, VpnKit};

use crate::common::guest::description;
use crate::common::{StopOnDrop, wait_until};

/// What comes back from a port for what is sent; empty if nobody answers yet.
fn answer(port: u16, request: &[u8], length: usize) -> Vec<u8> {
    let mut answer = vec![0; length];
    let mut talk = || -> std::io::Result<()> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        // QEMU takes the connection also when there is no guest yet to take it on.
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
    // The second card's network has no forwards; the first is the one.
    let mut description = description().state_dir(&state).console(Console::File).vpnkit(VpnKit::Auto).vmnet(true);
    description.port_forwards = vec![PortForward::tcp(0, 7), PortForward::udp(0, 53), PortForward::tcp(0, 8)];
    let vm = description.start("console=ttyS0 hyperkit.echo=7").unwrap();
    let mut forwards = vm.port_forwards().unwrap();
    forwards.sort_by_key(|forward| (forward.protocol == Protocol::Udp, forward.guest));
    let wanted: Vec<_> = forwards.iter().map(|forward| (forward.protocol, forward.guest)).collect();
    assert_eq!(wanted, [(Protocol::Tcp, 7), (Protocol::Tcp, 8), (Protocol::Udp, 53)]);
    assert!(forwards.iter().all(|forward| forward.host != 0));
    wait_until("the guest echoes", || answer(forwards[0].host, b"echo\n", 5) == b"echo\n");

    // Also for who takes it up; and the port is taken for others.
    let attached = HyperKit::from_state(&state).unwrap().vm().unwrap().unwrap();
    assert_eq!(attached.port_forwards().unwrap().len(), 3);
    let mut other = crate::common::guest::description().state_dir(state.with_file_name("other")).console(Console::File);
    let _stop_other = StopOnDrop(state.with_file_name("other"));
    other = other.vpnkit(VpnKit::Auto).port_forward(PortForward::tcp(forwards[0].host, 7));
    match other.start("console=ttyS0") {
        Err(Error::PortTaken { field: "port_forwards", port, .. }) => assert_eq!(port, forwards[0].host),
        other => panic!("{other:?}"),
    }
    other.port_forwards.clear();
    match other.gdb_port(forwards[1].host).start("console=ttyS0") {
        Err(Error::PortTaken { field: "gdb_port", port, .. }) => assert_eq!(port, forwards[1].host),
        other => panic!("{other:?}"),
    }
    vm.stop().unwrap();
    assert!(matches!(vm.port_forwards(), Err(Error::NotRunning)));
}

#[test]
fn debugger_connects_to_the_gdb_port() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().canonicalize().unwrap().join("vm");
    let _stop = StopOnDrop(state.clone());
    // One that was free a moment ago, which may be somebody's now; QEMU itself takes no 0.
    let (port, vm) = loop {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let description = description().state_dir(&state).console(Console::File).gdb_port(port);
        match description.core_dumps(true).argv0("a name").start("console=ttyS0") {
            Err(Error::PortTaken { .. }) => {}
            started => break (port, started.unwrap()),
        }
    };
    // "Why do you halt?" in the remote protocol of gdb: by a signal (T).
    let why = String::from_utf8(answer(port, b"$?#3f", 4)).unwrap();
    assert!(why.trim_start_matches('+').starts_with("$T"), "{why}");
    #[cfg(target_os = "linux")]
    assert!(std::fs::read(format!("/proc/{}/cmdline", vm.pid())).unwrap().starts_with(b"a name\0"));
    assert!(HyperKit::from_state(&state).unwrap().is_running(), "whatever it is called");
    vm.stop().unwrap();
}
