//! Makes the terminal the console of a VM.

use std::error::Error;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write, stdin, stdout};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use hyperkit::{Console, ConsoleStream, Engine, Vm};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::output::warn;
use crate::terminal::RawTerminal;

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

/// Ctrl-], as in telnet.
const ESCAPE: u8 = 0x1d;
/// How long a guest may take to read the input. A paused guest does not read, and the input is lost.
const INPUT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the hypervisor may take to exit after it has closed the console.
const EXIT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the log may be behind the pty: QEMU writes it second.
const LOG_DELAY: Duration = Duration::from_millis(2);
/// How often the log is read while the pty is silent: QEMU takes up to a second to notice that the pty was opened.
const LOG_INTERVAL: Duration = Duration::from_millis(100);
/// How often another terminal is looked for.
const OTHERS_INTERVAL: Duration = Duration::from_secs(1);

/// Which output of the guest is shown.
#[derive(Clone, Copy, PartialEq)]
pub enum Output {
    #[allow(dead_code, reason = "not every example starts VMs")]
    FromStart,
    #[allow(dead_code, reason = "not every example attaches to running VMs")]
    FromNow,
}

/// Why the keys are no longer passed on.
pub enum Left {
    Exited,
    Escaped,
}

/// A terminal that is the console of a VM. Dropping it restores the terminal; the VM runs on. Its threads last as long as the
/// program, since their reads cannot be interrupted.
pub struct Attachment {
    keys: ConsoleStream,
    events: Receiver<Event>,
    /// The keys that the user typed after the escape key.
    typed: Vec<u8>,
    /// How the output has ended, if a question was open then.
    ended: Option<io::Result<()>>,
    is_closed: Arc<AtomicBool>,
    _terminal: RawTerminal,
}

enum Event {
    Typed(Vec<u8>),
    /// The console has ended, its output can no longer be shown, or the terminal is gone.
    Ended(io::Result<()>),
    /// The VM has exited. Its last output may not be shown yet.
    Exited,
}

impl Attachment {
    pub fn new(vm: &Vm, output: Output) -> Result<Self> {
        let screen = Screen::open(vm, output)?;
        let keys = screen.console.try_clone()?;
        keys.set_timeout(Some(INPUT_TIMEOUT));
        let is_closed = screen.is_closed.clone();
        let (send, events) = channel();
        let (typed, exited, vm) = (send.clone(), send.clone(), vm.clone());
        thread::spawn(move || {
            let _ = vm.wait();
            exited.send(Event::Exited)
        });
        let terminal = RawTerminal::new()?;
        thread::spawn(move || send.send(Event::Ended(screen.show())));
        let is_terminal = terminal.is_terminal();
        thread::spawn(move || read_keys(&typed, is_terminal));
        Ok(Self { keys, events, typed: Vec::new(), ended: None, is_closed, _terminal: terminal })
    }

    /// Passes keys to the guest until the escape key is typed or the VM exits.
    pub fn pass_keys(&mut self) -> Result<Left> {
        loop {
            let mut typed = std::mem::take(&mut self.typed);
            let escape = typed.iter().position(|&key| key == ESCAPE);
            if let Some(at) = escape {
                self.typed = typed.split_off(at + 1);
                typed.pop();
            }
            match self.keys.write_all(&typed) {
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {}
                // The other end of the pty is closed: the hypervisor is exiting, and the output ends.
                Err(error) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => {}
                written => written?,
            }
            if escape.is_some() {
                return Ok(Left::Escaped);
            }
            match self.ended.take().map_or_else(|| self.events.recv(), |shown| Ok(Event::Ended(shown))) {
                Ok(Event::Typed(keys)) => self.typed = keys,
                Ok(Event::Ended(shown)) => return Ok(shown.map(|()| Left::Exited)?),
                Ok(Event::Exited) => {} // the rest of the output comes first
                Err(_) => return Ok(Left::Exited),
            }
        }
    }

    /// Asks a question, to which a key is the answer; `None` at the end of the input. The guest's output waits meanwhile.
    #[allow(dead_code, reason = "not every example asks")]
    pub fn ask(&mut self, question: &str) -> Option<u8> {
        let _output = stdout().lock();
        warn(format_args!("\r\n{question} "));
        if self.typed.is_empty() {
            match self.events.recv() {
                Ok(Event::Typed(keys)) => self.typed = keys,
                Ok(Event::Ended(shown)) => self.ended = Some(shown),
                Ok(Event::Exited) | Err(_) => {}
            }
        }
        warn("\r\n");
        (!self.typed.is_empty()).then(|| self.typed.remove(0))
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        let _output = stdout().lock();
        self.is_closed.store(true, Ordering::Relaxed);
    }
}

