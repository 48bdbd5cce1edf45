//! Property tests: `parse_arguments` is the inverse of `arguments` for any valid description and for any order of the
//! options.

use hyperkit::{
    Console, Disk, DiskFormat, DiskInterface, FlushMode, HyperKit, Multiboot, Network, QcowOptions, Serial,
    SerialBackend, parse_arguments,
};
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

/// Characters that hyperkit does not interpret. In the URL of a qcow2 image, some of them are escaped.
const TEXT: &str = "[a-zA-Z0-9 #?%&=;:+~'\"<>é日._-]{1,16}";
const UUID: &str = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9A-F]{4}-[0-9a-d][0-9a-f]{3}-[0-9a-f]{12}";

/// A path in a directory. Each kind of file has its own directory, so that files of two kinds never have the same path.
fn path(dir: &'static str) -> impl Strategy<Value = String> {
    TEXT.prop_map(move |name| format!("{dir}/{name}x"))
}

fn qcow() -> impl Strategy<Value = QcowOptions> {
    let flush = select(vec![FlushMode::Unset, FlushMode::None, FlushMode::Os, FlushMode::Drive]);
    let count = || 0..=i64::MAX.unsigned_abs();
    (flush, count(), count(), any::<bool>(), of("(unix:/[a-z ]{1,9}|tcp:[0-9]{1,4})")).prop_map(
        |(flush, compact_after, keep_erased, runtime_asserts, stats)| {
            let mut qcow = QcowOptions::default();
            (qcow.flush, qcow.compact_after, qcow.keep_erased) = (flush, compact_after, keep_erased);
            (qcow.runtime_asserts, qcow.stats) = (runtime_asserts, stats);
            qcow
        },
    )
}

fn disk() -> impl Strategy<Value = Disk> {
    let sectors = (9_u32..16, 0_u32..4).prop_map(|(logical, more)| (1 << logical, 1 << (logical + more)));
    (TEXT, of(qcow()), any::<[bool; 4]>(), of(sectors)).prop_map(
        |(name, qcow, [ahci, read_only, sync, trim], sectors)| {
            let mut disk = Disk::new(format!("/disks/{name}"));
            // hyperkit has an option for `trim` only for qcow2 images.
            disk.trim = trim && qcow.is_some();
            disk.format = Some(qcow.map_or(DiskFormat::Raw, DiskFormat::Qcow2));
            disk.interface = if ahci { DiskInterface::Ahci } else { DiskInterface::VirtioBlk };
            (disk.read_only, disk.sync) = (read_only, sync);
            sectors.into_iter().fold(disk, |disk, (logical, physical)| disk.sector_size(logical, physical))
        },
    )
}

/// The boot source and the kernel command line.
fn firmware() -> impl Strategy<Value = (HyperKit, String)> {
    let cmdline = prop_oneof!["\\PC{0,30}", "earlyprintk=serial[ ,a-z]{0,9}"];
    let modules = vec(("[a-z0-9 /#=]{1,9}", "[a-z0-9 /#=;]{0,9}"), 0..4);
    prop_oneof![
        (path("k"), of(path("i")), cmdline.clone()).prop_map(|(kernel, initrd, cmdline)| {
            let description = HyperKit::new().kernel(kernel);
            (initrd.into_iter().fold(description, HyperKit::initrd), cmdline)
        }),
        path("rom").prop_map(|rom| (HyperKit::new().bootrom(rom), String::new())),
        (path("k"), modules, cmdline).prop_map(|(kernel, modules, cmdline)| {
            let add = |kernel: Multiboot, (path, cmdline)| kernel.module(path, cmdline);
            (HyperKit::new().multiboot(modules.into_iter().fold(Multiboot::new(kernel), add)), cmdline)
        }),
    ]
}

