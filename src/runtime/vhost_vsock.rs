//! vsock for a QEMU guest by unix sockets of the host, as hyperkit has it: the `vhost-device-vsock` program beside QEMU.
//! Where it is not there, the host's kernel may have `/dev/vhost-vsock`, which is reached by AF_VSOCK alone.
//!
//! It shares the guest's memory with QEMU, serves the host's programs on a unix socket, and does not end when QEMU does.
//! So it runs under shells that hold the reading end of a named pipe. The writing end is held by the starter until QEMU
//! is there, and by QEMU as long as it lives. When nobody holds it any more, however that came about, the shells end the
//! program; and when the program ends, the shells end, too. Two watch the pipe, so that either may be killed.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

use crate::config::HyperKit;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::plan::text::utf8;
use crate::runtime::output::{LastWords, Output};
use crate::state::{StateDir, VHOST_LINE, VHOST_SOCKET, VSOCK_SOCKET};
use crate::sys::unix_socket::make_way;

/// In a process group of its own: `kill 0` ends all of it, and no other.
const SCRIPT: &str = r#"exec 3<&0; (read -r line <&3; kill 0) & ("$0" "$@"; kill 0) & read -r line; kill 0"#;
/// How long it may take to listen.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long it may take to be gone when it has been told to.
const LAST_MOMENTS: Duration = Duration::from_secs(10);

/// The program beside a QEMU that is being started. Dropped, it is waited for, which is for long if QEMU lives.
#[derive(Debug)]
pub(crate) struct Companion {
    shell: Child,
    line: Option<File>,
    /// Of the pipe that all of its processes read.
    path: PathBuf,
}

impl Companion {
    /// Starts it, if this machine needs one, and waits until it listens.
    pub(crate) fn start(machine: &HyperKit, state: Option<&StateDir>, output: &Output) -> Result<Option<Self>> {
        let (Some(program), Some(state), true) = (&machine.vhost_device_vsock, state, machine.vsock) else {
            return Ok(None);
        };
        let path = state.file(VHOST_LINE);
        let failed = |error| Error::io("make the pipe", &path)(error);
        make_pipe(&path).map_err(failed)?;
        // Whoever opens a named pipe for reading waits for a writer, so that comes first.
        let line = OpenOptions::new().read(true).write(true).open(&path).map_err(failed)?;
        let reader = File::open(&path).map_err(failed)?;

        let sockets = [state.file(VHOST_SOCKET), machine.vsock_place().join(VSOCK_SOCKET)];
        let [socket, uds] = [utf8("state_dir", &sockets[0])?, utf8("vsock_dir", &sockets[1])?];
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", SCRIPT]).arg(program).args(["--guest-cid", &machine.vsock_guest_cid.to_string()]);
        shell.args(["--socket", socket, "--uds-path", uds]);
        shell.stdin(reader).stdout(output.writer()?).stderr(output.writer()?).process_group(0);
        sockets.iter().try_for_each(|socket| make_way(socket))?;
        let shell = shell.spawn().map_err(Error::io("start", program))?;
        let mut companion = Self { shell, line: Some(line), path };

        let deadline = Instant::now() + PATIENCE;
        while !sockets.iter().all(|socket| socket.exists()) {
            let ended = !matches!(companion.shell.try_wait(), Ok(None));
            if ended || Instant::now() > deadline {
                let last_words = LastWords::read(Some(output), None, Engine::Qemu);
                return Err(Error::VsockFailed { program: program.clone(), last_words });
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(Some(companion))
    }

    /// Leaves the line to QEMU.
    pub(crate) fn let_go(&mut self) {
        self.line.take();
    }
}

impl Drop for Companion {
    fn drop(&mut self) {
        self.let_go();
        let _ = self.shell.wait();
        wait_until_gone(&self.path);
    }
}

/// Waits until nobody reads this pipe: the program, and all that run with it, are sent a signal when QEMU is gone, and do so
/// until they are. QEMU does, too, so it has to be gone before.
pub(crate) fn wait_until_gone(line: &Path) {
    let is_read = || {
        let nonblocking = OFlags::NONBLOCK.bits() as i32;
        OpenOptions::new().write(true).custom_flags(nonblocking).open(line).is_ok()
    };
    let is_pipe = line.symlink_metadata().is_ok_and(|metadata| metadata.file_type().is_fifo());
    let deadline = Instant::now() + LAST_MOMENTS;
    while is_pipe && is_read() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[cfg(target_os = "linux")]
fn make_pipe(path: &Path) -> std::io::Result<()> {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    Ok(mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?)
}

/// `check` lets no machine come here.
#[cfg(not(target_os = "linux"))]
fn make_pipe(_: &Path) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}
