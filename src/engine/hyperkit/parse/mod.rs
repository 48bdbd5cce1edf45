//! The way back: from the arguments of `hyperkit` to a description.

mod devices;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use crate::config::{HyperKit, Multiboot};
use crate::engine::{self, Engine};
use crate::error::{ConfigError, Error, Result};
use crate::plan::kernel_cmdline::without_early_console;
use crate::plan::serial_ports::fields;
use crate::plan::serial_ports::{ALL_LOGS, ALL_TTYS, Line, NAMES, Port};
use crate::plan::validate::validate;
use crate::state::PID_FILE;
use crate::sys::path::clean;

/// hyperkit's default memory, in MiB.
const HYPERKIT_DEFAULT_MEMORY_MIB: u64 = 256;
/// hyperkit's default kernel command line.
const DEFAULT_CMDLINE: &str = "auto";
/// The devices that hyperkit knows.
const DEVICES: [&str; 12] = [
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

/// Reads arguments of hyperkit, and returns the description and the kernel command line that have these arguments. It is the
/// inverse of [`HyperKit::arguments`].
///
/// The first argument may be the program. Options may come in any order. If an option comes twice, the last one counts, as for
/// hyperkit. An argument that no field can express becomes one of
/// [`extra_arguments`](HyperKit#structfield.extra_arguments), such as a device in an unusual slot. So the description starts the
/// same VM. The directory of the pid file becomes the state directory. So a VM that another program has started can be found:
///
/// ```
/// use hyperkit::parse_arguments;
///
/// let (description, cmdline) = parse_arguments(&[
///     "/usr/local/bin/hyperkit", "-A", "-u", "-F", "/vm/hyperkit.pid", "-c", "2", "-m", "2G", "-s", "0:0,hostbridge", "-s",
///     "31,lpc", "-s", "1:0,virtio-blk,/vm/root.img", "-s", "2,virtio-rnd", "-l", "com1,stdio", "-f",
///     "kexec,/vm/vmlinuz,/vm/initrd.img,earlyprintk=serial console=ttyS0",
/// ])?;
/// assert_eq!((description.cpus, description.memory_mib, cmdline.as_str()), (2, 2048, "console=ttyS0"));
/// assert_eq!(description.state_dir.as_deref(), Some("/vm".as_ref()));
/// let running = description.vm()?; // `None` if the VM does not run
/// # assert!(running.is_none());
/// # Ok::<(), hyperkit::Error>(())
/// ```
///
/// The kernel command line is returned without the `earlyprintk=serial` that [`HyperKit::arguments`] adds. If the command
/// line had none, `arguments` adds none to this description.
///
/// # Errors
/// [`Error::InvalidArguments`] if hyperkit would refuse the arguments, if it would ignore some of them (it stops at the first word
/// that belongs to no option), or if this crate cannot start such a VM. A line of `ps` that is split at its blanks is such a case: the
/// kernel command line is one argument. What becomes an extra argument is not checked further.
/// [`ConfigError::Unsupported`] if the program is not hyperkit.
pub fn parse_arguments<S: AsRef<str>>(arguments: &[S]) -> Result<(HyperKit, String)> {
    let mut arguments = arguments.iter().map(AsRef::as_ref).peekable();
    let mut description =
        HyperKit { utc: false, random: false, memory_mib: HYPERKIT_DEFAULT_MEMORY_MIB, ..HyperKit::default() };
    if let Some(program) = arguments.next_if(|first| !first.starts_with('-')) {
        let engine = Engine::of(program);
        if engine != Engine::HyperKit {
            return Err(ConfigError::Unsupported { engine, feature: "being read by `parse_arguments`" }.into());
        }
        description.hyperkit = path(program);
    }
    let Options { has_acpi, pid_file, slots, serials, firmware } = Options::read(arguments, &mut description)?;
    let device_in = |slot: u8| slots.get(&(0, slot, 0)).map(|value| device(value));
    for (missing, is_there) in [
        ("-A", has_acpi),
        ("-s 0:0,hostbridge", device_in(0) == Some("hostbridge")),
        ("-s 31,lpc", device_in(31) == Some("lpc")),
        ("-f", firmware.is_some()),
    ] {
        if !is_there {
            return invalid(missing, "this option is required");
        }
    }
    let firmware = firmware.unwrap_or_default();
    let cmdline = read_firmware(&firmware, &mut description)?;
    check_so_far(&description, &firmware)?;
    if let Some(file) = pid_file {
        description.state_dir = state_dir(Path::new(&file));
        if description.state_dir.is_none() || check_so_far(&description, &file).is_err() {
            description.state_dir = None;
            extra(&mut description, "-F", &file);
        }
    }
    description.record.home.is_from_arguments = true;
    devices::read(&slots, &mut description)?;
    match with_serials(&serials, &description) {
        Some(with_serials) => description = with_serials,
        None => {
            description.serials = Some(Vec::new());
            serials.values().for_each(|serial| extra(&mut description, "-l", serial));
        }
    }
    match engine::arguments(&description, &cmdline) {
        Ok(_) => Ok((description, cmdline)),
        Err(error) => invalid(&firmware, error.to_string()),
    }
}

fn invalid<T>(argument: &str, reason: impl Into<String>) -> Result<T> {
    Err(Error::InvalidArguments { argument: argument.to_owned(), reason: reason.into() })
}

/// Checks the part of the description that was read so far. If it is not valid, the error names `argument`.
fn check_so_far(description: &HyperKit, argument: &str) -> Result<()> {
    let has_boot_source =
        description.kernel.is_some() || description.bootrom.is_some() || description.multiboot.is_some();
    let mut description = description.clone();
    if !has_boot_source {
        description.kernel = Some("not yet known".into());
    }
    match validate(&description).into_iter().next() {
        Some(violation) => invalid(argument, violation.to_string()),
        None => Ok(()),
    }
}

fn extra(description: &mut HyperKit, option: &str, value: &str) {
    description.extra_arguments.extend([option.to_owned(), value.to_owned()]);
}

/// The values of `-s`, by bus, slot and function.
type Slots = BTreeMap<(u8, u8, u8), String>;

/// The options that take a value.
pub(super) const OPTIONS_WITH_VALUE: &str = "YfFgcsmlU";

/// What `-f` can boot, as hyperkit's firmware.c names it.
const FIRMWARE_KINDS: [&str; 4] = ["kexec", "bootrom", "multiboot", "fbsd"];

/// Whether this is a value of `-f`.
pub(super) fn is_firmware(value: &OsStr) -> bool {
    let kind = value.as_encoded_bytes().split(|&byte| byte == b',').next().unwrap_or_default();
    FIRMWARE_KINDS.iter().any(|known| known.as_bytes() == kind)
}

/// Whether hyperkit could accept this value of an option. The command in `sh -c COMMAND` is not a number of vCPUs.
pub(super) fn is_plausible_value(option: char, value: &OsStr) -> bool {
    let value = value.as_encoded_bytes();
    match option {
        'c' | 'g' => !value.is_empty() && value.iter().all(u8::is_ascii_digit),
        'm' => value.first().is_some_and(u8::is_ascii_digit) && value.iter().all(u8::is_ascii_alphanumeric),
        's' => value.first().is_some_and(u8::is_ascii_digit) && value.contains(&b','),
        _ => true,
    }
}

/// Options that only make sense together.
#[derive(Default)]
struct Options {
    has_acpi: bool,
    pid_file: Option<String>,
    slots: Slots,
    /// The values of `-l`, by port.
    serials: BTreeMap<String, String>,
    firmware: Option<String>,
}

impl Options {
    /// Reads options as getopt does: letters may share a dash, a value may follow its letter directly. An operand ends the options.
    /// hyperkit ignores the operand and all words after it, so an operand is an error here.
    fn read<'a>(
        mut arguments: std::iter::Peekable<impl Iterator<Item = &'a str>>,
        description: &mut HyperKit,
    ) -> Result<Self> {
        let mut options = Self::default();
        let is_option = |argument: &&str| argument.starts_with('-') && !["-", "--"].contains(argument);
        while let Some(argument) = arguments.next_if(is_option) {
            for (at, letter) in argument.char_indices().skip(1) {
                if OPTIONS_WITH_VALUE.contains(letter) {
                    let rest = &argument[at + 1..];
                    let value = if rest.is_empty() { arguments.next() } else { Some(rest) };
                    let Some(value) = value else { return invalid(argument, "this option requires a value") };
                    options.set(letter, value, description)?;
                    check_so_far(description, value)?;
                    break;
                }
                options.switch(letter, argument, description)?;
            }
        }
        arguments.next_if_eq(&"--");
        match arguments.next() {
            // Often the rest of a value that was split at a blank.
            Some(operand) => invalid(operand, "hyperkit reads no option from here on; pass each value as one argument"),
            None => Ok(options),
        }
    }

    fn switch(&mut self, letter: char, argument: &str, description: &mut HyperKit) -> Result<()> {
        match letter {
            'A' => self.has_acpi = true,
            'u' => description.utc = true,
            'H' => description.exit_on_hlt = true,
            'P' => description.exit_on_pause = true,
            'x' => description.x2apic = true,
            'W' => description.msix = false,
            'C' => description.core_dumps = true,
            'b' | 'e' | 'w' => description.extra_arguments.push(format!("-{letter}")),
            'h' | 'v' | 'M' => return invalid(argument, "this option starts no VM"),
            _ => return invalid(argument, "unknown option"),
        }
        Ok(())
    }

    fn set(&mut self, letter: char, value: &str, description: &mut HyperKit) -> Result<()> {
        match letter {
            'Y' => description.mptable = false,
            'f' => self.firmware = Some(value.to_owned()),
            'F' => self.pid_file = Some(value.to_owned()),
            'U' => description.uuid = Some(value.to_owned()),
            'l' => {
                let port = value.split(',').next().unwrap_or_default().to_ascii_lowercase();
                if !NAMES.contains(&port.as_str()) {
                    return invalid(value, "serial ports are com1 and com2");
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
                    _ => return invalid(value, "must begin with a PCI slot"),
                };
                if place.1 > 31 || place.2 > 7 {
                    return invalid(value, "PCI slots are 0 to 31, functions 0 to 7");
                }
                if !DEVICES.contains(&device(value).split(',').next().unwrap_or_default()) {
                    return invalid(value, "unknown device");
                }
                if self.slots.insert(place, value.to_owned()).is_some() {
                    return invalid(value, "duplicate PCI slot");
                }
            }
            'g' => description.gdb_port = Some(number(value, "must be a port")?).filter(|&port| port != 0),
            'c' => description.cpus = number(value, "must be a number of vCPUs")?,
            _ => {
                description.memory_mib =
                    memory_mib(value).map_or_else(|| invalid(value, "must be memory in whole MiB"), Ok)?
            }
        }
        Ok(())
    }
}

