//! The process between the agent and a command. It is the subreaper of everything that the command starts: a process whose
//! parent has exited becomes the supervisor's child, also if it has a session of its own. So the supervisor can kill them all.
//!
//! Its standard input is a socket to the agent. It receives three descriptors and a request, and reports how the command
//! ends. If the socket is closed without RELEASE, the command is not needed any more, and everything is killed. After RELEASE, it
//! lives as long as the processes that the command has left running: if it exited before, they would become children of the
//! session, which kills its children (`supervisors.rs`).

use std::collections::VecDeque;
use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::thread;

use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, getpid, kill_process, pidfd_open, pidfd_send_signal, set_child_subreaper,
    wait,
};

use crate::processes::kill_descendants;
use crate::protocol::{Frames, Kind, Request, Stage, put_frame, put_numbers};

/// The options of this program for its own use.
pub const OPTION: &str = "--supervise";
pub const PACK: &str = "--pack";
pub const UNPACK: &str = "--unpack";

/// This program, also if its file was replaced.
pub const SELF: &str = "/proc/self/exe";
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The supervisor.
pub fn run() -> io::Result<()> {
    set_child_subreaper(Some(getpid()))?;
    let control = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let Some(streams) = receive_streams(&control)? else { return Ok(()) };
    let mut frames = Frames::default();
    let request = receive_request(&control, &mut frames)?;
    let report = Report { control: &control, lock: Mutex::new(()) };
    let pid = match execute(&request, streams) {
        Ok(pid) => pid,
        Err((stage, error)) => {
            let errno = Errno::from_io_error(&error).map_or(0, Errno::raw_os_error);
            report.send_numbers(Kind::Failed, stage as u8, errno.unsigned_abs());
            return Ok(());
        }
    };
    report.send(Kind::Started, &pid.as_raw_nonzero().get().unsigned_abs().to_le_bytes());
    let program = Program { pid, pidfd: pidfd_open(pid, PidfdFlags::empty()).ok() };
    thread::scope(|scope| {
        let reaper = scope.spawn(|| reap(pid, &report));
        if obey(&control, &mut frames, &program) {
            kill_descendants(&|_| false);
        } else {
            // It uses no directory that someone could want to unmount.
            let _ = env::set_current_dir("/");
            let _ = control.shutdown(Shutdown::Both);
        }
        let _ = reaper.join();
    });
    Ok(())
}

/// Reports to the agent, from any thread. If the agent has died, the other thread notices it.
struct Report<'a> {
    control: &'a UnixStream,
    lock: Mutex<()>,
}

impl Report<'_> {
    fn send(&self, kind: Kind, payload: &[u8]) {
        let mut frame = VecDeque::new();
        put_frame(&mut frame, kind, 0, payload);
        let _lock = self.lock.lock();
        let _ = (&mut &*self.control).write_all(frame.make_contiguous());
    }

    fn send_numbers(&self, kind: Kind, small: u8, large: u32) {
        let mut frame = VecDeque::new();
        put_numbers(&mut frame, kind, 0, small, large);
        let _lock = self.lock.lock();
        let _ = (&mut &*self.control).write_all(frame.make_contiguous());
    }
}

/// Reaps the program and the orphans, until there are none.
fn reap(program: Pid, report: &Report<'_>) {
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == program => {
                let signal = status.terminating_signal().map(|signal| (1, signal));
                let (is_signal, number) = signal.unwrap_or((0, status.exit_status().unwrap_or_default()));
                report.send_numbers(Kind::Exit, is_signal, number.unsigned_abs());
            }
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return,
        }
    }
}

struct Program {
    pid: Pid,
    /// A signal by pidfd cannot reach a later process with the same pid. `None` on Linux before 5.3.
    pidfd: Option<OwnedFd>,
}

impl Program {
    fn signal(&self, number: u32) {
        let Some(signal) = SIGNALS.into_iter().find(|signal| signal.as_raw().unsigned_abs() == number) else { return };
        let _ = match &self.pidfd {
            Some(pidfd) => pidfd_send_signal(pidfd, signal),
            None => kill_process(self.pid, signal),
        };
    }
}

/// Does what the agent asks for, until it needs the command no more. Returns whether everything has to be killed.
fn obey(mut control: &UnixStream, frames: &mut Frames, program: &Program) -> bool {
    let mut buffer = [0; 4096];
    loop {
        while let Ok(Some(frame)) = frames.next() {
            match frame.kind {
                Kind::Signal => frame.number().into_iter().for_each(|number| program.signal(number)),
                Kind::Kill => return true,
                Kind::Release => return false,
                _ => {}
            }
        }
        match control.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(length @ 1..) => frames.push(&buffer[..length]),
            _ => return true,
        }
    }
}

/// `None` if the session has ended without a command for this supervisor.
fn receive_streams(control: &UnixStream) -> io::Result<Option<[OwnedFd; 3]>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut message = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(control, &mut [IoSliceMut::new(&mut [0])], &mut message, RecvFlags::CMSG_CLOEXEC)?;
    if received.bytes == 0 {
        return Ok(None);
    }
    let rights = message.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(rights) => Some(rights),
        _ => None,
    });
    let streams: Vec<_> = rights.flatten().collect();
    streams.try_into().map(Some).map_err(|_| io::Error::other("no descriptors"))
}

