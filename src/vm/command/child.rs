//! A program that runs in the guest.

use std::io::{self, Read, Write};
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use crate::error::{Error, NotStarted, Result};
use crate::vm::Vm;
use crate::vm::command::connection::{Connection, State};
use crate::vm::command::protocol::{Kind, Stage, put_frame};
use crate::vm::command::status::{GuestOutput, GuestStatus};
use crate::vm::command::stream::Stream;

/// How long dropping a child waits for its end.
const DROP_TIMEOUT: Duration = Duration::from_secs(2);
/// How much is read at once.
const PIECE: usize = 256 * 1024;

/// A program that runs in the guest; [`GuestCommand::spawn`](crate::GuestCommand::spawn) returns it and has an example.
///
/// Dropping it kills the program with all its descendants, unless the program has exited. What a program that has exited
/// has left running lives on.
///
/// A program that writes more than about 300 KiB blocks until its output is read, or until the stream is dropped, which
/// discards the output. Other programs are not affected.
#[derive(Debug)]
pub struct GuestChild {
    /// The program's standard input, if it is [piped](crate::GuestCommand::stdin_piped). Dropping it is the end of the input.
    pub stdin: Option<GuestStdin>,
    /// The program's standard output.
    pub stdout: Option<GuestReader>,
    /// The program's standard error.
    pub stderr: Option<GuestReader>,
    pid: u32,
    wait: Arc<Wait>,
}

/// What the child and its streams share.
pub(super) struct Wait {
    pub vm: Vm,
    pub connection: Arc<Connection>,
    pub number: u32,
    /// The program, for messages.
    pub name: String,
    /// The time that the command may take, for messages.
    pub timeout: Duration,
}

impl std::fmt::Debug for Wait {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "command {} ({:?})", self.number, self.name)
    }
}

/// The child and its streams hold the connection open. The last of them waits until the agent has ended the command: at the
/// end of a connection, the agent would kill it with everything that it has left running.
impl Drop for Wait {
    fn drop(&mut self) {
        let deadline = Instant::now().checked_add(DROP_TIMEOUT);
        let mut state = self.lock();
        (0..2).for_each(|index| state.discard_output(self.number, index));
        if self.stream(&mut state).is_some_and(|stream| stream.status.is_some() && !stream.has_ended) {
            self.send(&mut state, Kind::Release, &[]);
        }
        let has_ended = |state: &mut State| self.stream(state).is_none_or(|stream| stream.has_ended);
        while !has_ended(&mut state) && state.failure.is_none() && deadline.is_some_and(|end| Instant::now() < end) {
            state = self.connection.shared().wait(state, deadline);
        }
        state.streams.remove(&self.number);
    }
}

impl Wait {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.connection.shared().lock()
    }

    /// Waits until the function returns a value, at most until the deadline. Fails if the connection ends before.
    fn until<T>(&self, deadline: Option<Instant>, mut check: impl FnMut(&mut State) -> Option<T>) -> Result<Option<T>> {
        let mut state = self.lock();
        loop {
            if let Some(value) = check(&mut state) {
                return Ok(Some(value));
            }
            if let Some(failure) = state.failure.clone() {
                drop(state);
                return Err(self.vm.agent_error(&self.name, failure));
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(None);
            }
            state = self.connection.shared().wait(state, deadline);
        }
    }

    fn stream<'a>(&self, state: &'a mut State) -> Option<&'a mut Stream> {
        state.streams.get_mut(&self.number)
    }

    fn send(&self, state: &mut State, kind: Kind, payload: &[u8]) {
        put_frame(&mut state.outgoing, kind, self.number, payload);
        self.connection.shared().wake();
    }

    /// The status, or that the time was up.
    fn status_of(&self, stream: &mut Stream) -> Option<Result<GuestStatus>> {
        if stream.has_timed_out && stream.has_ended {
            return Some(Err(self.timed_out(Vec::new(), Vec::new())));
        }
        if stream.has_timed_out {
            return None; // until everything is killed
        }
        match stream.status {
            Some(status) => Some(Ok(status)),
            // The guest hangs: it has not killed the program in time.
            None if stream.has_ended => {
                let reason = "the agent has not killed the program".to_owned();
                Some(Err(Error::AgentFailed { reason, state_dir: self.vm.state_dir().map(Into::into) }))
            }
            None => None,
        }
    }

    fn timed_out(&self, stdout: Vec<u8>, stderr: Vec<u8>) -> Error {
        Error::CommandTimedOut { program: self.name.clone(), timeout: self.timeout, stdout, stderr }
    }
}

