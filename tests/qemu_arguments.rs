//! What QEMU is told, where no boot shows it.

use hyperkit::{Console, Disk, HyperKit, VpnKit};

const UUID: &str = "1f0e6d3c-5f2b-4b6e-8f11-2a7d9f1c0b55";

fn machine() -> HyperKit {
    HyperKit::new().hyperkit("/usr/bin/qemu-system-x86_64").kernel("/k").initrd("/i")
}

/// The values of an option, in order.
fn values(machine: &HyperKit, option: &str) -> Vec<String> {
    let arguments = machine.arguments("a, b").unwrap();
    arguments.windows(2).filter(|pair| pair[0] == option).map(|pair| pair[1].clone()).collect()
}

#[test]
fn the_program_decides_the_language() {
    assert_eq!(values(&machine(), "-append"), ["earlyprintk=serial a, b"]);
    assert_eq!(values(&machine().hyperkit("/opt/hyperkit"), "-f"), ["kexec,/k,/i,earlyprintk=serial a, b"]);
}

#[test]
fn slots_are_hyperkits_and_addressed_in_hexadecimal() {
    let full = (0..27)
        .fold(machine().vpnkit(VpnKit::Auto), |machine, index| machine.disk(Disk::raw(format!("/disk{index}.img"))));
    let full = full.iso("/i.iso");
    let qemu: Vec<_> = values(&full, "-device")
        .iter()
        .filter_map(|device| u8::from_str_radix(device.split("addr=").nth(1)?.split(".0").next()?, 16).ok())
        .collect();
    assert_eq!(qemu, (1..=30).collect::<Vec<_>>());
    let hyperkit = values(&full.clone().hyperkit("hyperkit"), "-s");
    let hyperkit: Vec<u8> =
        hyperkit.iter().map(|slot| slot.split([':', ',']).next().unwrap().parse().unwrap()).collect();
    assert_eq!(hyperkit[2..], qemu, "hyperkit's are after the two bridges");
    assert!(values(&full, "-device").contains(&"virtio-blk-pci,drive=disk16,bus=pcie.0,addr=10.0".to_owned()));
}

#[test]
fn vsock_console_and_control() {
    let machine = machine().state_dir("/vm").console(Console::File).vsock(true).vsock_guest_cid(7).uuid(UUID);
    assert!(values(&machine, "-device").contains(&"vhost-vsock-pci,guest-cid=7,bus=pcie.0,addr=1.0".to_owned()));
    assert_eq!(
        values(&machine, "-chardev"),
        [
            "socket,id=qmp,path=/vm/qmp.sock,server=on,wait=off",
            "socket,id=events,path=/vm/events.sock,server=on,wait=off",
            "pty,id=com1,logfile=/vm/console-ring,logappend=off"
        ]
    );
    assert_eq!(values(&machine, "-pidfile"), ["/vm/hyperkit.pid"]);
    assert_eq!(values(&machine, "-uuid"), [UUID]);
    assert_eq!(values(&machine, "-accel"), [] as [&str; 0], "it depends on the host");
}

#[test]
fn without_a_state_directory_there_is_no_file() {
    assert_eq!(values(&machine(), "-chardev"), ["stdio,id=com1,signal=off"]);
    assert_eq!(values(&machine(), "-pidfile"), [] as [&str; 0]);
    assert_eq!(values(&machine().hyperkit("qemu-system-x86_64"), "-initrd"), ["/i"]);
}
