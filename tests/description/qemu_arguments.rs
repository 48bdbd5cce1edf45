//! Arguments for QEMU that the tests with a real guest do not cover.

use hyperkit::{
    Console, Disk, Engine, HyperKit, InternalNetwork, Multiboot, Network, PortForward, QcowOptions, Root, Serial,
};

const UUID: &str = "1f0e6d3c-5f2b-4b6e-8f11-2a7d9f1c0b55";

fn description() -> HyperKit {
    HyperKit::new().hyperkit("/usr/bin/qemu-system-x86_64").kernel("/k").initrd("/i")
}

/// Returns the values of an option, in order.
fn values(description: &HyperKit, option: &str) -> Vec<String> {
    let arguments = description.arguments("a, b").unwrap();
    arguments.windows(2).filter(|pair| pair[0] == option).map(|pair| pair[1].clone()).collect()
}

#[test]
fn hypervisor_name_selects_the_engine() {
    let names = ["qemu-system-x86_64", "/usr/bin/qemu-system-amd64", "/usr/bin/kvm", "qemu", "qemu-system-x86_64-7.2"];
    for name in names {
        assert_eq!(Engine::of(name), Engine::Qemu, "{name}");
        assert_eq!(values(&description().hyperkit(name), "-append"), ["a, b"], "{name}");
    }
    for name in ["/usr/bin/qemu-system-aarch64", "qemu-system-arm64", "qemu-system-aarch64-9.1"] {
        assert_eq!(Engine::of(name), Engine::QemuArm64, "{name}");
    }
    let of_host = if cfg!(target_arch = "aarch64") { Engine::QemuArm64 } else { Engine::Qemu };
    assert_eq!((Engine::of("/usr/libexec/qemu-kvm"), Engine::of("qemu-kvm")), (of_host, of_host));
    for name in ["hyperkit", "com.docker.hyperkit", "kvmtool", "wrapper"] {
        assert_eq!(Engine::of(name), Engine::HyperKit, "{name}");
    }
    assert_eq!(values(&description(), "-append"), ["a, b"]);
    assert_eq!(values(&description().hyperkit("/opt/hyperkit"), "-f"), ["kexec,/k,/i,earlyprintk=serial a, b"]);
}

#[test]
fn pci_slots_equal_those_of_hyperkit_in_hexadecimal() {
    let full = (0..27).fold(description().network(Network::Nat), |description, index| {
        description.disk(Disk::raw(format!("/disk{index}.img")))
    });
    let full = full.iso("/i.iso");
    let qemu: Vec<_> = values(&full, "-device")
        .iter()
        .filter_map(|device| u8::from_str_radix(device.split("addr=").nth(1)?.split(".0").next()?, 16).ok())
        .collect();
    assert_eq!(qemu, (1..=30).collect::<Vec<_>>());
    let hyperkit = values(&full.clone().hyperkit("hyperkit"), "-s");
    let hyperkit: Vec<u8> =
        hyperkit.iter().map(|slot| slot.split([':', ',']).next().unwrap().parse().unwrap()).collect();
    assert_eq!(hyperkit[2..], qemu, "the slots after the two bridges");
    assert!(values(&full, "-device").contains(&"virtio-blk-pci,drive=disk16,bus=pcie.0,addr=10.0".to_owned()));
}

/// The machines differ only in these options.
#[test]
fn description_has_the_same_devices_in_an_arm64_guest() {
    let x86 = description().state_dir("/vm").network(Network::Nat).disk("/d.img").iso("/i.iso").share_dir("/srv", "s");
    let x86 = x86.agent(true).serial(Serial::pty()).serial(Serial::pty());
    let arm64 = x86.clone().hyperkit("qemu-system-aarch64");
    assert_eq!(values(&x86, "-machine"), ["q35,sata=off,smbus=off,max-fw-size=16777216,dump-guest-core=off"]);
    assert_eq!(values(&arm64, "-machine"), ["virt,gic-version=max,dump-guest-core=off"]);
    assert_eq!(values(&x86, "-serial"), ["chardev:com1", "chardev:com2"]);
    assert_eq!(values(&arm64, "-serial"), ["chardev:com1"]);
    let mut devices = values(&arm64, "-device");
    assert_eq!(devices.pop().unwrap(), "pci-serial,chardev=com2,bus=pcie.0,addr=1f.0");
    assert_eq!(devices, values(&x86, "-device"));
    for option in ["-netdev", "-drive", "-fsdev", "-chardev", "-mon", "-pidfile", "-kernel", "-initrd", "-append", "-m"]
    {
        assert_eq!(values(&arm64, option), values(&x86, option), "{option}");
    }
}

