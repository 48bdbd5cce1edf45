//! A command of the host: pipes to the program, and the socket to its supervisor.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::port::retry;
use crate::protocol::{Frames, Kind, MAX_PAYLOAD, Request, Stage, WINDOW, pieces, put_frame, put_numbers};
use crate::supervisors::Supervisor;

pub struct Command {
    pub number: u32,
    pub supervisor: Supervisor,
    frames: Frames,
    is_started: bool,
    stdin: Input,
    pub outputs: [Output; 2],
    grace: Option<Duration>,
    /// The program has exited.
    has_exited: bool,
    is_killed: bool,
    /// When outputs that other processes hold open are closed.
    pub deadline: Option<Instant>,
}

/// The program's standard input.
struct Input {
    pipe: Option<OwnedFd>,
    waiting: VecDeque<u8>,
    ends: bool,
}

/// Standard output or standard error.
pub struct Output {
    pub pipe: Option<OwnedFd>,
    kind: Kind,
    /// How many bytes the host accepts.
    credit: usize,
    /// How many bytes are still sent after the grace period.
    rest: Option<u64>,
}

impl Output {
    pub fn wants_data(&self) -> bool {
        self.pipe.is_some() && self.credit > 0
    }
}

impl Command {
    /// Lets the supervisor start the program.
    pub fn start(number: u32, encoded: &[u8], supervisor: Supervisor) -> io::Result<Self> {
        let request = Request::decode(encoded).ok_or(Errno::INVAL)?;
        let pipes = [pipe(false)?, pipe(true)?, pipe(true)?];
        let [(stdin, to_stdin), (from_stdout, stdout), (from_stderr, stderr)] = pipes;
        supervisor.execute([stdin.as_fd(), stdout.as_fd(), stderr.as_fd()], encoded)?;
        let output = |pipe, kind| Output { pipe: Some(pipe), kind, credit: WINDOW, rest: None };
        Ok(Self {
            number,
            supervisor,
            frames: Frames::default(),
            is_started: false,
            stdin: Input { pipe: Some(to_stdin), waiting: VecDeque::new(), ends: false },
            outputs: [output(from_stdout, Kind::Stdout), output(from_stderr, Kind::Stderr)],
            grace: (request.grace_ms != u32::MAX).then(|| Duration::from_millis(request.grace_ms.into())),
            has_exited: false,
            is_killed: false,
            deadline: None,
        })
    }

    pub fn stdin(&self) -> Option<&OwnedFd> {
        self.stdin.pipe.as_ref().filter(|_| !self.stdin.waiting.is_empty())
    }

    /// Passes bytes of the host on. Returns false if they are more than was allowed.
    pub fn add_stdin(&mut self, bytes: &[u8], out: &mut VecDeque<u8>) -> bool {
        if self.stdin.pipe.is_some() {
            self.stdin.waiting.extend(bytes);
            self.write_stdin(out);
        }
        self.stdin.waiting.len() <= WINDOW
    }

    pub fn end_stdin(&mut self) {
        self.stdin.ends = true;
        if self.stdin.waiting.is_empty() {
            self.stdin.pipe = None;
        }
    }

