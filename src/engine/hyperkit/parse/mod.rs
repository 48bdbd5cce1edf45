//! The way back: from the arguments of `hyperkit` to the description of a machine.

mod devices;

pub(super) use devices::unescaped;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};

use crate::config::{HyperKit, Multiboot};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::plan::kernel_cmdline::given_command_line;
use crate::plan::serial_ports::fields;
use crate::plan::serial_ports::{ALL_LOGS, ALL_TTYS, Line, NAMES, Port};
use crate::plan::validate::description;
use crate::state::PID_FILE;

/// What hyperkit gives a machine that does not say, in MiB.
const DEFAULT_MEMORY: u64 = 256;
/// What it boots where nothing is said.
const DEFAULT_CMDLINE: &str = "auto";
/// Whatever else stands in a slot, it refuses.
const DRIVERS: [&str; 12] = [
    "ahci-cd",
    "ahci-hd",
    "hostbridge",
    "lpc",
    "uart",
    "virtio-9p",
    "virtio-blk",
    "virtio-net",
    "virtio-rnd",
    "virtio-sock",
    "virtio-tap",
    "virtio-vpnkit",
];

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
        machine.hyperkit = path(program);
    }
    let Options { has_acpi, pid_file, slots, serials, firmware } = Options::read(arguments, &mut machine)?;
    let device_in = |slot: u8| slots.get(&(0, slot, 0)).map(|value| device(value));
    for (missing, is_there) in [
        ("-A", has_acpi),
        ("-s 0:0,hostbridge", device_in(0) == Some("hostbridge")),
        ("-s 31,lpc", device_in(31) == Some("lpc")),
        ("-f", firmware.is_some()),
    ] {
        if !is_there {
            return foreign(missing, "it must be given");
        }
    }
    let firmware = firmware.unwrap_or_default();
    let cmdline = read_firmware(&firmware, &mut machine)?;
    startable(&machine, &firmware)?;
    if let Some(file) = pid_file {
        machine.state_dir = state_dir(Path::new(&file));
        if machine.state_dir.is_none() || startable(&machine, &file).is_err() {
            machine.state_dir = None;
            extra(&mut machine, "-F", &file);
        }
    }
    devices::read(&slots, &mut machine);
    match with_serials(&serials, &machine) {
        Some(with_serials) => machine = with_serials,
        None => {
            machine.serials = Some(Vec::new());
            serials.values().for_each(|serial| extra(&mut machine, "-l", serial));
        }
    }
    match machine.arguments(&cmdline) {
        Ok(_) => Ok((machine, cmdline)),
        Err(error) => foreign(&firmware, error.to_string()),
    }
}

fn foreign<T>(argument: &str, reason: impl Into<String>) -> Result<T> {
    Err(Error::ForeignArguments { argument: argument.to_owned(), reason: reason.into() })
}

/// Whether the machine, as far as it is described yet, passes the checks: after `argument` it may not.
fn startable(machine: &HyperKit, argument: &str) -> Result<()> {
    let has_firmware = machine.kernel.is_some() || machine.bootrom.is_some() || machine.multiboot.is_some();
    let mut machine = machine.clone();
    if !has_firmware {
        machine.kernel = Some("to come".into());
    }
    description(&machine).or_else(|error| foreign(argument, error.to_string()))
}

fn extra(machine: &mut HyperKit, option: &str, value: &str) {
    machine.extra_arguments.extend([option.to_owned(), value.to_owned()]);
}

/// What stands behind `-s`, by bus, slot and function.
type Slots = BTreeMap<(u8, u8, u8), String>;

