//! vsock by vhost-device-vsock: a daemon on Linux that carries streams between programs of the host and of the guest. It
//! runs as long as the VM, whichever process is killed.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use hyperkit::{Console, Disks, Error, Exit, HyperKit};
use rustix::process::{Signal, kill_process};

use crate::common::guest::{
    BOOT_TIMEOUT, QUIET_CMDLINE, compile_program, description, guest_file, initrd_with, open_shell, setup_file,
};
use crate::common::platform::PLATFORM;
use crate::common::{
    KillOnDrop, StopOnDrop, example_path, file_names, to_pid, vsock_daemons_in, wait_until, write_executable,
};

/// A state directory for a VM with vsock.
struct Vsock {
    _stop: StopOnDrop, // dropped before the directory
    _dir: tempfile::TempDir,
    state_dir: PathBuf,
}

impl Vsock {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().canonicalize().unwrap().join("vm");
        Self { _stop: StopOnDrop(state.clone()), _dir: dir, state_dir: state }
    }

    /// Returns the path of the daemon.
    fn daemon_path() -> PathBuf {
        setup_file("target/tools/bin", "vhost-device-vsock")
    }

    fn description(&self) -> HyperKit {
        description()
            .state_dir(&self.state_dir)
            .console(Console::Pty)
            .vsock(true)
            .vhost_device_vsock(Self::daemon_path())
    }

    /// Returns the daemon and the shells that watch it.
    fn daemons(&self) -> Vec<u32> {
        vsock_daemons_in(&self.state_dir)
    }

    fn write_program(&self, name: &str, script: &str) -> PathBuf {
        let path = self.state_dir.with_file_name(name);
        write_executable(&path, script.as_bytes());
        path
    }
}

/// The guest's kernel refuses the connection. So the test also shows that the connection reaches the guest.
#[test]
fn connection_to_port_without_listener_is_refused() {
    let vsock = Vsock::new();
    let vm = vsock.description().start(QUIET_CMDLINE).unwrap();
    vm.wait_for_console("is up", BOOT_TIMEOUT).unwrap();
    assert!(matches!(vm.vsock_connect(1234), Err(Error::VsockConnectionRefused { port: 1234 })));
    let listener = vm.vsock_listen(5555).unwrap();
    assert!(vsock.state_dir.join("v.sock_5555").exists());
    assert!(matches!(vm.vsock_listen(5555), Err(Error::SocketInUse { .. })));
    drop(listener);
    vm.vsock_listen(5555).unwrap();
    vm.kill().unwrap();
    assert!(!vsock.state_dir.join("v.sock_5555").exists());
}

/// Pseudo-random bytes, equal to those of `tests/data/guest-program.c`.
struct Noise(u64);

impl Noise {
    const PIECE: usize = 50_000;
    const PIECES: usize = 2_000;

    fn fill(&mut self, piece: &mut [u8]) {
        for bytes in piece.chunks_exact_mut(8) {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            bytes.copy_from_slice(&(self.0 ^ (self.0 >> 29)).to_le_bytes());
        }
    }
}

#[test]
fn transfers_of_100_mb_are_intact_both_ways() {
    let vsock = Vsock::new();
    let initrd = initrd_with(&compile_program(vsock.state_dir.parent().unwrap()));
    let vm = vsock.description().initrd(initrd).start(QUIET_CMDLINE).unwrap();
    let listener = vm.vsock_listen(5555).unwrap();
    let console = open_shell(&vm);
    std::thread::scope(|scope| {
        // An open console has to be read, or the guest would block. The stream ends when the VM exits.
        scope.spawn(|| (&console).read_to_end(&mut Vec::new()).unwrap());
        let _stop = KillOnDrop(&vm);
        (&console)
            .write_all(b"program listen 1234; echo to gue''st $?; program connect 5555; echo to ho''st $?\r")
            .unwrap();
        let (mut noise, mut piece, mut received) = (Noise(1), [0; Noise::PIECE], [0; Noise::PIECE]);
        vm.wait_for_console("listening", BOOT_TIMEOUT).unwrap();
        let mut to_guest = vm.vsock_connect(1234).unwrap();
        to_guest.set_write_timeout(Some(BOOT_TIMEOUT)).unwrap();
        for _ in 0..Noise::PIECES {
            noise.fill(&mut piece);
            to_guest.write_all(&piece).unwrap();
        }
        vm.wait_for_console("to guest 0", BOOT_TIMEOUT).unwrap();

        let mut to_host = listener.accept().unwrap().0;
        to_host.set_read_timeout(Some(BOOT_TIMEOUT)).unwrap();
        noise = Noise(1);
        for number in 0..Noise::PIECES {
            to_host.read_exact(&mut received).unwrap();
            noise.fill(&mut piece);
            assert!(received == piece, "piece {number} has changed");
        }
        drop(to_host);
        vm.wait_for_console("to host 0", BOOT_TIMEOUT).unwrap();
    });
}

