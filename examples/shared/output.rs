//! Output that does not panic. `println!` and `eprintln!` do if the reader of a pipe has closed it, if the disk is full, and if
//! the terminal is gone.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write, stderr, stdout};

/// Prints a text on standard output. It is no error that the reader of a pipe has read enough.
pub fn print(text: impl Display) -> io::Result<()> {
    let mut stdout = stdout().lock();
    match write!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.map_err(|error| io::Error::new(error.kind(), format!("cannot write the output: {error}"))),
    }
}

/// Prints a text on standard error, if that is possible.
pub fn warn(text: impl Display) {
    let _ = write!(stderr(), "{text}");
}
