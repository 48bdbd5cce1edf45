//! An agent that sends what it must not send.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::vm::command::connection::{Connection, Failure, Probe};
use crate::vm::command::protocol::{
    AGAIN, Frames, Kind, MAX_PAYLOAD, Nonce, Request, Scanner, VERSION, WINDOW, hello, pieces, put_frame, put_numbers,
    welcome,
};
use crate::vm::command::stream::Stream;

/// The agent's end of a connection.
struct FakeAgent {
    socket: UnixStream,
    connection: Connection,
    number: u32,
}

fn connect() -> (UnixStream, Connection) {
    let (socket, host) = UnixStream::pair().unwrap();
    (socket, Connection::new(host, Box::new(|| Probe::Unknown)).unwrap())
}

/// Reads HELLO.
fn read_hello(mut socket: &UnixStream) -> Nonce {
    let mut scanner = Scanner::new(false);
    loop {
        let mut byte = [0];
        socket.read_exact(&mut byte).unwrap();
        if let Some((_, version, nonce)) = scanner.feed(&byte) {
            assert_eq!(version, VERSION);
            return nonce;
        }
    }
}

fn in_a_minute() -> Option<Instant> {
    Some(Instant::now() + Duration::from_secs(60))
}

impl FakeAgent {
    /// Answers HELLO, and gets a command with this standard input.
    fn new(stdin: Vec<u8>) -> Self {
        let (mut socket, connection) = connect();
        let nonce = read_hello(&socket);
        socket.write_all(&welcome(&nonce)).unwrap();
        assert_eq!(connection.wait_ready(in_a_minute()), Ok(true));
        let number = connection.execute(&Request::default().encode(), Stream::new(stdin, true, None));
        Self { socket, connection, number }
    }

    fn send(&mut self, frames: impl FnOnce(&mut VecDeque<u8>, u32)) {
        let mut bytes = VecDeque::new();
        frames(&mut bytes, self.number);
        // The host may have closed the connection.
        let _ = self.socket.write_all(bytes.make_contiguous());
    }

    /// Waits until the connection has failed.
    fn failure(&self) -> Failure {
        let shared = self.connection.shared();
        let (mut state, deadline) = (shared.lock(), in_a_minute());
        loop {
            match &state.failure {
                Some(failure) => return failure.clone(),
                None => assert!(Instant::now() < deadline.unwrap(), "the connection has not failed"),
            }
            state = shared.wait(state, deadline);
        }
    }
}

#[test]
fn only_the_answer_with_the_own_nonce_counts() {
    let (mut socket, connection) = connect();
    let nonce = read_hello(&socket);
    let mut bytes = vec![7; 100_000];
    bytes.extend(welcome(&[1; 16]));
    bytes.extend(&welcome(&nonce)[..20]);
    socket.write_all(&bytes).unwrap();
    assert_eq!(connection.wait_ready(Some(Instant::now() + Duration::from_millis(50))), Ok(false));
    for byte in welcome(&nonce) {
        socket.write_all(&[byte]).unwrap();
    }
    assert_eq!(connection.wait_ready(in_a_minute()), Ok(true));

    let (mut socket, connection) = connect();
    let nonce = read_hello(&socket);
    let mut other_version = welcome(&nonce);
    other_version[16] += 1;
    socket.write_all(&other_version).unwrap();
    assert!(
        matches!(connection.wait_ready(in_a_minute()), Err(Failure::Protocol(reason)) if reason.contains("version"))
    );
}

#[test]
fn hello_is_repeated_when_the_agent_asks_for_it_and_not_later() {
    let (mut socket, connection) = connect();
    let nonce = read_hello(&socket);
    for _ in 0..3 {
        socket.write_all(&welcome(&AGAIN)).unwrap();
        assert_eq!(read_hello(&socket), nonce);
    }
    socket.write_all(&welcome(&nonce)).unwrap();
    assert_eq!(connection.wait_ready(in_a_minute()), Ok(true));
    // A frame cannot begin like a WELCOME.
    socket.write_all(&welcome(&AGAIN)).unwrap();
    assert_eq!(socket.read_to_end(&mut Vec::new()).unwrap(), 0);

    // An agent that asks and does not read.
    let (mut socket, _connection) = connect();
    let questions = welcome(&AGAIN).repeat(100_000);
    socket.write_all(&questions).unwrap();
    socket.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answers = Vec::new();
    socket.read_to_end(&mut answers).unwrap();
    assert!(answers.len() < questions.len(), "{} bytes of answers were waiting", answers.len());
}