#[test]
fn vsock_console_pid_file_and_qmp_have_their_options() {
    let description = description().state_dir("/vm").console(Console::Pty).vsock(true).vsock_guest_cid(7).uuid(UUID);
    assert!(values(&description, "-device").contains(&"vhost-vsock-pci,guest-cid=7,bus=pcie.0,addr=1.0".to_owned()));
    assert_eq!(
        values(&description, "-chardev"),
        [
            "socket,id=qmp,path=/vm/qmp.sock,server=on,wait=off",
            "socket,id=events,path=/vm/events.sock,server=on,wait=off",
            "pty,id=com1,logfile=/vm/console-ring,logappend=off"
        ]
    );
    assert_eq!(values(&description, "-pidfile"), ["/vm/hyperkit.pid"]);
    assert_eq!(values(&description, "-uuid"), [UUID]);
    assert_eq!(values(&description, "-accel"), [] as [&str; 0], "`arguments` must not depend on the host");
}

#[test]
fn agent_has_a_port_in_the_slot_after_all_other_devices() {
    let description = description().state_dir("/vm").agent(true).disk(Disk::raw("/d.img")).share_dir("/srv", "data");
    let without = values(&description.clone().agent(false), "-device");
    let agent = [
        "virtio-serial-pci,id=agent-bus,bus=pcie.0,addr=4.0",
        "virtserialport,bus=agent-bus.0,nr=1,chardev=agent,name=org.hyperkit.agent,id=agent0",
    ];
    assert_eq!(values(&description, "-device"), [without, agent.map(str::to_owned).to_vec()].concat());
    let chardevs = values(&description, "-chardev");
    assert!(chardevs.contains(&"socket,id=agent,path=/vm/agent.sock,server=on,wait=off".to_owned()), "{chardevs:?}");
}

/// Commas are doubled, and on the kernel command line all that Linux would take for something else is encoded.
#[test]
fn root_is_a_read_only_share_that_the_kernel_command_line_names() {
    let bare = description()
        .state_dir("/vm")
        .agent(true)
        .share_dir("/srv/my, root/a b%\u{e4}'/c", "c d")
        .share_dir("/other", "o");
    let bare = bare
        .share_dir("/srv/my, root/a b%\u{e4}'", "b")
        .share_dir("/srv/my, root", "root")
        .share_dir("/srv/my, rooted", "near");
    let options = |description: &HyperKit, option| values(description, option).pop().unwrap();
    let dir = bare.clone().root(Root::Dir("/srv/./x/../my, root".into()));
    assert_eq!(
        options(&dir, "-append"),
        "hyperkit.root=hyperkit-root hyperkit.mount=b,/a%20b%25%c3%a4%27 hyperkit.mount=c%20d,/a%20b%25%c3%a4%27/c a, b"
    );
    assert_eq!(
        options(&dir, "-fsdev"),
        "local,id=root,path=/srv/./x/../my,, root,security_model=none,multidevs=remap,readonly=on"
    );
    assert_eq!(options(&dir, "-device"), "virtio-9p-pci,fsdev=root,mount_tag=hyperkit-root,bus=pcie.0,addr=8.0");
    let without_root = values(&bare, "-fsdev");
    assert_eq!(without_root[2], "local,id=share4,path=/srv/my,, root/a b%\u{e4}',security_model=none,multidevs=remap");
    assert_eq!(values(&dir, "-fsdev")[..5], without_root, "other shares are as without a root");
    assert_eq!(options(&bare, "-append"), "a, b");

    let host = description()
        .state_dir("/vm")
        .agent(true)
        .root(Root::Host)
        .share_dir("/home/../srv", "srv")
        .share_dir("/", "all");
    assert_eq!(options(&host, "-append"), "hyperkit.root=hyperkit-root hyperkit.mount=srv,/home/../srv a, b");
}

#[test]
fn no_file_is_named_without_a_state_directory() {
    assert_eq!(values(&description(), "-chardev"), ["stdio,id=com1,signal=off"]);
    assert_eq!(values(&description(), "-pidfile"), [] as [&str; 0]);
    assert_eq!(values(&description().hyperkit("qemu-system-x86_64"), "-initrd"), ["/i"]);
}

