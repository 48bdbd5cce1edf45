//! The options. Like hyperkit, reports the first error that `getopt` comes to.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::abort;

use crate::{fail, fail_with, leave, stdout};

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

const KIB: u64 = 1024;
pub const MIB: u64 = KIB * KIB;
pub const PAGE: u64 = 4096;

/// The address of a PCI device: slot and function, on bus 0.
type Place = (u8, u8);

/// The parsed options. If an option is repeated, the last one counts.
#[derive(Default)]
pub struct Options {
    pub pid_file: Option<PathBuf>,
    pub uuid: Option<String>,
    /// The devices by their addresses. They are set up in this order.
    pub slots: BTreeMap<Place, String>,
    /// The configurations of `com1` and `com2`.
    pub serials: [Option<String>; 2],
    pub firmware: Firmware,
    pub memory: u64,
    cpus: i64,
    prints_mac: bool,
}

/// `KIND,FIRST,SECOND,REST`. Only `REST` may contain commas. An empty part counts as missing.
#[derive(Default)]
pub struct Firmware {
    pub kind: String,
    pub file: String,
    /// The initrd or the modules.
    pub second: Option<String>,
    pub cmdline: Option<String>,
}

impl Options {
    pub fn parse() -> Self {
        let mut options = Self { cpus: 1, memory: 256 * MIB, ..Self::default() };
        let is_option = |arg: &String| arg.starts_with('-') && arg != "-" && arg != "--";
        let mut args = std::env::args().skip(1).peekable();
        // `getopt` stops at the first word that is no option.
        while let Some(arg) = args.next_if(is_option) {
            let mut letters = arg[1..].chars();
            while let Some(letter) = letters.next() {
                if "behvuwxMACHPW".contains(letter) {
                    options.switch(letter);
                    continue;
                }
                if !"YfFgcsmlU".contains(letter) {
                    fail(format!("hyperkit: illegal option -- {letter}"));
                }
                let rest = std::mem::replace(&mut letters, "".chars()).collect::<String>();
                let value = if rest.is_empty() { args.next() } else { Some(rest) };
                options.set(letter, value.unwrap_or_else(|| fail("hyperkit: option requires an argument")));
            }
        }
        if options.firmware.kind.is_empty() {
            fail("Usage: hyperkit … -f <fw>");
        }
        options
    }

    fn switch(&mut self, letter: char) {
        match letter {
            'M' => self.prints_mac = true,
            'h' => fail_with(0, "Try 'hyperkit --help' for more information."),
            'v' => {
                stdout::print("hyperkit: v0.20200908\n");
                leave(0);
            }
            _ => {} // no visible effect outside of the guest
        }
    }

    fn set(&mut self, letter: char, value: String) {
        match letter {
            'F' => self.pid_file = Some(value.into()),
            'U' => self.uuid = Some(value),
            'c' => self.cpus = value.parse().unwrap_or(0),
            'm' => {
                self.memory = memory(&value).unwrap_or_else(|| fail_with(64, format!("invalid memsize '{value}'")));
            }
            'l' => {
                let (name, config) = value.split_once(',').map_or((&*value, None), |(name, rest)| (name, Some(rest)));
                match ["com1", "com2"].iter().position(|known| known.eq_ignore_ascii_case(name)) {
                    Some(port) => self.serials[port] = config.map(str::to_owned),
                    None => fail_with(64, format!("invalid lpc device configuration '{value}'")),
                }
            }
            's' => {
                let Some((place, device)) = place(&value) else {
                    fail(format!("Invalid PCI slot info field \"{value}\""))
                };
                if self.slots.contains_key(&place) {
                    fail(format!("pci slot {}:{} already occupied!", place.0, place.1));
                }
                let driver = device.split(',').next().unwrap_or_default();
                if !DRIVERS.contains(&driver) {
                    fail(format!("pci slot {}:{}: unknown device \"{driver}\"", place.0, place.1));
                }
                self.slots.insert(place, device.to_owned());
            }
            'f' => self.firmware = Firmware::parse(&value),
            // `-g` accepts any value, and the value of `-Y` is ignored.
            _ => {}
        }
    }

