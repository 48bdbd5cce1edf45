//! Standard input, which the program in the guest reads.

use std::io::{IsTerminal, Write, stdin};
use std::sync::{Arc, Mutex, PoisonError};

use hyperkit::GuestStdin;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, read};

const PIECE: usize = 64 * 1024;

/// Standard input. With several kernels, each run of the program gets all of it.
#[derive(Clone)]
pub struct Input {
    /// `None` for a terminal, which is not read: the program would take the keys of the next command.
    source: Option<Arc<Mutex<Source>>>,
}

struct Source {
    is_kept: bool,
    /// The input so far, which the next runs read, too.
    kept: Vec<u8>,
    has_ended: bool,
}

impl Input {
    /// `is_kept`: whether several runs read it.
    pub fn new(is_kept: bool) -> Self {
        let source = Source { is_kept, kept: Vec::new(), has_ended: false };
        Self { source: (!stdin().is_terminal()).then(|| Arc::new(Mutex::new(source))) }
    }

    /// Passes everything on to a program, until the input ends or the program has closed its standard input.
    pub fn pass_on(&self, mut to: GuestStdin) {
        let Some(source) = &self.source else { return };
        let mut position = 0;
        loop {
            // A thread of the run before may still wait for input here. What it reads is kept.
            let mut source = source.lock().unwrap_or_else(PoisonError::into_inner);
            let piece = source.piece(position);
            drop(source);
            position += piece.len();
            if piece.is_empty() || to.write_all(&piece).is_err() {
                return;
            }
        }
    }
}

impl Source {
    /// Returns what follows the position; nothing at the end.
    fn piece(&mut self, position: usize) -> Vec<u8> {
        if position < self.kept.len() {
            return self.kept[position..self.kept.len().min(position + PIECE)].to_vec();
        }
        if self.has_ended {
            return Vec::new();
        }
        let mut piece = vec![0; PIECE];
        let length = read_stdin(&mut piece);
        piece.truncate(length);
        self.has_ended = length == 0;
        if self.is_kept {
            self.kept.extend_from_slice(&piece);
        }
        piece
    }
}

/// Reads standard input; 0 at its end. An error ends it, too.
fn read_stdin(buffer: &mut [u8]) -> usize {
    let stdin = rustix::stdio::stdin();
    loop {
        match read(stdin, &mut *buffer) {
            Ok(length) => return length,
            Err(Errno::INTR) => {}
            // Another program has made it non-blocking.
            Err(Errno::AGAIN) => drop(poll(&mut [PollFd::new(&stdin, PollFlags::IN)], None)),
            Err(_) => return 0,
        }
    }
}
