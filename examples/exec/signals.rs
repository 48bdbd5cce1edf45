//! Signals that end `exec`, and with it the VM.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;

type Action = Box<dyn FnMut(i32) + Send>;

/// The first signal that has ended this program. It is handled, so that the VM's files are deleted.
#[derive(Clone)]
pub struct EndingSignal(Arc<Mutex<State>>);

struct State {
    signal: Option<i32>,
    action: Option<Action>,
}

impl EndingSignal {
    /// Handles the signals from now on.
    pub fn new() -> io::Result<Self> {
        let handled = [SIGHUP, SIGINT, SIGQUIT, SIGTERM].into_iter().filter(|&signal| !is_ignored(signal));
        let mut signals = Signals::new(handled)?;
        let state = Arc::new(Mutex::new(State { signal: None, action: None }));
        let ending = Self(state);
        let in_thread = ending.clone();
        thread::Builder::new().spawn(move || {
            for signal in signals.forever() {
                let mut state = in_thread.lock();
                state.signal.get_or_insert(signal);
                if let Some(mut action) = state.action.take() {
                    drop(state);
                    action(signal);
                }
            }
        })?;
        Ok(ending)
    }

    /// Returns the signal, if there was one.
    pub fn signal(&self) -> Option<i32> {
        self.lock().signal
    }

    /// Sets the action for the signal, which runs once; at once if the signal has come already. Replaces the action of the last call.
    pub fn on_signal(&self, mut action: impl FnMut(i32) + Send + 'static) {
        let mut state = self.lock();
        match state.signal {
            None => state.action = Some(Box::new(action)),
            Some(signal) => {
                drop(state);
                action(signal);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the caller ignores a signal, as `nohup` does. Such a signal stays ignored.
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default(); // Linux only
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| (mask >> (signal - 1)) & 1 == 1)
}
