//! A stand-in for the macOS command `hyperkit`. It has the same options, limits, files, locks, exit codes and signals, but
//! runs no guest. Instead it pretends that a guest runs. Words on the kernel command line control what the guest does:
//!
//! - `guest.exit=CODE`: exits after boot (0 power-off, 2 reset, 3 triple fault).
//! - `guest.no-acpi`: never turns on ACPI, so the power button kills the stand-in.
//! - `guest.deaf`: turns on ACPI, but ignores the power button.
//! - `guest.say=TEXT`: prints a text on the console.
//! - `guest.no-vsock`: has no driver for vsock, so connections to it wait.
//! - `guest.listens=DIR`: listens on the vsock ports for which DIR contains a socket, named by the port's number.
//! - `guest.slow-boot=MS`: turns its serial ports on only after this time.
//!
//! Other words control the stand-in itself:
//!
//! - `vmm.say=LINE|LINE`: prints lines on stderr.
//! - `vmm.print=LINE|LINE`: prints lines on stdout. hyperkit does not flush stdout: they appear at a normal exit.
//! - `vmm.die=CODE`: exits before the serial ports exist.
//! - `vmm.die-early=CODE`: exits before it writes its pid file.
//! - `vmm.half-pid-file`: aborts when it has created its pid file and not written it yet.
//! - `vmm.no-pid-file`: writes no pid file.
//! - `vmm.no-stdout`: closes stdout and stderr.
//! - `vmm.flood=MIB`: prints this many MiB on stdout.
//!
//! The guest prints on com1, and prints the input of com1 and com2 again on the same port. With a boot ROM there is no
//! kernel command line, and the guest runs until it is killed.

mod devices;
mod firmware;
mod options;
mod serial;
mod stdout;
mod vsock;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{abort, exit};
use std::sync::OnceLock;
use std::time::Duration;

use rustix::process::{Signal, getpid, kill_process};
use rustix::termios::{OptionalActions, Termios, tcsetattr};
use signal_hook::consts::{SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;

use firmware::load;
use options::{Options, is_uuid};
use serial::{Port, Shared};

/// What [`leave`] cleans up: the pid file, and the settings of the terminal. A signal or an abort leaves both.
static PID_FILE: OnceLock<PathBuf> = OnceLock::new();
static TERMINAL: OnceLock<Termios> = OnceLock::new();

fn leave(code: i32) -> ! {
    if let Some(path) = PID_FILE.get() {
        let _ = fs::remove_file(path);
    }
    if let Some(settings) = TERMINAL.get() {
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, settings);
    }
    stdout::flush();
    exit(code)
}

fn fail_with(code: i32, message: impl std::fmt::Display) -> ! {
    eprintln!("{message}");
    leave(code)
}

/// Prints a message and exits as hyperkit does after an error.
fn fail(message: impl std::fmt::Display) -> ! {
    fail_with(1, message)
}

/// Files that stay open while the VM runs.
#[derive(Default)]
struct Held {
    /// Disk images. Their locks mark them as in use.
    images: Vec<File>,
    /// The connection to VPNKit. When it is closed, the power button is pressed.
    vpnkit: Option<UnixStream>,
}

fn main() {
    let options = Options::parse();
    let words = options.guest().to_owned();
    let word = |name: &str| words.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    let has = |name: &str| words.split_whitespace().any(|word| word == name);
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
    options.validate();
    if !has("vmm.no-pid-file") {
        write_pid_file(&options);
    }
    let (mut held, mut ports) = (Held::default(), [Port::nowhere(), Port::nowhere()]);
    for device in options.slots.values() {
        let (driver, config) = device.split_once(',').unwrap_or((device, ""));
        if driver == "virtio-net" {
            options.set_up_vmnet();
        }
        if driver != "lpc" {
            devices::set_up(driver, config, &mut held);
            continue;
        }
        if let Some(text) = word("vmm.say") {
            eprintln!("{}", text.replace('|', "\n"));
        }
        if let Some(text) = word("vmm.print") {
            stdout::print(&format!("{}\n", text.replace('|', "\n")));
        }
        if let Some(code) = word("vmm.die") {
            fail_with(code.parse().unwrap_or(1), "dying");
        }
        ports = serial::open(&options.serials);
    }
    if options.uuid.as_ref().is_some_and(|uuid| !is_uuid(uuid)) {
        eprintln!("Assertion failed: (error == 0), function main");
        abort();
    }
    load(&options);

    // The guest runs from here on. Before that, each of these signals kills the process.
    let mut signals = Signals::new([SIGUSR1, SIGUSR2]).unwrap_or_else(|error| fail(error));
    if !has("guest.no-acpi") {
        signals.add_signal(SIGTERM).unwrap_or_else(|error| fail(error));
        held.vpnkit.into_iter().for_each(press_power_button_on_disconnect);
    }
    if let Some(milliseconds) = word("guest.slow-boot") {
        std::thread::sleep(Duration::from_millis(milliseconds.parse().unwrap_or(0)));
    }
    ports.iter_mut().for_each(Port::discard_input);
    if !has("guest.no-vsock") {
        vsock::turn_on(word("guest.listens"));
    }
    let ports = ports.map(Shared::from);
    let say = |text: &str| ports[0].write(text.as_bytes());
    say(&format!("Linux version 0 (stand-in)\r\nCommand line: {words}\r\n"));
    if let Some(text) = word("guest.say") {
        say(&format!("{text}\r\n"));
    }
    if let Some(mebibytes) = word("vmm.flood") {
        let line = format!("{}\n", "x".repeat(4095)).repeat(256);
        (0..mebibytes.parse().unwrap_or(0)).for_each(|_| stdout::print(&line));
    }
    if let Some(code) = word("guest.exit") {
        leave(code.parse().unwrap_or(100));
    }
    ports.iter().for_each(Shared::echo);
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

fn write_pid_file(options: &Options) {
    let Some(path) = &options.pid_file else { return };
    let file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(path);
    match file.and_then(|mut file| write!(file, "{}", std::process::id())) {
        Ok(()) => PID_FILE.set(path.clone()).unwrap_or_default(),
        Err(_) => fail("Failed to set up pidfile\npidfile error -1"),
    }
}

/// Presses the power button when VPNKit closes the connection.
fn press_power_button_on_disconnect(mut vpnkit: UnixStream) {
    std::thread::spawn(move || {
        let _ = io::copy(&mut vpnkit, &mut io::sink());
        let _ = kill_process(getpid(), Signal::TERM);
    });
}
