//! The QEMU Machine Protocol: lines of JSON on a unix socket.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::sys::unix_socket::connect;

/// A client. QEMU serves one at a time on each socket.
pub(super) struct Qmp {
    stream: BufReader<UnixStream>,
    socket: PathBuf,
}

impl Qmp {
    /// Connects and negotiates. QEMU may take `timeout` for each answer.
    pub fn connect(socket: &Path, timeout: Duration) -> Result<Self> {
        let timeout = timeout.max(Duration::from_millis(1));
        let stream = connect(socket, timeout).map_err(Error::io("connect to", socket))?;
        stream.set_read_timeout(Some(timeout)).map_err(Error::io("set up", socket))?;
        let mut qmp = Self { stream: BufReader::new(stream), socket: socket.to_owned() };
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
        let sent = self.stream.get_mut().write_all(line.as_bytes());
        sent.map_err(|error| self.error(format!("{command}: {error}")))?;
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

    /// Waits for the next event; `None` when QEMU has exited.
    pub fn next_event(&mut self) -> Option<Value> {
        self.stream.get_ref().set_read_timeout(None).ok()?;
        self.read().ok()
    }

    fn read(&mut self) -> Result<Value> {
        let mut line = String::new();
        match self.stream.read_line(&mut line) {
            Ok(0) => Err(self.error("connection closed".to_owned())),
            Ok(_) => serde_json::from_str(&line).map_err(|error| self.error(error.to_string())),
            Err(error) => Err(self.error(error.to_string())),
        }
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
            Qmp::connect(&socket, timeout).and_then(|mut qmp| qmp.execute("query-status"))
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
            (&[GREETING, DONE, event], short, "temporarily unavailable"),
        ] {
            match execute_against(lines, timeout) {
                Err(Error::Qmp { reason: actual, .. }) => assert!(actual.contains(reason), "{actual}"),
                other => panic!("{lines:?}: {other:?}"),
            }
        }
    }
}
