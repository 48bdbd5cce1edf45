//! The state of one command, as the agent reports it.

use std::collections::VecDeque;
use std::io;
use std::time::Instant;

use crate::vm::command::protocol::{Frame, Kind, Stage, WINDOW, put_numbers};
use crate::vm::command::status::GuestStatus;

/// The agent may send more when a quarter of the window is consumed.
const CREDIT_STEP: usize = WINDOW / 4;

/// The state of a command.
#[derive(Default)]
pub(super) struct Stream {
    pub pid: Option<u32>,
    pub failure: Option<(Stage, i32)>,
    pub status: Option<GuestStatus>,
    /// Whether the agent has sent its last frame.
    pub has_ended: bool,
    pub outputs: [Buffer; 2],
    /// What the program shall read, and how much of it was sent.
    pub stdin: Vec<u8>,
    pub stdin_at: usize,
    /// Whether nothing follows.
    pub stdin_ends: bool,
    pub stdin_credit: usize,
    /// Whether the program reads no more.
    pub stdin_is_closed: bool,
    /// When the command is killed; after that, when the host gives up on it.
    pub deadline: Option<Instant>,
    pub is_killed: bool,
    pub has_timed_out: bool,
}

/// An output that was received and not read yet.
#[derive(Default)]
pub(super) struct Buffer {
    pub data: VecDeque<u8>,
    pub is_closed: bool,
    /// Whether nobody reads it.
    pub is_discarded: bool,
    /// How much was consumed since the agent was last told so.
    consumed: usize,
    /// How much the agent has sent without being told that it was consumed.
    outstanding: usize,
}

impl Buffer {
    /// Counts consumed bytes. Returns how many of them to report to the agent.
    pub fn consume(&mut self, length: usize) -> u32 {
        self.consumed += length;
        if self.consumed < CREDIT_STEP {
            return 0;
        }
        self.outstanding -= self.consumed;
        std::mem::take(&mut self.consumed) as u32
    }
}

impl Stream {
    pub fn new(stdin: Vec<u8>, stdin_ends: bool, deadline: Option<Instant>) -> Self {
        Self { stdin, stdin_ends, deadline, stdin_credit: WINDOW, ..Self::default() }
    }

    /// Takes over what a frame says, or returns what is wrong with it.
    pub fn handle(&mut self, frame: &Frame<'_>, outgoing: &mut VecDeque<u8>) -> Result<(), String> {
        let invalid = || format!("an unexpected frame {:?} of {} bytes", frame.kind, frame.payload.len());
        let is_started = self.pid.is_some();
        if self.has_ended {
            return Err(invalid());
        }
        match frame.kind {
            Kind::Started if !is_started && self.failure.is_none() => {
                self.pid = Some(frame.number().ok_or_else(invalid)?);
            }
            Kind::Failed if !is_started && self.failure.is_none() => {
                let (stage, errno) = frame.numbers().ok_or_else(invalid)?;
                self.failure = Some((Stage::of(stage).ok_or_else(invalid)?, errno.try_into().unwrap_or(0)));
            }
            Kind::Stdout => self.receive(0, frame, outgoing)?,
            Kind::Stderr => self.receive(1, frame, outgoing)?,
            Kind::Closed => {
                let [number @ 1..=2] = *frame.payload else { return Err(invalid()) };
                self.outputs[usize::from(number) - 1].is_closed = true;
            }
            Kind::Credit => {
                let (0, bytes) = frame.numbers().ok_or_else(invalid)? else { return Err(invalid()) };
                let credit = self.stdin_credit.saturating_add(bytes as usize);
                if credit > WINDOW {
                    return Err(invalid());
                }
                self.stdin_credit = credit;
            }
            Kind::StdinClosed => {
                self.stdin_is_closed = true;
                self.stdin_ends = false;
                (self.stdin, self.stdin_at) = (Vec::new(), 0);
            }
            Kind::Exit if is_started && self.status.is_none() => {
                self.status = Some(match frame.numbers().ok_or_else(invalid)? {
                    (0, code) => GuestStatus::Exited(code as i32),
                    (1, signal) => GuestStatus::Killed(signal as i32),
                    _ => return Err(invalid()),
                });
            }
            Kind::End if self.status.is_some() || self.failure.is_some() => self.end(),
            _ => return Err(invalid()),
        }
        Ok(())
    }

    fn receive(&mut self, index: usize, frame: &Frame<'_>, outgoing: &mut VecDeque<u8>) -> Result<(), String> {
        let output = &mut self.outputs[index];
        if output.is_closed {
            return Err(format!("{:?} after its end", frame.kind));
        }
        output.outstanding += frame.payload.len();
        if output.outstanding > WINDOW {
            return Err(format!("more {:?} than was allowed", frame.kind));
        }
        if !output.is_discarded {
            output.data.extend(frame.payload);
            return Ok(());
        }
        let consumed = output.consume(frame.payload.len());
        if consumed > 0 {
            put_numbers(outgoing, Kind::Credit, frame.command, index as u8 + 1, consumed);
        }
        Ok(())
    }

    fn end(&mut self) {
        self.has_ended = true;
        self.stdin_is_closed = true;
        self.deadline = None;
        self.outputs.iter_mut().for_each(|output| output.is_closed = true);
    }

    /// Ends a command of which the agent has not reported the end.
    pub fn give_up(&mut self) {
        self.end();
    }

    /// Why the program was not started.
    pub fn start_error(&self) -> Option<(Stage, io::Error)> {
        let (stage, errno) = self.failure?;
        let error = match errno {
            0 => io::Error::other("the agent could not execute the request"),
            errno => io::Error::from_raw_os_error(errno),
        };
        Some((stage, error))
    }
}
