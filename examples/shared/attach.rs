//! A terminal on the console of a machine that runs in the background.

use std::error::Error;
use std::io::{self, Read, Write, stdin, stdout};
use std::os::fd::AsFd;

use hyperkit::{ConsoleStream, Vm};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

/// Ctrl-], as in telnet.
const ESCAPE: u8 = 0x1d;

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

/// Joins terminal and console until the escape key or the machine's end; says which.
pub fn attach(vm: &Vm) -> Result<&'static str, Box<dyn Error>> {
    let console = vm.console()?;
    eprintln!("On the console of process {}; Ctrl-] leaves it.", vm.pid());
    let _terminal = RawTerminal::new()?;
    let mut listens = true;
    loop {
        let (stdin, pty) = (stdin(), console.as_fd());
        let mut ready = vec![PollFd::new(&pty, PollFlags::IN)];
        if listens {
            ready.push(PollFd::new(&stdin, PollFlags::IN));
        }
        poll(&mut ready, None)?;
        let is_ready: Vec<_> = ready.iter().map(|fd| !fd.revents().is_empty()).collect();
        if is_ready[0] && !pass_on(&console)? {
            return Ok("has ended");
        }
        if is_ready.get(1) == Some(&true) {
            let mut keys = [0; 1024];
            // Of a pipe that has ended there is no more to send; the guest may have more to say.
            let length = stdin.lock().read(&mut keys)?;
            listens = length > 0;
            let typed = &keys[..length];
            let before_escape = typed.iter().position(|&key| key == ESCAPE);
            match (&console).write_all(&typed[..before_escape.unwrap_or(length)]) {
                // The machine ended just now, and nobody is left to read it.
                Err(error) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => return Ok("has ended"),
                written => written?,
            }
            if before_escape.is_some() {
                return Ok("runs on");
            }
        }
    }
}

/// What the console has said, onto the terminal; whether there will be more.
fn pass_on(mut console: &ConsoleStream) -> io::Result<bool> {
    let mut said = [0; 4096];
    let length = console.read(&mut said)?;
    let mut out = stdout().lock();
    out.write_all(&said[..length])?;
    out.flush()?;
    Ok(length > 0)
}
