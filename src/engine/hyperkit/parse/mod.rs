//! The way back: from the arguments of `hyperkit` to the description of a machine.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};

use crate::config::{HyperKit, Multiboot, Server9p, Socket9p, VpnKit};
use crate::disk::{Disk, Driver, Format, OnFlush, Qcow};
use crate::engine::{EARLY_CONSOLE, Engine};
use crate::error::{Error, Result};
use crate::serial::{Port, fields};
use crate::state::PID_FILE;

/// What hyperkit gives a machine that does not say, in MiB.
const DEFAULT_MEMORY: u64 = 256;

/// The machine that these arguments of hyperkit describe, and its kernel command line: the inverse of
/// [`HyperKit::arguments`].
///
/// The program may stand before the arguments. Options may come in any order, as for hyperkit; the last of a kind counts.
/// What no field can say (a device out of the usual order, a serial port on a tty of somebody else) becomes one of
/// [`extra_arguments`](HyperKit#structfield.extra_arguments), so that the same machine comes of it again. The state
/// directory is that of the pid file, so a machine that something else has started can be taken up:
///
/// ```
/// use hyperkit::parse_arguments;
///
/// let (machine, cmdline) = parse_arguments(&[
///     "/usr/local/bin/hyperkit", "-A", "-u", "-F", "/vm/hyperkit.pid", "-c", "2", "-m", "2G", "-s", "0:0,hostbridge", "-s",
///     "31,lpc", "-s", "1:0,virtio-blk,/vm/root.img", "-s", "2,virtio-rnd", "-l", "com1,stdio", "-f",
///     "kexec,/vm/vmlinuz,/vm/initrd.img,earlyprintk=serial console=ttyS0",
/// ])?;
/// assert_eq!((machine.cpus, machine.memory, cmdline.as_str()), (2, 2048, "console=ttyS0"));
/// assert_eq!(machine.state_dir.as_deref(), Some("/vm".as_ref()));
/// let running = machine.vm()?; // if it runs
/// # assert!(running.is_none());
/// # Ok::<(), hyperkit::Error>(())
/// ```
///
/// The kernel command line is without the `earlyprintk=serial` that [`HyperKit::arguments`] puts before it.
///
/// # Errors
/// [`Error::ForeignArguments`] if hyperkit would not take them, or would start no machine that this crate can start.
/// [`Error::Unsupported`] if they are for QEMU.
pub fn parse_arguments<S: AsRef<str>>(arguments: &[S]) -> Result<(HyperKit, String)> {
    let mut arguments = arguments.iter().map(AsRef::as_ref).peekable();
    let mut machine = HyperKit { utc: false, random: false, memory: DEFAULT_MEMORY, ..HyperKit::default() };
    if let Some(program) = arguments.next_if(|first| !first.starts_with('-')) {
        if Engine::of(program) == Engine::Qemu {
            return Err(Error::Unsupported { engine: Engine::Qemu, feature: "to be understood by `parse_arguments`" });
        }
        machine.hyperkit = Some(program.into());
    }
    let Options { has_acpi, pid_file, slots, serials, firmware } = Options::read(arguments, &mut machine)?;
    let device_in = |slot: u8| slots.get(&slot).map(|value| device(value));
    if !has_acpi || device_in(0) != Some("hostbridge") || device_in(31) != Some("lpc") {
        return foreign("-s", "it takes ACPI (`-A`), a `hostbridge` in slot 0 and `lpc` in slot 31");
    }
    match pid_file.as_deref().map(Path::new) {
        Some(file) if file.file_name() == Some(OsStr::new(PID_FILE)) => {
            let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
            machine.state_dir = Some(dir.to_owned());
        }
        Some(_) => extra(&mut machine, "-F", pid_file.as_deref().unwrap_or_default()),
        None => {}
    }
    read_devices(&slots, &mut machine);
    match ports(&serials, machine.state_dir.as_deref()).and_then(|ports| fields(&ports)) {
        Some((console, serials)) => (machine.console, machine.serials) = (console, serials),
        None => {
            machine.serials = Some(Vec::new());
            serials.values().for_each(|serial| extra(&mut machine, "-l", serial));
        }
    }
    let cmdline = read_firmware(firmware.as_deref().unwrap_or_default(), &mut machine)?;
    Ok((machine, cmdline))
}

fn foreign<T>(argument: &str, reason: &'static str) -> Result<T> {
    Err(Error::ForeignArguments { argument: argument.to_owned(), reason })
}

fn extra(machine: &mut HyperKit, option: &str, value: &str) {
    machine.extra_arguments.extend([option.to_owned(), value.to_owned()]);
}

