//! The connection of a `Vm` to its agent: opened by the first command, shared, and closed with the last one.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::error::{ConfigError, Error, Result};
use crate::sys::unix_socket::{connect, peer_pid};
use crate::vm::command::connection::{Connection, Failure};
use crate::vm::command::io_thread::SILENCE_LIMIT;
use crate::vm::{CONTROL_TIMEOUT, Vm, VmStatus};

/// How long a hypervisor that has closed its sockets may take to exit.
const EXIT_TIMEOUT: Duration = Duration::from_secs(5);

/// The connection of a `Vm`, while a command uses it.
#[derive(Default)]
pub(crate) struct AgentSlot(Mutex<Weak<Connection>>);

impl fmt::Debug for AgentSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AgentSlot")
    }
}

impl Vm {
    /// Returns a connection to an agent that has answered. `program` is for messages.
    pub(super) fn connect_agent(
        &self,
        program: &str,
        timeout: Duration,
        deadline: Option<Instant>,
    ) -> Result<Arc<Connection>> {
        if !self.description().agent {
            return Err(ConfigError::MissingPrerequisite { field: "command", requires: "agent" }.into());
        }
        self.check_running()?;
        let connection = {
            let mut slot = self.agent_slot().0.lock().unwrap_or_else(PoisonError::into_inner);
            match slot.upgrade().filter(|connection| connection.is_usable()) {
                Some(connection) => connection,
                None => {
                    let connection = Arc::new(self.open_agent(program, timeout, deadline)?);
                    *slot = Arc::downgrade(&connection);
                    connection
                }
            }
        };
        match connection.wait_ready(deadline) {
            Ok(true) => Ok(connection),
            Ok(false) => Err(self.agent_not_responding(timeout)),
            Err(failure) => Err(self.agent_error(program, failure)),
        }
    }

    fn open_agent(&self, program: &str, timeout: Duration, deadline: Option<Instant>) -> Result<Connection> {
        let state = self.required_state("agent")?;
        let socket = self.driver().agent_socket(state)?;
        let left = deadline.map_or(timeout, |deadline| deadline.saturating_duration_since(Instant::now()));
        let stream = connect(&socket, left).map_err(|error| match error.kind() {
            // The queue is full: other programs wait for the agent, too.
            io::ErrorKind::WouldBlock => self.agent_not_responding(timeout),
            _ => match self.wait_timeout(EXIT_TIMEOUT) {
                Some(_) => self.agent_error(program, Failure::Closed),
                None => Error::io("connect to", &socket)(error),
            },
        })?;
        // The state directory may have been replaced: then another VM's hypervisor listens at this path.
        match peer_pid(&stream).map_err(Error::io("identify the process at", &socket))? {
            Some(peer) if peer != self.pid() => {
                let state_dir = state.path().to_owned();
                return Err(Error::Replaced { pid: self.pid(), successor: peer, state_dir });
            }
            _ => {}
        }
        let vm = self.clone();
        let is_paused = move || {
            let is_paused = vm.driver().is_paused(vm.hypervisor(), CONTROL_TIMEOUT);
            is_paused.is_ok_and(|is_paused| is_paused == Some(true))
        };
        Connection::new(stream, Box::new(is_paused)).map_err(Error::io("use", &socket))
    }

    fn agent_not_responding(&self, timeout: Duration) -> Error {
        Error::AgentNotResponding {
            timeout,
            is_paused: matches!(self.status(), Ok(VmStatus::Paused)),
            state_dir: self.state_dir().map(Path::to_owned),
            log_tail: self.log_tail(),
        }
    }

    /// The error of a command whose connection has ended.
    pub(super) fn agent_error(&self, program: &str, failure: Failure) -> Error {
        let state_dir = self.state_dir().map(Path::to_owned);
        let reason = match failure {
            Failure::Closed => match self.wait_timeout(EXIT_TIMEOUT) {
                Some(exit) => {
                    let (program, log_tail) = (program.to_owned(), self.log_tail());
                    return Error::VmExited { program, exit, state_dir, log_tail };
                }
                None => "the hypervisor has closed the connection".to_owned(),
            },
            Failure::Silent => return self.agent_not_responding(SILENCE_LIMIT),
            Failure::Forked => "this process has not opened the connection, but its parent, before a fork".to_owned(),
            Failure::Protocol(reason) | Failure::Io(reason) => reason,
        };
        Error::AgentFailed { reason, state_dir }
    }
}
