//! The bytes between the host and the agent in the guest. The agent compiles this file, too, so it uses only `std`.
//!
//! They are the same on a virtio serial port and on vsock. A virtio serial port has no connections: it may contain half a frame of a
//! host program that was killed, and the guest may not notice that another host program has opened it since. So each host program begins
//! with HELLO, a pattern that the agent searches for at all times, and ignores everything until a WELCOME with the random bytes of its
//! HELLO. When an agent starts, or a host program opens the port, the agent sends a WELCOME with [`AGAIN`]: it may have lost a HELLO.
//!
//! | bytes | HELLO and WELCOME | a frame |
//! |---|---|---|
//! | 0… | 16: magic | 4: length of the payload |
//! | | 4: version | 1: [`Kind`] |
//! | | 16: nonce, random bytes of the host | 4: number of the command |
//! | | | the payload, at most [`MAX_PAYLOAD`] bytes |
//!
//! Numbers are little-endian. The fourth byte of a frame is always 0, and the magic has no byte 0. So the magic never spans
//! a frame's header, and a sender keeps it out of the stream if it divides each payload that contains it ([`pieces`]).

use std::collections::VecDeque;
use std::hint::black_box;

pub const VERSION: u32 = 1;
/// The port at which the agent listens on vsock, if the VM has no virtio serial port for it. When the agent starts, it connects to the
/// same port of the host and sends a byte. Linux reserves ports below 1024 for root.
pub const VSOCK_PORT: u32 = 1019;
pub const MAX_PAYLOAD: usize = 64 * 1024;
/// How many bytes of each stream of a command may be sent before the receiver has consumed any. A receiver that does not
/// consume a stream so delays no other stream.
pub const WINDOW: usize = 256 * 1024;
/// The longest request to execute a program, in bytes: Linux allows 2 MiB of arguments and environment.
pub const MAX_REQUEST: usize = 2 * 1024 * 1024;

const HEADER: usize = 9;
const MAGIC: usize = 16;
/// Version and nonce.
const REST: usize = 4 + NONCE;
const NONCE: usize = 16;

pub type Nonce = [u8; NONCE];

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $number:literal,)+) => {
        /// What a frame is about.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Kind {
            $($(#[$doc])* $kind = $number,)+
        }

        impl Kind {
            fn of(number: u8) -> Option<Self> {
                match number {
                    $($number => Some(Self::$kind),)+
                    _ => None,
                }
            }
        }
    };
}

kinds! {
    // --- from the host ---
    /// A piece of a [`Request`]; more follows.
    Part = 1,
    /// The last piece of a [`Request`]: execute it.
    Exec = 2,
    /// Bytes for standard input.
    Stdin = 3,
    /// The end of standard input.
    StdinEnd = 4,
    /// A signal for the program: u32.
    Signal = 5,
    /// Kill the program and all its descendants.
    Kill = 6,
    /// The program has exited, and the host does not need what its descendants still write. They keep running.
    Release = 7,
    /// Answer with [`Pong`](Self::Pong).
    Ping = 8,
    // --- from both ---
    /// The receiver has consumed bytes of a stream: its number (u8) and how many bytes (u32).
    Credit = 9,
    // --- from the agent ---
    /// The program runs: its process ID, u32.
    Started = 16,
    /// The program was not started: [`Stage`] (u8) and errno (u32).
    Failed = 17,
    Stdout = 18,
    Stderr = 19,
    /// No more bytes of an output: its number (u8).
    Closed = 20,
    /// The program reads no more of its standard input.
    StdinClosed = 21,
    /// The program has exited: 0 and a code, or 1 and a signal (u8, u32).
    Exit = 22,
    /// The last frame of a command.
    End = 23,
    Pong = 24,
}

/// What failed before a program ran. ENOENT alone does not say which of three things is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The request is damaged, or the guest lacks memory, processes or descriptors.
    Agent = 0,
    CurrentDir = 1,
    /// The program was not found.
    Program = 2,
    /// The program exists, and its format or permissions do not allow to execute it.
    Permission = 3,
    /// The program exists, and the interpreter or dynamic loader that it names does not.
    Interpreter = 4,
}

impl Stage {
    pub fn of(number: u8) -> Option<Self> {
        [Self::Agent, Self::CurrentDir, Self::Program, Self::Permission, Self::Interpreter]
            .into_iter()
            .find(|stage| *stage as u8 == number)
    }
}

