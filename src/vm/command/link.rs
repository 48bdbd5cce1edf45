//! The connection of a `Vm` to its agent: opened by the first command, shared, and closed with the last one.

use std::fmt;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::error::{ConfigError, Error, Result};
use crate::exit::Exit;
use crate::state::StateDir;
use crate::sys::unix_socket::{connect, peer_pid};
use crate::vm::command::connection::{Connection, Failure, Probe};
use crate::vm::command::io_thread::SILENCE_LIMIT;
use crate::vm::command::protocol::VSOCK_PORT;
use crate::vm::command::ready_socket::{ReadySocket, WaitEnd};
use crate::vm::{CONTROL_TIMEOUT, Vm, VmStatus};

/// How long a hypervisor that has closed its sockets may take to exit.
const EXIT_TIMEOUT: Duration = Duration::from_secs(5);
/// The same, if the agent may have closed the connection instead.
const VSOCK_EXIT_TIMEOUT: Duration = Duration::from_secs(1);
/// How often the host tries to connect if the agent does not notify it, or has done so before the host listened.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);
/// Limits how often a guest can make the host connect.
const MIN_INTERVAL: Duration = Duration::from_millis(20);

/// The connection of a `Vm`, while a command uses it.
#[derive(Default)]
pub(crate) struct AgentSlot {
    state: Mutex<Slot>,
    changed: Condvar,
}

#[derive(Default)]
struct Slot {
    connection: Weak<Connection>,
    /// The process with a thread that opens a connection. A fork has no such thread.
    opener: Option<u32>,
}

impl fmt::Debug for AgentSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AgentSlot")
    }
}

impl AgentSlot {
    fn lock(&self) -> MutexGuard<'_, Slot> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a change, at most until the deadline.
    fn wait<'a>(&self, slot: MutexGuard<'a, Slot>, deadline: Option<Instant>) -> MutexGuard<'a, Slot> {
        match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
            None => self.changed.wait(slot).unwrap_or_else(PoisonError::into_inner),
            Some(left) => self.changed.wait_timeout(slot, left).unwrap_or_else(PoisonError::into_inner).0,
        }
    }
}

/// Marks that this thread opens a connection. Other threads that need one wait for it, each with its own deadline.
struct Opening<'a>(&'a AgentSlot);

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        self.0.lock().opener = None;
        self.0.changed.notify_all();
    }
}

/// The command that needs a connection, for errors, and its deadline.
#[derive(Clone, Copy)]
pub(super) struct Attempt<'a> {
    pub program: &'a str,
    pub timeout: Duration,
    pub deadline: Option<Instant>,
}

impl Attempt<'_> {
    /// The time that is left, at most `limit`.
    fn left(&self, limit: Duration) -> Duration {
        self.deadline.map_or(limit, |deadline| limit.min(deadline.saturating_duration_since(Instant::now())))
    }

    fn is_over(&self) -> bool {
        self.left(Duration::MAX).is_zero()
    }
}

impl Vm {
    /// Returns a connection to an agent that has answered.
    pub(super) fn connect_agent(&self, attempt: Attempt<'_>) -> Result<Arc<Connection>> {
        if !self.description().agent {
            return Err(ConfigError::MissingPrerequisite { field: "command", requires: "agent" }.into());
        }
        self.check_running()?;
        let connection = self.shared_connection(attempt)?;
        match connection.wait_ready(attempt.deadline) {
            Ok(true) => Ok(connection),
            Ok(false) => Err(self.agent_not_responding(attempt.timeout)),
            Err(failure) => Err(self.agent_error(attempt.program, failure)),
        }
    }

    fn shared_connection(&self, attempt: Attempt<'_>) -> Result<Arc<Connection>> {
        let shared = self.agent_slot();
        let mut slot = shared.lock();
        while slot.opener == Some(std::process::id()) {
            if attempt.is_over() {
                drop(slot);
                return Err(self.agent_not_responding(attempt.timeout));
            }
            slot = shared.wait(slot, attempt.deadline);
        }
        if let Some(connection) = slot.connection.upgrade().filter(|connection| connection.is_usable()) {
            return Ok(connection);
        }
        slot.opener = Some(std::process::id());
        drop(slot);
        let _opening = Opening(shared);
        let connection = Arc::new(self.open_agent(attempt)?);
        shared.lock().connection = Arc::downgrade(&connection);
        Ok(connection)
    }

    fn open_agent(&self, attempt: Attempt<'_>) -> Result<Connection> {
        let state = self.required_state("agent")?;
        let Some(socket) = self.driver().agent_socket(state) else { return self.open_vsock(state, attempt) };
        let stream = self.connect_hypervisor(&socket, attempt)?;
        let vm = self.clone();
        let probe = move || {
            let (driver, hypervisor) = (vm.driver(), vm.hypervisor());
            if driver.is_agent_port_closed(hypervisor, CONTROL_TIMEOUT).unwrap_or(false) {
                return Probe::Exited;
            }
            match driver.is_paused(hypervisor, CONTROL_TIMEOUT) {
                Ok(Some(true)) => Probe::Paused,
                _ => Probe::Unknown,
            }
        };
        Connection::new(stream, Box::new(probe)).map_err(Error::io("use", &socket))
    }