/// The output of the guest on the terminal.
struct Screen {
    vm: Vm,
    console: ConsoleStream,
    /// QEMU's log has all output: also what came before the pty was opened, what another terminal has read, and the last bytes
    /// before the exit, which a pty loses. Then the pty only tells that there is more.
    log: Option<File>,
    is_closed: Arc<AtomicBool>,
}

impl Screen {
    fn open(vm: &Vm, output: Output) -> Result<Self> {
        let description = vm.description();
        let is_qemu = description.hyperkit.as_ref().is_some_and(|program| Engine::of(program) != Engine::HyperKit);
        let is_logged = description.serials.is_none() && description.console == Some(Console::Pty);
        let mut log = match vm.state_dir() {
            Some(dir) if is_qemu && is_logged => File::open(dir.join("console-ring")).ok(),
            _ => None,
        };
        if let (Some(log), Output::FromNow) = (&mut log, output) {
            log.seek(SeekFrom::End(0))?;
        }
        let screen = Self { vm: vm.clone(), console: vm.console()?, log, is_closed: Arc::default() };
        if screen.is_shared() {
            screen.tell_of_others();
        }
        Ok(screen)
    }

    /// Shows the output until the console ends.
    fn show(mut self) -> io::Result<()> {
        let (mut output, mut timeout) = ([0; 4096], Duration::ZERO);
        let (mut has_told, mut looked) = (self.is_shared(), Instant::now());
        loop {
            self.console.set_timeout(Some(timeout));
            let length = match self.console.read(&mut output) {
                Ok(0) => break,
                Err(error) if error.kind() == io::ErrorKind::TimedOut => 0,
                length => length?,
            };
            match self.log {
                Some(_) => self.show_log()?,
                None => self.print(&output[..length])?,
            }
            timeout = if length > 0 { LOG_DELAY } else { LOG_INTERVAL };
            if !has_told && looked.elapsed() >= OTHERS_INTERVAL {
                looked = Instant::now();
                has_told = self.is_shared();
                if has_told {
                    self.tell_of_others();
                }
            }
        }
        let _ = self.vm.wait_timeout(EXIT_TIMEOUT);
        self.show_log()
    }

    fn show_log(&mut self) -> io::Result<()> {
        let mut output = Vec::new();
        self.log.as_mut().map_or(Ok(0), |log| log.read_to_end(&mut output))?;
        self.print(&output)
    }

    fn print(&self, output: &[u8]) -> io::Result<()> {
        if output.is_empty() {
            return Ok(());
        }
        let mut stdout = stdout().lock(); // waits while a question is open
        if self.is_closed.load(Ordering::Relaxed) {
            return Ok(());
        }
        stdout.write_all(output)?;
        stdout.flush()
    }

    /// Whether another terminal is attached. Each has a shared lock on the pty, and can have an exclusive one if it is alone.
    fn is_shared(&self) -> bool {
        let lock = |operation| flock(&self.console, operation);
        let is_shared = lock(FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK);
        let _ = lock(FlockOperation::NonBlockingLockShared);
        is_shared
    }

    fn tell_of_others(&self) {
        let output = if self.log.is_some() { "both show its output" } else { "each shows a part of its output" };
        warn(format_args!(
            "\r\nAnother terminal is attached to this console, too: {output}, and the guest gets the keys of both.\r\n"
        ));
    }
}

/// Sends the input. The end of a file or a pipe ends only this: the guest may print more. A terminal that is gone ends all, since
/// nobody is left who could type the escape key.
fn read_keys(events: &Sender<Event>, is_terminal: bool) {
    let mut typed = [0; 1024];
    loop {
        match stdin().lock().read(&mut typed) {
            Ok(length @ 1..) => {
                if events.send(Event::Typed(typed[..length].to_vec())).is_err() {
                    return;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            _ => break,
        }
    }
    if is_terminal {
        let _ = events.send(Event::Ended(Err(io::Error::other("the terminal is gone"))));
    }
}
