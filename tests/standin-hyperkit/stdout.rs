//! Standard output, which carries only hyperkit's own messages. hyperkit leaves it fully buffered, so messages appear when
//! the buffer is full and at a normal exit. They are lost at a signal or an abort.

use std::io::{Write, stdout};
use std::sync::Mutex;

/// The size of the C library's buffer.
const BUFFER: usize = 4096;

static BUFFERED: Mutex<String> = Mutex::new(String::new());

pub fn print(text: &str) {
    let mut buffered = BUFFERED.lock().unwrap();
    buffered.push_str(text);
    if buffered.len() > BUFFER {
        let _ = stdout().write_all(std::mem::take(&mut *buffered).as_bytes());
    }
}

pub fn flush() {
    let text = std::mem::take(&mut *BUFFERED.lock().unwrap());
    let _ = stdout().write_all(text.as_bytes()).and_then(|()| stdout().flush());
}
