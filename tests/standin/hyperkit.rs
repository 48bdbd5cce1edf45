//! Stands in for the macOS `hyperkit` command where that cannot be had: the same options, files, locks, exit codes and
//! signals, and a guest that is a few words on the kernel command line:
//!
//! `guest.exit=CODE` ends by itself (0 power-off, 2 reset, 3 triple fault) · `guest.no-acpi` never listens to the power
//! button · `guest.deaf` listens and does nothing · `guest.say=TEXT` on the console · `vmm.say=LINE|LINE`, `vmm.die=CODE`
//! (before the serial ports are there), `vmm.die-early=CODE` (before the pid file), `vmm.half-pid-file` (while it is
//! written), `vmm.no-pid-file`, `vmm.no-stdout` and `vmm.flood=MIB` are about the program itself.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{abort, exit};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FlockOperation, OFlags, fcntl_getfl, fcntl_setfl, flock};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use signal_hook::consts::{SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;

const RING: usize = 65536;

/// What a normal exit, with whatever code, undoes; a signal or an abort does not.
static PID_FILE: OnceLock<PathBuf> = OnceLock::new();
static TERMINAL: OnceLock<Termios> = OnceLock::new();

fn leave(code: i32) -> ! {
    if let Some(path) = PID_FILE.get() {
        let _ = fs::remove_file(path);
    }
    if let Some(settings) = TERMINAL.get() {
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, settings);
    }
    exit(code)
}

fn fail_with(code: i32, message: impl std::fmt::Display) -> ! {
    eprintln!("{message}");
    leave(code)
}

/// Prints a line and ends as hyperkit does after an error.
fn fail(message: impl std::fmt::Display) -> ! {
    fail_with(1, message)
}

fn main() {
    let options = Options::parse();
    let word =
        |name: &str| options.guest.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    let has = |name: &str| options.guest.split_whitespace().any(|word| word == name);
    if let Some(code) = word("vmm.die-early") {
        fail_with(code.parse().unwrap_or(1), "dying early");
    }
    if has("vmm.half-pid-file") {
        let _ = options.pid_file.as_ref().map(File::create);
        abort();
    }
    if has("vmm.no-stdout") {
        let nowhere = OpenOptions::new().write(true).open("/dev/null").unwrap_or_else(|error| fail(error));
        let _ = rustix::stdio::dup2_stdout(&nowhere);
        let _ = rustix::stdio::dup2_stderr(&nowhere);
    }
    if !has("vmm.no-pid-file") {
        options.write_pid_file();
    }
    if options.uuid.as_ref().is_some_and(|uuid| !is_uuid(uuid)) {
        abort();
    }
    let mut held = Vec::new(); // open files whose locks have to last
    for (slot, device) in &options.slots {
        set_up(*slot, device, &mut held);
    }
    if let Some(text) = word("vmm.say") {
        println!("{}", text.replace('|', "\n"));
    }
    if let Some(code) = word("vmm.die") {
        fail_with(code.parse().unwrap_or(1), "dying");
    }
    let console = Arc::new(Mutex::new(Console::open(&options.com1)));
    load_kernel(&options);

    // The guest runs from here on: before, these signals would have killed.
    let mut signals = Signals::new([SIGUSR1, SIGUSR2]).unwrap_or_else(|error| fail(error));
    if !has("guest.no-acpi") {
        signals.add_signal(SIGTERM).unwrap_or_else(|error| fail(error));
    }
    let say = |text: &str| console.lock().unwrap().write(text.as_bytes());
    say(&format!("Linux version 0 (stand-in)\r\nCommand line: {}\r\n", options.guest));
    if let Some(text) = word("guest.say") {
        say(&format!("{text}\r\n"));
    }
    if let Some(mebibytes) = word("vmm.flood") {
        let line = [vec![b'x'; 4095], vec![b'\n']].concat().repeat(256);
        (0..mebibytes.parse().unwrap_or(0))
            .for_each(|_| io::stdout().write_all(&line).unwrap_or_else(|error| fail(error)));
    }
    if let Some(code) = word("guest.exit") {
        leave(code.parse().unwrap_or(100));
    }
    Console::echo(console.clone());
    for signal in signals.forever() {
        match signal {
            SIGTERM if has("guest.deaf") => say("power button, ignored\r\n"),
            SIGTERM => {
                say("power button\r\n");
                leave(0);
            }
            SIGUSR1 => say("paused\r\n"),
            _ => say("resumed\r\n"),
        }
    }
}

/// What the options say, the last of each winning.
#[derive(Default)]
struct Options {
    pid_file: Option<PathBuf>,
    uuid: Option<String>,
    slots: BTreeMap<u8, String>,
    com1: String,
    firmware: String,
    /// The kernel command line.
    guest: String,
}