#[test]
fn daemon_exits_with_the_vm_and_leaves_no_files() {
    let vsock = Vsock::new();
    let description = vsock.description();
    for _ in 0..3 {
        let vm = description.start(QUIET_CMDLINE).unwrap();
        assert!(vsock.state_dir.join("v.sock").exists());
        assert!(!vsock.daemons().is_empty());
        vm.kill().unwrap();
        assert_eq!(vsock.daemons(), [] as [u32; 0]);
    }
    description.remove(Disks::Delete).unwrap();
    assert!(!vsock.state_dir.exists());
}

#[test]
fn sockets_are_created_in_vsock_dir() {
    let vsock = Vsock::new();
    let elsewhere = vsock.state_dir.with_file_name("sockets");
    fs::create_dir(&elsewhere).unwrap();
    let description = vsock.description().vsock_dir(&elsewhere);
    description.start(QUIET_CMDLINE).unwrap();
    assert_eq!(file_names(&elsewhere), ["v.sock"]);
    assert!(!vsock.state_dir.join("v.sock").exists());
    description.stop().unwrap();
}

#[test]
fn daemon_exits_when_the_vm_is_killed_after_its_starter_exited() {
    let vsock = Vsock::new();
    let mut boot = Command::new(example_path("boot"));
    let path = std::env::var("PATH").unwrap();
    boot.env("PATH", format!("{path}:{}", Vsock::daemon_path().parent().unwrap().display()));
    boot.args(["--background", "--vsock", "--hyperkit", PLATFORM.qemu, "--state-dir"]).arg(&vsock.state_dir);
    boot.arg("--kernel").arg(guest_file("vmlinuz")).arg("--initrd").arg(guest_file("initrd.img"));
    let output = boot.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let description = HyperKit::from_state(&vsock.state_dir).unwrap();
    assert!(description.is_running().unwrap() && !vsock.daemons().is_empty());
    kill_process(to_pid(description.recorded_pid().unwrap()), Signal::KILL).unwrap();
    wait_until("the daemon has exited", || vsock.daemons().is_empty());
    description.start(QUIET_CMDLINE).unwrap().kill().unwrap();
    description.remove(Disks::Delete).unwrap();
    assert!(!vsock.state_dir.exists());
}

#[test]
fn vm_keeps_running_if_its_daemon_is_killed_and_leaves_no_files() {
    let vsock = Vsock::new();
    let description = vsock.description();
    let vm = description.start(QUIET_CMDLINE).unwrap();
    for pid in vsock.daemons() {
        let _ = kill_process(to_pid(pid), Signal::KILL);
    }
    wait_until("the daemon is gone", || vsock.daemons().is_empty());
    assert_eq!(vm.try_wait(), None);
    vm.kill().unwrap();
    description.start(QUIET_CMDLINE).unwrap().kill().unwrap();
    description.remove(Disks::Delete).unwrap();
    assert!(!vsock.state_dir.exists());
}

/// The crate starts the daemon with two shells that watch it (`src/runtime/daemons.rs`). If one of the three processes
/// is killed, the others exit with the VM at the latest.
#[test]
fn daemon_and_watchers_exit_with_the_vm_if_one_of_them_was_killed() {
    let vsock = Vsock::new();
    let description = vsock.description();
    let count = {
        description.start(QUIET_CMDLINE).unwrap();
        vsock.daemons().len()
    };
    description.stop().unwrap();
    assert!(count > 2, "there are fewer processes than the daemon and two watchers");
    for index in 0..count {
        let vm = description.start(QUIET_CMDLINE).unwrap();
        kill_process(to_pid(vsock.daemons()[index]), Signal::KILL).unwrap();
        vm.kill().unwrap();
        wait_until("all of them have exited", || vsock.daemons().is_empty());
    }
}