#[test]
fn closing_the_connection_ends_its_thread_and_the_socket() {
    let agent = FakeAgent::new(Vec::new());
    let FakeAgent { mut socket, connection, .. } = agent;
    let shared = connection.shared().clone();
    drop(connection);
    assert_eq!(Arc::strong_count(&shared), 1, "the thread still runs");
    socket.read_to_end(&mut Vec::new()).unwrap();

    let mut agent = FakeAgent::new(Vec::new());
    agent.send(|out, number| put_frame(out, Kind::Started, number, &[1, 0, 0, 0]));
    agent.socket.shutdown(std::net::Shutdown::Both).unwrap();
    assert_eq!(agent.failure(), Failure::Closed);
    assert!(!agent.connection.is_usable());
}

#[test]
fn closed_connection_does_not_stay_open_in_a_process_forked_meanwhile() {
    for is_failing in [false, true] {
        let (mut socket, host) = UnixStream::pair().unwrap();
        // As a child has it that another thread has forked.
        let _inherited = host.try_clone().unwrap();
        let connection = Connection::new(host, Box::new(|| Probe::Unknown)).unwrap();
        let nonce = read_hello(&socket);
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        if is_failing {
            socket.write_all(&[&welcome(&nonce)[..], &[255; 9]].concat()).unwrap();
        } else {
            drop(connection);
        }
        socket.read_to_end(&mut Vec::new()).unwrap();
    }
}

/// Safe Rust cannot fork. The copy of a connection in a forked process differs in the process only: no thread serves it.
#[test]
fn connection_of_the_parent_fails_in_a_forked_process() {
    let FakeAgent { mut socket, connection, .. } = FakeAgent::new(Vec::new());
    let shared = connection.shared().clone();
    shared.lock().process = 0;
    assert!(!connection.is_usable());
    assert_eq!(connection.wait_ready(None), Err(Failure::Forked));
    drop(connection);
    // Dropping it leaves the parent's connection and its thread alone.
    assert_eq!(Arc::strong_count(&shared), 2);
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let received = std::iter::repeat_with(|| socket.read(&mut [0; 1024])).find(|read| !matches!(read, Ok(1..)));
    assert!(received.unwrap().is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock));
}

#[test]
fn frames_that_the_agent_must_not_send_end_the_connection() {
    fn started(out: &mut VecDeque<u8>, number: u32) {
        put_frame(out, Kind::Started, number, &[1, 0, 0, 0]);
    }
    type Send = fn(&mut VecDeque<u8>, u32);
    let cases: [(Send, &str); 17] = [
        (|out, _| out.extend([1, 0, 1, 0, 18, 1, 0, 0, 0]), "a frame of 65537 bytes"),
        (|out, _| out.extend([255; 9]), "a frame of 4294967295 bytes"),
        (|out, _| out.extend([0, 0, 0, 0, 99, 1, 0, 0, 0]), "unknown kind 99"),
        (|out, _| put_frame(out, Kind::Stdout, 0, b"x"), "unknown command 0"),
        (|out, number| put_frame(out, Kind::Stdout, number + 1, b"x"), "unknown command 2"),
        (|out, number| (0..2).for_each(|_| started(out, number)), "unexpected frame Started"),
        (|out, number| put_frame(out, Kind::Started, number, &[1]), "unexpected frame Started"),
        (|out, number| put_numbers(out, Kind::Failed, number, 9, 2), "unexpected frame Failed"),
        (|out, number| put_numbers(out, Kind::Exit, number, 0, 0), "unexpected frame Exit"),
        (|out, number| put_frame(out, Kind::End, number, &[]), "unexpected frame End"),
        (|out, number| put_frame(out, Kind::Closed, number, &[0]), "unexpected frame Closed"),
        (|out, number| put_frame(out, Kind::Closed, number, &[3]), "unexpected frame Closed"),
        (|out, number| put_numbers(out, Kind::Credit, number, 0, 1), "unexpected frame Credit"),
        (|out, number| put_numbers(out, Kind::Credit, number, 1, 1), "unexpected frame Credit"),
        (|out, number| put_frame(out, Kind::Exec, number, &[]), "unexpected frame Exec"),
        (
            |out, number| {
                put_frame(out, Kind::Closed, number, &[1]);
                put_frame(out, Kind::Stdout, number, b"x");
            },
            "Stdout after its end",
        ),
        (
            |out, number| {
                (0..=WINDOW / MAX_PAYLOAD).for_each(|_| put_frame(out, Kind::Stderr, number, &[0; MAX_PAYLOAD]))
            },
            "more Stderr than was allowed",
        ),
    ];
    for (send, expected) in cases {
        let mut agent = FakeAgent::new(Vec::new());
        agent.send(send);
        match agent.failure() {
            Failure::Protocol(reason) => assert!(reason.contains(expected), "{reason} instead of {expected}"),
            other => panic!("{other:?} instead of {expected}"),
        }
    }
}

