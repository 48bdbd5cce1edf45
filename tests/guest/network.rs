//! What a guest reaches on the host.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use hyperkit::{Network, PortForward, Vm};

use crate::common::guest::{Guest, QUIET_CMDLINE, open_shell, run_in_guest};
use crate::common::wait_until;

/// Whether a program in the guest connects to a service that listens on the host's loopback address only.
fn reaches_loopback(vm: &Vm) -> bool {
    let service = TcpListener::bind("127.0.0.1:0").unwrap();
    service.set_nonblocking(true).unwrap();
    let port = service.local_addr().unwrap().port();
    let console = open_shell(vm);
    run_in_guest(&console, "until ip -4 addr show eth0 | grep -q inet; do sleep 1; done");
    let status = run_in_guest(&console, &format!("timeout 20 nc -w 5 10.0.2.2 {port} </dev/null; echo status $?"));
    match service.accept() {
        Ok(_) => true,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::WouldBlock);
            assert!(!status.contains("status 0"), "{status}");
            false
        }
    }
}

#[test]
fn guest_of_a_nat_network_reaches_loopback_services_of_the_host() {
    let mut guest = Guest::new();
    guest.description = guest.description.clone().network(Network::Nat);
    assert!(reaches_loopback(&guest.description.start(QUIET_CMDLINE).unwrap()));
}

#[test]
fn guest_of_an_isolated_network_has_only_forwarded_ports() {
    let mut guest = Guest::new();
    guest.description = guest.description.clone().network(Network::Isolated).port_forward(PortForward::tcp(0, 7));
    let vm = guest.description.start(&format!("{QUIET_CMDLINE} hyperkit.echo=7")).unwrap();
    assert!(!reaches_loopback(&vm));
    let port = vm.host_port(7).unwrap().expect("the port is forwarded");
    let echo = || -> std::io::Result<[u8; 4]> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(b"echo")?;
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).map(|()| answer)
    };
    wait_until("the guest echoes", || echo().is_ok_and(|answer| &answer == b"echo"));
    // Names are not resolved either: that would be a way out.
    let resolved = run_in_guest(&open_shell(&vm), "nslookup localhost 10.0.2.3; echo status $?");
    assert!(resolved.contains("status 1"), "{resolved}");
}
