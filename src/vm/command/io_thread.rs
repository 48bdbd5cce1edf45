//! The thread that reads and writes the socket to the agent, while a connection is open.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::vm::command::connection::{Failure, Probe, Shared, State};
use crate::vm::command::protocol::{AGAIN, Frames, Kind, MAX_PAYLOAD, Nonce, Scanner, VERSION, hello, put_frame};

/// After this time without a byte from the agent, the host sends a ping. If the agent has not answered after the same time again, the
/// host asks the hypervisor.
const PING_INTERVAL: Duration = Duration::from_secs(2);
/// An agent that has not answered for this time while its VM runs has failed, whatever the hypervisor reports.
pub(super) const SILENCE_LIMIT: Duration = Duration::from_secs(60);

/// The thread's side.
pub(super) struct Link {
    socket: UnixStream,
    woken: UnixStream,
    shared: Arc<Shared>,
    scanner: Scanner,
    nonce: Nonce,
    frames: Frames,
    last_received: Instant,
    last_ping: Instant,
    probe: Box<dyn Fn() -> Probe + Send>,
}

impl Link {
    pub fn new(
        socket: UnixStream,
        woken: UnixStream,
        shared: Arc<Shared>,
        nonce: Nonce,
        probe: Box<dyn Fn() -> Probe + Send>,
    ) -> Self {
        let (scanner, now) = (Scanner::new(true), Instant::now());
        Self {
            socket,
            woken,
            shared,
            scanner,
            nonce,
            frames: Frames::default(),
            last_received: now,
            last_ping: now,
            probe,
        }
    }

    pub fn run(mut self) {
        let mut buffer = vec![0; 64 * 1024];
        let failure = loop {
            match self.step(&mut buffer) {
                Ok(true) => {}
                Ok(false) => break None,
                Err(failure) => break Some(failure),
            }
        };
        // The connection ends before a command can hear of it and connect again. Closing the socket alone would leave it
        // to a child that another thread has forked, until its `exec` or its exit.
        let _ = self.socket.shutdown(Shutdown::Both);
        if let Some(failure) = failure {
            self.shared.lock().fail(failure);
            self.shared.changed.notify_all();
        }
    }

    /// Waits for an event and handles it. Returns false at the end of the connection.
    fn step(&mut self, buffer: &mut [u8]) -> Result<bool, Failure> {
        let io = |error: io::Error| Failure::Io(error.to_string());
        let (wants_to_write, deadline) = {
            let mut state = self.shared.lock();
            if state.is_closing {
                return Ok(false);
            }
            state.kill_late_commands();
            let deadlines = state.streams.values().filter_map(|stream| stream.deadline);
            (!state.outgoing.is_empty(), deadlines.min())
        };
        self.shared.changed.notify_all();
        let flags = if wants_to_write { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        let left = deadline.map_or(PING_INTERVAL, |deadline| deadline.saturating_duration_since(Instant::now()));
        // Rounded up, so that the deadline has passed then.
        let left = left.min(PING_INTERVAL) + Duration::from_millis(1);
        let timeout = Timespec { tv_sec: left.as_secs().try_into().unwrap_or(1), tv_nsec: left.subsec_nanos().into() };
        let mut fds = [PollFd::new(&self.socket, flags), PollFd::new(&self.woken, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(io(error.into())),
        }
        let [socket, woken] = fds.map(|fd| fd.revents());
        if !woken.is_empty() {
            let _ = (&self.woken).read(buffer);
        }
        if socket.contains(PollFlags::OUT) {
            self.write().map_err(io)?;
        }
        if socket.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            match (&self.socket).read(buffer) {
                Ok(0) => return Err(Failure::Closed),
                Ok(length) => self.receive(&buffer[..length])?,
                Err(error) if is_temporary(&error) => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Err(Failure::Closed),
                Err(error) => return Err(io(error)),
            }
        }
        self.check_alive()?;
        Ok(true)
    }

    fn write(&mut self) -> io::Result<()> {
        let mut state = self.shared.lock();
        while !state.outgoing.is_empty() {
            match (&self.socket).write(state.outgoing.as_slices().0) {
                Ok(length) => drop(state.outgoing.drain(..length)),
                Err(error) if is_temporary(&error) => return Ok(()),
                // The end of the socket says more.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => state.outgoing.clear(),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn receive(&mut self, mut bytes: &[u8]) -> Result<(), Failure> {
        self.last_received = Instant::now();
        let mut state = self.shared.lock();
        while !state.is_ready {
            // Until then, these are bytes for an earlier program.
            let Some((end, version, nonce)) = self.scanner.feed(bytes) else { return Ok(()) };
            bytes = &bytes[end..];
            // Limits what is queued for a guest that asks and does not read.
            if nonce == AGAIN && state.outgoing.len() < MAX_PAYLOAD {
                state.outgoing.extend(hello(&self.nonce));
            }
            if nonce != self.nonce {
                continue;
            }
            if version != VERSION {
                let expected = format!("protocol version {version} instead of {VERSION}");
                return Err(Failure::Protocol(expected));
            }
            state.is_ready = true;
        }
        // An agent keeps this pattern out of its frames, so another agent has started. The pattern may begin within an unfinished
        // frame of the agent that was killed.
        if self.scanner.feed(bytes).is_some() {
            return Err(Failure::Restarted);
        }
        self.frames.push(bytes);
        while let Some(frame) = self.frames.next().map_err(Failure::Protocol)? {
            if frame.kind == Kind::Pong {
                continue;
            }
            let is_old = (1..state.next).contains(&frame.command);
            let number = frame.command;
            let State { streams, outgoing, .. } = &mut *state;
            match streams.get_mut(&number) {
                Some(stream) => stream.handle(&frame, outgoing).map_err(Failure::Protocol)?,
                None if is_old => continue,
                None => return Err(Failure::Protocol(format!("a frame for the unknown command {number}"))),
            }
            if frame.kind == Kind::Credit {
                state.pump_stdin(number);
            }
        }
        drop(state);
        self.shared.changed.notify_all();
        Ok(())
    }

    /// Pings a silent agent.
    fn check_alive(&mut self) -> Result<(), Failure> {
        let now = Instant::now();
        let silent = now.saturating_duration_since(self.last_received);
        if silent < PING_INTERVAL || now.saturating_duration_since(self.last_ping) < PING_INTERVAL {
            return Ok(());
        }
        let mut state = self.shared.lock();
        if !state.is_ready {
            return Ok(()); // the commands have timeouts for that
        }
        let is_unanswered = self.last_ping > self.last_received;
        self.last_ping = now;
        // Otherwise the last ping is still queued: the agent does not read.
        if state.outgoing.is_empty() {
            put_frame(&mut state.outgoing, Kind::Ping, 0, &[]);
        }
        drop(state);
        if !is_unanswered {
            return Ok(());
        }
        match (self.probe)() {
            Probe::Exited => Err(Failure::Exited),
            Probe::Paused => {
                self.last_received = now;
                Ok(())
            }
            Probe::Unknown if silent >= SILENCE_LIMIT => Err(Failure::Silent),
            Probe::Unknown => Ok(()),
        }
    }
}

fn is_temporary(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
