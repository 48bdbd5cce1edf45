//! The QEMU Machine Protocol: lines of JSON on a unix socket.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::sys::unix_socket::{connect, peer_pid};

/// A longer line is an error. The longest answer is the table of forwarded ports, with a line for each connection.
const MAX_LINE_BYTES: usize = 1024 * 1024;

/// A client. QEMU serves one at a time on each socket.
pub(super) struct Qmp {
    stream: Arc<UnixStream>,
    /// Received bytes that do not form a complete line yet.
    received: Vec<u8>,
    socket: PathBuf,
    timeout: Duration,
    /// When `timeout` is over, however much the peer sends until then. None: never.
    deadline: Option<Instant>,
}

impl Qmp {
    /// Connects to the hypervisor `pid` and negotiates. All that is done with the connection may take `timeout` together.
    pub fn connect(socket: &Path, pid: u32, timeout: Duration) -> Result<Self> {
        let deadline = Instant::now().checked_add(timeout);
        let stream = Arc::new(connect(socket, timeout).map_err(Error::io("connect to", socket))?);
        let mut qmp = Self { stream, received: Vec::new(), socket: socket.to_owned(), timeout, deadline };
        // The state directory may have been replaced: then another VM's hypervisor listens at this path.
        match peer_pid(&qmp.stream) {
            Ok(Some(peer)) if peer != pid => {
                return Err(qmp.error(format!("process {peer} listens there instead of process {pid}")));
            }
            Ok(_) => {}
            Err(error) => return Err(Error::io("identify the process at", socket)(error)),
        }
        let greeting = qmp.read()?;
        if greeting.get("QMP").is_none() {
            return Err(qmp.error(format!("{greeting} instead of a greeting")));
        }
        qmp.execute("qmp_capabilities")?;
        Ok(qmp)
    }

    /// Executes a command without arguments and returns its result.
    pub fn execute(&mut self, command: &str) -> Result<Value> {
        self.execute_with(command, json!({}))
    }

    /// Executes a command and returns its result.
    pub fn execute_with(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let line = format!("{}\n", json!({ "execute": command, "arguments": arguments }));
        let sent = self.left().and_then(|left| {
            self.stream.set_write_timeout(left)?;
            (&*self.stream).write_all(line.as_bytes())
        });
        sent.map_err(|error| self.failed(error))?;
        loop {
            let mut answer = self.read()?;
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = answer.get("error") {
                return Err(self.error(format!("{command}: {error}")));
            }
            // Anything else is an event, which can come at any time.
        }
    }

    /// The same connection, for requests.
    pub fn connection(&self) -> Weak<UnixStream> {
        Arc::downgrade(&self.stream)
    }

    /// Waits for the next event; `None` when QEMU has exited.
    pub fn next_event(&mut self) -> Option<Value> {
        self.deadline = None;
        self.read().ok()
    }

    fn read(&mut self) -> Result<Value> {
        let line = self.read_line().map_err(|error| self.failed(error))?;
        serde_json::from_slice(&line).map_err(|error| self.error(error.to_string()))
    }

    fn read_line(&mut self) -> io::Result<Vec<u8>> {
        loop {
            if let Some(end) = self.received.iter().position(|&byte| byte == b'\n') {
                return Ok(self.received.drain(..=end).collect());
            }
            if self.received.len() > MAX_LINE_BYTES {
                return Err(io::Error::other(format!("a line of more than {MAX_LINE_BYTES} bytes")));
            }
            let left = self.left()?;
            self.stream.set_read_timeout(left)?;
            let mut bytes = [0; 4096];
            match (&*self.stream).read(&mut bytes) {
                Ok(0) => return Err(io::Error::other("connection closed")),
                Ok(length) => self.received.extend_from_slice(&bytes[..length]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The time that is left until the deadline.
    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
    }

    fn failed(&self, error: io::Error) -> Error {
        self.error(match error.kind() {
            // A socket's timeout is reported as `WouldBlock`.
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => format!("no answer within {:?}", self.timeout),
            _ => error.to_string(),
        })
    }

    fn error(&self, reason: String) -> Error {
        Error::Qmp { socket: self.socket.clone(), reason }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;
    use std::thread;

    const GREETING: &str = r#"{"QMP": {}}"#;
    const DONE: &str = r#"{"return": {}}"#;

    /// The result of a command when the peer sends these lines without reading anything.
    fn execute_against(lines: &[&str], timeout: Duration) -> Result<Value> {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("qmp.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut stream = listener.accept().unwrap().0;
                let _ = lines.iter().try_for_each(|line| writeln!(stream, "{line}"));
                // Reads to the end, so that the client closes the connection first.
                let _ = std::io::copy(&mut (&stream), &mut std::io::sink());
            });
            Qmp::connect(&socket, std::process::id(), timeout).and_then(|mut qmp| qmp.execute("query-status"))
        })
    }

    #[test]
    fn unexpected_answers_are_errors() {
        let event = r#"{"event": "STOP"}"#;
        let (long, short) = (Duration::from_secs(60), Duration::from_millis(50));
        let running = r#"{"return": {"status": "running"}}"#;
        assert_eq!(execute_against(&[GREETING, DONE, event, running], long).unwrap()["status"], "running");
        for (lines, timeout, reason) in [
            (&[r#"{"hello": 1}"#][..], long, "instead of a greeting"),
            (&["smtp"], long, "expected value"),
            (&[GREETING, r#"{"error": {"class": "GenericError"}}"#], long, "qmp_capabilities: "),
            (&[GREETING, DONE, event], short, "no answer within 50ms"),
        ] {
            match execute_against(lines, timeout) {
                Err(Error::Qmp { reason: actual, .. }) => assert!(actual.contains(reason), "{actual}"),
                other => panic!("{lines:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn another_process_at_the_socket_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("qmp.sock");
        let _listener = UnixListener::bind(&socket).unwrap();
        match Qmp::connect(&socket, 1, Duration::from_secs(60)).map(drop) {
            Err(Error::Qmp { reason, .. }) => assert!(reason.contains("instead of process 1"), "{reason}"),
            other => panic!("{other:?}"),
        }
    }

    /// Each byte or event comes soon after the one before, so a timeout for each read would never end.
    #[test]
    fn a_peer_that_never_stops_sending_is_left_at_the_deadline() {
        for piece in ["1", "{\"event\": \"STOP\"}\n"] {
            let dir = tempfile::tempdir().unwrap();
            let socket = dir.path().join("qmp.sock");
            let listener = UnixListener::bind(&socket).unwrap();
            let sender = thread::spawn(move || {
                let mut stream = listener.accept().unwrap().0;
                write!(stream, "{GREETING}\n{DONE}\n").unwrap();
                while write!(stream, "{piece}").is_ok() {
                    thread::sleep(Duration::from_millis(10));
                }
            });
            let mut qmp = Qmp::connect(&socket, std::process::id(), Duration::from_millis(300)).unwrap();
            let result = qmp.execute("query-status");
            assert!(result.unwrap_err().to_string().contains("no answer within"));
            drop(qmp);
            sender.join().unwrap();
        }
    }

    #[test]
    fn a_line_that_does_not_end_is_an_error() {
        let endless = "1".repeat(MAX_LINE_BYTES + 2 * 4096);
        match execute_against(&[GREETING, DONE, &endless], Duration::from_secs(60)) {
            Err(Error::Qmp { reason, .. }) => assert!(reason.contains("a line of more than"), "{reason}"),
            other => panic!("{other:?}"),
        }
    }
}
