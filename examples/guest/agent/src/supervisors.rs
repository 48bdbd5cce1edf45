//! The supervisors of a session, as their parent sees them. The session is their subreaper: if a command kills its supervisor, the
//! command's processes become children of the session, which kills them.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::{self, IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::rc::Rc;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, WaitStatus, getpid, kill_process, pidfd_open, pidfd_send_signal,
    set_child_subreaper, wait, waitpid,
};

use crate::processes::{children, kill_descendants};
use crate::protocol::{Kind, put_frame};
use crate::supervisor::{OPTION, SELF};

/// Becomes readable when a process has exited. `None` on Linux before 5.3.
type Pidfd = Option<Rc<OwnedFd>>;

/// A process that waits for a request, and the socket to it. The socket's end says that the process is about to exit, or that it
/// needs the session no more.
pub struct Supervisor {
    pid: Pid,
    pidfd: Pidfd,
    pub control: UnixStream,
}

impl Supervisor {
    /// Lets it execute the encoded request with these standard streams.
    pub fn execute(&self, streams: [BorrowedFd<'_>; 3], request: &[u8]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut message = SendAncillaryBuffer::new(&mut space);
        message.push(SendAncillaryMessage::ScmRights(&streams));
        sendmsg(&self.control, &[IoSlice::new(&[0])], &mut message, SendFlags::NOSIGNAL)?;
        let mut frames = VecDeque::new();
        for piece in crate::protocol::pieces(request, false) {
            put_frame(&mut frames, Kind::Part, 0, piece);
        }
        put_frame(&mut frames, Kind::Exec, 0, &[]);
        (&self.control).write_all(frames.make_contiguous())?;
        self.control.set_nonblocking(true)
    }

    /// Lets a supervisor that a command has stopped receive what was sent to it.
    pub fn resume(&self) {
        let _ = match &self.pidfd {
            Some(pidfd) => pidfd_send_signal(pidfd, Signal::CONT),
            None => kill_process(self.pid, Signal::CONT),
        };
    }
}

/// All supervisors that are not reaped, whoever has dropped them.
pub struct Supervisors {
    running: HashMap<Pid, Running>,
    /// Children that this process has had before.
    others: HashSet<Pid>,
}

struct Running {
    pidfd: Pidfd,
    /// It lives as long as the processes that its command has left running.
    is_released: bool,
}

impl Supervisors {
    pub fn new() -> io::Result<Self> {
        set_child_subreaper(Some(getpid()))?;
        Ok(Self { running: HashMap::new(), others: children(getpid()) })
    }

    pub fn start(&mut self) -> io::Result<Supervisor> {
        let (control, theirs) = UnixStream::pair()?;
        let mut command = Command::new(SELF);
        command.arg0("hyperkit-agent").arg(OPTION).stdin(OwnedFd::from(theirs)).stdout(Stdio::null());
        let pid = i32::try_from(command.spawn()?.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| io::Error::other("no process ID"))?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).ok().map(Rc::new);
        self.running.insert(pid, Running { pidfd: pidfd.clone(), is_released: false });
        Ok(Supervisor { pid, pidfd, control })
    }

    /// The pidfds of all supervisors. If one is readable, its supervisor has exited: call [`reap`](Self::reap).
    pub fn pidfds(&self) -> impl Iterator<Item = &OwnedFd> {
        self.running.values().filter_map(|running| running.pidfd.as_deref())
    }

    /// Lets a supervisor and the processes of its command keep running.
    pub fn release(&mut self, supervisor: &Supervisor) {
        if let Some(running) = self.running.get_mut(&supervisor.pid) {
            running.is_released = true;
        }
    }

    /// Waits for the exit of a supervisor that has closed its socket.
    pub fn finish(&mut self, supervisor: Supervisor) {
        let pid = supervisor.pid;
        drop(supervisor);
        if self.running.get(&pid).is_some_and(|running| !running.is_released) {
            self.reap(Some(pid));
        }
    }

    /// Reaps the supervisors and orphans that have exited, and waits for the exit of one supervisor. If a supervisor was killed,
    /// kills what it has left.
    pub fn reap(&mut self, awaited: Option<Pid>) {
        let mut has_orphans = awaited.is_some_and(|pid| self.forget(waitpid(Some(pid), WaitOptions::empty())).1);
        loop {
            let (is_any, leaves_orphans) = self.forget(wait(WaitOptions::NOHANG));
            has_orphans |= leaves_orphans;
            if is_any {
                continue;
            }
            if !has_orphans {
                return;
            }
            kill_descendants(&|pid| self.running.contains_key(&pid) || self.others.contains(&pid));
            has_orphans = false;
        }
    }

    /// Returns whether a process was reaped, and whether it was a supervisor that was killed before its command.
    fn forget(&mut self, reaped: rustix::io::Result<Option<(Pid, WaitStatus)>>) -> (bool, bool) {
        let Ok(Some((pid, status))) = reaped else { return (false, false) };
        let running = self.running.remove(&pid);
        (true, status.signaled() && running.is_some_and(|running| !running.is_released))
    }
}