impl GuestChild {
    /// Waits until the program runs.
    pub(super) fn new(wait: Wait, has_stdin: bool, has_outputs: bool) -> Result<Self> {
        let wait = Arc::new(wait);
        let started = wait.until(None, |state| {
            let stream = wait.stream(state)?;
            match stream.start_error() {
                Some(error) => Some(Err(error)),
                None if stream.has_timed_out && stream.has_ended => Some(Ok(0)),
                None => stream.pid.map(Ok),
            }
        })?;
        let pid = match started {
            Some(Ok(pid)) => pid,
            Some(Err((stage, source))) => {
                let reason = match stage {
                    Stage::CurrentDir => NotStarted::CurrentDir,
                    Stage::Program => NotStarted::ProgramNotFound,
                    Stage::Permission => NotStarted::NotExecutable,
                    Stage::Interpreter => NotStarted::InterpreterNotFound,
                    Stage::Agent => NotStarted::Other,
                };
                return Err(Error::CommandNotStarted { program: wait.name.clone(), reason, source });
            }
            None => 0,
        };
        let reader = |index| has_outputs.then(|| GuestReader { wait: wait.clone(), index });
        let stdin = has_stdin.then(|| GuestStdin { wait: wait.clone() });
        Ok(Self { stdin, stdout: reader(0), stderr: reader(1), pid, wait })
    }

    /// Returns the program's process ID in the guest.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.pid
    }

    /// Closes [`stdin`](Self::stdin), and waits until the program has exited. It does not read the outputs: a program that
    /// writes much blocks. Read them, drop them, or use [`wait_with_output`](Self::wait_with_output).
    ///
    /// # Errors
    /// [`Error::CommandTimedOut`] after the [`timeout`](crate::GuestCommand::timeout) of the command; [`Error::VmExited`];
    /// [`Error::AgentFailed`]; [`Error::AgentNotResponding`] if the agent has not answered for a minute while the guest was
    /// not paused.
    pub fn wait(&mut self) -> Result<GuestStatus> {
        self.stdin = None;
        let waited = self.wait.until(None, |state| self.wait.status_of(self.wait.stream(state)?))?;
        waited.unwrap_or_else(|| Err(self.wait.timed_out(Vec::new(), Vec::new())))
    }

    /// Waits until the program has exited, but at most `timeout`; `None` if it still runs.
    ///
    /// # Errors
    /// Those of [`wait`](Self::wait).
    pub fn wait_timeout(&mut self, timeout: Duration) -> Result<Option<GuestStatus>> {
        let deadline = Instant::now().checked_add(timeout);
        self.wait.until(deadline, |state| self.wait.status_of(self.wait.stream(state)?))?.transpose()
    }

    /// Returns how the program has exited; `None` if it still runs.
    ///
    /// # Errors
    /// Those of [`wait`](Self::wait).
    pub fn try_wait(&mut self) -> Result<Option<GuestStatus>> {
        self.wait_timeout(Duration::ZERO)
    }

    /// Closes [`stdin`](Self::stdin), reads what is left of the outputs, and waits for the end of the program.
    ///
    /// # Errors
    /// Those of [`wait`](Self::wait), and [`Error::CommandOutputTooLong`] for more than 1 GiB.
    pub fn wait_with_output(self) -> Result<GuestOutput> {
        self.collect(super::OUTPUT_LIMIT)
    }

    pub(super) fn collect(mut self, limit: usize) -> Result<GuestOutput> {
        self.stdin = None;
        let is_read = [self.stdout.is_some(), self.stderr.is_some()];
        let mut outputs = [Vec::new(), Vec::new()];
        let status = loop {
            let wait = &self.wait;
            let done = wait.until(None, |state| {
                let mut is_new = false;
                for index in (0..2).filter(|index| is_read[*index]) {
                    let piece = state.take_output(wait.number, index, PIECE);
                    is_new |= !piece.is_empty();
                    outputs[index].extend_from_slice(&piece);
                }
                if is_new {
                    wait.connection.shared().wake();
                }
                let stream = wait.stream(state)?;
                let is_complete = stream.has_ended && stream.outputs.iter().all(|output| output.data.is_empty());
                match is_complete {
                    true => Some(wait.status_of(stream)),
                    false => is_new.then_some(None),
                }
            })?;
            if outputs[0].len() + outputs[1].len() > limit {
                let _ = self.kill();
                return Err(Error::CommandOutputTooLong { program: self.wait.name.clone(), limit });
            }
            if let Some(Some(status)) = done {
                break status;
            }
        };
        let [stdout, stderr] = outputs;
        match status {
            Ok(status) => Ok(GuestOutput { status, stdout, stderr }),
            Err(Error::CommandTimedOut { .. }) => Err(self.wait.timed_out(stdout, stderr)),
            Err(error) => Err(error),
        }
    }

    /// Kills the program with all its descendants (SIGKILL), also those with sessions of their own. It does not wait for their
    /// end. It is no error if the program has exited already.
    ///
    /// # Errors
    /// [`Error::VmExited`], [`Error::AgentFailed`].
    pub fn kill(&mut self) -> Result<()> {
        self.request(
            |stream| !stream.has_ended,
            |wait, state| {
                let State { streams, outgoing, .. } = state;
                if let Some(stream) = streams.get_mut(&wait.number) {
                    stream.kill(wait.number, outgoing);
                }
                wait.connection.shared().wake();
            },
        )
    }

    /// Sends a signal to the program, by its number on Linux (1 to 31), and not to its descendants. It is no error if the program
    /// has exited already.
    ///
    /// # Errors
    /// [`Error::Io`] for another number; [`Error::VmExited`], [`Error::AgentFailed`].
    pub fn signal(&mut self, signal: i32) -> Result<()> {
        if !(1..=31).contains(&signal) {
            let source = io::Error::new(io::ErrorKind::InvalidInput, format!("no signal has the number {signal}"));
            return Err(Error::io("send a signal to", &self.wait.name)(source));
        }
        let number = signal.unsigned_abs().to_le_bytes();
        self.request(|stream| stream.status.is_none(), |wait, state| wait.send(state, Kind::Signal, &number))
    }

    fn request(&self, is_due: impl Fn(&Stream) -> bool, send: impl Fn(&Wait, &mut State)) -> Result<()> {
        let mut state = self.wait.lock();
        if let Some(failure) = state.failure.clone() {
            drop(state);
            return Err(self.wait.vm.agent_error(&self.wait.name, failure));
        }
        if self.wait.stream(&mut state).is_some_and(|stream| is_due(stream)) {
            send(&self.wait, &mut state);
        }
        Ok(())
    }
}

