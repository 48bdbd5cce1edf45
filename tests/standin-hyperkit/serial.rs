//! The serial ports, which are set up after all other devices.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::abort;
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, isatty, tcgetattr, tcsetattr};

use crate::{TERMINAL, fail, stdout};

const RING: usize = 65536;

/// Opens com1 and com2 by their configurations.
pub fn open(configs: &[Option<String>; 2]) -> [Port; 2] {
    let mut stdio_is_free = true;
    let mut port = |name, config: &Option<String>| match config {
        Some(config) => Port::open(name, config, &mut stdio_is_free),
        None => Port::nowhere(),
    };
    [port("COM1", &configs[0]), port("COM2", &configs[1])]
}

pub struct Port {
    out: Box<dyn Write + Send>,
    input: Option<OwnedFd>,
    ring: Option<(File, usize)>,
    _client_end: Option<OwnedFd>,
}

impl Port {
    pub fn nowhere() -> Self {
        Self { out: Box::new(io::sink()), input: None, ring: None, _client_end: None }
    }

    fn open(name: &str, config: &str, stdio_is_free: &mut bool) -> Self {
        let (mut port, mut has_backend, mut has_asl) = (Self::nowhere(), false, false);
        for part in config.split(',') {
            let is_backend = match part.split_once('=').unwrap_or((part, "")) {
                ("null", "") => true,
                ("stdio", "") if std::mem::take(stdio_is_free) => port.open_stdio(),
                ("autopty", file) => port.open_pty(name, Some(file).filter(|file| !file.is_empty()).map(Path::new)),
                ("log", path) => {
                    let file = File::create(path).and_then(|file| file.set_len(RING as u64).map(|()| file));
                    port.ring = Some((file.unwrap_or_else(|error| fail(error)), 0));
                    false
                }
                // hyperkit enables input from a descriptor that it does not have.
                ("asl", "") => {
                    has_asl = true;
                    false
                }
                _ => port.open_tty(part).unwrap_or_else(|| refuse(name, config)),
            };
            has_backend |= is_backend;
        }
        match (has_backend, has_asl) {
            (true, _) => port,
            (false, true) => abort(),
            (false, false) => refuse(name, config),
        }
    }

    fn open_stdio(&mut self) -> bool {
        // Both directions are descriptor 0 (uart_emul.c).
        let duplicate = || io::stdin().as_fd().try_clone_to_owned().unwrap_or_else(|error| fail(error));
        (self.out, self.input) = (Box::new(File::from(duplicate())), Some(duplicate()));
        // As in hyperkit, this also makes the starter's stdin nonblocking, since it is the same open file.
        if let Ok(flags) = fcntl_getfl(io::stdin()) {
            let _ = fcntl_setfl(io::stdin(), flags | OFlags::NONBLOCK);
        }
        if let Ok(settings) = tcgetattr(io::stdin()) {
            let mut raw = settings.clone();
            raw.make_raw();
            let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &raw);
            let _ = TERMINAL.set(settings);
        }
        true
    }

    fn open_pty(&mut self, port: &str, file: Option<&Path>) -> bool {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap_or_else(|error| fail(error));
        grantpt(&master).and_then(|()| unlockpt(&master)).unwrap_or_else(|error| fail(error));
        let name = ptsname(&master, Vec::new()).unwrap_or_else(|error| fail(error));
        let name = name.to_string_lossy().into_owned();
        // This end stays open. Otherwise reading would end when the last client closes the pty.
        let slave = OpenOptions::new().read(true).write(true).open(&name).unwrap_or_else(|error| fail(error));
        let mut raw = tcgetattr(&slave).unwrap_or_else(|error| fail(error));
        raw.make_raw();
        let _ = tcsetattr(&slave, OptionalActions::Now, &raw);
        self._client_end = Some(slave.into());
        // Output that nobody reads is lost. It must not block.
        let flags = fcntl_getfl(&master).unwrap_or_else(|error| fail(error));
        fcntl_setfl(&master, flags | OFlags::NONBLOCK).unwrap_or_else(|error| fail(error));
        self.input = master.try_clone().ok();
        self.out = Box::new(File::from(master));
        stdout::print(&format!("linkname {}\n", file.unwrap_or(Path::new("(null)")).display()));
        stdout::print(&format!("{port} connected to {name}\n"));
        if let Some(file) = file {
            let _ = fs::remove_file(file);
            fs::write(file, &name).unwrap_or_else(|error| fail(error)); // no newline
        }
        true
    }

    /// Opens an existing tty.
    fn open_tty(&mut self, path: &str) -> Option<bool> {
        let nonblocking = OFlags::NONBLOCK.bits() as i32;
        let tty = OpenOptions::new().read(true).write(true).custom_flags(nonblocking).open(path).ok()?;
        self.input = isatty(&tty).then(|| tty.try_clone().ok())?.map(OwnedFd::from);
        self.out = Box::new(tty);
        Some(true)
    }

    /// Discards the input that has come so far, as hyperkit does when the guest turns on the port's FIFO.
    pub fn discard_input(&mut self) {
        let Some(input) = self.input.as_ref().and_then(|input| input.try_clone().ok()) else { return };
        let (mut input, mut buffer) = (File::from(input), [0; 32]);
        while input.read(&mut buffer).is_ok_and(|length| length == buffer.len()) {}
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
}

fn refuse(name: &str, config: &str) -> ! {
    fail(format!("Unable to initialize backend '{config}' for LPC device {name}"))
}

/// A port to which several threads write.
pub struct Shared(Arc<Mutex<Port>>);

impl From<Port> for Shared {
    fn from(port: Port) -> Self {
        Self(Arc::new(Mutex::new(port)))
    }
}

impl Shared {
    pub fn write(&self, bytes: &[u8]) {
        self.0.lock().unwrap().write(bytes);
    }

    /// Starts a thread that writes the input of the port to the port.
    pub fn echo(&self) {
        let port = Self(self.0.clone());
        let Some(input) = self.0.lock().unwrap().input.take() else { return };
        std::thread::spawn(move || {
            let (mut input, mut buffer) = (File::from(input), [0; 1024]);
            while poll(&mut [PollFd::new(&input, PollFlags::IN)], None).is_ok() {
                match input.read(&mut buffer) {
                    Ok(length @ 1..) => port.write(&buffer[..length]),
                    // macOS does not poll terminals.
                    Err(error) if error.kind() == ErrorKind::WouldBlock => sleep(Duration::from_millis(1)),
                    _ => return,
                }
            }
        });
    }
}
