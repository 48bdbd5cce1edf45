//! The caller's terminal, lent to a machine whose console is on stdio.

use std::io::{stderr, stdin, stdout};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

/// How the caller's standard streams were; dropping it puts them back.
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

impl Drop for Terminal {
    fn drop(&mut self) {
        for (stream, flags) in &self.flags {
            let _ = fcntl_setfl(stream, *flags);
        }
        if let Some(settings) = &self.settings {
            let _ = tcsetattr(stdin(), OptionalActions::Drain, settings);
        }
    }
}
