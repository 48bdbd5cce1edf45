//! A hypervisor that is killed when its owner ends, in whatever way.
//!
//! A shell is started with one end of a socket pair as its standard error. It starts two watchers, which read the socket,
//! and becomes the hypervisor: process ID, exit status, standard input and output are as without it. At the end of the
//! stream, that is when the owner has exited or drops its end, the watchers kill the hypervisor. A watcher that reads a line
//! exits without that. There are two, so that either can be killed. Their parent exits at once, so the hypervisor never has
//! to reap them. The shell opens the log by its path, since the socket is its standard error.
//!
//! A watcher executes another shell, so that the hypervisor's arguments are not on its command line: by them, this crate finds
//! a hypervisor without a pid file, and a user of a qcow2 image. A temporary log is removed before the watchers start, since
//! nothing kills the shell before that.

use std::io::Write;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use crate::error::{Error, Result};
use crate::runtime::output::Output;

const SHELL: &str = "/bin/sh";
/// The log comes first, so that every message of the shell is in it. A shell that cannot open the log, or cannot fork, exits
/// with code 126: its own code 2 would mean a reset of the guest.
const SCRIPT: &str = r#"command exec 3>>"$0" || exit 126
exec 4<&2 2>&3 3>&-
trap 'exit 126' 0
[ "$1" = keep ] || /bin/rm -f "$0"
shift
w() { trap '' HUP TERM; exec /bin/sh -c 'read -r _ <&4 || kill -KILL "$0"' $$; }
(w >/dev/null </dev/null 2>&1 & w >/dev/null </dev/null 2>&1 &) || exit 126
exec 4<&-
exec "$@""#;
/// A line for each watcher.
const RELEASE: &[u8] = b"\n\n";

/// The owner's end of the socket. Dropping it kills the hypervisor.
#[derive(Debug)]
pub(crate) struct OwnerLink(Option<UnixStream>);

impl OwnerLink {
    /// A command that becomes `program`, with its standard error in `output`.
    pub fn command(program: &Path, output: &Output) -> Result<(Command, Self)> {
        let (ours, theirs) = UnixStream::pair().map_err(Error::io("create a socket pair for", program))?;
        let mut command = Command::new(SHELL);
        command.args(["-c", SCRIPT]).arg(output.path());
        command.arg(if output.is_temporary() { "remove" } else { "keep" }).arg(program);
        command.stderr(OwnedFd::from(theirs));
        Ok((command, Self(Some(ours))))
    }

    /// Dismisses the watchers. Call it before the hypervisor is reaped: afterwards they could kill a process that reuses its
    /// process ID.
    pub fn release(mut self) {
        if let Some(mut socket) = self.0.take() {
            // The hypervisor holds no copy of the socket, so this fails only if the watchers are gone.
            let _ = socket.write_all(RELEASE);
        }
    }
}

impl Drop for OwnerLink {
    fn drop(&mut self) {
        if let Some(socket) = &self.0 {
            // Unlike closing, this works also while another thread's child has inherited the socket.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}