/// Sets the console or the serial ports. If `console` can express the serial ports, `parse_arguments` sets `console`, so
/// such ports are not set as `serials` here.
fn serial(description: HyperKit, console: Console, serials: Option<Vec<Serial>>) -> HyperKit {
    let has_dir = description.state_dir.is_some();
    let mut on_stdio = 0;
    let mut usable = |serial: &Serial| {
        on_stdio += u8::from(serial.backend == SerialBackend::Stdio);
        (has_dir || (serial.backend != SerialBackend::Pty && !serial.log))
            && (serial.backend != SerialBackend::Stdio || on_stdio < 2)
    };
    match serials.map(|serials| serials.into_iter().filter(&mut usable).collect::<Vec<_>>()) {
        Some(serials) if serials == [Serial::stdio()] => description.console(Console::Stdio),
        Some(serials) => serials.into_iter().fold(description.no_serials(), HyperKit::serial),
        None if has_dir => description.console(console),
        None => description.console(Console::Stdio),
    }
}

fn networks() -> impl Strategy<Value = HyperKit> {
    let vpnkit = of((path("/net"), of((UUID, of("10\\.0\\.[1-9]\\.[1-9]")))));
    let tap = of(("[a-z]{1,9}[ #=:]?", of("02(:[0-9a-f]{2}){5}")));
    (vpnkit, any::<bool>(), tap).prop_map(|(vpnkit, vmnet, tap)| {
        let mut description = HyperKit::new().vmnet(vmnet);
        if let Some((socket, key)) = vpnkit {
            description = description.network(Network::VpnKit(socket.into()));
            if let Some((key, address)) = key {
                (description.vpnkit_key, description.vpnkit_preferred_ipv4) = (Some(key), address);
            }
        }
        if let Some((tap, mac)) = tap {
            // Only the first network card can have a MAC address.
            description.mac = mac.filter(|_| !vmnet && description.network == Network::None);
            description.tap = Some(tap);
        }
        description
    })
}

/// Any valid description that arguments can express, and its kernel command line.
fn description() -> impl Strategy<Value = (HyperKit, String)> {
    let disks = vec(disk(), 0..5).prop_map(|mut disks| {
        disks.sort_by(|a, b| a.path.cmp(&b.path));
        disks.dedup_by(|a, b| a.path == b.path);
        disks
    });
    let vsock = of((3_u32..1 << 31, of(path("/sockets")), vec(0..u32::MAX, 0..5)));
    let shares = vec((TEXT, of(1_u16..), TEXT), 0..4);
    let console = select(vec![Console::Stdio, Console::Pty, Console::AppleLog]);
    let ports = [Serial::none(), Serial::stdio(), Serial::pty()];
    let ports = ports
        .into_iter()
        .flat_map(|port| [port, port.log(), port.apple_log(), port.log().apple_log()])
        .collect::<Vec<_>>();
    let serials = of(vec(select(ports), 0..3));
    // In the order of PCI slots, which is the order of parsing.
    let extra = subsequence(vec!["-b", "-s 1:1,uart,#1", "-s 31:7,virtio-blk,,ro", "-s 1:1:0,virtio-rnd"], 0..=4);
    let host = (of(path("/bin")), of(prop_oneof![path("/vm"), path("vm")]), networks(), disks, vec(path("/cd"), 0..4));
    let rest = (vsock, shares, console, serials, extra, any::<[bool; 8]>());
    let numbers = (of(UUID), 1..=64_u32, 2..1_u64 << 42, of(1_u16..));
    (host, rest, numbers, firmware()).prop_map(|(host, rest, numbers, (firmware, cmdline))| {
        let mut description = host.2;
        (description.hyperkit, description.state_dir) = (host.0.map(Into::into), host.1.map(Into::into));
        (description.kernel, description.initrd) = (firmware.kernel, firmware.initrd);
        (description.bootrom, description.multiboot) = (firmware.bootrom, firmware.multiboot);
        description.disks = host.3;
        description = host.4.into_iter().fold(description, HyperKit::iso);
        let (vsock, shares, console, serials, extra, switches) = rest;
        if let Some((cid, dir, ports)) = vsock.filter(|(_, dir, _)| dir.is_some() || description.state_dir.is_some()) {
            description = description.vsock(true).vsock_guest_cid(cid);
            (description.vsock_dir, description.vsock_ports) = (dir.map(Into::into), ports);
        }
        for (index, (name, port, tag)) in shares.into_iter().enumerate() {
            let tag = format!("{index}{tag}"); // each share has its own tag
            description = match port {
                Some(port) => description.port_9p(port, tag),
                None => description.socket_9p(name, tag),
            };
        }
        description = serial(description, console, serials);
        description.extra_arguments = extra.iter().flat_map(|extra| extra.splitn(2, ' ')).map(str::to_owned).collect();
        [description.random, description.utc, description.exit_on_hlt, description.exit_on_pause, ..] = switches;
        [.., description.x2apic, description.msix, description.mptable, description.core_dumps] = switches;
        (description.uuid, description.cpus, description.memory_mib, description.gdb_port) = numbers;
        (description, cmdline)
    })
}

