//! Threads of this crate.

use std::io;
use std::thread::{Builder, JoinHandle};

/// Starts a thread. The boxed closure keeps the code of `std::thread` from being compiled for each caller.
pub(crate) fn spawn(name: &str, run: Box<dyn FnOnce() + Send>) -> io::Result<JoinHandle<()>> {
    Builder::new().name(name.to_owned()).spawn(run)
}
