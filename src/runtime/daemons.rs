//! Runs the daemons of a hypervisor, such as `vhost-device-vsock` and `virtiofsd`: programs that serve one of the guest's devices.
//!
//! A daemon shares the guest's memory with the hypervisor, and may not exit when the hypervisor exits. So it runs under two shells
//! that hold the reading end of a FIFO. The starter holds the writing end until the hypervisor is ready. The hypervisor holds it as long
//! as the hypervisor runs: it is its standard input. When no process holds the writing end any more, the shells kill the daemon. When the
//! daemon exits, the shells exit, too. If one of the shells is killed, the other still kills the daemon. All daemons of a hypervisor
//! share one FIFO.

use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::engine::{Daemon, DaemonSocket, EngineDriver};
use crate::error::{Error, Result};
use crate::runtime::log_tail::LogTail;
use crate::runtime::output::Output;
use crate::state::{LIFETIME_FIFO, StateDir};
use crate::sys::unix_socket::{listen, remove_stale_socket};

/// The script of the shells. They and the daemon are a separate process group, so `kill 0` kills all of them and nothing else. A socket
/// that is passed to the daemon comes as standard output, and becomes `DAEMON_FD` of `src/engine/driver.rs`. `run` executes the
/// daemon: [`RUN`] or [`REPORTED`].
fn script(run: &str) -> String {
    format!(
        "exec 3<&0 4<&1 1>&2; (read -r line <&3; kill -KILL 0) & ({run}; kill -KILL 0) & read -r line; kill -KILL 0"
    )
}

const RUN: &str = r#""$0" "$@""#;
/// With a line in the log if the daemon fails.
const REPORTED: &str = r#""$0" "$@" || echo "$0: exited with status $?""#;
/// How long the daemon may take to listen.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the daemon may take to exit.
const EXIT_TIMEOUT: Duration = Duration::from_secs(10);
const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// The running daemons of a hypervisor. Dropping this waits until they have exited, which they do when the hypervisor has exited.
#[derive(Debug)]
pub(crate) struct Daemons {
    shells: Vec<Child>,
    /// The starter's writing end.
    lifetime: Option<File>,
    lifetime_fifo: PathBuf,
}

impl Daemons {
    /// Starts the daemons. `None` if there are none.
    pub fn start(
        daemons: &[Daemon],
        state: &StateDir,
        output: &Output,
        driver: &dyn EngineDriver,
    ) -> Result<Option<Self>> {
        if daemons.is_empty() {
            return Ok(None);
        }
        let lifetime_fifo = state.file(LIFETIME_FIFO);
        let failed = |error| Error::io("create the FIFO", &lifetime_fifo)(error);
        make_fifo(&lifetime_fifo).map_err(failed)?;
        // Opening a FIFO for reading waits for a writer, so the writer is opened first.
        let lifetime = OpenOptions::new().read(true).write(true).open(&lifetime_fifo).map_err(failed)?;
        let mut started = Self { shells: Vec::new(), lifetime: Some(lifetime), lifetime_fifo };
        daemons.iter().try_for_each(|daemon| started.add(daemon, output, driver))?;
        Ok(Some(started))
    }

    /// Starts a daemon. Waits until it listens, if it creates its sockets by itself.
    fn add(&mut self, daemon: &Daemon, output: &Output, driver: &dyn EngineDriver) -> Result<()> {
        let Daemon { program, arguments, socket } = daemon;
        let fifo = File::open(&self.lifetime_fifo).map_err(Error::io("open", &self.lifetime_fifo))?;
        let (script, stdout, awaited) = match socket {
            DaemonSocket::Created(sockets) => {
                sockets.iter().try_for_each(|socket| remove_stale_socket(socket))?;
                (script(RUN), output.writer()?, &sockets[..])
            }
            DaemonSocket::Passed(socket) => (script(REPORTED), OwnedFd::from(listen(socket)?).into(), &[][..]),
        };
        let mut command = Command::new("/bin/sh");
        command.args(["-c", &script]).arg(program).args(arguments);
        command.stdin(fifo).stdout(stdout).stderr(output.writer()?).process_group(0);
        let shell = command.spawn().map_err(Error::io("start", program))?;
        drop(command); // it has the reading end, and dropping `self` waits until nobody has it
        self.shells.push(shell);

        let deadline = Instant::now() + LISTEN_TIMEOUT;
        while !awaited.iter().all(|socket| socket.exists()) {
            // ECHILD: the system has reaped it.
            let has_exited = self.shells.last_mut().is_none_or(|shell| {
                shell
                    .try_wait()
                    .map_or_else(|error| Errno::from_io_error(&error) == Some(Errno::CHILD), |status| status.is_some())
            });
            if has_exited || Instant::now() > deadline {
                let log_tail = LogTail::read(Some(output), None, driver);
                return Err(Error::VsockDaemonFailed { program: program.clone(), log_tail });
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        Ok(())
    }

    /// The writing end as standard input of the hypervisor, which does not read it. The hypervisor opens the FIFO, too, but only
    /// later: if the starter were killed before that, the daemons would be killed, and then the hypervisor would exit.
    pub fn lifetime(&self) -> Result<Stdio> {
        let lifetime = self.lifetime.as_ref().map_or(Ok(Stdio::null()), |file| file.try_clone().map(Stdio::from));
        lifetime.map_err(Error::io("duplicate the descriptor of", &self.lifetime_fifo))
    }

    /// Leaves the daemons' lifetime to the hypervisor.
    pub fn release(&mut self) {
        self.lifetime.take();
    }
}

impl Drop for Daemons {
    fn drop(&mut self) {
        self.release();
        self.shells.iter_mut().for_each(|shell| drop(shell.wait()));
        wait_until_unread(&self.lifetime_fifo);
    }
}

/// Waits until no process reads the FIFO. The daemons and their shells read it until they exit. The hypervisor opens it, too,
/// so call this after its exit.
pub(crate) fn wait_until_unread(fifo: &Path) {
    let is_read = || {
        let nonblocking = OFlags::NONBLOCK.bits() as i32;
        OpenOptions::new().write(true).custom_flags(nonblocking).open(fifo).is_ok()
    };
    let is_fifo = fifo.symlink_metadata().is_ok_and(|metadata| metadata.file_type().is_fifo());
    let deadline = Instant::now() + EXIT_TIMEOUT;
    while is_fifo && is_read() && Instant::now() < deadline {
        std::thread::sleep(POLL_INTERVAL);
    }
}

#[cfg(target_os = "linux")]
fn make_fifo(path: &Path) -> std::io::Result<()> {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    Ok(mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?)
}

/// Never called: validation refuses such a VM.
#[cfg(not(target_os = "linux"))]
fn make_fifo(_: &Path) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}
