//! Networks between VMs: guests with fixed addresses reach each other, and nothing else.

use std::fs::{self, Permissions};
use std::io::Read;
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Instant;

use hyperkit::{ConfigError, Disks, Error, Exit, HyperKit, Network, Vm, VmStatus};
use rustix::process::{Signal, kill_process};
use tempfile::TempDir;

use crate::common::guest::{BOOT_TIMEOUT, QUIET_CMDLINE, description_in, processes_in};
use crate::common::platform::PLATFORM;
use crate::common::rejection::only_violation;
use crate::common::{StopOnDrop, TEST_TIMEOUT, file_names, to_pid, write_executable};
use crate::owner::Owner;

/// A kernel command line with which the guest panics at its first program, before it has a driver for its card, and stays.
const NO_DRIVER: &str = "quiet no_timer_check rdinit=/bin/false";

/// The state directories `1`, `2`, … of the VMs with these numbers, and the directory `net` of their network. On drop, the VMs are
/// killed.
struct Lan {
    dir: PathBuf,
    _stop: [StopOnDrop; 3],
}

impl Lan {
    fn new(dir: &Path) -> Self {
        let dir = dir.canonicalize().unwrap();
        Self { _stop: ["1", "2", "3"].map(|name| StopOnDrop(dir.join(name))), dir }
    }

    fn net(&self) -> PathBuf {
        self.dir.join("net")
    }

    fn description(&self, number: u8) -> HyperKit {
        description_in(&self.dir.join(number.to_string())).agent(true).internal_network(self.net(), number)
    }

    /// Starts VMs, and gives each guest its address when it has booted.
    fn start<const N: usize>(&self, numbers: [u8; N]) -> [Vm; N] {
        let vms = numbers.map(|number| self.description(number).start(QUIET_CMDLINE).unwrap());
        vms.iter().for_each(set_address);
        vms
    }

    /// Takes the number of a VM that does not run.
    fn socket(&self, number: u8) -> UnixDatagram {
        UnixDatagram::bind(self.net().join(format!("{number}.sock"))).unwrap()
    }

    /// Kills and removes the VMs, and asserts that nothing is left.
    fn remove_all(&self) {
        for name in ["1", "2", "3"] {
            let description = HyperKit::new().state_dir(self.dir.join(name));
            description.stop().unwrap();
            description.remove(Disks::Delete).unwrap();
        }
        assert_eq!(file_names(&self.dir), [""; 0]);
        assert_eq!(processes_in(&self.dir), [0_u32; 0]);
    }
}

/// A network in a temporary directory.
fn lan() -> (Lan, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    (Lan::new(dir.path()), dir)
}