fn receive_request(mut control: &UnixStream, frames: &mut Frames) -> io::Result<Request> {
    let (mut request, mut buffer) = (Vec::new(), vec![0; 64 * 1024]);
    loop {
        while let Some(frame) = frames.next().map_err(io::Error::other)? {
            request.extend_from_slice(frame.payload);
            if frame.kind == Kind::Exec {
                return Request::decode(&request).ok_or_else(|| io::Error::other("damaged request"));
            }
        }
        match control.read(&mut buffer)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            length => frames.push(&buffer[..length]),
        }
    }
}

type Failure = (Stage, io::Error);

/// All but the real-time signals.
const SIGNALS: [Signal; 31] = [
    Signal::HUP,
    Signal::INT,
    Signal::QUIT,
    Signal::ILL,
    Signal::TRAP,
    Signal::ABORT,
    Signal::BUS,
    Signal::FPE,
    Signal::KILL,
    Signal::USR1,
    Signal::SEGV,
    Signal::USR2,
    Signal::PIPE,
    Signal::ALARM,
    Signal::TERM,
    Signal::STKFLT,
    Signal::CHILD,
    Signal::CONT,
    Signal::STOP,
    Signal::TSTP,
    Signal::TTIN,
    Signal::TTOU,
    Signal::URG,
    Signal::XCPU,
    Signal::XFSZ,
    Signal::VTALARM,
    Signal::PROF,
    Signal::WINCH,
    Signal::IO,
    Signal::POWER,
    Signal::SYS,
];

/// Starts the program.
fn execute(request: &Request, streams: [OwnedFd; 3]) -> Result<Pid, Failure> {
    if !request.cwd.is_empty() {
        env::set_current_dir(OsStr::from_bytes(&request.cwd)).map_err(|error| (Stage::CurrentDir, error))?;
    }
    let texts = |texts: &[Vec<u8>]| texts.iter().cloned().map(OsString::from_vec).collect::<Vec<_>>();
    let argv = texts(&request.argv);
    let Some((name, arguments)) = argv.split_first() else {
        return Err((Stage::Agent, Errno::INVAL.into()));
    };
    let mut environment: Vec<_> = if request.env_clear { Vec::new() } else { env::vars_os().collect() };
    if !request.env_clear && env::var_os("PATH").is_none() {
        environment.push(("PATH".into(), DEFAULT_PATH.into()));
    }
    for variable in &request.env {
        let mut parts = variable.splitn(2, |byte| *byte == b'=').map(OsStr::from_bytes);
        let (name, value) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        environment.retain(|(other, _)| other != name);
        environment.push((name.to_owned(), value.to_owned()));
    }
    let path = environment.iter().find(|(name, _)| name == "PATH").map(|(_, value)| value.as_os_str());
    let program = if request.is_copy { PathBuf::from(SELF) } else { find(name, path)? };
    let mut command = Command::new(&program);
    command.arg0(name).args(arguments).env_clear().envs(environment).process_group(0);
    if let Some(uid) = request.uid {
        command.uid(uid);
    }
    if let Some(gid) = request.gid {
        command.gid(gid);
    }
    let [stdin, stdout, stderr] = streams;
    command.stdin(stdin).stdout(stdout).stderr(stderr);
    // std gives the program the default SIGPIPE, and an empty signal mask.
    match command.spawn() {
        Ok(child) => {
            let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
            pid.ok_or((Stage::Agent, Errno::SRCH.into()))
        }
        Err(error) => {
            let stage = match Errno::from_io_error(&error) {
                // It was found just before.
                Some(Errno::NOENT) => Stage::Interpreter,
                Some(Errno::ACCESS | Errno::NOEXEC | Errno::PERM) => Stage::Permission,
                _ => Stage::Agent,
            };
            Err((stage, error))
        }
    }
}

/// Searches a program as `execvp` does, in the program's own `PATH`.
fn find(name: &OsStr, path: Option<&OsStr>) -> Result<PathBuf, Failure> {
    if name.as_bytes().contains(&b'/') {
        return check(Path::new(name)).map(|()| name.into());
    }
    let mut failure = (Stage::Program, Errno::NOENT.into());
    if name.is_empty() {
        return Err(failure);
    }
    for dir in env::split_paths(path.unwrap_or(OsStr::new(DEFAULT_PATH))) {
        // An empty entry is the current directory.
        let program = Path::new(".").join(dir).join(name);
        match check(&program) {
            Ok(()) => return Ok(program),
            Err((Stage::Permission, error)) => failure = (Stage::Permission, error),
            Err(_) => {}
        }
    }
    Err(failure)
}

/// Whether a file could be a program.
fn check(program: &Path) -> Result<(), Failure> {
    let metadata = fs::metadata(program).map_err(|error| (Stage::Program, error))?;
    match metadata.is_file() && metadata.permissions().mode() & 0o111 != 0 {
        true => Ok(()),
        false => Err((Stage::Permission, Errno::ACCESS.into())),
    }
}