/// The magic of HELLO or of WELCOME. A program that contained a magic in one piece could not be copied into a guest, so each
/// byte is computed when the program runs. The first byte occurs once, which makes the search simple.
fn magic(is_welcome: bool) -> [u8; MAGIC] {
    const MASKED: [u8; MAGIC] = *b"\x8f\xd3\x1bcommand-agent";
    let mask = black_box(if is_welcome { 0xa5 } else { 0xd6 });
    MASKED.map(|byte| byte ^ mask)
}

fn preamble(is_welcome: bool, version: u32, nonce: &Nonce) -> Vec<u8> {
    [&magic(is_welcome)[..], &version.to_le_bytes(), nonce].concat()
}

/// Opens a connection.
pub fn hello(nonce: &Nonce) -> Vec<u8> {
    preamble(false, VERSION, nonce)
}

/// The nonce of a WELCOME that asks for another HELLO: the agent may have lost the first one.
pub const AGAIN: Nonce = [0; NONCE];

/// The agent's answer to [`hello`].
pub fn welcome(nonce: &Nonce) -> Vec<u8> {
    preamble(true, VERSION, nonce)
}

/// Searches a stream for HELLO or WELCOME.
pub struct Scanner {
    magic: [u8; MAGIC],
    /// How many bytes of the magic the stream ends with.
    matched: usize,
    /// The bytes after the magic.
    rest: Option<Vec<u8>>,
}

impl Scanner {
    pub fn new(is_welcome: bool) -> Self {
        Self { magic: magic(is_welcome), matched: 0, rest: None }
    }

    /// Reads on. If the pattern is complete, returns the index of the byte after it, the version and the nonce.
    pub fn feed(&mut self, bytes: &[u8]) -> Option<(usize, u32, Nonce)> {
        let mut at = 0;
        while at < bytes.len() {
            if self.matched == 0 && self.rest.is_none() {
                at += bytes[at..].iter().position(|byte| *byte == self.magic[0])?;
            }
            let byte = bytes[at];
            at += 1;
            if let Some(rest) = &mut self.rest {
                rest.push(byte);
            }
            self.matched = match byte {
                byte if byte == self.magic[self.matched] => self.matched + 1,
                byte => usize::from(byte == self.magic[0]),
            };
            if self.matched == MAGIC {
                (self.matched, self.rest) = (0, Some(Vec::with_capacity(REST)));
            } else if self.rest.as_ref().is_some_and(|rest| rest.len() == REST) {
                let mut reader = Reader(self.rest.as_deref().unwrap_or_default());
                let (version, nonce) = (reader.u32(), reader.0.first_chunk().copied());
                self.rest = None;
                return version.zip(nonce).map(|(version, nonce)| (at, version, nonce));
            }
        }
        None
    }
}

/// Divides bytes into payloads, none of which contains the magic of HELLO, for the agent, or of WELCOME, for the host.
pub fn pieces(bytes: &[u8], is_welcome: bool) -> impl Iterator<Item = &[u8]> {
    let magic = magic(is_welcome);
    let mut left = bytes;
    std::iter::from_fn(move || {
        let piece = &left[..left.len().min(MAX_PAYLOAD)];
        let (mut length, mut at) = (piece.len(), 0);
        while let Some(next) = piece[at..].iter().position(|byte| *byte == magic[0]) {
            at += next;
            if piece[at..].starts_with(&magic) {
                length = at + MAGIC / 2;
                break;
            }
            at += 1;
        }
        let (piece, rest) = left.split_at(length);
        left = rest;
        (!piece.is_empty()).then_some(piece)
    })
}

/// Appends a frame. The payload must not be longer than [`MAX_PAYLOAD`].
pub fn put_frame(out: &mut VecDeque<u8>, kind: Kind, command: u32, payload: &[u8]) {
    out.extend((payload.len() as u32).to_le_bytes());
    out.push_back(kind as u8);
    out.extend(command.to_le_bytes());
    out.extend(payload);
}

/// Appends a frame with a small number and a large one.
pub fn put_numbers(out: &mut VecDeque<u8>, kind: Kind, command: u32, small: u8, large: u32) {
    let [a, b, c, d] = large.to_le_bytes();
    put_frame(out, kind, command, &[small, a, b, c, d]);
}