/// Runs a script in the guest and returns what it prints. Its variable `card` is the card on the network.
fn shell(vm: &Vm, script: &str) -> String {
    let mac = vm.description().internal_networks[0].mac();
    let script = format!("card=$(cd /sys/class/net; grep -l {mac} */address); card=${{card%/*}}; {script}");
    let output = vm.command("sh").args(["-c", &script]).agent_timeout(BOOT_TIMEOUT).timeout(BOOT_TIMEOUT).output();
    let output = output.unwrap();
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

/// The guest with number N gets the address 10.9.8.N.
fn set_address(vm: &Vm) {
    let number = vm.description().internal_networks[0].number;
    let printed = shell(vm, &format!("ip addr add 10.9.8.{number}/24 dev $card && ip link set $card up"));
    assert_eq!(printed, "");
}

/// Returns how many of three pings were answered, and asserts that none was answered twice.
fn answered(vm: &Vm, number: u8) -> usize {
    let printed = shell(vm, &format!("ping -c 3 -W 10 10.9.8.{number}"));
    assert!(!printed.contains("DUP"), "{printed}");
    printed.matches(" bytes from ").count()
}

#[test]
fn two_guests_pass_32_mb_intact_and_leave_nothing() {
    let (lan, _dir) = lan();
    let [first, second] = lan.start([1, 2]);
    assert_eq!((answered(&first, 2), answered(&second, 1)), (3, 3));
    let script = "nc -l -p 7 >/tmp/received; sha256sum </tmp/received";
    // With its standard input at the end, `nc` would close its side, and the sender would stop.
    let mut receiver = second.command("sh").args(["-c", script]).stdin_piped().spawn().unwrap();
    let sent = shell(&first, "head -c 33554432 /dev/urandom >/tmp/sent; sha256sum </tmp/sent");
    let start = Instant::now();
    shell(&first, "until nc 10.9.8.2 7 </tmp/sent; do sleep 0.2; done");
    println!("32 MiB in {:?}", start.elapsed());
    let mut received = String::new();
    receiver.stdout.take().unwrap().read_to_string(&mut received).unwrap();
    assert_eq!(received, sent);
    lan.remove_all();
}

#[test]
fn guests_stay_connected_after_the_exit_of_a_peer_and_a_starter() {
    // Another program starts the third VM, and creates the network.
    let mut owner =
        Owner::start("internal_network::guests_stay_connected_after_the_exit_of_a_peer_and_a_starter", |state_dir| {
            let net = state_dir.parent().unwrap().join("net");
            description_in(state_dir).agent(true).internal_network(net, 3).start(QUIET_CMDLINE).unwrap()
        });
    let lan = Lan::new(owner.state_dir.parent().unwrap());
    let [first, second] = lan.start([1, 2]);
    let third = owner.vm();
    set_address(&third);
    for (vm, others) in [(&first, [2, 3]), (&second, [1, 3]), (&third, [1, 2])] {
        assert_eq!(others.map(|other| answered(vm, other)), [3, 3]);
    }
    owner.kill();
    assert_eq!((answered(&first, 3), answered(&third, 2)), (3, 3));
    // The second VM dies, and another program finds out first.
    kill_process(to_pid(second.pid()), Signal::KILL).unwrap();
    assert_eq!(second.wait(), Exit::Killed(9));
    assert_eq!((answered(&first, 2), answered(&first, 3), answered(&third, 1)), (0, 3, 3));
    let [second] = lan.start([2]);
    assert_eq!((answered(&first, 2), answered(&second, 3), answered(&third, 2)), (3, 3, 3));
    third.kill().unwrap();
    third.remove(Disks::Delete).unwrap();
    lan.remove_all();
}

#[test]
fn each_vm_gets_a_frame_once_and_other_networks_get_none() {
    let (lan, _dir) = lan();
    let with_nat = lan.description(1).network(Network::Nat);
    let first = with_nat.start(QUIET_CMDLINE).unwrap();
    let listener = lan.socket(3);
    let (send, frames) = channel();
    // The thread ends when the socket that it reads is shut down.
    let thread = thread::spawn({
        let listener = listener.try_clone().unwrap();
        move || {
            let mut frame = [0; 2048];
            while let Ok(length @ 1..) = listener.recv(&mut frame) {
                let _ = send.send(frame[..length].to_vec());
            }
        }
    });
    let [second] = lan.start([2]);
    set_address(&first);
    // The guest's card with NAT has an address and reaches the gateway.
    let printed = shell(&first, "until ip -4 addr show | grep -q 10.0.2.15; do sleep 0.2; done; ping -c 1 10.0.2.2");
    assert!(printed.contains("1 packets received"), "{printed}");
    // Each broadcast arrives once, and does not come back.
    assert_eq!(answered(&first, 2), 3);
    shell(&first, "ping -c 4 -W 1 -p 5a 10.9.8.255");
    // The other guest reaches neither the DHCP server nor the gateway of the first one's NAT.
    let lease = shell(&second, "busybox udhcpc -i $card -n -q -t 2 -T 1 -s /bin/true");
    assert!(lease.contains("no lease"), "{lease}");
    let printed = shell(&second, "ip addr add 10.0.2.77/24 dev $card; ping -c 2 -W 2 10.0.2.2");
    assert!(printed.contains(" 0 packets received"), "{printed}");
    let macs = [&first, &second].map(|vm| vm.description().internal_networks[0].mac());
    listener.shutdown(Shutdown::Both).unwrap();
    thread.join().unwrap();
    let frames: Vec<_> = frames.into_iter().collect();
    let is_echo = |frame: &&Vec<u8>| frame.starts_with(&[0xff; 6]) && frame.ends_with(&[0x5a; 40]);
    assert_eq!(frames.iter().filter(is_echo).count(), 4);
    for frame in frames {
        let source = frame[6..12].iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":");
        assert!(macs.contains(&source), "a frame of {source}");
    }
}

/// A QEMU that sends to a full socket uses a whole CPU until the socket is read.
#[test]
fn frames_are_read_while_a_guest_is_paused_or_has_no_driver() {
    let (lan, _dir) = lan();
    let [first] = lan.start([1]);
    let _second = lan.description(2).start(NO_DRIVER).unwrap();
    let sender = lan.socket(3);
    sender.set_write_timeout(Some(TEST_TIMEOUT)).unwrap();
    let send_to = |number: u8| {
        for _ in 0..1000 {
            sender.send_to(&[0xff; 60], lan.net().join(format!("{number}.sock"))).unwrap();
        }
    };
    send_to(2);
    first.pause().unwrap();
    assert_eq!(first.status().unwrap(), VmStatus::Paused);
    send_to(1);
    first.resume().unwrap();
    lan.description(2).stop().unwrap();
    let [second] = lan.start([2]);
    assert_eq!((answered(&first, 2), answered(&second, 1)), (3, 3));
}

