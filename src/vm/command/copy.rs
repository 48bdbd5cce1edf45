//! Copies files and directories into the guest and out of it. The agent packs and unpacks them as a command of its own.

use std::io::{self, BufReader, BufWriter, Read};
use std::path::Path;

use crate::error::{Error, Result};
use crate::vm::Vm;
use crate::vm::command::archive::{pack, unpack};
use crate::vm::command::{GuestChild, GuestCommand};

/// The options of the agent.
const PACK: &str = "--pack";
const UNPACK: &str = "--unpack";
const BUFFER: usize = 256 * 1024;
/// The agent's message. A hostile guest may send more.
const MAX_MESSAGE: u64 = 4096;

/// # Copy files
///
/// ```
/// # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
/// # let _here = here::alone();
/// # use std::time::Duration;
/// # let vm = hyperkit::HyperKit::new().state_dir("vm").kernel("vmlinuz").initrd("initrd.img").agent(true);
/// # let vm = vm.start_scoped("console=ttyS0 no_timer_check")?;
/// # vm.command("true").agent_timeout(Duration::from_secs(300)).status()?;
/// std::fs::create_dir("input")?;
/// std::fs::write("input/data", "1 2 3")?;
/// vm.copy_in("input", "/tmp/input")?;
/// vm.command("sh").args(["-c", "mkdir out; wc -w <input/data >out/words"]).current_dir("/tmp").status()?;
/// vm.copy_out("/tmp/out", "results")?;
/// assert_eq!(std::fs::read_to_string("results/words")?.trim(), "3");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Both calls copy a file, or a directory with everything in it. They copy contents and permissions, and symlinks in a directory
/// as symlinks. They do not copy owners, times, set-user-ID and set-group-ID. Devices, sockets and FIFOs are an error.
///
/// The target is the path of the copy itself, and its parent directory must exist. The copy gets this name when it is
/// complete. It replaces a file, and an empty directory if it is a directory. A copy of a file replaces a symlink at this path,
/// not what the symlink points to. Anything else at this path is an error.
///
/// A copy has no time limit. It fails if the agent stops answering, but a program in the guest that answers and sends nothing
/// can delay it without end. A sparse file is copied with its holes filled by zeros.
impl Vm {
    /// Copies a file or directory of the host into the guest.
    ///
    /// # Errors
    /// [`Error::CopyFailed`] if a file cannot be read or written, on either side; and those of
    /// [`GuestCommand::output`], with its default timeouts.
    pub fn copy_in(&self, host: impl AsRef<Path>, guest: impl AsRef<Path>) -> Result<()> {
        let (host, guest) = (host.as_ref(), guest.as_ref());
        // Without the agent's help, and before anything is started.
        host.metadata().map_err(|error| failed(host, guest, error))?;
        let mut child = self.copy_command(UNPACK, guest).stdin_piped().spawn()?;
        child.stdout = None;
        let Some(stdin) = child.stdin.take() else { return Err(failed(host, guest, io::ErrorKind::BrokenPipe.into())) };
        let mut stdin = BufWriter::with_capacity(BUFFER, stdin);
        let packed = pack(host, &mut stdin);
        if packed.is_err() {
            // Without the end of the archive, the agent removes what it has unpacked.
            drop(stdin.into_parts());
        } else {
            drop(stdin);
        }
        finish(child, packed, host, guest)
    }

    /// Copies a file or directory of the guest to the host.
    ///
    /// Nothing that the guest sends is written outside of the target. The crate does not limit how much a hostile guest sends.
    ///
    /// # Errors
    /// Those of [`copy_in`](Self::copy_in).
    pub fn copy_out(&self, guest: impl AsRef<Path>, host: impl AsRef<Path>) -> Result<()> {
        let (guest, host) = (guest.as_ref(), host.as_ref());
        let mut child = self.copy_command(PACK, guest).spawn()?;
        let Some(stdout) = child.stdout.take() else {
            return Err(failed(guest, host, io::ErrorKind::BrokenPipe.into()));
        };
        let mut stdout = BufReader::with_capacity(BUFFER, stdout);
        let unpacked = unpack(host, &mut stdout);
        drop(stdout);
        if unpacked.is_err() {
            // The guest may send for ever.
            child.kill()?;
        }
        finish(child, unpacked, guest, host)
    }

    /// The agent executes this itself. A relative path is relative to `/`, as for all commands.
    fn copy_command(&self, option: &str, path: &Path) -> GuestCommand {
        let mut command = self.command("hyperkit-agent").arg(option).arg(Path::new("/").join(path));
        command.is_copy = true;
        command
    }
}

fn failed(from: &Path, to: &Path, source: io::Error) -> Error {
    Error::CopyFailed { from: from.to_owned(), to: to.to_owned(), source }
}

/// Waits for the agent's side. What the guest reports is the cause if this side only lacks the rest.
fn finish(mut child: GuestChild, copied: io::Result<()>, from: &Path, to: &Path) -> Result<()> {
    let is_cut_off = |error: &io::Error| {
        matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof | io::ErrorKind::Other)
    };
    let mut message = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        let _ = stderr.take(MAX_MESSAGE).read_to_end(&mut message);
    }
    let status = child.wait()?;
    let copied = match copied {
        Err(error) if !is_cut_off(&error) => return Err(failed(from, to, error)),
        copied => copied,
    };
    if status.success() {
        return copied.map_err(|error| failed(from, to, error));
    }
    let message = String::from_utf8_lossy(&message).trim_end().to_owned();
    let source = match copied {
        Err(error) if message.is_empty() => error,
        _ if message.is_empty() => io::Error::other(format!("the agent's process {status}")),
        _ => io::Error::other(format!("in the guest: {message}")),
    };
    Err(failed(from, to, source))
}