impl Drop for GuestChild {
    fn drop(&mut self) {
        let mut state = self.wait.lock();
        // After a failure, the agent is not reached, and finding out why may take seconds.
        let is_running =
            state.failure.is_none() && self.wait.stream(&mut state).is_some_and(|stream| stream.status.is_none());
        drop(state);
        if is_running {
            let _ = self.kill();
        }
    }
}

/// The standard input of a program in the guest, of a [`GuestChild`]. Dropping it is the end of the input.
/// [`GuestCommand::spawn`](crate::GuestCommand::spawn) has an example.
///
/// A write blocks while the program does not read, after about 300 KiB. If the program has closed its standard input or
/// exited, a write fails with [`BrokenPipe`](io::ErrorKind::BrokenPipe).
#[derive(Debug)]
pub struct GuestStdin {
    wait: Arc<Wait>,
}

impl Write for GuestStdin {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        let wait = &self.wait;
        let written = wait.until(None, |state| {
            let stream = wait.stream(state)?;
            if stream.stdin_is_closed {
                return Some(0);
            }
            let length = bytes.len().min(stream.stdin_credit);
            if length == 0 {
                return None;
            }
            stream.stdin = bytes[..length].to_vec();
            stream.stdin_at = 0;
            state.pump_stdin(wait.number);
            wait.connection.shared().wake();
            Some(length)
        });
        match written.map_err(io::Error::other)? {
            Some(length @ 1..) => Ok(length),
            _ => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for GuestStdin {
    fn drop(&mut self) {
        let mut state = self.wait.lock();
        if let Some(stream) = self.wait.stream(&mut state).filter(|stream| !stream.stdin_is_closed) {
            stream.stdin_ends = true;
            state.pump_stdin(self.wait.number);
            self.wait.connection.shared().wake();
        }
    }
}

/// Standard output or standard error of a program in the guest, of a [`GuestChild`]. Dropping it discards what the program
/// writes. [`GuestCommand::spawn`](crate::GuestCommand::spawn) has an example.
#[derive(Debug)]
pub struct GuestReader {
    wait: Arc<Wait>,
    index: usize,
}

impl Read for GuestReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let wait = &self.wait;
        let read = wait.until(None, |state| {
            let output = &wait.stream(state)?.outputs[self.index];
            if output.data.is_empty() {
                return output.is_closed.then(Vec::new);
            }
            let piece = state.take_output(wait.number, self.index, buffer.len());
            wait.connection.shared().wake();
            Some(piece)
        });
        let piece = read.map_err(io::Error::other)?.unwrap_or_default();
        buffer[..piece.len()].copy_from_slice(&piece);
        Ok(piece.len())
    }
}

impl Drop for GuestReader {
    fn drop(&mut self) {
        let mut state = self.wait.lock();
        state.discard_output(self.wait.number, self.index);
        self.wait.connection.shared().wake();
    }
}
