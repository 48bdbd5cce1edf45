//! The QEMU Machine Protocol: a line of JSON each way on a unix socket.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::sys::unix_socket::connect;

/// A client; QEMU serves one at a time on a socket.
pub(crate) struct Qmp {
    stream: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects and shakes hands. QEMU may take `patience` for each answer.
    pub(crate) fn connect(socket: &Path, patience: Duration) -> Result<Self> {
        let patience = patience.max(Duration::from_millis(1));
        let stream = connect(socket, patience).map_err(Error::io("connect to", socket))?;
        stream.set_read_timeout(Some(patience)).map_err(Error::io("set up", socket))?;
        let mut qmp = Self { stream: BufReader::new(stream) };
        let greeting = qmp.read()?;
        if greeting.get("QMP").is_none() {
            return Err(Error::Qmp { reason: format!("{greeting} instead of a greeting") });
        }
        qmp.execute("qmp_capabilities")?;
        Ok(qmp)
    }

    /// Executes a command without arguments and returns what it answers.
    pub(crate) fn execute(&mut self, command: &str) -> Result<Value> {
        self.execute_with(command, json!({}))
    }

    /// Executes a command and returns what it answers.
    pub(crate) fn execute_with(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let failed = |error: std::io::Error| Error::Qmp { reason: format!("{command}: {error}") };
        let line = format!("{}\n", json!({ "execute": command, "arguments": arguments }));
        self.stream.get_mut().write_all(line.as_bytes()).map_err(failed)?;
        loop {
            let mut answer = self.read()?;
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = answer.get("error") {
                return Err(Error::Qmp { reason: format!("{command}: {error}") });
            }
            // Else it is an event, which can come at any time.
        }
    }

    /// Waits for the next event; `None` when QEMU is gone.
    pub(crate) fn next_event(&mut self) -> Option<Value> {
        self.stream.get_ref().set_read_timeout(None).ok()?;
        self.read().ok()
    }

    fn read(&mut self) -> Result<Value> {
        let mut line = String::new();
        match self.stream.read_line(&mut line) {
            Ok(0) => Err(Error::Qmp { reason: "it closed the connection".to_owned() }),
            Ok(_) => serde_json::from_str(&line).map_err(|error| Error::Qmp { reason: error.to_string() }),
            Err(error) => Err(Error::Qmp { reason: error.to_string() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;
    use std::thread;

    const GREETING: &str = r#"{"QMP": {}}"#;
    const DONE: &str = r#"{"return": {}}"#;

    /// What becomes of a command where these lines come, whatever is said.
    fn answered(lines: &[&str], patience: Duration) -> Result<Value> {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("qmp.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut stream = listener.accept().unwrap().0;
                let _ = lines.iter().try_for_each(|line| writeln!(stream, "{line}"));
                // It closes when the other has said all.
                let _ = std::io::copy(&mut (&stream), &mut std::io::sink());
            });
            Qmp::connect(&socket, patience).and_then(|mut qmp| qmp.execute("query-status"))
        })
    }

    #[test]
    fn what_answers_may_be_anything() {
        let event = r#"{"event": "STOP"}"#;
        let (long, short) = (Duration::from_secs(60), Duration::from_millis(50));
        let running = r#"{"return": {"status": "running"}}"#;
        assert_eq!(answered(&[GREETING, DONE, event, running], long).unwrap()["status"], "running");
        for (lines, patience, reason) in [
            (&[r#"{"hello": 1}"#][..], long, "instead of a greeting"),
            (&["smtp"], long, "expected value"),
            (&[GREETING, r#"{"error": {"class": "GenericError"}}"#], long, "qmp_capabilities: "),
            (&[GREETING, DONE, event], short, "temporarily unavailable"),
        ] {
            match answered(lines, patience) {
                Err(Error::Qmp { reason: said }) => assert!(said.contains(reason), "{said}"),
                other => panic!("{lines:?}: {other:?}"),
            }
        }
    }
}