/// The options that need to be looked at together.
#[derive(Default)]
struct Options {
    has_acpi: bool,
    pid_file: Option<String>,
    /// What stands behind `-s`, by slot. Of functions and buses other than 0 the machine has no more than extra arguments.
    slots: BTreeMap<u8, String>,
    /// What stands behind `-l`, by port.
    serials: BTreeMap<String, String>,
    firmware: Option<String>,
}

impl Options {
    /// Reads as getopt does: letters may share a dash, a value may follow its letter at once, an operand ends it all.
    fn read<'a>(
        mut arguments: std::iter::Peekable<impl Iterator<Item = &'a str>>,
        machine: &mut HyperKit,
    ) -> Result<Self> {
        let mut options = Self::default();
        let is_option = |argument: &&str| argument.starts_with('-') && !["-", "--"].contains(argument);
        while let Some(argument) = arguments.next_if(is_option) {
            for (at, letter) in argument.char_indices().skip(1) {
                if "YfFgcsmlU".contains(letter) {
                    let rest = &argument[at + 1..];
                    let value = if rest.is_empty() { arguments.next() } else { Some(rest) };
                    let Some(value) = value else { return foreign(argument, "it takes a value") };
                    options.set(letter, value, machine)?;
                    break;
                }
                options.switch(letter, argument, machine)?;
            }
        }
        Ok(options)
    }

    fn switch(&mut self, letter: char, argument: &str, machine: &mut HyperKit) -> Result<()> {
        match letter {
            'A' => self.has_acpi = true,
            'u' => machine.utc = true,
            'H' => machine.exit_on_hlt = true,
            'P' => machine.exit_on_pause = true,
            'x' => machine.x2apic = true,
            'W' => machine.msix = false,
            'C' => machine.core_dumps = true,
            'b' | 'e' | 'w' => machine.extra_arguments.push(format!("-{letter}")),
            'h' | 'v' | 'M' => return foreign(argument, "it prints something and starts no machine"),
            _ => return foreign(argument, "hyperkit knows no such option"),
        }
        Ok(())
    }

    fn set(&mut self, letter: char, value: &str, machine: &mut HyperKit) -> Result<()> {
        match letter {
            'Y' => machine.mptable = false,
            'f' => self.firmware = Some(value.to_owned()),
            'F' => self.pid_file = Some(value.to_owned()),
            'U' => machine.uuid = Some(value.to_owned()),
            'l' => {
                let port = value.split(',').next().unwrap_or_default();
                self.serials.insert(port.to_owned(), value.to_owned());
            }
            's' => {
                let place = value.split(',').next().unwrap_or_default();
                let numbers = place.split(':').map(|number| number.parse::<u8>().ok()).collect::<Option<Vec<_>>>();
                let (slot, usual) = match numbers.as_deref() {
                    Some(&[slot]) => (slot, true),
                    Some(&[slot, function]) => (slot, function == 0),
                    Some(&[bus, slot, function]) => (slot, bus == 0 && function == 0),
                    _ => return foreign(value, "it must begin with a PCI slot"),
                };
                if slot > 31 {
                    return foreign(value, "PCI slots are 0 to 31");
                }
                if !usual {
                    extra(machine, "-s", value);
                } else if self.slots.insert(slot, value.to_owned()).is_some() {
                    return foreign(value, "this PCI slot is taken");
                }
            }
            'g' => machine.gdb_port = Some(number(value, "it must be a port")?).filter(|&port| port != 0),
            'c' => machine.cpus = number(value, "it must be a number of vCPUs")?,
            _ => machine.memory = memory(value).map_or_else(|| foreign(value, "it must be memory in whole MiB"), Ok)?,
        }
        Ok(())
    }
}

fn number<T: std::str::FromStr>(value: &str, reason: &'static str) -> Result<T> {
    value.parse().or_else(|_| foreign(value, reason))
}

/// As hyperkit reads it: with a unit, or in bytes, or if that is less than a MiB in MiB; octal behind a 0.
fn memory(value: &str) -> Option<u64> {
    let end = value.find(|c: char| "kmgtpbKMGTPB".contains(c)).unwrap_or(value.len());
    let (digits, unit) = value.split_at(end);
    let number = match digits.strip_prefix('0') {
        Some(octal) if !octal.is_empty() => u64::from_str_radix(octal, 8).ok()?,
        _ => digits.parse().ok()?,
    };
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" if number < 1 << 20 => 20,
        "" | "b" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        _ => return None,
    };
    let bytes = number.checked_mul(1 << shift)?;
    (bytes % (1 << 20) == 0).then_some(bytes >> 20)
}

