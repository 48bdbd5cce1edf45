//! Serves the port, or a connection by vsock: one thread that waits for it, the pipes of all commands and their supervisors.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::command::Command;
use crate::port::{Channel, retry};
use crate::protocol::{AGAIN, Frames, Kind, MAX_REQUEST, Nonce, Scanner, Stage, put_frame, put_numbers, welcome};
use crate::supervisors::{Supervisor, Supervisors};

/// While more is queued for the host, outputs are not read.
const MAX_QUEUED: usize = 256 * 1024;
const MAX_COMMANDS: usize = 1024;
/// How long a new host waits for the end of the previous host's commands. A process that hangs in the kernel cannot be killed.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);
const READ: usize = 64 * 1024;

/// Serves one host program after another, until no other comes. Calls `prepare` before each command.
pub fn serve(port: &impl Channel, prepare: fn()) -> io::Result<()> {
    let mut session = Session {
        prepare,
        supervisors: Supervisors::new()?,
        scanner: Scanner::new(false),
        frames: Frames::default(),
        host: None,
        requests: Vec::new(),
        out: VecDeque::new(),
        commands: Vec::new(),
        exiting: Vec::new(),
        spare: None,
        answer: None,
        turn: 0,
        progress: Instant::now(),
    };
    std::env::set_current_dir("/")?;
    // For a host whose previous agent was killed: it has to send HELLO once more.
    let _ = port.write(&welcome(&AGAIN));
    loop {
        if session.receive(port)? {
            if session.host.is_some() && session.spare.is_none() {
                // Without one, the next command starts it, and reports why it cannot.
                session.spare = session.supervisors.start().ok();
            }
            session.wait(port)?;
        } else if port.is_closed()? {
            session.end_host();
            while !session.exiting.is_empty() {
                session.wait_for_exiting()?;
            }
            // This host may have sent its HELLO already, to a port that seemed to be closed afterwards.
            if !port.wait_for_host(&welcome(&AGAIN))? {
                return Ok(());
            }
        }
    }
}

struct Session {
    prepare: fn(),
    supervisors: Supervisors,
    scanner: Scanner,
    frames: Frames,
    /// The nonce of the host that has sent HELLO.
    host: Option<Nonce>,
    /// Requests that have not arrived completely, by the number of the command.
    requests: Vec<(u32, Vec<u8>)>,
    out: VecDeque<u8>,
    commands: Vec<Command>,
    /// Supervisors that are about to close their sockets: they have killed all descendants, or have got RELEASE.
    exiting: Vec<Supervisor>,
    /// A supervisor for the next command. Its start takes most of the time of a short command.
    spare: Option<Supervisor>,
    /// The WELCOME for a host that waits until the commands of the previous one are dead, at most until then.
    answer: Option<(Nonce, Instant)>,
    /// The command whose outputs are read first.
    turn: usize,
    /// When the host has last read or sent something, or nothing waited for it.
    progress: Instant,
}

/// What a descriptor is for.
#[derive(Clone, Copy)]
enum Source {
    Port,
    Supervisors,
    Exiting,
    Reports(usize),
    Stdin(usize),
    Output(usize, usize),
}

impl Session {
    /// Reads the port. Returns false if no host program has it open.
    fn receive(&mut self, port: &impl Channel) -> io::Result<bool> {
        let mut buffer = vec![0; READ];
        while let Some(length) = port.read(&mut buffer)? {
            if length == 0 {
                return Ok(false);
            }
            self.progress = Instant::now();
            let mut bytes = &buffer[..length];
            while let Some((end, _, nonce)) = self.scanner.feed(bytes) {
                bytes = &bytes[end..];
                if self.host == Some(nonce) {
                    continue; // the answer to AGAIN
                }
                self.end_host();
                self.host = Some(nonce);
                self.answer = Some((nonce, Instant::now() + KILL_TIMEOUT));
            }
            if self.host.is_some() {
                self.frames.push(bytes);
                self.handle_frames();
            }
        }
        self.welcome();
        if self.out.is_empty() {
            self.progress = Instant::now();
        }
        // The caller then takes the host for gone.
        Ok(port.stall_limit().is_none_or(|limit| self.progress.elapsed() < limit))
    }