/// The options that need to be looked at together.
#[derive(Default)]
struct Options {
    has_acpi: bool,
    pid_file: Option<String>,
    slots: Slots,
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
                    startable(machine, value)?;
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
                let port = value.split(',').next().unwrap_or_default().to_ascii_lowercase();
                if !NAMES.contains(&port.as_str()) {
                    return foreign(value, "the serial ports are com1 and com2");
                }
                self.serials.insert(port, value.to_owned());
            }
            's' => {
                let place = value.split(',').next().unwrap_or_default();
                let numbers = place.split(':').map(|number| number.parse::<u8>().ok()).collect::<Option<Vec<_>>>();
                let place = match numbers.as_deref() {
                    Some(&[slot]) => (0, slot, 0),
                    Some(&[slot, function]) => (0, slot, function),
                    Some(&[bus, slot, function]) => (bus, slot, function),
                    _ => return foreign(value, "it must begin with a PCI slot"),
                };
                if place.1 > 31 || place.2 > 7 {
                    return foreign(value, "PCI slots are 0 to 31, and functions 0 to 7");
                }
                if !DRIVERS.contains(&device(value).split(',').next().unwrap_or_default()) {
                    return foreign(value, "hyperkit knows no such device");
                }
                if self.slots.insert(place, value.to_owned()).is_some() {
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

fn number<T: std::str::FromStr>(value: &str, reason: &str) -> Result<T> {
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

/// The directory of a pid file that has the name it should.
fn state_dir(pid_file: &Path) -> Option<PathBuf> {
    let dir = pid_file.parent().filter(|_| pid_file.file_name() == Some(OsStr::new(PID_FILE)))?;
    Some(if dir.as_os_str().is_empty() { Path::new(".") } else { dir }.to_owned())
}

/// What stands behind the slot.
fn device(value: &str) -> &str {
    value.split_once(',').map_or("", |(_, device)| device)
}

/// The machine with its serial ports, if fields can say them: their files must be where they should.
fn with_serials(serials: &BTreeMap<String, String>, machine: &HyperKit) -> Option<HyperKit> {
    let known_in_state_dir = |known: &[&'static str], path: &str| {
        let path = cleaned(Path::new(path));
        let name = path.strip_prefix(cleaned(machine.state_dir.as_deref()?)).ok()?;
        known.iter().find(|known| Path::new(known) == name).copied()
    };
    let port = |(name, value): (&String, &String)| {
        let name = *NAMES.iter().find(|known| *known == name)?;
        let (mut lines, mut logs, mut asl) = (Vec::new(), Vec::new(), false);
        for part in value.split(',').skip(1) {
            match part.split_once('=') {
                None if part == "asl" => asl = true,
                None if part == "null" => lines.push(Line::None),
                None if part == "stdio" => lines.push(Line::Stdio),
                Some(("autopty", path)) => lines.push(Line::Tty(known_in_state_dir(&ALL_TTYS, path)?)),
                Some(("log", path)) => logs.push(known_in_state_dir(&ALL_LOGS, path)?),
                _ => return None,
            }
        }
        // Of two the one leaves a file, and the other counts.
        match (&lines[..], logs.len()) {
            (&[line], 0 | 1) => Some(Port { name, line, log: logs.pop(), asl }),
            _ => None,
        }
    };
    let ports = serials.iter().map(port).collect::<Option<Vec<_>>>()?;
    let (console, serials) = fields(&ports)?;
    let machine = HyperKit { console, serials, ..machine.clone() };
    startable(&machine, "-l").is_ok().then_some(machine)
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

fn path(text: &str) -> Option<PathBuf> {
    (!text.is_empty()).then(|| text.into())
}

/// The kernel command line in what stands behind `-f`.
pub(crate) fn command_line(firmware: &str) -> Option<String> {
    read_firmware(firmware, &mut HyperKit::default()).ok()
}

/// Only the first three commas separate.
fn read_firmware(firmware: &str, machine: &mut HyperKit) -> Result<String> {
    let mut parts = firmware.splitn(4, ',');
    let mut next = || parts.next().unwrap_or_default();
    let (kind, file, second, cmdline) = (next(), next(), next(), next());
    match kind {
        "kexec" => {
            (machine.kernel, machine.initrd) = (path(file), path(second));
            let cmdline = if cmdline.is_empty() { DEFAULT_CMDLINE } else { cmdline };
            return Ok(given_command_line(cmdline).to_owned());
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