#[test]
fn number_belongs_to_one_vm() {
    let (lan, _dir) = lan();
    let first = lan.description(1);
    let vm = first.start(QUIET_CMDLINE).unwrap();
    let same = first.clone().state_dir(lan.dir.join("2"));
    for _ in 0..2 {
        match same.start(QUIET_CMDLINE) {
            Err(Error::NetworkNumberInUse { dir, number }) => assert_eq!((dir, number), (lan.net(), 1)),
            other => panic!("{other:?}"),
        }
        assert!(!lan.dir.join("2").exists());
    }
    // The refused start has not deleted the sockets.
    assert_receives(&lan, 1);
    for name in ["1.sock", "1.out.sock", "1.src.sock"] {
        assert_eq!(lan.net().join(name).metadata().unwrap().permissions().mode() & 0o777, 0o600, "{name}");
    }
    assert_eq!(lan.net().metadata().unwrap().permissions().mode() & 0o777, 0o700);

    // Sockets of a VM that was killed are stale.
    kill_process(to_pid(vm.pid()), Signal::KILL).unwrap();
    assert_eq!(vm.wait(), Exit::Killed(9));
    assert!(lan.net().join("1.sock").exists());
    let again = same.start(QUIET_CMDLINE).unwrap();
    // The directory is cleaned up after the first VM, whose number another one has by now.
    vm.remove(Disks::Delete).unwrap();
    assert_receives(&lan, 1);
    again.kill().unwrap();
    again.remove(Disks::Delete).unwrap();
    lan.remove_all();
}

#[test]
fn failed_start_releases_the_number() {
    let (lan, _dir) = lan();
    let qemu = lan.dir.join(PLATFORM.qemu);
    write_executable(&qemu, b"#!/bin/sh\nexit 1\n");
    let error = lan.description(1).hyperkit(&qemu).start(QUIET_CMDLINE).unwrap_err();
    assert!(matches!(error, Error::HypervisorFailed { .. }), "{error:?}");
    assert!(!lan.net().exists());
    write_executable(&qemu, b"#!/bin/sh\nwhile :; do sleep 1; done\n");
    let starting = lan.description(1).hyperkit(&qemu).spawn(QUIET_CMDLINE).unwrap();
    // This QEMU does not receive at its socket yet.
    let other = lan.description(1).state_dir(lan.dir.join("2")).hyperkit(&qemu).spawn(QUIET_CMDLINE).map(drop);
    assert!(matches!(other, Err(Error::NetworkNumberInUse { number: 1, .. })), "{other:?}");
    assert!(lan.net().join("1.sock").exists());
    starting.kill().unwrap();
    fs::remove_file(qemu).unwrap();
    lan.remove_all();
}

/// Asserts that a VM receives at the socket of this number.
fn assert_receives(lan: &Lan, number: u8) {
    UnixDatagram::unbound().unwrap().send_to(&[0xff; 60], lan.net().join(format!("{number}.sock"))).unwrap();
}

#[test]
fn of_several_starts_with_one_number_one_succeeds() {
    let (lan, _dir) = lan();
    let start = |name: &str| lan.description(1).state_dir(lan.dir.join(name)).start(QUIET_CMDLINE);
    let results = thread::scope(|scope| {
        ["1", "2", "3"].map(|name| scope.spawn(move || start(name))).map(|thread| thread.join().unwrap())
    });
    let (started, refused): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
    assert_eq!(started.len(), 1, "{refused:?}");
    for result in refused {
        assert!(matches!(result, Err(Error::NetworkNumberInUse { .. })), "{result:?}");
    }
    assert_receives(&lan, 1);
    lan.remove_all();
}

#[test]
fn directory_that_others_can_write_to_is_refused() {
    let (lan, _dir) = lan();
    fs::create_dir(lan.net()).unwrap();
    for mode in [0o777, 0o720, 0o1777] {
        fs::set_permissions(lan.net(), Permissions::from_mode(mode)).unwrap();
        let expected = |violation: ConfigError| match &violation {
            ConfigError::InvalidInternalNetwork { path, .. } => {
                *path == lan.net() && violation.to_string().contains("0700")
            }
            _ => false,
        };
        assert!(expected(only_violation(lan.description(1).check())));
        assert!(expected(only_violation(lan.description(1).start(QUIET_CMDLINE).map(drop))));
    }
    fs::set_permissions(lan.net(), Permissions::from_mode(0o755)).unwrap();
    lan.description(1).check().unwrap();
    let error = only_violation(lan.description(1).state_dir(lan.net()).check());
    assert!(error.to_string().contains("must not be a state directory"), "{error}");
    // Something else than a socket stays.
    fs::write(lan.net().join("1.sock"), "mine").unwrap();
    let error = lan.description(1).start(QUIET_CMDLINE).unwrap_err();
    assert!(matches!(&error, Error::SocketInUse { path } if *path == lan.net().join("1.sock")), "{error:?}");
    assert_eq!(fs::read(lan.net().join("1.sock")).unwrap(), b"mine");
}