    /// Forgets the host: its commands are killed with everything that they have started.
    fn end_host(&mut self) {
        self.host = None;
        self.answer = None;
        self.frames.clear();
        self.requests.clear();
        self.out.clear();
        for command in self.commands.drain(..) {
            let _ = command.supervisor.control.shutdown(std::net::Shutdown::Write);
            command.supervisor.resume();
            self.exiting.push(command.supervisor);
        }
    }

    fn welcome(&mut self) {
        if let Some((nonce, deadline)) = &self.answer {
            if self.exiting.is_empty() || Instant::now() >= *deadline {
                self.out.extend(welcome(nonce));
                self.answer = None;
            }
        }
    }

    /// Handles the frames that have arrived.
    fn handle_frames(&mut self) {
        loop {
            let frame = match self.frames.next() {
                Ok(Some(frame)) => frame,
                Ok(None) => return,
                // Bytes of a host that was killed. The next HELLO is found anyway.
                Err(_) => return self.end_host(),
            };
            let number = frame.command;
            if let Kind::Part | Kind::Exec = frame.kind {
                let index = self.requests.iter().position(|(other, _)| *other == number).unwrap_or_else(|| {
                    self.requests.push((number, Vec::new()));
                    self.requests.len() - 1
                });
                let request = &mut self.requests[index].1;
                request.extend_from_slice(frame.payload);
                if frame.kind == Kind::Exec {
                    let request = self.requests.swap_remove(index).1;
                    self.execute(number, &request);
                } else if request.len() > MAX_REQUEST || self.requests.len() > MAX_COMMANDS {
                    return self.end_host();
                }
                continue;
            }
            if frame.kind == Kind::Ping {
                put_frame(&mut self.out, Kind::Pong, 0, &[]);
                continue;
            }
            // The host may not know yet that a command has ended.
            let Some(index) = self.commands.iter().position(|command| command.number == number) else { continue };
            let command = &mut self.commands[index];
            if frame.kind == Kind::Stdin && !command.add_stdin(frame.payload, &mut self.out) {
                return self.end_host();
            }
            match frame.kind {
                Kind::StdinEnd => command.end_stdin(),
                Kind::Signal if !command.has_exited() => command.send(Kind::Signal, frame.payload),
                Kind::Kill => command.kill(),
                Kind::Credit => {
                    frame.numbers().into_iter().for_each(|(output, bytes)| command.add_credit(output, bytes))
                }
                Kind::Release if command.has_exited() => self.end(index),
                _ => {}
            }
        }
    }

    fn execute(&mut self, number: u32, request: &[u8]) {
        (self.prepare)();
        let started = match self.commands.len() {
            ..MAX_COMMANDS => {
                let spare = self.spare.take().and_then(|spare| Command::start(number, request, spare).ok());
                // The spare one may have been killed.
                let supervisors = &mut self.supervisors;
                spare.map_or_else(|| Command::start(number, request, supervisors.start()?), Ok)
            }
            _ => Err(Errno::AGAIN.into()),
        };
        match started {
            Ok(command) => self.commands.push(command),
            Err(error) => {
                let errno = Errno::from_io_error(&error).map_or(0, Errno::raw_os_error);
                put_numbers(&mut self.out, Kind::Failed, number, Stage::Agent as u8, errno.unsigned_abs());
            }
        }
    }

    /// Ends a command whose program has exited. Processes that it has left keep running.
    fn end(&mut self, index: usize) {
        let command = self.commands.swap_remove(index);
        if command.is_released() {
            self.supervisors.release(&command.supervisor);
            command.send(Kind::Release, &[]);
        }
        put_frame(&mut self.out, Kind::End, command.number, &[]);
        self.exiting.push(command.supervisor);
    }

