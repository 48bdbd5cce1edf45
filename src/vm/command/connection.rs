//! The connection to the agent, and what its commands share with the thread that reads and writes the socket.
//!
//! The guest may send anything. What it may send before this program has consumed something is limited by `WINDOW`, so
//! the memory is bounded. Any violation of the protocol ends the connection with an error.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::sys::thread::spawn;
use crate::vm::command::io_thread::Link;
use crate::vm::command::protocol::{Kind, Nonce, hello, pieces, put_frame, put_numbers};
use crate::vm::command::stream::Stream;

/// How long a command that had to be killed may take to end, before the host gives up on it.
const KILL_TIMEOUT: Duration = Duration::from_secs(15);

/// Why a connection has ended.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Failure {
    /// The other end has closed the socket: the VM has exited or, on vsock, the agent has.
    Closed,
    /// The agent has exited.
    Exited,
    /// Another agent was started. It does not know the commands of this connection.
    Restarted,
    /// The agent does not answer any more.
    Silent,
    /// The agent sent something that the protocol does not allow.
    Protocol(String),
    /// A system call failed.
    Io(String),
    /// This process is a fork of the one that opened the connection. The thread has not been copied with it.
    Forked,
}

/// What the hypervisor reports about an agent that does not answer.
pub(super) enum Probe {
    /// The guest cannot answer at the moment.
    Paused,
    /// No program of the guest has the agent's port open.
    Exited,
    Unknown,
}

/// A connection that is open while it is used. Dropping it closes it; the agent then kills the commands that still run.
pub(super) struct Connection {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

pub(super) struct Shared {
    state: Mutex<State>,
    pub changed: Condvar,
    /// A byte in it wakes the thread.
    wake: UnixStream,
}

/// What the thread and the commands share.
pub(super) struct State {
    /// Whether the agent has answered.
    pub is_ready: bool,
    pub failure: Option<Failure>,
    pub is_closing: bool,
    pub outgoing: VecDeque<u8>,
    pub streams: HashMap<u32, Stream>,
    pub next: u32,
    /// The process with the thread.
    pub process: u32,
}

impl Connection {
    /// Says HELLO on a socket that leads to the agent. `probe` is called if the agent does not answer later.
    pub fn new(socket: UnixStream, probe: Box<dyn Fn() -> Probe + Send>) -> io::Result<Self> {
        let (wake, woken) = UnixStream::pair()?;
        for stream in [&socket, &wake, &woken] {
            stream.set_nonblocking(true)?;
        }
        let nonce = nonce();
        let state = State {
            is_ready: false,
            failure: None,
            is_closing: false,
            outgoing: hello(&nonce).into(),
            streams: HashMap::new(),
            next: 1,
            process: std::process::id(),
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new(), wake });
        let link = Link::new(socket, woken, shared.clone(), nonce, probe);
        let thread = spawn("hyperkit-agent", Box::new(|| link.run()))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Waits until the agent has answered. Returns false if it has not until the deadline.
    pub fn wait_ready(&self, deadline: Option<Instant>) -> Result<bool, Failure> {
        let mut state = self.shared.lock();
        loop {
            match &state.failure {
                Some(failure) => return Err(failure.clone()),
                None if state.is_ready => return Ok(true),
                None => {}
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(false);
            }
            state = self.shared.wait(state, deadline);
        }
    }

    /// Whether the connection can be used for another command.
    pub fn is_usable(&self) -> bool {
        self.shared.lock().failure.is_none()
    }

