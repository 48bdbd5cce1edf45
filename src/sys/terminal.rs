//! The caller's terminal, which a VM with its console on stdio uses.

use std::io::{stderr, stdin, stdout};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::getpgrp;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetpgrp, tcsetattr};

/// The settings of the caller's standard streams, whether they are a terminal or not. Dropping restores them.
///
/// hyperkit and QEMU put the terminal into raw mode and make it non-blocking, for the caller, too. A hypervisor restores both at
/// most at a normal exit.
#[derive(Debug)]
pub(crate) struct TerminalSettings {
    settings: Option<Termios>,
    flags: Vec<(OwnedFd, OFlags)>,
}

impl TerminalSettings {
    pub fn save() -> Self {
        let streams = [
            stdin().as_fd().try_clone_to_owned(),
            stdout().as_fd().try_clone_to_owned(),
            stderr().as_fd().try_clone_to_owned(),
        ];
        let with_flags = |stream: OwnedFd| fcntl_getfl(&stream).ok().map(|flags| (stream, flags));
        Self {
            settings: tcgetattr(stdin()).ok(),
            flags: streams.into_iter().flatten().filter_map(with_flags).collect(),
        }
    }

    /// Whether standard input is a terminal.
    pub fn is_terminal(&self) -> bool {
        self.settings.is_some()
    }
}

impl Drop for TerminalSettings {
    fn drop(&mut self) {
        for (stream, before) in &self.flags {
            if let Ok(now) = fcntl_getfl(stream) {
                let _ = fcntl_setfl(stream, (now - OFlags::NONBLOCK) | (*before & OFlags::NONBLOCK));
            }
        }
        // A background process must not touch the terminal, and would be stopped for it.
        let in_background = tcgetpgrp(stdin()).is_ok_and(|foreground| foreground != getpgrp());
        if let Some(settings) = self.settings.as_ref().filter(|_| !in_background) {
            let _ = tcsetattr(stdin(), OptionalActions::Now, settings);
        }
    }
}