/// Returns the whole command line, with the program if it is set.
fn command_line(description: &HyperKit, cmdline: &str) -> Vec<String> {
    let program = description.hyperkit.iter().map(|program| program.to_str().unwrap().to_owned());
    program.chain(description.arguments(cmdline).unwrap()).collect()
}

/// Returns the same options in another order and in other spellings that `getopt` accepts. `chance` determines the order
/// and spelling.
fn respelled(command_line: &[String], chance: &[u8]) -> Vec<String> {
    let mut words = command_line.iter().cloned().peekable();
    let mut respelled: Vec<_> = words.next_if(|program| !program.starts_with('-')).into_iter().collect();
    let mut options = Vec::new();
    while let Some(option) = words.next() {
        options.push((option, words.next_if(|value| !value.starts_with('-'))));
    }
    let mut chance = chance.iter().copied().cycle();
    options.sort_by_cached_key(|_| chance.next());
    let mut bundle = "-".to_owned();
    for (option, value) in options {
        bundle.push_str(&option[1..]);
        match (value, chance.next()) {
            (Some(value), Some(0..100)) => respelled.push(std::mem::replace(&mut bundle, "-".to_owned()) + &value),
            (Some(value), _) => respelled.extend([std::mem::replace(&mut bundle, "-".to_owned()), value]),
            (None, Some(0..150)) => {}
            (None, _) => respelled.push(std::mem::replace(&mut bundle, "-".to_owned())),
        }
    }
    respelled.extend(Some(bundle).filter(|bundle| bundle != "-"));
    respelled
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_description_round_trips_through_arguments((description, cmdline) in description(), chance in vec(any::<u8>(), 64)) {
        let arguments = command_line(&description, &cmdline);
        let (parsed, parsed_cmdline) = parse_arguments(&arguments).unwrap();
        prop_assert_eq!(&parsed, &description, "{:?}", arguments);
        prop_assert_eq!(&parsed_cmdline, &cmdline);

        let respelled = respelled(&arguments, &chance);
        let (parsed, parsed_cmdline) = parse_arguments(&respelled).unwrap();
        prop_assert_eq!(parsed, description, "{:?}", respelled);
        prop_assert_eq!(parsed_cmdline, cmdline);
    }
}

/// The property test would prove nothing if `respelled` returned its input.
#[test]
fn respelled_arguments_differ_but_keep_their_letters() {
    let chance: Vec<u8> = (0..64_u8).map(|i| i.wrapping_mul(151)).collect();
    let description = HyperKit::new().kernel("k").cpus(2).memory_mib(64).uuid("01234567-89ab-cdef-0123-456789abcdef");
    let arguments = command_line(&description, "x");
    let respelled = respelled(&arguments, &chance);
    let sorted = |words: &[String]| {
        let mut letters: Vec<char> = words.concat().chars().filter(|letter| *letter != '-').collect();
        letters.sort_unstable();
        letters
    };
    assert_ne!(respelled, arguments);
    assert_eq!(sorted(&respelled), sorted(&arguments));
}
