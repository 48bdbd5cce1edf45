//! The settings of the terminal: raw while it is the console of a VM, and restored however the program ends or stops.

use std::io::{self, stdin};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::getpgrp;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetpgrp, tcsetattr};
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP};
use signal_hook::flag;
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

/// A standard stream, with the settings and flags that it had at first.
type Stream = (BorrowedFd<'static>, Option<Termios>, Option<OFlags>);

static BEFORE: OnceLock<[Stream; 3]> = OnceLock::new();
/// Whether a [`RawTerminal`] is there.
static IS_RAW: AtomicBool = AtomicBool::new(false);

/// Restores the terminal if a signal ends or stops this program, and makes it raw again after a stop. With `is_lent`, the
/// hypervisor changes the terminal itself, at any time; otherwise [`RawTerminal`] changes it.
pub fn restore_on_signal(is_lent: bool) -> io::Result<()> {
    let streams = [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()];
    if !streams.iter().any(isatty) {
        return Ok(()); // so that a SIGHUP that nohup ignores stays ignored
    }
    BEFORE.get_or_init(|| streams.map(|stream| (stream, tcgetattr(stream).ok(), fcntl_getfl(stream).ok())));
    // In the background of a shell, a thread that uses the terminal stops the program, maybe before the thread below has seen
    // that the program was killed, too. So signals have their default effect at once unless there is something to restore.
    let is_unchanged = Arc::new(AtomicBool::new(!is_lent));
    let ending = [SIGHUP, SIGINT, SIGQUIT, SIGTERM];
    for signal in ending {
        flag::register_conditional_default(signal, is_unchanged.clone())?;
    }
    let _ = IS_UNCHANGED.set(is_unchanged);
    let mut signals = Signals::new(ending.into_iter().chain([SIGTSTP, SIGCONT]))?;
    thread::spawn(move || {
        for signal in signals.forever() {
            if signal != SIGCONT {
                restore();
                set_unchanged(!is_lent);
                let _ = emulate_default_handler(signal);
            } else if IS_RAW.load(Ordering::Relaxed) && is_foreground(stdin()) {
                set_unchanged(false);
                let _ = make_raw();
            }
        }
    });
    Ok(())
}

/// Set by [`restore_on_signal`].
static IS_UNCHANGED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

fn set_unchanged(is_unchanged: bool) {
    if let Some(flag) = IS_UNCHANGED.get() {
        flag.store(is_unchanged, Ordering::Relaxed);
    }
}

/// Restores what [`restore_on_signal`] found.
pub fn restore() {
    for (stream, settings, flags) in BEFORE.get().into_iter().flatten() {
        // In the background the terminal belongs to another program, and changing it would stop this one.
        if let (Some(settings), true) = (settings, is_foreground(stream)) {
            let _ = tcsetattr(stream, OptionalActions::Now, settings);
        }
        let _ = flags.map(|flags| fcntl_setfl(stream, flags));
    }
}

/// Whether this program may change a terminal. A shell with job control decides that, if it is the shell's terminal.
fn is_foreground(stream: impl std::os::fd::AsFd) -> bool {
    tcgetpgrp(stream).map_or(true, |group| group == getpgrp())
}

fn make_raw() -> io::Result<()> {
    let mut settings = tcgetattr(stdin())?;
    settings.make_raw();
    Ok(tcsetattr(stdin(), OptionalActions::Now, &settings)?)
}

/// The terminal in raw mode, so that each key goes to the guest. Dropping restores the terminal.
pub struct RawTerminal(Option<Termios>);

impl RawTerminal {
    /// In the background of a shell, this stops the program until the shell calls it into the foreground.
    pub fn new() -> io::Result<Self> {
        let before = tcgetattr(stdin()).ok();
        if before.is_some() {
            set_unchanged(!is_foreground(stdin()));
            make_raw()?;
            set_unchanged(false);
            IS_RAW.store(true, Ordering::Relaxed);
        }
        Ok(Self(before))
    }

    /// Whether this is a terminal. Its input ends only when it is gone.
    pub fn is_terminal(&self) -> bool {
        self.0.is_some()
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            IS_RAW.store(false, Ordering::Relaxed);
            let _ = tcsetattr(stdin(), OptionalActions::Now, before);
            set_unchanged(true);
        }
    }
}