#[test]
fn each_nic_has_a_network_and_the_first_has_mac_and_port_forwards() {
    let mut all = description().network(Network::Nat).vmnet(true).tap("tap7").mac("02:00:00:00:00:09");
    all = all.port_forward(PortForward::tcp(8080, 80)).port_forward(PortForward::udp(0, 53));
    assert_eq!(
        values(&all, "-netdev"),
        [
            "user,id=net1,hostfwd=tcp:127.0.0.1:8080-:80,hostfwd=udp:127.0.0.1:0-:53",
            "user,id=net2,net=192.168.64.0/24",
            "tap,id=net3,ifname=tap7,script=no,downscript=no"
        ]
    );
    assert_eq!(
        values(&all, "-device")[..3],
        [
            "virtio-net-pci,netdev=net1,bus=pcie.0,addr=1.0,romfile=,mac=02:00:00:00:00:09",
            "virtio-net-pci,netdev=net2,bus=pcie.0,addr=2.0,romfile=",
            "virtio-net-pci,netdev=net3,bus=pcie.0,addr=3.0,romfile="
        ]
    );
    let preferred = description().network(Network::Nat).vpnkit_key(UUID).vpnkit_preferred_ipv4("192.168.65.10");
    assert_eq!(values(&preferred, "-netdev"), ["user,id=net1,net=192.168.65.0/24,dhcpstart=192.168.65.10"]);
}

#[test]
fn isolated_network_is_restricted() {
    let isolated = description().network(Network::Isolated).vmnet(true).port_forward(PortForward::tcp(8080, 80));
    assert_eq!(
        values(&isolated, "-netdev"),
        ["user,id=net1,restrict=on,hostfwd=tcp:127.0.0.1:8080-:80", "user,id=net2,net=192.168.64.0/24"]
    );
    let preferred = description().network(Network::Isolated).vpnkit_key(UUID).vpnkit_preferred_ipv4("192.168.65.10");
    assert_eq!(values(&preferred, "-netdev"), ["user,id=net1,restrict=on,net=192.168.65.0/24,dhcpstart=192.168.65.10"]);
    let json = isolated.to_string();
    assert!(json.contains("\"vpnkit_sock\":\"isolated\""), "{json}");
    assert_eq!(serde_json::from_str::<HyperKit>(&json).unwrap(), isolated);
}

#[test]
fn cpu_model_is_an_argument_only_if_it_is_set() {
    assert_eq!(values(&description(), "-cpu"), [] as [&str; 0], "`arguments` must not depend on the host");
    assert_eq!(values(&description().cpu("max,+rdrand"), "-cpu"), ["max,+rdrand"]);
    assert_eq!(values(&description(), "-sandbox"), [] as [&str; 0]);
}

#[test]
fn each_disk_has_its_format_and_options() {
    let disks = description()
        .disk(Disk::new("/a.qcow2").trim())
        .disk(Disk::raw("/b.qcow2").read_only().sync().sector_size(512, 4096))
        .disk(Disk::qcow2("/c", QcowOptions::default()).ahci());
    assert_eq!(
        values(&disks, "-drive"),
        [
            "if=none,id=disk1,format=qcow2,discard=unmap,werror=report,rerror=report,file=/a.qcow2",
            "if=none,id=disk2,format=raw,readonly=on,cache=writethrough,werror=report,rerror=report,file=/b.qcow2",
            "if=none,id=disk3,format=qcow2,werror=report,rerror=report,file=/c"
        ]
    );
    let devices = values(&disks, "-device");
    assert_eq!(
        devices[1],
        "virtio-blk-pci,drive=disk2,bus=pcie.0,addr=2.0,logical_block_size=512,physical_block_size=4096"
    );
    assert_eq!(devices[2..4], ["ich9-ahci,id=ahci3,bus=pcie.0,addr=3.0", "ide-hd,drive=disk3,bus=ahci3.0"]);
}

