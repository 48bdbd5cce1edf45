//! vsock without /dev/vhost-vsock, which Linux alone has: the program beside a real QEMU lives as long as the machine,
//! whoever dies how.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use hyperkit::{Console, Error, Exit, HyperKit};
use rustix::process::{Signal, kill_process};

use crate::common::guest::{PATIENCE, compiled, file, initrd_with, machine, made_by_setup};
use crate::common::{Ended, Stopped, eventually, example, names, raw, vsock_programs_in};

struct Vsock {
    _end: Ended, // before its directory is gone
    _dir: tempfile::TempDir,
    state: PathBuf,
}

impl Vsock {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().canonicalize().unwrap().join("vm");
        Self { _end: Ended(state.clone()), _dir: dir, state }
    }

    fn program() -> PathBuf {
        made_by_setup("target/tools/bin", "vhost-device-vsock")
    }

    fn machine(&self) -> HyperKit {
        machine().state_dir(&self.state).console(Console::File).vsock(true).vhost_device_vsock(Self::program())
    }

    fn programs(&self) -> Vec<u32> {
        vsock_programs_in(&self.state)
    }

    fn write_program(&self, name: &str, script: &str) -> PathBuf {
        let path = self.state.with_file_name(name);
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }
}

/// The guest's kernel itself says that nobody listens, so the way there is open.
#[test]
fn a_port_nobody_listens_on_is_an_error() {
    let vsock = Vsock::new();
    let vm = vsock.machine().start("console=ttyS0 quiet").unwrap();
    vm.wait_for_console("is up", PATIENCE).unwrap();
    assert!(matches!(vm.vsock_connect(1234), Err(Error::NobodyListens { port: 1234 })));
    let listener = vm.vsock_listen(5555).unwrap();
    assert!(vsock.state.join("v.sock_5555").exists());
    assert!(matches!(vm.vsock_listen(5555), Err(Error::SocketTaken { .. })));
    drop(listener);
    vm.vsock_listen(5555).unwrap();
    vm.stop().unwrap();
    assert!(!vsock.state.join("v.sock_5555").exists());
}

/// Bytes of which none tells the next, as in `tests/guest/program.c`.
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
fn each_way_100_mb_arrive_as_they_were() {
    let vsock = Vsock::new();
    let initrd = initrd_with(&compiled(vsock.state.parent().unwrap()));
    let vm = vsock.machine().initrd(initrd).start("console=ttyS0 quiet").unwrap();
    vm.wait_for_console("is up", PATIENCE).unwrap();
    let listener = vm.vsock_listen(5555).unwrap();
    let console = vm.console().unwrap();
    std::thread::scope(|scope| {
        // An open console has to be read, or the guest would have to wait; this ends with the machine.
        scope.spawn(|| (&console).read_to_end(&mut Vec::new()).unwrap());
        let _stop = Stopped(&vm);
        (&console)
            .write_all(b"program listen 1234; echo to gue''st $?; program connect 5555; echo to ho''st $?\r")
            .unwrap();
        let (mut noise, mut piece, mut come) = (Noise(1), [0; Noise::PIECE], [0; Noise::PIECE]);
        vm.wait_for_console("listening", PATIENCE).unwrap();
        let mut to_guest = vm.vsock_connect(1234).unwrap();
        to_guest.set_write_timeout(Some(PATIENCE)).unwrap();
        for _ in 0..Noise::PIECES {
            noise.fill(&mut piece);
            to_guest.write_all(&piece).unwrap();
        }
        vm.wait_for_console("to guest 0", PATIENCE).unwrap();

        let mut to_host = listener.accept().unwrap().0;
        to_host.set_read_timeout(Some(PATIENCE)).unwrap();
        noise = Noise(1);
        for number in 0..Noise::PIECES {
            to_host.read_exact(&mut come).unwrap();
            noise.fill(&mut piece);
            assert!(come == piece, "of piece {number} something has changed");
        }
        drop(to_host);
        vm.wait_for_console("to host 0", PATIENCE).unwrap();
    });
}

#[test]
fn it_ends_with_the_machine_and_leaves_nothing() {
    let vsock = Vsock::new();
    let mut machine = vsock.machine();
    for _ in 0..3 {
        let vm = machine.start("console=ttyS0").unwrap();
        assert!(vsock.state.join("v.sock").exists());
        assert!(!vsock.programs().is_empty());
        vm.stop().unwrap();
        assert_eq!(vsock.programs(), [] as [u32; 0]);
    }
    machine.remove(false).unwrap();
    assert!(!vsock.state.exists());
}

#[test]
fn its_sockets_can_be_elsewhere() {
    let vsock = Vsock::new();
    let elsewhere = vsock.state.with_file_name("sockets");
    fs::create_dir(&elsewhere).unwrap();
    let mut machine = vsock.machine().vsock_dir(&elsewhere);
    machine.start("console=ttyS0").unwrap();
    assert_eq!(names(&elsewhere), ["v.sock"]);
    assert!(!vsock.state.join("v.sock").exists());
    machine.stop().unwrap();
}

#[test]
fn it_ends_when_the_machine_is_killed_also_without_its_starter() {
    let vsock = Vsock::new();
    let mut boot = Command::new(example("boot"));
    let path = std::env::var("PATH").unwrap();
    boot.env("PATH", format!("{path}:{}", Vsock::program().parent().unwrap().display()));
    boot.args(["--background", "--vsock", "--hyperkit", "qemu-system-x86_64", "--state-dir"]).arg(&vsock.state);
    boot.arg("--kernel").arg(file("vmlinuz")).arg("--initrd").arg(file("initrd.img"));
    let output = boot.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let machine = HyperKit::from_state(&vsock.state).unwrap();
    assert!(machine.is_running() && !vsock.programs().is_empty());
    kill_process(raw(machine.pid.unwrap()), Signal::KILL).unwrap();
    eventually("it ends", || vsock.programs().is_empty());
    machine.clone().start("console=ttyS0").unwrap().stop().unwrap();
    machine.remove(false).unwrap();
    assert!(!vsock.state.exists());
}