impl Options {
    fn parse() -> Self {
        let mut options = Self { com1: "null".to_owned(), ..Self::default() };
        let mut args = std::env::args().skip(1).peekable();
        // getopt ends at the first operand.
        while let Some(arg) = args.next_if(|arg| arg.starts_with('-')) {
            let mut letters = arg[1..].chars();
            while let Some(letter) = letters.next() {
                if "behvuwxMACHPW".contains(letter) {
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
        if options.slots.get(&31).map(String::as_str) != Some("lpc") {
            fail("lpc bridge must be at slot 31");
        }
        options
    }

    fn set(&mut self, option: char, value: String) {
        match option {
            'F' => self.pid_file = Some(value.into()),
            'U' => self.uuid = Some(value),
            'c' if !(1..=64).contains(&value.parse().unwrap_or(0)) => fail("invalid number of vcpus"),
            'm' => match value.strip_suffix('M').and_then(|count| count.parse::<u64>().ok()) {
                Some(1..) if !value.starts_with('0') => {}
                _ => fail_with(64, "invalid memsize"),
            },
            'l' => match value.strip_prefix("com1,") {
                Some(com1) => self.com1 = com1.to_owned(),
                None => fail_with(64, "invalid lpc device configuration"),
            },
            's' => {
                let Some((place, device)) = value.split_once(',') else { fail("invalid slot") };
                let (slot, function) = place.split_once(':').unwrap_or((place, "0"));
                match (slot.parse(), function.parse()) {
                    (Ok(slot @ 0..=31), Ok(0_u8..=7)) => {
                        if self.slots.insert(slot, device.to_owned()).is_some() {
                            fail(format!("pci slot {slot}:{function} already occupied!"));
                        }
                    }
                    _ => fail("invalid slot"),
                }
            }
            'f' => {
                self.guest = value.splitn(4, ',').nth(3).unwrap_or_default().to_owned();
                self.firmware = value;
            }
            _ => {}
        }
    }

    fn write_pid_file(&self) {
        let Some(path) = &self.pid_file else { return };
        let file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(path);
        match file.and_then(|mut file| write!(file, "{}", std::process::id())) {
            Ok(()) => PID_FILE.set(path.clone()).unwrap_or_default(),
            Err(_) => fail("Failed to set up pidfile\npidfile error -1"),
        }
    }
}

fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text
            .char_indices()
            .all(|(at, c)| if [8, 13, 18, 23].contains(&at) { c == '-' } else { c.is_ascii_hexdigit() })
}

fn option<'a>(config: &'a str, name: &str) -> Option<&'a str> {
    config.split(',').find_map(|option| option.strip_prefix(name)?.strip_prefix('='))
}

fn set_up(slot: u8, device: &str, held: &mut Vec<File>) {
    let (driver, config) = device.split_once(',').unwrap_or((device, ""));
    match driver {
        "hostbridge" | "lpc" | "virtio-rnd" => {}
        "virtio-blk" | "ahci-hd" | "ahci-cd" => {
            let path = config.split(',').next().unwrap_or_default();
            let read_only = driver == "ahci-cd" || config.split(',').any(|option| option == "ro");
            let opened = OpenOptions::new().read(true).write(!read_only).open(path);
            let file = opened.unwrap_or_else(|_| fail(format!("Could not open backing file: {path}")));
            let lock = if read_only {
                FlockOperation::NonBlockingLockShared
            } else {
                FlockOperation::NonBlockingLockExclusive
            };
            if flock(&file, lock).is_err() {
                fail(format!("Could not lock backing file: {path}"));
            }
            held.push(file);
        }
        "virtio-sock" => vsock(config),
        "virtio-vpnkit" => {
            // With nobody listening it tries for ever.
            let path = option(config, "path").unwrap_or_else(|| abort());
            while UnixStream::connect(path).is_err() {
                std::thread::sleep(Duration::from_millis(100));
            }
        }
        "virtio-9p" => match (option(config, "path"), option(config, "port")) {
            (Some(_), None) | (None, Some(_)) => {}
            _ => fail("virtio-9p: exactly one of path and port"),
        },
        _ => fail(format!("pci slot {slot}: unknown device \"{driver}\"")),
    }
}

/// The sockets outlive the program; old ones are replaced.
fn vsock(config: &str) {
    let cid: u32 = option(config, "guest_cid").and_then(|cid| cid.parse().ok()).unwrap_or(0);
    let dir = Path::new(option(config, "path").unwrap_or_default());
    if !(3..=0x7fff_ffff).contains(&cid) || !dir.is_dir() || dir.as_os_str().len() > 85 {
        fail("virtio-sock: bad configuration");
    }
    let listen = |name: &str| {
        let _ = fs::remove_file(dir.join(name));
        std::mem::forget(UnixListener::bind(dir.join(name)).unwrap_or_else(|error| fail(error)));
    };
    listen("connect");
    let ports: Vec<u32> = match option(config, "guest_forwards") {
        Some(ports) => ports.split(';').map(|port| port.parse().unwrap_or_else(|_| fail("bad port"))).collect(),
        None => Vec::new(),
    };
    if ports.len() > 4 {
        fail("virtio-sock: too many forwarded ports");
    }
    for port in ports {
        let name = format!("{cid:08x}.{port:08x}");
        listen(&name);
        let link = dir.join(format!("guest.{port:08x}"));
        let _ = fs::remove_file(&link);
        symlink(&name, link).unwrap_or_else(|error| fail(error));
    }
}

