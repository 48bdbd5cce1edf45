//! A console on the caller's standard input and output, for an engine that uses descriptor 0 for input and output.
//!
//! If both are the same terminal, the engine gets this terminal. Otherwise it gets one end of a socket pair. Threads of this process copy
//! between the other end and the caller's streams. If the VM may outlive this process, `cat` copies the output, and there is no
//! input.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write, stdin, stdout};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{OFlags, fcntl_getfl, fstat};
use rustix::io::Errno;
use rustix::process::getpgrp;
use rustix::termios::{isatty, tcgetpgrp};

use crate::sys::thread;

/// hyperkit drops what does not fit into the socket's buffer, in bytes.
const SOCKET_BUFFER: usize = 1024 * 1024;
/// If the VM has exited and standard output accepts nothing for this long, the rest of the output is lost.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// The poll interval at which a background process checks whether it may read from the terminal.
const BACKGROUND_INTERVAL: Duration = Duration::from_millis(100);

/// Copies its standard input to its standard output, and reads on if that fails: at the end of the stream hyperkit would poll in
/// a loop. It runs in the background of a shell, so that no process has to reap it.
const COPY: &str = "exec 3<&0; { /bin/cat <&3; exec /bin/cat <&3 >/dev/null; } &";

/// The threads that copy, until the VM has exited.
#[derive(Debug)]
pub(crate) struct ConsoleRelay {
    /// Receives a message while output is copied, and is disconnected at the end of the output.
    progress: Receiver<()>,
}

impl ConsoleRelay {
    /// Sets the command's standard input, so that the hypervisor's output on it reaches the caller's standard output.
    pub fn connect(command: &mut Command, outlives_caller: bool) -> io::Result<Option<Self>> {
        let (input, output) = (stdin().as_fd().try_clone_to_owned()?, stdout().as_fd().try_clone_to_owned()?);
        if is_same(&input, &output) {
            if is_read_write(&input) {
                return Ok(None);
            }
            if is_read_write(&output) {
                command.stdin(output);
                return Ok(None);
            }
        }
        let (ours, theirs) = UnixStream::pair()?;
        #[cfg(target_vendor = "apple")]
        // Writing after the VM's exit must be an error, and must not kill the program.
        rustix::net::sockopt::set_socket_nosigpipe(&ours, true)?;
        // The system may allow less.
        let _ = rustix::net::sockopt::set_socket_send_buffer_size(&theirs, SOCKET_BUFFER);
        let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&ours, SOCKET_BUFFER);
        command.stdin(OwnedFd::from(theirs));
        if outlives_caller {
            let mut copy = Command::new("/bin/sh");
            copy.args(["-c", COPY]).stdin(OwnedFd::from(ours)).stdout(output).stderr(Stdio::null()).process_group(0);
            let _ = copy.spawn()?.wait(); // fails if SIGCHLD is ignored
            return Ok(None);
        }
        let (sender, progress) = sync_channel(1);
        let (state, state_of_output) = UnixStream::pair()?;
        let to_guest = ours.try_clone()?;
        thread::spawn(
            "hyperkit-stdout",
            Box::new(move || copy_output(ours, output.into(), &state_of_output, &sender)),
        )?;
        thread::spawn("hyperkit-stdin", Box::new(move || drop(copy_input(&input, to_guest, state))))?;
        Ok(Some(Self { progress }))
    }

    /// Waits until the rest of the output is written to standard output. The VM has exited.
    pub fn finish(self) {
        while self.progress.recv_timeout(DRAIN_TIMEOUT).is_ok() {}
    }
}

/// Whether both are a terminal, or the same socket or device.
fn is_same(input: &OwnedFd, output: &OwnedFd) -> bool {
    let inode = |file| fstat(file).ok().map(|stat| (stat.st_dev, stat.st_ino));
    (isatty(input) && isatty(output)) || inode(input).is_some_and(|of_input| inode(output) == Some(of_input))
}

fn is_read_write(file: &OwnedFd) -> bool {
    fcntl_getfl(file).is_ok_and(|flags| flags & OFlags::RWMODE == OFlags::RDWR)
}

/// Copies the guest's output until the VM has exited, also if standard output is closed. Writes a byte to `state` at the first
/// output, and closes it at the end.
fn copy_output(mut console: UnixStream, stdout: File, mut state: &UnixStream, progress: &SyncSender<()>) {
    let (mut buffer, mut stdout, mut is_first) = ([0; 16 * 1024], Some(stdout), true);
    loop {
        let length = match console.read(&mut buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Ok(0) | Err(_) => return,
            Ok(length) => length,
        };
        if std::mem::take(&mut is_first) {
            let _ = state.write_all(&[1]);
        }
        if stdout.as_mut().is_some_and(|stdout| write_all(stdout, &buffer[..length]).is_err()) {
            stdout = None;
        }
        let _ = progress.try_send(());
    }
}

/// Writes to a stream that may be nonblocking.
fn write_all(mut stream: &File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match stream.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let _ = poll(&mut [PollFd::new(&stream, PollFlags::OUT)], None);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Copies standard input to the guest, from the guest's first output until `state` is closed: hyperkit discards input that comes
/// before the guest has turned on its serial port (rxfifo_reset in uart_emul.c). At the end of standard input, the guest's input
/// stays open.
fn copy_input(input: &OwnedFd, mut console: UnixStream, mut state: UnixStream) -> io::Result<()> {
    let (mut stdin, mut buffer) = (File::from(input.try_clone()?), [0; 4096]);
    if state.read(&mut buffer[..1])? == 0 {
        return Ok(());
    }
    loop {
        let mut streams = [PollFd::new(&input, PollFlags::IN), PollFd::new(&state, PollFlags::IN)];
        match poll(&mut streams, None) {
            Err(Errno::INTR) => continue,
            polled => polled?,
        };
        if !streams[1].revents().is_empty() {
            return Ok(());
        }
        // A background process that reads from the terminal is stopped.
        if tcgetpgrp(input).is_ok_and(|foreground| foreground != getpgrp()) {
            std::thread::sleep(BACKGROUND_INTERVAL);
            continue;
        }
        match stdin.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => console.write_all(&buffer[..length])?,
            Err(error) if [ErrorKind::WouldBlock, ErrorKind::Interrupted].contains(&error.kind()) => {}
            Err(error) => return Err(error),
        }
    }
}