    /// Connects to the agent by vsock. While no agent listens, waits until one notifies the host.
    fn open_vsock(&self, state: &StateDir, attempt: Attempt<'_>) -> Result<Connection> {
        let endpoint = self.vsock_endpoint("command", VSOCK_PORT)?;
        let ready_name = self.driver().vsock_listener_name(VSOCK_PORT);
        let ready_path = self.description().vsock_sockets_dir().join(ready_name);
        let mut ready: Option<ReadySocket<'_>> = None;
        loop {
            let tried = Instant::now();
            let mut stream = self.connect_hypervisor(&endpoint.socket, attempt)?;
            // If this fails, the stream has ended, and `wait_ready` reports why.
            let _ = endpoint.request.iter().try_for_each(|request| stream.write_all(request.as_bytes()));
            let connection = Connection::new(stream, Box::new(|| Probe::Unknown));
            let connection = connection.map_err(Error::io("use", &endpoint.socket))?;
            match connection.wait_ready(attempt.deadline) {
                Ok(true) => return Ok(connection),
                Ok(false) => return Err(self.agent_not_responding(attempt.timeout)),
                // No program listens in the guest.
                Err(Failure::Closed) => {}
                Err(failure) => return Err(self.agent_error(attempt.program, failure)),
            }
            drop(connection);
            let end = match &mut ready {
                // Tries once more after this: an agent that has begun to listen meanwhile does not notify again.
                None => WaitEnd::ListenerLeft,
                Some(ready) => {
                    let end = ready.wait(attempt.left(RETRY_INTERVAL)).map_err(Error::io("wait at", &ready_path))?;
                    std::thread::sleep(MIN_INTERVAL.saturating_sub(tried.elapsed()));
                    end
                }
            };
            if let Some(exit) = self.try_wait() {
                return Err(self.exit_error(attempt.program, exit));
            }
            if attempt.is_over() {
                return Err(self.agent_not_responding(attempt.timeout));
            }
            if end == WaitEnd::ListenerLeft {
                ready = Some(ReadySocket::open(state, &ready_path)?);
            }
        }
    }

    /// Connects to a socket of the hypervisor.
    fn connect_hypervisor(&self, socket: &Path, attempt: Attempt<'_>) -> Result<UnixStream> {
        let stream = connect(socket, attempt.left(Duration::MAX)).map_err(|error| match error.kind() {
            // The queue is full: other programs wait for the agent, too.
            io::ErrorKind::WouldBlock => self.agent_not_responding(attempt.timeout),
            // A hypervisor that exits has closed the socket, and the starter has removed it.
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => match self.wait_timeout(EXIT_TIMEOUT) {
                Some(exit) => self.exit_error(attempt.program, exit),
                None => Error::io("connect to", socket)(error),
            },
            _ => Error::io("connect to", socket)(error),
        })?;
        // The state directory may have been replaced: then another VM's hypervisor listens at this path.
        match (peer_pid(&stream).map_err(Error::io("identify the process at", socket))?, self.state_dir()) {
            (Some(peer), Some(state_dir)) if peer != self.pid() => {
                Err(Error::Replaced { pid: self.pid(), successor: peer, state_dir: state_dir.to_owned() })
            }
            _ => Ok(stream),
        }
    }

    fn agent_not_responding(&self, timeout: Duration) -> Error {
        Error::AgentNotResponding {
            timeout,
            is_paused: matches!(self.status(), Ok(VmStatus::Paused)),
            state_dir: self.state_dir().map(Path::to_owned),
            log_tail: self.log_tail(),
        }
    }

    fn exit_error(&self, program: &str, exit: Exit) -> Error {
        let (program, state_dir) = (program.to_owned(), self.state_dir().map(Path::to_owned));
        Error::VmExited { program, exit, state_dir, log_tail: self.log_tail() }
    }

    /// The error of a command whose connection has ended.
    pub(super) fn agent_error(&self, program: &str, failure: Failure) -> Error {
        let has_port = self.state().is_some_and(|state| self.driver().agent_socket(state).is_some());
        let reason = match failure {
            Failure::Closed if has_port => match self.wait_timeout(EXIT_TIMEOUT) {
                Some(exit) => return self.exit_error(program, exit),
                None => "the hypervisor has closed the connection".to_owned(),
            },
            Failure::Closed => match self.wait_timeout(VSOCK_EXIT_TIMEOUT) {
                Some(exit) => return self.exit_error(program, exit),
                None => "it has closed the connection".to_owned(),
            },
            Failure::Exited => "it has exited".to_owned(),
            Failure::Restarted => "it has exited, and another agent was started".to_owned(),
            Failure::Silent => return self.agent_not_responding(SILENCE_LIMIT),
            Failure::Forked => "this process has not opened the connection, but its parent, before a fork".to_owned(),
            Failure::Protocol(reason) | Failure::Io(reason) => reason,
        };
        Error::AgentFailed { reason, state_dir: self.state_dir().map(Path::to_owned) }
    }
}