/// A received frame.
#[derive(Debug, PartialEq)]
pub struct Frame<'a> {
    pub kind: Kind,
    pub command: u32,
    pub payload: &'a [u8],
}

impl Frame<'_> {
    /// The small and the large number of [`put_numbers`].
    pub fn numbers(&self) -> Option<(u8, u32)> {
        let (small, large) = self.payload.split_first()?;
        Some((*small, u32::from_le_bytes(large.try_into().ok()?)))
    }

    pub fn number(&self) -> Option<u32> {
        Some(u32::from_le_bytes(self.payload.try_into().ok()?))
    }
}

/// Assembles frames from a stream.
#[derive(Default)]
pub struct Frames {
    bytes: Vec<u8>,
    /// How many of them were returned.
    read: usize,
}

impl Frames {
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.read);
        self.read = 0;
        self.bytes.extend_from_slice(bytes);
    }

    pub fn clear(&mut self) {
        (self.bytes, self.read) = (Vec::new(), 0);
    }

    /// The next frame, if it has arrived completely, or what is wrong with it. There is no next frame after a wrong one.
    pub fn next(&mut self) -> Result<Option<Frame<'_>>, String> {
        let bytes = &self.bytes[self.read..];
        let mut reader = Reader(bytes);
        let Some((length, number)) = reader.u32().zip(reader.u8()) else { return Ok(None) };
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > MAX_PAYLOAD {
            return Err(format!("a frame of {length} bytes"));
        }
        let kind = Kind::of(number).ok_or_else(|| format!("a frame of the unknown kind {number}"))?;
        let Some(command) = reader.u32() else { return Ok(None) };
        let Some(payload) = reader.0.get(..length) else { return Ok(None) };
        self.read += HEADER + length;
        Ok(Some(Frame { kind, command, payload }))
    }
}

/// Reads numbers and texts.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn u32(&mut self) -> Option<u32> {
        self.take(4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes)
    }

    fn text(&mut self) -> Option<Vec<u8>> {
        let length = self.u32()?;
        self.take(usize::try_from(length).ok()?).map(<[u8]>::to_vec)
    }

    fn texts(&mut self) -> Option<Vec<Vec<u8>>> {
        let count = self.u32()?;
        (0..count).map(|_| self.text()).collect()
    }
}

/// What to execute, and how.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Request {
    /// The program and its arguments.
    pub argv: Vec<Vec<u8>>,
    /// Variables, `NAME=VALUE`.
    pub env: Vec<Vec<u8>>,
    /// Whether the program has only these variables.
    pub env_clear: bool,
    /// Empty: that of the agent.
    pub cwd: Vec<u8>,
    /// User and group; by default those of the agent.
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    /// How long the agent waits for outputs that descendants of the program hold open after its exit, in milliseconds.
    pub grace_ms: u32,
    /// Whether `argv` is for the agent itself: it packs or unpacks files.
    pub is_copy: bool,
}

impl Request {
    pub fn encode(&self) -> Vec<u8> {
        fn put(out: &mut Vec<u8>, text: &[u8]) {
            out.extend((text.len() as u32).to_le_bytes());
            out.extend(text);
        }
        let flags = [self.env_clear, self.is_copy, self.uid.is_some(), self.gid.is_some()];
        let mut out = flags.map(u8::from).to_vec();
        for number in [self.uid.unwrap_or_default(), self.gid.unwrap_or_default(), self.grace_ms] {
            out.extend(number.to_le_bytes());
        }
        put(&mut out, &self.cwd);
        for texts in [&self.argv, &self.env] {
            out.extend((texts.len() as u32).to_le_bytes());
            texts.iter().for_each(|text| put(&mut out, text));
        }
        out
    }

    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        let [env_clear, is_copy, has_uid, has_gid] = *reader.take(4)?.first_chunk()?;
        let [uid, gid, grace_ms] = [reader.u32()?, reader.u32()?, reader.u32()?];
        let (cwd, argv, env) = (reader.text()?, reader.texts()?, reader.texts()?);
        let request = Self {
            argv,
            env,
            env_clear: env_clear != 0,
            cwd,
            uid: (has_uid != 0).then_some(uid),
            gid: (has_gid != 0).then_some(gid),
            grace_ms,
            is_copy: is_copy != 0,
        };
        reader.0.is_empty().then_some(request)
    }
}
