//! Makes the terminal the console of a VM that runs in the background. The terminal is restored however this program ends,
//! except by SIGKILL.

use std::error::Error;
use std::io::{self, Read, Write, stdin, stdout};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

use hyperkit::{ConsoleStream, Vm};
use rustix::io::Errno;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

/// Ctrl-], as in telnet.
const ESCAPE: u8 = 0x1d;
const EXITED: &str = "exited";
const STILL_RUNS: &str = "still runs";
/// How long a guest may take to read the input. A paused guest does not read, and the input is lost.
const INPUT_TIMEOUT: Duration = Duration::from_secs(1);

/// The terminal in raw mode, so that each key goes to the guest. Dropping restores the terminal.
struct RawTerminal(Option<Termios>);

impl RawTerminal {
    fn new() -> io::Result<Self> {
        let before = tcgetattr(stdin()).ok();
        if let Some(mut settings) = before.clone() {
            settings.make_raw();
            tcsetattr(stdin(), OptionalActions::Now, &settings)?;
        }
        Ok(Self(before))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = tcsetattr(stdin(), OptionalActions::Now, before);
        }
    }
}

enum Event {
    Typed(Vec<u8>),
    /// The console has ended, or its output can no longer be shown.
    Ended(io::Result<()>),
    /// A signal that ends this program.
    Signal(i32),
}

/// Connects terminal and console until the escape key is typed or the VM exits. Returns which, as a predicate for use after
/// "the VM". The threads last as long as the program, since their reads cannot be interrupted.
pub fn attach(vm: &Vm) -> Result<&'static str, Box<dyn Error>> {
    let (screen, mut keys) = (vm.console()?, vm.console()?);
    keys.set_timeout(Some(INPUT_TIMEOUT));
    eprintln!("Attached to the console of process {}; Ctrl-] leaves it. Return may show a prompt.", vm.pid());
    let (send, events) = channel();
    let (ended, signalled) = (send.clone(), send.clone());
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    thread::spawn(move || signals.forever().try_for_each(|signal| signalled.send(Event::Signal(signal))));
    let terminal = RawTerminal::new()?;
    thread::spawn(move || ended.send(Event::Ended(show(screen))));
    thread::spawn(move || read_keys(&send));
    for event in events {
        match event {
            Event::Ended(shown) => return Ok(shown.map(|()| EXITED)?),
            Event::Signal(signal) => {
                drop(terminal);
                emulate_default_handler(signal)?;
                return Ok(STILL_RUNS);
            }
            Event::Typed(typed) => {
                let before_escape = typed.split(|&key| key == ESCAPE).next().unwrap_or_default();
                match keys.write_all(before_escape) {
                    Err(error) if error.kind() == io::ErrorKind::TimedOut => {}
                    // The other end of the pty is closed: the hypervisor is exiting.
                    Err(error) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => return Ok(EXITED),
                    written => written?,
                }
                if before_escape.len() < typed.len() {
                    drop(terminal);
                    eprintln!(); // after the output of the guest
                    return Ok(STILL_RUNS);
                }
            }
        }
    }
    Ok(STILL_RUNS)
}

/// Shows the output of the console on the terminal until the console ends.
fn show(mut console: ConsoleStream) -> io::Result<()> {
    let mut output = [0; 4096];
    while let length @ 1.. = console.read(&mut output)? {
        let mut out = stdout().lock();
        out.write_all(&output[..length])?;
        out.flush()?;
    }
    Ok(())
}

/// Sends the input. The end of the input ends only this: the guest may print more.
fn read_keys(events: &Sender<Event>) {
    let mut typed = [0; 1024];
    while let Ok(length @ 1..) = stdin().lock().read(&mut typed) {
        if events.send(Event::Typed(typed[..length].to_vec())).is_err() {
            return;
        }
    }
}
