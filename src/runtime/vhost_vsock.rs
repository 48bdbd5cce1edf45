//! Runs the vsock daemon of a hypervisor: a program such as `vhost-device-vsock`.
//!
//! It shares the guest's memory with the hypervisor, serves programs of the host on a unix socket, and does not exit with
//! the hypervisor. So it runs under shells that hold the reading end of a FIFO. The starter holds the writing end until
//! the hypervisor is ready, the hypervisor as long as it runs: as its standard input, from its first moment on. When no process
//! holds the writing end any more, the shells kill the daemon. When the daemon exits, the shells exit, too. There are two, so
//! that either can be killed.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::engine::{EngineDriver, VsockDaemon};
use crate::error::{Error, Result};
use crate::runtime::log_tail::LogTail;
use crate::runtime::output::Output;
use crate::sys::unix_socket::remove_stale_socket;

/// The shells and the daemon are a separate process group, so `kill 0` kills all of them and nothing else.
const SCRIPT: &str =
    r#"exec 3<&0; (read -r line <&3; kill -KILL 0) & ("$0" "$@"; kill -KILL 0) & read -r line; kill -KILL 0"#;
/// How long the daemon may take to listen.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the daemon may take to exit.
const EXIT_TIMEOUT: Duration = Duration::from_secs(10);
const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// A running daemon. Dropping it waits until the daemon has exited, which it does when the hypervisor has exited.
#[derive(Debug)]
pub(crate) struct VhostVsockDaemon {
    shell: Child,
    /// The starter's writing end.
    lifetime: Option<File>,
    lifetime_fifo: PathBuf,
}

impl VhostVsockDaemon {
    /// Starts the daemon and waits until it listens.
    pub fn start(daemon: &VsockDaemon, output: &Output, driver: &dyn EngineDriver) -> Result<Self> {
        let VsockDaemon { program, arguments, sockets, lifetime_fifo } = daemon;
        let failed = |error| Error::io("create the FIFO", lifetime_fifo)(error);
        make_fifo(lifetime_fifo).map_err(failed)?;
        // Opening a FIFO for reading waits for a writer, so the writer is opened first.
        let lifetime = OpenOptions::new().read(true).write(true).open(lifetime_fifo).map_err(failed)?;
        let reader = File::open(lifetime_fifo).map_err(failed)?;

        let mut command = Command::new("/bin/sh");
        command.args(["-c", SCRIPT]).arg(program).args(arguments);
        command.stdin(reader).stdout(output.writer()?).stderr(output.writer()?).process_group(0);
        sockets.iter().try_for_each(|socket| remove_stale_socket(socket))?;
        let shell = command.spawn().map_err(Error::io("start", program))?;
        drop(command); // it has the reading end, and dropping `started` waits until nobody has it
        let mut started = Self { shell, lifetime: Some(lifetime), lifetime_fifo: lifetime_fifo.clone() };

        let deadline = Instant::now() + LISTEN_TIMEOUT;
        while !sockets.iter().all(|socket| socket.exists()) {
            // ECHILD: the system has reaped it.
            let has_exited = started
                .shell
                .try_wait()
                .map_or_else(|error| Errno::from_io_error(&error) == Some(Errno::CHILD), |status| status.is_some());
            if has_exited || Instant::now() > deadline {
                let log_tail = LogTail::read(Some(output), None, driver);
                return Err(Error::VsockDaemonFailed { program: program.clone(), log_tail });
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        Ok(started)
    }

    /// The writing end as standard input of the hypervisor, which does not read it. The hypervisor opens the FIFO, too, but only
    /// later: if the starter were killed before that, the daemon would be killed, and then the hypervisor would exit.
    pub fn lifetime(&self) -> Result<Stdio> {
        let lifetime = self.lifetime.as_ref().map_or(Ok(Stdio::null()), |file| file.try_clone().map(Stdio::from));
        lifetime.map_err(Error::io("duplicate the descriptor of", &self.lifetime_fifo))
    }

    /// Leaves the daemon's lifetime to the hypervisor.
    pub fn release(&mut self) {
        self.lifetime.take();
    }
}

impl Drop for VhostVsockDaemon {
    fn drop(&mut self) {
        self.release();
        let _ = self.shell.wait();
        wait_until_unread(&self.lifetime_fifo);
    }
}

/// Waits until no process reads the FIFO. The daemon and its shells read it until they exit. The hypervisor opens it, too,
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