/// kexec takes a bzImage with a header that says so, and no empty initrd.
fn load_kernel(options: &Options) {
    let mut parts = options.firmware.splitn(4, ',');
    let refuse = || -> ! {
        eprintln!("kexec: failed to load kernel");
        abort()
    };
    if parts.next() != Some("kexec") {
        fail("unknown firmware");
    }
    let kernel = parts.next().and_then(|path| fs::read(path).ok()).unwrap_or_else(|| refuse());
    if kernel.get(0x1fe..0x206).is_none_or(|header| &header[..2] != b"\x55\xaa" || &header[4..] != b"HdrS") {
        refuse();
    }
    if parts.next().is_some_and(|path| !path.is_empty() && fs::metadata(path).map_or(0, |initrd| initrd.len()) == 0) {
        refuse();
    }
}

/// The first serial port.
struct Console {
    out: Box<dyn Write + Send>,
    input: Option<OwnedFd>,
    ring: Option<(File, usize)>,
    _slave: Option<OwnedFd>,
}

impl Console {
    fn open(config: &str) -> Self {
        let mut console = Self { out: Box::new(io::sink()), input: None, ring: None, _slave: None };
        for part in config.split(',') {
            match part.split_once('=').unwrap_or((part, "")) {
                ("null" | "asl", "") => {}
                ("stdio", "") => console.take_stdio(),
                ("autopty", path) => console.make_pty(Path::new(path)),
                ("log", path) => {
                    let file = File::create(path).and_then(|file| file.set_len(RING as u64).map(|()| file));
                    console.ring = Some((file.unwrap_or_else(|error| fail(error)), 0));
                }
                _ => fail_with(64, "invalid lpc device configuration"),
            }
        }
        console
    }

    fn take_stdio(&mut self) {
        self.out = Box::new(io::stdout());
        self.input = io::stdin().as_fd().try_clone_to_owned().ok();
        // The caller's own open file, too.
        if let Ok(flags) = fcntl_getfl(io::stdin()) {
            let _ = fcntl_setfl(io::stdin(), flags | OFlags::NONBLOCK);
        }
        if let Ok(settings) = tcgetattr(io::stdin()) {
            let mut raw = settings.clone();
            raw.make_raw();
            let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &raw);
            let _ = TERMINAL.set(settings);
        }
    }

    fn make_pty(&mut self, file: &Path) {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap_or_else(|error| fail(error));
        grantpt(&master).and_then(|()| unlockpt(&master)).unwrap_or_else(|error| fail(error));
        let name = ptsname(&master, Vec::new()).unwrap_or_else(|error| fail(error));
        let name = name.to_string_lossy().into_owned();
        // Held open, so that reading does not end when the last visitor has left.
        let slave = OpenOptions::new().read(true).write(true).open(&name).unwrap_or_else(|error| fail(error));
        let mut raw = tcgetattr(&slave).unwrap_or_else(|error| fail(error));
        raw.make_raw();
        let _ = tcsetattr(&slave, OptionalActions::Now, &raw);
        self._slave = Some(slave.into());
        // What nobody takes is lost, and blocks nobody.
        let flags = fcntl_getfl(&master).unwrap_or_else(|error| fail(error));
        fcntl_setfl(&master, flags | OFlags::NONBLOCK).unwrap_or_else(|error| fail(error));
        self.input = master.try_clone().ok();
        self.out = Box::new(File::from(master));
        let _ = fs::remove_file(file);
        fs::write(file, &name).unwrap_or_else(|error| fail(error)); // no newline
        println!("COM1 connected to {name}");
    }

    fn write(&mut self, bytes: &[u8]) {
        let _ = self.out.write_all(bytes).and_then(|()| self.out.flush());
        if let Some((ring, at)) = &mut self.ring {
            for byte in bytes {
                let _ = ring.write_at(&[*byte], (*at % RING) as u64);
                *at += 1;
            }
        }
    }

    /// A guest that repeats what it is told.
    fn echo(console: Arc<Mutex<Self>>) {
        let Some(input) = console.lock().unwrap().input.take() else { return };
        std::thread::spawn(move || {
            let (mut input, mut buffer) = (File::from(input), [0; 1024]);
            while poll(&mut [PollFd::new(&input, PollFlags::IN)], None).is_ok() {
                match input.read(&mut buffer) {
                    Ok(length @ 1..) => console.lock().unwrap().write(&buffer[..length]),
                    _ => return,
                }
            }
        });
    }
}
