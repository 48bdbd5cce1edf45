//! Devices: the guest finds each described device in its PCI slot.

use std::fs;
use std::os::unix::fs::FileExt;

use hyperkit::{Disk, DiskInterface, Exit, HyperKit, Network, PortForward, QcowOptions, Serial};

use crate::common::StopOnDrop;
use crate::common::guest::{
    BOOT_TIMEOUT, Guest, PROMPT, QUIET_CMDLINE, REPORT_CMDLINE, Report, create_iso, create_share, description,
    open_shell, setup_file,
};
use crate::common::platform::PLATFORM;

/// Kinds of devices, as the guest reports them from the PCI bus: vendor, device, subsystem device, class.
pub const NETWORK: &str = "0x1af4 0x1000 0x0001 0x020000";
pub const BLOCK: &str = "0x1af4 0x1001 0x0002 0x010000";
pub const AHCI: &str = "0x8086 0x2922 0x1100 0x010601";
pub const VSOCK: &str = "0x1af4 0x1053 0x1100 0x078000";
pub const RANDOM: &str = "0x1af4 0x1005 0x0004 0x00ff00";
pub const SHARE: &str = "0x1af4 0x1009 0x0009 0x000200";

fn at(slot: usize, what: &str) -> String {
    format!("0000:00:{slot:02x}.0 {what}")
}

/// Returns the report of a PCI bus with devices of these kinds in slots 1, 2, and so on, and with this number of serial ports.
pub fn bus(kinds: &[&str], serial_ports: usize) -> Vec<String> {
    let devices = (0..).zip([PLATFORM.host_bridge].iter().chain(kinds)).map(|(slot, kind)| at(slot, kind));
    devices.chain(PLATFORM.slot_31[serial_ports - 1].map(|kind| at(31, kind))).collect()
}

/// Returns the guest's report of a disk.
fn disk(slot: usize, name: &str, size_mib: u64, rest: &str) -> String {
    at(slot, &format!("{name} {} {rest}", size_mib * 2048))
}

fn run(description: HyperKit, cmdline: &str) -> Report {
    let state = description.state_dir.clone().unwrap();
    let _stop = StopOnDrop(state.clone());
    let vm = description.start(cmdline).unwrap();
    assert_eq!(vm.wait_timeout(BOOT_TIMEOUT), Some(Exit::PowerOff));
    Report::parse(&fs::read(state.join("console-ring")).unwrap())
}

#[test]
fn guest_finds_one_device_of_every_kind() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().canonicalize().unwrap();
    let read_only = dir.join("read-only.img");
    fs::write(&read_only, "written-by-the-host".repeat(60_000)).unwrap();
    fs::File::options().write(true).open(&read_only).unwrap().set_len(2 * 1024 * 1024).unwrap();
    let description = description()
        .state_dir(dir.join("vm"))
        .memory_mib(512)
        .network(Network::Nat)
        .vpnkit_key("0f0e6d3c-5f2b-4b6e-8f11-2a7d9f1c0b55")
        .vpnkit_preferred_ipv4("192.168.65.10")
        .mac("02:00:00:00:00:07")
        .port_forward(PortForward::tcp(0, 22))
        .vmnet(true)
        .disk(Disk::in_state_dir(5))
        .disk(Disk::raw(dir.join("sata.img")).size_mib(4).ahci())
        .disk(
            Disk::qcow2(dir.join("a.qcow2"), QcowOptions::default()).size_mib(8).trim().sync().sector_size(4096, 4096),
        )
        .disk(Disk::new(&read_only).read_only().sector_size(512, 4096))
        .vsock(true)
        .vhost_device_vsock(setup_file("target/tools/bin", "vhost-device-vsock"))
        .iso(create_iso(&dir, "one", "from the image"))
        .socket_9p(create_share(&dir, "shared", "from the share"), "tag")
        .serial(Serial::pty().log())
        .serial(Serial::none().log());

    let report = run(description, &format!("{REPORT_CMDLINE} hyperkit.marker=here"));
    let kinds = [NETWORK, NETWORK, BLOCK, AHCI, BLOCK, BLOCK, VSOCK, AHCI, RANDOM, SHARE];
    assert_eq!(report["pci"], bus(&kinds, 2));
    assert_eq!(
        report["net"],
        [at(1, "02:00:00:00:00:07 192.168.65.10/24"), at(2, "52:54:00:12:34:56 192.168.64.15/24")]
    );
    let usual = "ro=0 sectors=512/512 cache=write-back discard=1 begin=";
    assert_eq!(
        report["disk"],
        [
            disk(3, "vda", 5, usual),
            disk(5, "vdb", 8, "ro=0 sectors=4096/4096 cache=write-through discard=1 begin="),
            disk(
                6,
                "vdc",
                2,
                "ro=1 sectors=512/4096 cache=write-back discard=1 begin=written-by-the-hostwritten-by-th"
            ),
            disk(4, "sda", 4, usual),
        ]
    );
    assert_eq!(report["vsock"], [at(7, "").trim_end()]);
    assert_eq!(report["iso"], [at(8, "sr0 hello.txt from the image")]);
    assert!(report.single("random").starts_with("virtio_rng.0 "));
    assert_eq!(report["9p"], [at(10, "tag hello.txt from the share")]);
    assert_eq!(report["serial"], PLATFORM.serial_ports);
    assert_eq!(
        fs::read_to_string(dir.join("vm/console-ring2")).unwrap(),
        format!("this is {}\r\n", PLATFORM.serial_ports[1])
    );
    assert_eq!(report.single("firmware"), PLATFORM.firmware);

    let mut written = [0; 4];
    fs::File::open(dir.join("vm/disk.img")).unwrap().read_exact_at(&mut written, 1024 * 1024).unwrap();
    assert_eq!(&written, b"here");
    assert!(fs::read(dir.join("a.qcow2")).unwrap().starts_with(b"QFI\xfb"));
}