/// `key=value` between commas, each key once.
fn config_keys(config: &str) -> Option<BTreeMap<&str, &str>> {
    let mut keys = BTreeMap::new();
    for option in config.split(',') {
        let (key, value) = option.split_once('=')?;
        if keys.insert(key, value).is_some() {
            return None;
        }
    }
    Some(keys)
}

/// What stands behind the slot.
fn device(value: &str) -> &str {
    value.split_once(',').map_or("", |(_, device)| device)
}

/// The devices from slot 1 on, as long as they come in the order of [`layout`](crate::slots::layout) and can be said.
fn read_devices(slots: &BTreeMap<u8, String>, machine: &mut HyperKit) {
    let mut last = Rank::VpnKit;
    let mut fits = true;
    for (expected, (&slot, value)) in (1..).zip(slots.range(1..=30)) {
        let described = if fits && slot == expected { add_device(device(value), machine, slot == 1) } else { None };
        match described {
            Some((rank, changed)) if rank > last || (rank == last && (slot == 1 || rank.repeats())) => {
                (last, *machine) = (rank, changed);
            }
            _ => {
                fits = false;
                extra(machine, "-s", value);
            }
        }
    }
}

/// The order of devices. Of some there can be several.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
enum Rank {
    VpnKit,
    Vmnet,
    Tap,
    Disk,
    Vsock,
    Iso,
    Random,
    Share,
}

impl Rank {
    fn repeats(self) -> bool {
        matches!(self, Self::Disk | Self::Iso | Self::Share)
    }
}

/// The machine with one device more, if a field can say it.
fn add_device(device: &str, machine: &HyperKit, is_first: bool) -> Option<(Rank, HyperKit)> {
    let mut machine = machine.clone();
    let (driver, config) = device.split_once(',').unwrap_or((device, ""));
    let rank = match driver {
        "virtio-vpnkit" => {
            let mut keys = config_keys(config)?;
            machine.vpnkit = VpnKit::Socket(keys.remove("path")?.into());
            machine.vpnkit_key = keys.remove("uuid").map(str::to_owned);
            machine.vpnkit_preferred_ipv4 = keys.remove("preferred_ipv4").map(str::to_owned);
            keys.is_empty().then_some(Rank::VpnKit)?
        }
        "virtio-net" if config.is_empty() => {
            machine.vmnet = true;
            Rank::Vmnet
        }
        "virtio-tap" => {
            let (name, mac) = config.split_once(',').map_or((config, None), |(name, mac)| (name, Some(mac)));
            machine.tap = Some(name.to_owned());
            machine.mac = match mac {
                Some(mac) => Some(mac.strip_prefix("mac=").filter(|_| is_first)?.to_owned()),
                None => None,
            };
            Rank::Tap
        }
        "virtio-blk" | "ahci-hd" => {
            machine.disks.push(disk(Driver::from_word(driver)?, config)?);
            Rank::Disk
        }
        "virtio-sock" => {
            let mut keys = config_keys(config)?;
            machine.vsock = true;
            machine.vsock_guest_cid = keys.remove("guest_cid")?.parse().ok()?;
            let dir = Path::new(keys.remove("path")?);
            let is_own = machine.state_dir.as_deref().is_none_or(|state| cleaned(state) != cleaned(dir));
            machine.vsock_dir = is_own.then(|| dir.to_owned());
            let ports = keys.remove("guest_forwards").filter(|ports| !ports.is_empty());
            let ports = ports.into_iter().flat_map(|ports| ports.split(';')).map(str::parse);
            machine.vsock_ports = ports.collect::<Result<_, _>>().ok()?;
            keys.is_empty().then_some(Rank::Vsock)?
        }
        "ahci-cd" if !config.is_empty() && !config.contains(',') => {
            machine.isos.push(config.into());
            Rank::Iso
        }
        "virtio-rnd" if config.is_empty() => {
            machine.random = true;
            Rank::Random
        }
        "virtio-9p" => {
            let mut keys = config_keys(config)?;
            let server = match (keys.remove("path"), keys.remove("port")) {
                (Some(path), None) => Server9p::Path(path.into()),
                (None, Some(port)) => Server9p::Port(port.parse().ok()?),
                _ => return None,
            };
            let tag = keys.remove("tag").unwrap_or("plan9").to_owned();
            machine.sockets_9p.push(Socket9p { server, tag });
            keys.is_empty().then_some(Rank::Share)?
        }
        _ => return None,
    };
    Some((rank, machine))
}