    /// Checks the options as a whole, before the pid file is written.
    pub fn validate(&self) {
        if !(1..=64).contains(&self.cpus) {
            fail(format!("Invalid guest vCPUs ({})", self.cpus));
        }
        if self.memory % PAGE != 0 || self.memory < MIB + PAGE {
            fail("Unable to setup memory (22)");
        }
        let ram = sysinfo::MemoryRefreshKind::nothing().with_ram();
        let mut host = sysinfo::System::new();
        host.refresh_memory_specifics(ram);
        if self.memory > host.total_memory() {
            eprintln!("vmm_mem_alloc failed in mmap");
            abort();
        }
    }

    /// Sets up Apple's vmnet, whose MAC address follows from the UUID. With `-M`, prints the address and exits.
    pub fn set_up_vmnet(&self) {
        if self.uuid.as_ref().is_some_and(|uuid| !is_uuid(uuid)) {
            fail("virtio-net: invalid UUID");
        }
        if self.prints_mac {
            stdout::print("MAC: 02:00:00:00:00:01\n");
            leave(0);
        }
    }

    /// Returns the guest's command line.
    pub fn guest(&self) -> &str {
        match (&*self.firmware.kind, &self.firmware.cmdline) {
            ("bootrom", _) => "",
            ("kexec", None) => "auto",
            (_, cmdline) => cmdline.as_deref().unwrap_or_default(),
        }
    }
}

impl Firmware {
    fn parse(value: &str) -> Self {
        let mut parts = value.splitn(4, ',').map(str::to_owned);
        let mut next = || parts.next().filter(|part| !part.is_empty());
        match (next(), next(), next(), next()) {
            (Some(kind), Some(file), second, cmdline) if ["kexec", "bootrom", "multiboot"].contains(&kind.as_str()) => {
                Self { kind, file, second, cmdline }
            }
            _ => fail("Invalid firmware argument"),
        }
    }
}

/// Parses `SLOT`, `SLOT:FUNCTION` or `BUS:SLOT:FUNCTION`, and returns the text after the comma as well.
fn place(value: &str) -> Option<(Place, &str)> {
    let (place, device) = value.split_once(',')?;
    let numbers = place.split(':').map(|number| number.parse().ok()).collect::<Option<Vec<u8>>>()?;
    let (bus, slot, function) = match numbers[..] {
        [slot] => (0, slot, 0),
        [slot, function] => (0, slot, function),
        [bus, slot, function] => (bus, slot, function),
        _ => return None,
    };
    (bus == 0 && slot <= 31 && function <= 7).then_some(((slot, function), device))
}

/// Parses a number with a unit. As in C, a leading 0 means octal. Without a unit, a number is in MiB if it is less than 1
/// MiB in bytes, and in bytes otherwise.
fn memory(text: &str) -> Option<u64> {
    let (radix, digits) = match (text.strip_prefix("0x"), text.strip_prefix('0')) {
        (Some(digits), _) => (16, digits),
        (None, Some(_)) => (8, text),
        (None, None) => (10, text),
    };
    let (number, unit) = digits.split_at(digits.find(|c: char| !c.is_digit(radix)).unwrap_or(digits.len()));
    let number = u64::from_str_radix(number, radix).ok()?;
    let shift = match unit.to_ascii_lowercase().chars().next() {
        None if number < MIB => 20,
        None | Some('b') => 0,
        Some(unit) => 10 * (1 + u32::try_from("kmgtpe".find(unit)?).ok()?),
    };
    number.checked_mul(1_u64.checked_shl(shift)?)
}

/// Whether hyperkit knows the UUID's form and its variant, which the first bits of the fourth group say.
pub fn is_uuid(text: &str) -> bool {
    let is_right =
        |(at, c): (usize, char)| if [8, 13, 18, 23].contains(&at) { c == '-' } else { c.is_ascii_hexdigit() };
    text.len() == 36 && text.char_indices().all(is_right) && !"efEF".contains(char::from(text.as_bytes()[19]))
}