#[test]
fn existing_file_or_live_socket_is_not_replaced() {
    let vsock = Vsock::new();
    let elsewhere = vsock.state_dir.with_file_name("sockets");
    fs::create_dir(&elsewhere).unwrap();
    let refused = || match vsock.description().vsock_dir(&elsewhere).start(QUIET_CMDLINE) {
        Err(Error::SocketInUse { path }) => assert_eq!(path, elsewhere.join("v.sock")),
        other => panic!("{other:?}"),
    };
    fs::write(elsewhere.join("v.sock"), "precious").unwrap();
    refused();
    assert_eq!(fs::read(elsewhere.join("v.sock")).unwrap(), b"precious");
    fs::remove_file(elsewhere.join("v.sock")).unwrap();

    let other = vsock.state_dir.with_file_name("other");
    let _stop = StopOnDrop(other.clone());
    let first = vsock.description().state_dir(&other).vsock_dir(&elsewhere);
    first.start(QUIET_CMDLINE).unwrap();
    refused();
    first.stop().unwrap();
    // A stale socket of a VM that has exited is replaced.
    vsock.description().vsock_dir(&elsewhere).start(QUIET_CMDLINE).unwrap().kill().unwrap();
    assert_eq!(vsock.daemons(), [] as [u32; 0]);
}

#[test]
fn daemon_exits_when_qemu_fails_to_start() {
    let vsock = Vsock::new();
    match vsock.description().extra_argument("-no-such-option").start(QUIET_CMDLINE) {
        Err(Error::HypervisorFailed { exit: Exit::Failed(1), log_tail, .. }) => {
            assert!(log_tail.hypervisor.contains("no-such-option"), "{log_tail}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(vsock.daemons(), [] as [u32; 0]);
    vsock.description().start(QUIET_CMDLINE).unwrap().kill().unwrap();
}

#[test]
fn daemon_failure_is_an_error_with_its_output() {
    let vsock = Vsock::new();
    let program = vsock.write_program("vhost-device-vsock", "#!/bin/sh\necho cannot do it >&2\nexit 3\n");
    let began = Instant::now();
    match vsock.description().vhost_device_vsock(&program).start(QUIET_CMDLINE) {
        Err(Error::VsockDaemonFailed { program: named, log_tail }) => {
            assert_eq!((named, log_tail.hypervisor.as_str()), (program, "cannot do it"));
        }
        other => panic!("{other:?}"),
    }
    // The timeout after which it gives up waiting for the end of processes that have the FIFO open, itself among them.
    assert!(began.elapsed() < Duration::from_secs(10));
    assert!(!vsock.state_dir.exists());
    vsock.description().start(QUIET_CMDLINE).unwrap().kill().unwrap();
}

/// The daemon exits when nobody has the FIFO `vhost.line` open any more. QEMU has it from the start as its standard input. Here
/// QEMU hangs before it opens the FIFO by its name.
#[test]
fn daemon_lives_as_long_as_qemu_when_the_starter_is_killed_before_qemu_is_ready() {
    let vsock = Vsock::new();
    let qemu = vsock.write_program(PLATFORM.qemu, "#!/bin/sh\necho $$ >\"$0.pid\"\nexec sleep 1000\n");
    let tools = vsock.state_dir.with_file_name("tools");
    fs::create_dir(&tools).unwrap();
    symlink(Vsock::daemon_path(), tools.join("vhost-device-vsock")).unwrap();
    let mut boot = Command::new(example_path("boot"));
    boot.env("PATH", format!("{}:{}", std::env::var("PATH").unwrap(), tools.display()));
    boot.args(["--background", "--vsock", "--hyperkit"]).arg(&qemu).arg("--state-dir").arg(&vsock.state_dir);
    boot.arg("--kernel").arg(guest_file("vmlinuz"));
    let pid_file = qemu.with_extension("pid");
    let pid = || fs::read_to_string(&pid_file).ok()?.trim().parse::<u32>().ok();
    let mut boot = boot.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_until("QEMU is running", || pid().is_some());
    assert!(!vsock.daemons().is_empty());
    boot.kill().unwrap();
    boot.wait().unwrap();
    let stdin = fs::read_link(format!("/proc/{}/fd/0", pid().unwrap())).unwrap();
    assert_eq!(stdin, vsock.state_dir.join("vhost.line"));
    assert!(!vsock.daemons().is_empty());
    kill_process(to_pid(pid().unwrap()), Signal::KILL).unwrap();
    wait_until("the daemon has exited", || vsock.daemons().is_empty());
}

/// The command that could not be spawned has the FIFO open, too.
#[test]
fn daemon_exits_when_qemu_cannot_be_executed() {
    let vsock = Vsock::new();
    let qemu = vsock.write_program(PLATFORM.qemu, "#!/no/such/interpreter\n");
    match vsock.description().hyperkit(qemu).start(QUIET_CMDLINE) {
        Err(Error::Io { action: "start", .. }) => {}
        other => panic!("{other:?}"),
    }
    assert!(vsock.daemons().is_empty());
}