    /// Writes what the program's pipe takes.
    pub fn write_stdin(&mut self, out: &mut VecDeque<u8>) {
        let (mut written, mut is_closed) = (0, false);
        while let Some(pipe) = self.stdin.pipe.as_ref().filter(|_| !self.stdin.waiting.is_empty()) {
            let piece = self.stdin.waiting.as_slices().0;
            match rustix::io::write(pipe, piece) {
                Ok(length) => {
                    self.stdin.waiting.drain(..length);
                    written += length;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => {
                    is_closed = true;
                    self.stdin.waiting.clear();
                    self.stdin.pipe = None;
                }
            }
        }
        if written > 0 {
            put_numbers(out, Kind::Credit, self.number, 0, written as u32);
        }
        if is_closed {
            put_frame(out, Kind::StdinClosed, self.number, &[]);
        }
        if self.stdin.ends && self.stdin.waiting.is_empty() {
            self.stdin.pipe = None;
        }
    }

    pub fn add_credit(&mut self, output: u8, bytes: u32) {
        if let Some(output) = usize::from(output).checked_sub(1).and_then(|index| self.outputs.get_mut(index)) {
            output.credit = output.credit.saturating_add(bytes as usize).min(WINDOW);
        }
    }

    /// Reads an output, at most one frame, so that all commands have their turn.
    pub fn read_output(&mut self, index: usize, out: &mut VecDeque<u8>) {
        let output = &mut self.outputs[index];
        let Some(pipe) = &output.pipe else { return };
        let mut buffer = [0; MAX_PAYLOAD];
        let rest = usize::try_from(output.rest.unwrap_or(u64::MAX)).unwrap_or(usize::MAX);
        let limit = buffer.len().min(output.credit).min(rest);
        match retry(rustix::io::read(pipe, &mut buffer[..limit]).map_err(Into::into)) {
            Ok(None) => {}
            Ok(Some(length @ 1..)) => {
                output.credit -= length;
                output.rest = output.rest.map(|rest| rest - length as u64);
                for piece in pieces(&buffer[..length], true) {
                    put_frame(out, output.kind, self.number, piece);
                }
                if output.rest == Some(0) {
                    self.close_output(index, out);
                }
            }
            Ok(Some(0)) | Err(_) => self.close_output(index, out),
        }
    }

    fn close_output(&mut self, index: usize, out: &mut VecDeque<u8>) {
        if self.outputs[index].pipe.take().is_some() {
            put_frame(out, Kind::Closed, self.number, &[index as u8 + 1]);
        }
    }

    /// After the grace period, only what is in the pipes is sent.
    pub fn finish_outputs(&mut self, out: &mut VecDeque<u8>) {
        self.deadline = None;
        for index in 0..self.outputs.len() {
            let output = &mut self.outputs[index];
            let Some(pipe) = &output.pipe else { continue };
            match rustix::io::ioctl_fionread(pipe) {
                Ok(rest @ 1..) => output.rest = Some(rest),
                _ => self.close_output(index, out),
            }
        }
    }

    /// Passes what the supervisor reports on to the host. Returns false at the end of the supervisor.
    pub fn read_reports(&mut self, out: &mut VecDeque<u8>) -> bool {
        let mut buffer = [0; 4096];
        let length = match retry((&self.supervisor.control).read(&mut buffer)) {
            Ok(None) => return true,
            Ok(Some(length)) => length,
            Err(_) => 0,
        };
        self.frames.push(&buffer[..length]);
        while let Ok(Some(frame)) = self.frames.next() {
            put_frame(out, frame.kind, self.number, frame.payload);
            match frame.kind {
                Kind::Started => self.is_started = true,
                Kind::Exit => {
                    self.has_exited = true;
                    self.deadline = self.grace.and_then(|grace| Instant::now().checked_add(grace));
                }
                Kind::Failed => return false,
                _ => {}
            }
        }
        if length == 0 && !self.has_exited {
            // The supervisor was killed, or could not even read the request.
            match self.is_started {
                true => put_numbers(out, Kind::Exit, self.number, 1, 9),
                false => put_numbers(out, Kind::Failed, self.number, Stage::Agent as u8, 0),
            }
        }
        length > 0
    }

    /// Sends a frame to the supervisor. If its socket is full, it hangs, and more signals would not help.
    pub fn send(&self, kind: Kind, payload: &[u8]) {
        let mut frame = VecDeque::new();
        put_frame(&mut frame, kind, 0, payload);
        let _ = (&self.supervisor.control).write_all(frame.make_contiguous());
    }

    /// Whether the program has exited and its outputs are closed.
    pub fn is_finished(&self) -> bool {
        self.has_exited && !self.is_killed && self.outputs.iter().all(|output| output.pipe.is_none())
    }

    /// Kills the program and all its descendants. The command ends when the supervisor reports that by its own end.
    pub fn kill(&mut self) {
        self.is_killed = true;
        self.send(Kind::Kill, &[]);
        self.supervisor.resume();
    }

    /// Whether processes that the program has left keep running.
    pub fn is_released(&self) -> bool {
        self.has_exited && !self.is_killed
    }

    pub fn has_exited(&self) -> bool {
        self.has_exited
    }
}

/// A pipe whose end in the agent does not block: the reading end of an output, the writing end of standard input.
fn pipe(is_output: bool) -> io::Result<(OwnedFd, OwnedFd)> {
    let (reading, writing) = pipe_with(PipeFlags::CLOEXEC)?;
    let ours = if is_output { &reading } else { &writing };
    rustix::io::ioctl_fionbio(ours, true)?;
    Ok((reading, writing))
}
