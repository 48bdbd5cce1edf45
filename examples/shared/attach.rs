//! A terminal on the console of a machine that runs in the background, given back however this ends but by SIGKILL.

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
/// How long a guest may take to read what was typed. One that is paused does not, and then it is lost.
const PATIENCE: Duration = Duration::from_secs(1);

/// The terminal in raw mode, so that each key goes to the guest; as it was when dropped.
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
    /// The console has ended, or nobody sees any more what it says.
    Over(io::Result<()>),
    /// A signal that ends us.
    Signal(i32),
}

/// Joins terminal and console until the escape key or the machine's end; says which. Its threads last as long as the
/// program: what they wait for cannot be taken back.
pub fn attach(vm: &Vm) -> Result<&'static str, Box<dyn Error>> {
    let (screen, mut keys) = (vm.console()?, vm.console()?);
    keys.set_timeout(Some(PATIENCE));
    eprintln!("On the console of process {}; Ctrl-] leaves it. Return may show a prompt.", vm.pid());
    let (send, events) = channel();
    let (over, told) = (send.clone(), send.clone());
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    thread::spawn(move || signals.forever().try_for_each(|signal| told.send(Event::Signal(signal))));
    let terminal = RawTerminal::new()?;
    thread::spawn(move || over.send(Event::Over(show(screen))));
    thread::spawn(move || listen(&send));
    for event in events {
        match event {
            Event::Over(ended) => return Ok(ended.map(|()| "has ended")?),
            Event::Signal(signal) => {
                drop(terminal);
                emulate_default_handler(signal)?;
                return Ok("runs on");
            }
            Event::Typed(typed) => {
                let before_escape = typed.split(|&key| key == ESCAPE).next().unwrap_or_default();
                match keys.write_all(before_escape) {
                    Err(error) if error.kind() == io::ErrorKind::TimedOut => {}
                    // Nobody is left at the other end: the machine ends just now, and is perhaps not gone yet.
                    Err(error) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => return Ok("has ended"),
                    written => written?,
                }
                if before_escape.len() < typed.len() {
                    drop(terminal);
                    eprintln!(); // behind what the guest has said
                    return Ok("runs on");
                }
            }
        }
    }
    Ok("runs on")
}

/// What the console says, onto the terminal, until it ends.
fn show(mut console: ConsoleStream) -> io::Result<()> {
    let mut said = [0; 4096];
    while let length @ 1.. = console.read(&mut said)? {
        let mut out = stdout().lock();
        out.write_all(&said[..length])?;
        out.flush()?;
    }
    Ok(())
}

/// What is typed. Of a pipe that has ended there is no more, but the guest may have more to say.
fn listen(events: &Sender<Event>) {
    let mut typed = [0; 1024];
    while let Ok(length @ 1..) = stdin().lock().read(&mut typed) {
        if events.send(Event::Typed(typed[..length].to_vec())).is_err() {
            return;
        }
    }
}