#[test]
fn isos_and_shares_are_passed_unchanged() {
    let description =
        description().iso("/i.iso").random(false).socket_9p("/share", "tag").vhost_device_vsock("/program");
    assert_eq!(values(&description, "-drive"), ["if=none,id=cd1,format=raw,readonly=on,media=cdrom,file=/i.iso"]);
    assert_eq!(values(&description, "-fsdev"), ["local,id=share2,path=/share,security_model=none,multidevs=remap"]);
    assert_eq!(
        values(&description, "-machine"),
        values(&self::description(), "-machine"),
        "memory is shared only for vsock"
    );
}

#[test]
fn each_serial_port_has_its_backend_and_log() {
    let description = description().state_dir("/vm").serial(Serial::none().log()).serial(Serial::pty().log());
    assert_eq!(
        values(&description, "-chardev")[2..],
        ["null,id=com1,logfile=/vm/console-ring,logappend=off", "pty,id=com2,logfile=/vm/console-ring2,logappend=off"]
    );
    assert_eq!(values(&description, "-serial"), ["chardev:com1", "chardev:com2"]);
    assert_eq!(values(&description.no_serials().state_dir("/vm"), "-serial"), [] as [&str; 0]);
}

#[test]
fn firmware_clock_debugger_core_dumps_and_extra_arguments_have_their_options() {
    let rom =
        HyperKit::new().hyperkit("qemu-system-x86_64").bootrom("/uefi.fd").utc(false).gdb_port(1234).core_dumps(true);
    let rom = rom.exit_on_hlt(true).exit_on_pause(true).random(false).extra_argument("-cpu").extra_argument("max");
    let arguments = rom.arguments("").unwrap();
    let value = |option: &str| {
        let at = arguments.iter().position(|argument| argument == option).unwrap();
        arguments[at + 1].as_str()
    };
    assert_eq!(value("-drive"), "if=pflash,unit=0,format=raw,readonly=on,file=/uefi.fd");
    assert_eq!((value("-rtc"), value("-gdb")), ("base=localtime", "tcp:127.0.0.1:1234"));
    assert_eq!(value("-machine"), "q35,sata=off,smbus=off,max-fw-size=16777216,dump-guest-core=on");
    assert!(!arguments.contains(&"-append".to_owned()) && !arguments.contains(&"-device".to_owned()));
    assert_eq!(arguments[arguments.len() - 2..], ["-cpu", "max"]);
    assert_eq!(values(&description(), "-machine"), ["q35,sata=off,smbus=off,max-fw-size=16777216,dump-guest-core=off"]);

    let multiboot = HyperKit::new().hyperkit("qemu-system-x86_64");
    let multiboot = multiboot.multiboot(Multiboot::new("/k").module("/m", "a b").module("/n", ""));
    assert_eq!(values(&multiboot, "-initrd"), ["/m a b,/n"]);
    assert_eq!(values(&multiboot, "-append"), ["a, b"]);
}

/// In the argument of a hub, `netdev` is what is connected to the hub.
#[test]
fn frames_of_other_vms_are_passed_only_to_the_card() {
    let description = description().state_dir("/vm").random(false).agent(true).internal_network("/net", 2);
    let card = InternalNetwork::new("/net", 2).mac();
    let devices = values(&description, "-device");
    assert_eq!(devices[2..], [format!("virtio-net-pci,netdev=net2,bus=pcie.0,addr=2.0,romfile=,mac={card}")]);
    let dgram = |id: &str, local: &str, remote: &str| {
        format!("dgram,id={id},local.type=unix,local.path=/net/{local},remote.type=unix,remote.path=/net/{remote}")
    };
    let netdevs = values(&description, "-netdev");
    assert_eq!(
        netdevs[..6],
        [
            "hubport,id=net2,hubid=4".to_owned(),
            "hubport,id=net2-drain,hubid=4".to_owned(),
            dgram("net2-io", "2.sock", "2.out.sock"),
            "hubport,id=net2-io-port,hubid=4,netdev=net2-io".to_owned(),
            dgram("net2-out", "2.out.sock", "2.src.sock"),
            "hubport,id=net2-out-port,hubid=5,netdev=net2-out".to_owned(),
        ]
    );
    let others = (1..=16).filter(|number| *number != 2);
    let to_others = others.flat_map(|number| {
        let id = format!("net2-to{number}");
        [dgram(&id, "2.src.sock", &format!("{number}.sock")), format!("hubport,id={id}-port,hubid=5,netdev={id}")]
    });
    assert_eq!(netdevs[6..], to_others.collect::<Vec<_>>());
}
