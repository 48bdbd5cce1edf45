//! vsock on hyperkit: the sockets and their handshake. The guest of the stand-in does not listen on any port.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use hyperkit::{ConfigError, Error, HyperKit, Vm};

use crate::common::{StopOnDrop, TestDir};

fn start_vm(test_dir: &TestDir, change: impl Fn(HyperKit) -> HyperKit) -> (Vm, StopOnDrop) {
    let end = test_dir.stop_on_drop();
    (change(test_dir.description().vsock(true).vsock_guest_cid(0x2a)).start("guest").unwrap(), end)
}

fn read_all(mut stream: UnixStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// Replaces one of hyperkit's sockets by a listener of the test.
fn listen_as_hyperkit(test_dir: &TestDir, name: &str) -> UnixListener {
    fs::remove_file(test_dir.path("vm").join(name)).unwrap();
    UnixListener::bind(test_dir.path("vm").join(name)).unwrap()
}

#[test]
fn connection_begins_with_cid_and_port() {
    let test_dir = TestDir::new();
    let (vm, _stop) = start_vm(&test_dir, |description| description);
    assert_eq!(read_all(vm.vsock_connect(1234).unwrap()), "", "a stream to a port without a listener");
    let hyperkit = listen_as_hyperkit(&test_dir, "connect");
    let mut stream = vm.vsock_connect(0xABCD).unwrap();
    stream.write_all(b"data").unwrap();
    drop(stream);
    assert_eq!(read_all(hyperkit.accept().unwrap().0), "0000002a.0000abcd\ndata");
}

#[test]
fn forwarded_port_uses_its_own_socket_without_handshake() {
    let test_dir = TestDir::new();
    let (vm, _stop) = start_vm(&test_dir, |description| description.vsock_port(0x946));
    let hyperkit = listen_as_hyperkit(&test_dir, "0000002a.00000946");
    vm.vsock_connect(0x946).unwrap().write_all(b"data").unwrap();
    assert_eq!(read_all(hyperkit.accept().unwrap().0), "data");
}

#[test]
fn vsock_listen_creates_the_socket_to_which_hyperkit_connects() {
    let test_dir = TestDir::new();
    let (vm, _stop) = start_vm(&test_dir, |description| description);
    let socket = test_dir.path("vm/00000002.000015b3");
    // `vsock_listen` replaces a stale socket.
    drop(UnixListener::bind(&socket).unwrap());
    let listener = vm.vsock_listen(0x15b3).unwrap();
    UnixStream::connect(&socket).unwrap().write_all(b"from the guest").unwrap();
    assert_eq!(read_all(listener.accept().unwrap().0), "from the guest");
    match vm.vsock_listen(0x15b3) {
        Err(Error::SocketInUse { path }) => assert_eq!(path, socket),
        other => panic!("{other:?}"),
    }
    vm.kill().unwrap();
    assert!(!socket.exists());
}

#[test]
fn vsock_sockets_are_in_vsock_dir() {
    let test_dir = TestDir::new();
    let elsewhere = test_dir.path("sockets");
    fs::create_dir(&elsewhere).unwrap();
    let (vm, _stop) = start_vm(&test_dir, |description| description.vsock_dir(&elsewhere));
    vm.vsock_connect(1).unwrap();
    let _listener = vm.vsock_listen(2).unwrap();
    assert!(elsewhere.join("00000002.00000002").exists());
}

#[test]
fn vsock_calls_fail_without_vsock_and_after_exit() {
    let test_dir = TestDir::new();
    let (vm, _stop) = start_vm(&test_dir, |description| description.vsock(false));
    for (field, error) in
        [("vsock_connect", vm.vsock_connect(1).unwrap_err()), ("vsock_listen", vm.vsock_listen(1).unwrap_err())]
    {
        assert_eq!(error.violations(), [ConfigError::MissingPrerequisite { field, requires: "vsock" }]);
    }
    vm.kill().unwrap();
    assert!(matches!(vm.vsock_connect(1), Err(Error::NotRunning { .. })));
    assert!(matches!(vm.vsock_listen(1), Err(Error::NotRunning { .. })));
}
