//! The hypervisor's output is written to `hyperkit.log`, and passed line by line to the logger of the embedding program.

use std::fs;
use std::net::UdpSocket;
use std::time::Duration;

use hyperkit::{Console, Disk, Error, Exit, FlushMode, Network, QcowOptions};

use crate::common::child_process::in_child_process;
use crate::common::{TestDir, qcow2_header};
use crate::log_lines::log_lines;

/// This is a single test, in a separate process, since a process has one logger.
#[test]
fn output_reaches_the_logger_while_the_vm_runs_and_at_exit() {
    in_child_process("hypervisor_output::output_reaches_the_logger_while_the_vm_runs_and_at_exit", || {
        let lines = log_lines(log::Level::Info);
        let next = || lines.recv_timeout(Duration::from_secs(60)).expect("a line was not logged");

        let test_dir = TestDir::new();
        let _stop = test_dir.stop_on_drop();
        let description = test_dir.description();
        // Each line names the state directory, since one logger serves many VMs.
        let dir = test_dir.path("vm").display().to_string();
        let vm = description.start("vmm.say=first guest.say=on-the-console").unwrap();
        assert_eq!(next(), format!("{dir}: first"));
        vm.kill().unwrap(); // so its buffered stdout is lost
        assert!(lines.try_recv().is_err(), "the output of the console was logged");
        assert_eq!(fs::read_to_string(test_dir.path("vm/hyperkit.log")).unwrap(), "first\n");

        // With the console on stdio and without a state directory, the hypervisor's stderr is still logged, and the last
        // line is logged before the exit is reported.
        let mut description = test_dir.description().console(Console::Stdio);
        description.state_dir = None;
        match description.run("vmm.die-early=5") {
            Err(Error::HypervisorFailed { exit: Exit::Failed(5), log_tail, .. }) => {
                assert_eq!(log_tail.hypervisor, "dying early")
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(next(), "dying early");

        // What a description does on hyperkit that its author may not expect.
        test_dir.write("q.qcow2", &qcow2_header());
        let mut options = QcowOptions::default();
        options.flush = FlushMode::Unset;
        let port = UdpSocket::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        let description = test_dir.description().disk(Disk::qcow2(test_dir.path("q.qcow2"), options));
        description.gdb_port(port).core_dumps(true).start("guest").unwrap().kill().unwrap();
        for part in ["a flush by the guest does nothing", "of all addresses (`gdb_port`)", "ignores `core_dumps`"] {
            let line = next();
            assert!(line.starts_with(&format!("{dir}: ")) && line.contains(part), "{line}");
        }
        while lines.try_recv().is_ok() {}

        // The same on QEMU, which is a script here.
        let qemu = test_dir.write_executable("qemu-system-x86_64", b"#!/bin/sh\nexit 9\n");
        let isolated = test_dir.description().hyperkit(qemu).network(Network::Isolated);
        isolated.clone().start("guest").unwrap_err();
        assert!(lines.try_recv().is_err(), "a warning without a reason");
        isolated.vmnet(true).start("guest").unwrap_err();
        let line = next();
        assert!(line.contains("the guest is not isolated") && line.contains("`vmnet`"), "{line}");
        while lines.try_recv().is_ok() {}

        // If the logger panics, the hypervisor is still reaped, later lines still reach the logger, and the error still
        // contains the log tail.
        let lines = ["logger-panics"; 20].join("|");
        match test_dir.description().start(&format!("vmm.say={lines} vmm.die=6")) {
            Err(Error::HypervisorFailed { exit: Exit::Failed(6), log_tail, .. }) => {
                assert!(log_tail.hypervisor.ends_with("logger-panics\ndying"), "{log_tail}");
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(next(), format!("{dir}: dying"), "the logger panicked on the lines before this one");
    });
}
