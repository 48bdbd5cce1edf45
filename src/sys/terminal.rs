//! The caller's terminal, lent to a machine whose console is on stdio.

use std::io::{stderr, stdin, stdout};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::getpgrp;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetpgrp, tcsetattr};

/// How the caller's standard streams were, a terminal or not; dropping it puts them back.
///
/// hyperkit and QEMU put the terminal into raw mode and make it non-blocking. The caller shares both, and gets them
/// back only from a normal exit, or not at all.
pub(crate) struct Terminal {
    settings: Option<Termios>,
    flags: Vec<(OwnedFd, OFlags)>,
}

impl Terminal {
    pub fn remember() -> Self {
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
}

impl Terminal {
    /// Whether standard input is a terminal.
    pub fn is_one(&self) -> bool {
        self.settings.is_some()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        for (stream, before) in &self.flags {
            if let Ok(now) = fcntl_getfl(stream) {
                let _ = fcntl_setfl(stream, (now - OFlags::NONBLOCK) | (*before & OFlags::NONBLOCK));
            }
        }
        // Whoever is in the background must not touch the terminal, and would be stopped for it.
        let in_background = tcgetpgrp(stdin()).is_ok_and(|foreground| foreground != getpgrp());
        if let Some(settings) = self.settings.as_ref().filter(|_| !in_background) {
            let _ = tcsetattr(stdin(), OptionalActions::Now, settings);
        }
    }
}