    /// Sends a request, and returns the number of the command.
    pub fn execute(&self, request: &[u8], stream: Stream) -> u32 {
        let mut state = self.shared.lock();
        let number = state.next;
        state.next += 1;
        for piece in pieces(request, false) {
            put_frame(&mut state.outgoing, Kind::Part, number, piece);
        }
        put_frame(&mut state.outgoing, Kind::Exec, number, &[]);
        state.streams.insert(number, stream);
        state.pump_stdin(number);
        drop(state);
        self.shared.wake();
        number
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        if state.failure == Some(Failure::Forked) {
            // Joining a thread that does not exist would never return.
            std::mem::forget(self.thread.take());
            return;
        }
        state.is_closing = true;
        drop(state);
        self.shared.wake();
        // The thread does not wait for anything else.
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// A thread that panicked while it held the lock has not left anything half done that matters.
    pub fn lock(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.process != std::process::id() {
            state.fail(Failure::Forked);
        }
        state
    }

    /// Waits for a change, at most until the deadline.
    pub fn wait<'a>(&self, state: MutexGuard<'a, State>, deadline: Option<Instant>) -> MutexGuard<'a, State> {
        match deadline {
            None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
            }
        }
    }

    /// Lets the thread send what is in `outgoing`.
    pub fn wake(&self) {
        // If it is full, the thread will wake up anyway.
        let _ = (&self.wake).write(&[0]);
    }
}

impl State {
    /// Sends as much of a command's input as the agent accepts.
    pub fn pump_stdin(&mut self, number: u32) {
        let Some(stream) = self.streams.get_mut(&number) else { return };
        while stream.stdin_credit > 0 && stream.stdin_at < stream.stdin.len() {
            let end = stream.stdin.len().min(stream.stdin_at + stream.stdin_credit);
            // Each piece is a frame.
            let Some(piece) = pieces(&stream.stdin[stream.stdin_at..end], false).next() else { break };
            put_frame(&mut self.outgoing, Kind::Stdin, number, piece);
            stream.stdin_credit -= piece.len();
            stream.stdin_at += piece.len();
        }
        if stream.stdin_ends && stream.stdin_at >= stream.stdin.len() {
            stream.stdin_ends = false;
            stream.stdin = Vec::new();
            stream.stdin_at = 0;
            put_frame(&mut self.outgoing, Kind::StdinEnd, number, &[]);
        }
    }

    /// Takes bytes of an output, at most `limit`, and lets the agent send as many more.
    pub fn take_output(&mut self, number: u32, index: usize, limit: usize) -> Vec<u8> {
        let Some(stream) = self.streams.get_mut(&number) else { return Vec::new() };
        let output = &mut stream.outputs[index];
        let length = output.data.len().min(limit);
        let (first, second) = output.data.as_slices();
        let from_first = length.min(first.len());
        let taken = [&first[..from_first], &second[..length - from_first]].concat();
        output.data.drain(..length);
        let consumed = output.consume(length);
        if consumed > 0 && !stream.has_ended {
            put_numbers(&mut self.outgoing, Kind::Credit, number, index as u8 + 1, consumed);
        }
        taken
    }

    /// Lets the agent send an output that nobody reads.
    pub fn discard_output(&mut self, number: u32, index: usize) {
        while !self.take_output(number, index, usize::MAX).is_empty() {}
        if let Some(stream) = self.streams.get_mut(&number) {
            stream.outputs[index].is_discarded = true;
        }
    }

    pub fn fail(&mut self, failure: Failure) {
        self.failure.get_or_insert(failure);
    }

    /// Kills commands whose time is up.
    pub fn kill_late_commands(&mut self) {
        let now = Instant::now();
        for (number, stream) in &mut self.streams {
            if stream.deadline.is_some_and(|deadline| deadline <= now) {
                stream.deadline = None;
                if stream.is_killed {
                    // The agent, or the guest, hangs.
                    stream.give_up();
                } else {
                    stream.has_timed_out = true;
                    stream.kill(*number, &mut self.outgoing);
                }
            }
        }
    }
}

impl Stream {
    /// Asks for the end of the command with all its descendants. It has a limited time for it.
    pub fn kill(&mut self, number: u32, outgoing: &mut VecDeque<u8>) {
        if !self.is_killed {
            self.is_killed = true;
            self.deadline = Instant::now().checked_add(KILL_TIMEOUT);
            put_frame(outgoing, Kind::Kill, number, &[]);
        }
    }
}

/// Bytes that no other program uses. std's hash keys are random.
fn nonce() -> Nonce {
    let mut nonce = [0; 16];
    for part in nonce.chunks_exact_mut(8) {
        part.copy_from_slice(&RandomState::new().hash_one(Instant::now()).to_le_bytes());
    }
    nonce
}