#[test]
fn the_machine_outlives_it_and_still_leaves_nothing() {
    let vsock = Vsock::new();
    let mut machine = vsock.machine();
    let vm = machine.start("console=ttyS0").unwrap();
    for pid in vsock.programs() {
        let _ = kill_process(raw(pid), Signal::KILL);
    }
    eventually("it is gone", || vsock.programs().is_empty());
    assert_eq!(vm.try_wait().unwrap(), None);
    vm.stop().unwrap();
    machine.start("console=ttyS0").unwrap().stop().unwrap();
    machine.remove(false).unwrap();
    assert!(!vsock.state.exists());
}

/// Each of the processes around it may be killed: the others end with the machine at the latest.
#[test]
fn a_shell_that_is_killed_leaves_nothing_either() {
    let vsock = Vsock::new();
    let mut machine = vsock.machine();
    let count = {
        machine.start("console=ttyS0").unwrap();
        vsock.programs().len()
    };
    machine.stop().unwrap();
    assert!(count > 2, "the program and two that watch");
    for index in 0..count {
        let vm = machine.start("console=ttyS0").unwrap();
        kill_process(raw(vsock.programs()[index]), Signal::KILL).unwrap();
        vm.stop().unwrap();
        eventually("they end", || vsock.programs().is_empty());
    }
}

#[test]
fn what_is_in_the_place_of_its_socket_stays() {
    let vsock = Vsock::new();
    let elsewhere = vsock.state.with_file_name("sockets");
    fs::create_dir(&elsewhere).unwrap();
    let refused = || match vsock.machine().vsock_dir(&elsewhere).start("console=ttyS0") {
        Err(Error::SocketTaken { path }) => assert_eq!(path, elsewhere.join("v.sock")),
        other => panic!("{other:?}"),
    };
    fs::write(elsewhere.join("v.sock"), "precious").unwrap();
    refused();
    assert_eq!(fs::read(elsewhere.join("v.sock")).unwrap(), b"precious");
    fs::remove_file(elsewhere.join("v.sock")).unwrap();

    let other = vsock.state.with_file_name("other");
    let _end = Ended(other.clone());
    let mut first = vsock.machine().state_dir(&other).vsock_dir(&elsewhere);
    first.start("console=ttyS0").unwrap();
    refused();
    first.stop().unwrap();
    // What a machine that is gone has left is no reason.
    vsock.machine().vsock_dir(&elsewhere).start("console=ttyS0").unwrap().stop().unwrap();
    assert_eq!(vsock.programs(), [] as [u32; 0]);
}

#[test]
fn it_ends_when_qemu_does_not_start() {
    let vsock = Vsock::new();
    match vsock.machine().extra_argument("-no-such-option").start("console=ttyS0") {
        Err(Error::ProgramFailed { exit: Exit::Failed(1), last_words }) => {
            assert!(last_words.program.contains("no-such-option"), "{last_words}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(vsock.programs(), [] as [u32; 0]);
    vsock.machine().start("console=ttyS0").unwrap().stop().unwrap();
}

#[test]
fn a_program_that_fails_is_an_error_with_its_words() {
    let vsock = Vsock::new();
    let program = vsock.write_program("vhost-device-vsock", "#!/bin/sh\necho cannot do it >&2\nexit 3\n");
    match vsock.machine().vhost_device_vsock(&program).start("console=ttyS0") {
        Err(Error::VsockFailed { program: named, last_words }) => {
            assert_eq!((named, last_words.program.as_str()), (program, "cannot do it"));
        }
        other => panic!("{other:?}"),
    }
    assert!(!HyperKit::from_state(&vsock.state).unwrap().is_running());
    vsock.machine().start("console=ttyS0").unwrap().stop().unwrap();
}

/// A QEMU that hangs before it takes the line: then only the starter holds it.
#[test]
fn it_ends_when_the_starter_is_killed_before_qemu_is_there() {
    let vsock = Vsock::new();
    let qemu = vsock.write_program("qemu-system-x86_64", "#!/bin/sh\necho $$ >\"$0.pid\"\nexec sleep 1000\n");
    let tools = vsock.state.with_file_name("tools");
    fs::create_dir(&tools).unwrap();
    symlink(Vsock::program(), tools.join("vhost-device-vsock")).unwrap();
    let mut boot = Command::new(example("boot"));
    boot.env("PATH", format!("{}:{}", std::env::var("PATH").unwrap(), tools.display()));
    boot.args(["--background", "--vsock", "--hyperkit"]).arg(&qemu).arg("--state-dir").arg(&vsock.state);
    boot.arg("--kernel").arg(file("vmlinuz"));
    let pid_file: &Path = &qemu.with_file_name("qemu-system-x86_64.pid");
    let pid = || fs::read_to_string(pid_file).ok()?.trim().parse::<u32>().ok();
    let mut boot = boot.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    eventually("QEMU hangs", || pid().is_some());
    assert!(!vsock.programs().is_empty());
    boot.kill().unwrap();
    boot.wait().unwrap();
    eventually("it ends", || vsock.programs().is_empty());
    kill_process(raw(pid().unwrap()), Signal::KILL).unwrap();
}