#[test]
fn guest_finds_thirty_devices() {
    const DISKS: usize = 12;
    const ISOS: usize = 8;
    const SHARES: usize = 6;
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().canonicalize().unwrap();
    let mut description = description().state_dir(dir.join("vm")).serial(Serial::none().log());
    description = description.network(Network::Nat).vmnet(true).vsock(true);
    description = description.vhost_device_vsock(setup_file("target/tools/bin", "vhost-device-vsock"));
    for index in 0..DISKS {
        let image = Disk::raw(dir.join(format!("{index}.img"))).size_mib(index as u64 + 1);
        description = description.disk(if index % 3 == 2 { image.ahci() } else { image });
    }
    for index in 0..ISOS {
        description = description.iso(create_iso(&dir, &format!("iso{index}"), &format!("image {index}")));
    }
    for index in 0..SHARES {
        description = description
            .socket_9p(create_share(&dir, &format!("share{index}"), &format!("share {index}")), format!("tag{index}"));
    }
    let kinds: Vec<_> = [NETWORK; 2]
        .into_iter()
        .chain(description.disks.iter().map(|image| if image.interface == DiskInterface::Ahci { AHCI } else { BLOCK }))
        .chain([VSOCK])
        .chain([AHCI; ISOS])
        .chain([RANDOM])
        .chain([SHARE; SHARES])
        .collect();
    assert_eq!(kinds.len(), 30);

    let report = run(description.clone(), REPORT_CMDLINE);
    assert_eq!(report["pci"], bus(&kinds, 1));
    assert_eq!(report["net"].len(), 2);
    // Each disk is recognized by its size, each ISO image and share by its content. Linux probes SATA ports in parallel, so
    // the names of these disks vary.
    let by_slot = |key: &str| {
        let unnamed = |line: &String| {
            let words = line.split(' ').filter(|word| !word.starts_with("sd") && !word.starts_with("sr"));
            words.collect::<Vec<_>>().join(" ")
        };
        let mut lines: Vec<_> = report[key].iter().map(unnamed).collect();
        lines.sort();
        lines
    };
    let mut letters = 'a'..;
    let disks = (0..DISKS).map(|index| {
        let virtio = (description.disks[index].interface == DiskInterface::VirtioBlk)
            .then(|| format!("vd{} ", letters.next().unwrap()));
        let size = (index + 1) * 2048;
        let rest = "ro=0 sectors=512/512 cache=write-back discard=1 begin=";
        at(index + 3, &format!("{}{size} {rest}", virtio.unwrap_or_default()))
    });
    assert_eq!(by_slot("disk"), disks.collect::<Vec<_>>());
    let first_iso = 3 + DISKS + 1;
    let isos = (0..ISOS).map(|index| at(first_iso + index, &format!("hello.txt image {index}")));
    assert_eq!(by_slot("iso"), isos.collect::<Vec<_>>());
    let first_share = first_iso + ISOS + 1;
    let shares = (0..SHARES).map(|index| at(first_share + index, &format!("tag{index} hello.txt share {index}")));
    assert_eq!(by_slot("9p"), shares.collect::<Vec<_>>());
    assert_eq!(report["vsock"], [at(3 + DISKS, "").trim_end()]);
}

/// The guest mounts the directory with the command in the documentation of `share_dir`.
#[test]
fn guest_mounts_reads_and_writes_a_shared_directory() {
    let guest = Guest::new();
    let share = create_share(guest.state_dir.parent().unwrap(), "shared", "from the host");
    let vm = guest.description.clone().share_dir(&share, "tag").start(QUIET_CMDLINE).unwrap();
    let console = open_shell(&vm);
    console.send_line("mount -t 9p -o trans=virtio tag /mnt && cat /mnt/hello.txt").unwrap();
    console.expect("from the host", BOOT_TIMEOUT).unwrap();
    console.expect(PROMPT, BOOT_TIMEOUT).unwrap();
    console.send_line("echo from the guest >/mnt/answer.txt; echo written $?").unwrap();
    console.expect("written 0", BOOT_TIMEOUT).unwrap();
    assert_eq!(fs::read_to_string(share.join("answer.txt")).unwrap(), "from the guest\n");
}