    /// Waits until something happens, and handles it, except for what the port has received.
    fn wait(&mut self, port: &impl Channel) -> io::Result<()> {
        let (mut sources, mut fds) = (vec![Source::Port], Vec::new());
        let port_flags = if self.out.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
        fds.push(PollFd::new(port, port_flags));
        for pidfd in self.supervisors.pidfds() {
            sources.push(Source::Supervisors);
            fds.push(PollFd::new(pidfd, PollFlags::IN));
        }
        for supervisor in &self.exiting {
            sources.push(Source::Exiting);
            fds.push(PollFd::new(&supervisor.control, PollFlags::IN));
        }
        let count = self.commands.len();
        for index in (0..count).map(|index| (index + self.turn) % count.max(1)) {
            let command = &self.commands[index];
            sources.push(Source::Reports(index));
            fds.push(PollFd::new(&command.supervisor.control, PollFlags::IN));
            if let Some(stdin) = command.stdin() {
                sources.push(Source::Stdin(index));
                fds.push(PollFd::new(stdin, PollFlags::OUT));
            }
            for (number, output) in command.outputs.iter().enumerate() {
                if let Some(pipe) = output.pipe.as_ref().filter(|_| output.wants_data() && self.out.len() < MAX_QUEUED)
                {
                    sources.push(Source::Output(index, number));
                    fds.push(PollFd::new(pipe, PollFlags::IN));
                }
            }
        }
        self.turn = self.turn.wrapping_add(1);
        let deadlines = self.commands.iter().filter_map(|command| command.deadline);
        let stall = port.stall_limit().filter(|_| !self.out.is_empty()).map(|limit| self.progress + limit);
        let deadline = deadlines.chain(self.answer.map(|(_, deadline)| deadline)).chain(stall).min();
        poll_until(&mut fds, deadline)?;
        let ready: Vec<_> = fds.iter().map(|fd| fd.revents()).collect();
        drop(fds);
        let (mut ended, mut has_exited) = (Vec::new(), false);
        for (source, ready) in sources.into_iter().zip(ready).filter(|(_, ready)| !ready.is_empty()) {
            match source {
                Source::Port if ready.contains(PollFlags::OUT) => self.write(port)?,
                Source::Port => {}
                Source::Supervisors => has_exited = true,
                Source::Exiting => self.reap_exiting(),
                Source::Reports(index) => {
                    if !self.commands[index].read_reports(&mut self.out) {
                        ended.push(index);
                    }
                }
                Source::Stdin(index) => self.commands[index].write_stdin(&mut self.out),
                Source::Output(index, number) => {
                    // All commands that are ready have their turn, however full the queue is then.
                    self.commands[index].read_output(number, &mut self.out);
                }
            }
        }
        self.finish(ended);
        if has_exited {
            self.supervisors.reap(None);
        }
        self.welcome();
        Ok(())
    }

    /// Ends commands whose supervisors have ended, or whose programs have exited and have no open output.
    fn finish(&mut self, mut dead: Vec<usize>) {
        let now = Instant::now();
        for command in self.commands.iter_mut().filter(|command| command.deadline.is_some_and(|end| end <= now)) {
            command.finish_outputs(&mut self.out);
        }
        dead.sort_unstable();
        for index in dead.into_iter().rev() {
            self.end(index);
        }
        while let Some(index) = self.commands.iter().position(Command::is_finished) {
            self.end(index);
        }
    }

    fn write(&mut self, port: &impl Channel) -> io::Result<()> {
        while !self.out.is_empty() {
            match port.write(self.out.as_slices().0)? {
                Some(length @ 1..) => {
                    self.out.drain(..length);
                    self.progress = Instant::now();
                }
                _ => break,
            }
        }
        Ok(())
    }

    /// Reaps supervisors that have closed their sockets.
    fn reap_exiting(&mut self) {
        for supervisor in std::mem::take(&mut self.exiting) {
            match retry(io::Read::read(&mut &supervisor.control, &mut [0; 4096])) {
                Ok(None | Some(1..)) => self.exiting.push(supervisor),
                Ok(Some(0)) | Err(_) => self.supervisors.finish(supervisor),
            }
        }
    }

    fn wait_for_exiting(&mut self) -> io::Result<()> {
        let mut fds: Vec<_> = self.exiting.iter().map(|exiting| PollFd::new(&exiting.control, PollFlags::IN)).collect();
        let deadline = Instant::now() + KILL_TIMEOUT;
        poll_until(&mut fds, Some(deadline))?;
        drop(fds);
        self.reap_exiting();
        if Instant::now() >= deadline {
            self.exiting.clear();
        }
        Ok(())
    }
}

fn poll_until(fds: &mut [PollFd<'_>], deadline: Option<Instant>) -> io::Result<()> {
    let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    // Rounded up, so that the deadline has passed then.
    let timeout = left.and_then(|left| Timespec::try_from(left + Duration::from_millis(1)).ok());
    match poll(fds, timeout.as_ref()) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