#[test]
fn any_bytes_end_the_connection_without_a_panic() {
    let mut state = 1_u32;
    for _ in 0..200 {
        let mut agent = FakeAgent::new(Vec::new());
        agent.send(|out, number| {
            for _ in 0..50 {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let [kind, length, a, b] = state.to_be_bytes();
                out.extend([length % 8, 0, 0, 0, kind % 32]);
                out.extend((number + u32::from(a == 0)).to_le_bytes());
                out.extend([a % 4, b % 4, a, b, 0, 0, 0, 0].iter().take(usize::from(length % 8)));
            }
            out.extend([255; 9]);
        });
        assert!(matches!(agent.failure(), Failure::Protocol(_)));
    }
}

#[test]
fn no_more_input_is_sent_than_the_agent_accepts() {
    let mut agent = FakeAgent::new(vec![9; 3 * WINDOW]);
    agent.send(|out, number| put_frame(out, Kind::Started, number, &[1, 0, 0, 0]));
    agent.socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let received = |agent: &mut FakeAgent| {
        let (mut frames, mut buffer, mut count) = (Frames::default(), vec![0; 65536], 0);
        while let Ok(length @ 1..) = agent.socket.read(&mut buffer) {
            frames.push(&buffer[..length]);
            while let Some(frame) = frames.next().unwrap() {
                count += if frame.kind == Kind::Stdin { frame.payload.len() } else { 0 };
            }
        }
        count
    };
    assert_eq!(received(&mut agent), WINDOW);
    agent.send(|out, number| put_numbers(out, Kind::Credit, number, 0, 1000));
    assert_eq!(received(&mut agent), 1000);
    // The program reads no more: the rest is dropped.
    agent.send(|out, number| put_frame(out, Kind::StdinClosed, number, &[]));
    agent.send(|out, number| put_numbers(out, Kind::Credit, number, 0, 1000));
    assert_eq!(received(&mut agent), 0);
}

#[test]
fn hello_is_found_at_any_place_and_never_in_data() {
    let nonce = [3; 16];
    let hello = hello(&nonce);
    for before in [0, 1, 15, 16, 17, 40] {
        for size in [1, 2, 7, 16, 36, 100] {
            // The beginning of a pattern that is cut off comes first.
            let stream = [&vec![hello[0]; before][..], &hello[..before.min(35)], &hello, b"rest"].concat();
            let (mut scanner, mut at, mut found) = (Scanner::new(false), 0, None);
            for mut chunk in stream.chunks(size) {
                // A HELLO that was cut off near its end is found, too, with a nonce that nobody waits for.
                while let Some((end, version, nonce)) = scanner.feed(chunk) {
                    at += end;
                    chunk = &chunk[end..];
                    found = Some((at, version, nonce));
                }
                at += chunk.len();
            }
            assert_eq!(found, Some((stream.len() - 4, VERSION, nonce)), "{before} {size}");
        }
    }
    let data = [&vec![1; MAX_PAYLOAD - 5][..], &hello, &hello, &hello[..15], &hello].concat();
    let (mut scanner, mut out) = (Scanner::new(false), VecDeque::new());
    pieces(&data, false).for_each(|piece| put_frame(&mut out, Kind::Stdin, 1, piece));
    assert_eq!(pieces(&data, false).collect::<Vec<_>>().concat(), data);
    assert_eq!(scanner.feed(out.make_contiguous()), None);
}

#[test]
fn requests_are_decoded_as_they_were_encoded_and_damaged_ones_are_refused() {
    let text = |text: &str| text.as_bytes().to_vec();
    let request = Request {
        argv: vec![text("sh"), text(""), text("-c")],
        env: vec![text("A=B")],
        env_clear: true,
        cwd: text("/tmp"),
        uid: Some(0),
        gid: None,
        grace_ms: 500,
        is_copy: false,
    };
    let encoded = request.encode();
    assert_eq!(Request::decode(&encoded), Some(request));
    for length in 0..encoded.len() {
        assert_eq!(Request::decode(&encoded[..length]), None);
    }
    assert_eq!(Request::decode(&[&encoded[..], b"x"].concat()), None);
    assert_eq!(Request::decode(&[255; 64]), None);
}