fn number<T: std::str::FromStr>(value: &str, reason: &str) -> Result<T> {
    value.parse().or_else(|_| invalid(value, reason))
}

/// Memory as hyperkit reads it. Without a unit, a number below 1048576 is in MiB, and any other in bytes. A leading 0 means octal.
fn memory_mib(value: &str) -> Option<u64> {
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

/// The directory of a pid file with the usual name.
fn state_dir(pid_file: &Path) -> Option<PathBuf> {
    let dir = pid_file.parent().filter(|_| pid_file.file_name() == Some(OsStr::new(PID_FILE)))?;
    Some(if dir.as_os_str().is_empty() { Path::new(".") } else { dir }.to_owned())
}

/// The device after the slot.
fn device(value: &str) -> &str {
    value.split_once(',').map_or("", |(_, device)| device)
}

/// The description with its serial ports, if fields can express them. For that, their files must have the usual names in the
/// state directory.
fn with_serials(serials: &BTreeMap<String, String>, description: &HyperKit) -> Option<HyperKit> {
    let known_in_state_dir = |known: &[&'static str], path: &str| {
        let path = clean(Path::new(path));
        let name = path.strip_prefix(clean(description.state_dir.as_deref()?)).ok()?;
        known.iter().find(|known| Path::new(known) == name).copied()
    };
    let port = |(name, value): (&String, &String)| {
        let name = *NAMES.iter().find(|known| *known == name)?;
        let (mut lines, mut logs, mut apple_log) = (Vec::new(), Vec::new(), false);
        for part in value.split(',').skip(1) {
            match part.split_once('=') {
                None if part == "asl" => apple_log = true,
                None if part == "null" => lines.push(Line::None),
                None if part == "stdio" => lines.push(Line::Stdio),
                Some(("autopty", path)) => lines.push(Line::Pty(known_in_state_dir(&ALL_TTYS, path)?)),
                Some(("log", path)) => logs.push(known_in_state_dir(&ALL_LOGS, path)?),
                _ => return None,
            }
        }
        // hyperkit creates the files of two backends or logs, and uses the last.
        match (&lines[..], logs.len()) {
            (&[line], 0 | 1) => Some(Port { name, line, log: logs.pop(), apple_log }),
            _ => None,
        }
    };
    let ports = serials.iter().map(port).collect::<Option<Vec<_>>>()?;
    let (console, serials) = fields(&ports)?;
    let description = HyperKit { console, serials, ..description.clone() };
    check_so_far(&description, "-l").is_ok().then_some(description)
}

fn path(text: &str) -> Option<PathBuf> {
    (!text.is_empty()).then(|| text.into())
}

/// The kernel command line in the value of `-f`.
pub(super) fn cmdline(firmware: &str) -> Option<String> {
    read_firmware(firmware, &mut HyperKit::default()).ok()
}

/// Reads the value of `-f`, in which only the first three commas separate.
fn read_firmware(firmware: &str, description: &mut HyperKit) -> Result<String> {
    let mut parts = firmware.splitn(4, ',');
    let mut next = || parts.next().unwrap_or_default();
    let (kind, file, second, cmdline) = (next(), next(), next(), next());
    match kind {
        "kexec" => {
            (description.kernel, description.initrd) = (path(file), path(second));
            let cmdline = if cmdline.is_empty() { DEFAULT_CMDLINE } else { cmdline };
            let line = without_early_console(cmdline);
            description.record.home.lacks_early_console = line == cmdline;
            return Ok(line.to_owned());
        }
        "bootrom" => description.bootrom = path(file),
        "multiboot" => {
            let modules = second.split(':').filter(|module| !module.is_empty());
            let modules = modules.map(|module| module.split_once(';').unwrap_or((module, "")));
            let kernel = Multiboot::new(file);
            description.multiboot = Some(modules.fold(kernel, |kernel, (path, args)| kernel.module(path, args)));
            return Ok(cmdline.to_owned());
        }
        _ => return invalid(firmware, "`-f` requires kexec, bootrom or multiboot"),
    }
    Ok(String::new())
}