fn disk(driver: Driver, config: &str) -> Option<Disk> {
    let (path, options) = config.split_once(',').unwrap_or((config, ""));
    let mut disk = Disk { driver, ..Disk::raw(path) };
    let mut qcow = None;
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option.split_once('=').unwrap_or((option, "")) {
            ("ro", "") => disk.read_only = true,
            ("sync" | "direct", "") => disk.sync = true,
            ("sectorsize", size) => disk.sector_size = Some(size.parse().ok()?),
            ("format", "raw") => {}
            ("format", "qcow") => qcow = Some(qcow.unwrap_or_default()),
            ("qcow-stats-config", stats) => qcow.get_or_insert_with(Qcow::default).stats = Some(stats.to_owned()),
            ("qcow-config", config) => {
                let qcow = qcow.get_or_insert_with(Qcow::default);
                for key in config.split(';') {
                    match key.split_once('=')? {
                        ("discard", value) => disk.trim = value.parse().ok()?,
                        ("compact_after_unmaps", value) => qcow.compact_after = value.parse().ok()?,
                        ("keep_erased", value) => qcow.keep_erased = value.parse().ok()?,
                        ("runtime_asserts", value) => qcow.runtime_asserts = value.parse().ok()?,
                        _ => return None,
                    }
                }
            }
            _ => return None,
        }
    }
    if let Some(mut qcow) = qcow {
        if let Some(url) = path.strip_prefix("file://") {
            let (path, query) = url.split_once('?').unwrap_or((url, ""));
            disk.path = Some(unescaped(path)?.into());
            for key in query.split('&').filter(|key| !key.is_empty()) {
                match key.split_once('=')? {
                    ("sync", word) => qcow.on_flush = OnFlush::from_word(word)?,
                    ("buffered", "1") => {}
                    _ => return None,
                }
            }
        }
        disk.format = Some(Format::Qcow2(qcow));
    }
    Some(disk)
}

/// The inverse of [`url`](super::arguments::url).
fn unescaped(url: &str) -> Option<String> {
    let mut parts = url.split('%');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        bytes.push(u8::from_str_radix(part.get(..2)?, 16).ok()?);
        bytes.extend(part.get(2..)?.bytes());
    }
    String::from_utf8(bytes).ok()
}

/// The serial ports, com1 first, if their files are where they should be.
fn ports(serials: &BTreeMap<String, String>, state_dir: Option<&Path>) -> Option<Vec<Port>> {
    let file = |path: &'_ str| -> Option<String> {
        let path = cleaned(Path::new(path));
        let name = path.strip_prefix(cleaned(state_dir?)).ok()?.to_str()?;
        Some(name.to_owned())
    };
    let port = |value: &String| {
        let (name, parts) = value.split_once(',')?;
        let (mut line, mut log, mut asl) = (None, None, false);
        for part in parts.split(',') {
            match part.split_once('=') {
                None if part == "asl" => asl = true,
                None if part == "null" || part == "stdio" => line = Some(part.to_owned()),
                Some(("autopty", path)) => line = Some(file(path)?),
                Some(("log", path)) => log = Some(file(path)?),
                _ => return None,
            }
        }
        Port::named(name, line.as_deref(), log.as_deref(), asl)
    };
    serials.values().map(port).collect()
}

/// `path` as Go cleans it, without looking at any file.
fn cleaned(path: &Path) -> PathBuf {
    let mut cleaned = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir if matches!(cleaned.components().next_back(), Some(Component::Normal(_))) => {
                cleaned.pop();
            }
            other => cleaned.push(other),
        }
    }
    cleaned
}

/// Only the first three commas separate.
fn read_firmware(firmware: &str, machine: &mut HyperKit) -> Result<String> {
    let mut parts = firmware.splitn(4, ',');
    let mut next = || parts.next().unwrap_or_default();
    let (kind, file, second, cmdline) = (next(), next(), next(), next());
    let path = |text: &str| (!text.is_empty()).then(|| PathBuf::from(text));
    match kind {
        "kexec" => {
            (machine.kernel, machine.initrd) = (path(file), path(second));
            let after = cmdline.strip_prefix(EARLY_CONSOLE).filter(|rest| rest.is_empty() || rest.starts_with(' '));
            return Ok(after.map_or(cmdline, |rest| rest.strip_prefix(' ').unwrap_or(rest)).to_owned());
        }
        "bootrom" => machine.bootrom = path(file),
        "multiboot" => {
            let modules = second.split(':').filter(|module| !module.is_empty());
            let modules = modules.map(|module| module.split_once(';').unwrap_or((module, "")));
            let kernel = Multiboot::new(file);
            machine.multiboot = Some(modules.fold(kernel, |kernel, (path, args)| kernel.module(path, args)));
            return Ok(cmdline.to_owned());
        }
        _ => return foreign(firmware, "`-f` must be given, with kexec, bootrom or multiboot"),
    }
    Ok(String::new())
}
